"""Adapters cut along their rank, adapters whose factors are frames, and the rank that a sum is worth.

In a grouped convolution every group has its share of the ranks, and each group is cut or drawn like a layer of its own.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fedgen.errors import TreeError
from fedgen.lora import Pair, best, groups_of, of_rank, padded, pair_of, pairs, product_of, rank, small, tree_of
from fedgen.records import Tree

ROUNDING = 1e-13  # a share of energy that is none: what rounding factors to float32 adds, and so can take away


def head(tree: Tree, ranks: int) -> Tree:
    """The first so many ranks of every layer."""
    return _cut(tree, 0, ranks)


def heads(tree: Tree, ranks: Mapping[str, int]) -> Tree:
    """The first ranks of each layer, as many as are its own."""
    return tree_of(_slice(pair, 0, ranks[pair.path]) for pair in pairs(tree))


def ranks_of(tree: Tree) -> dict[str, int]:
    """The rank of each layer."""
    return {pair.path: len(pair.a) for pair in pairs(tree)}


def ordered(tree: Tree) -> Tree:
    """The same products in factors whose first ranks are, however many are taken, the nearest adapter of that rank.

    A layer that changes nothing yet is left as it is: its best factors are zeros, which never learn.
    """
    return tree_of(_ordered(pair) for pair in pairs(tree))


def _ordered(pair: Pair) -> Pair:
    alone = tree_of([pair])
    return pairs(best(alone, len(pair.a)))[0] if pair.a.any() and pair.b.any() else pair


def has_learnt(tree: Tree) -> bool:
    """Whether any layer changes anything yet."""
    return any(bool(pair.a.any() and pair.b.any()) for pair in pairs(tree))


def energies(tree: Tree) -> dict[str, Tensor]:
    """The energy of each rank of ordered factors, layer by layer: its squared length, summed over groups."""
    found = {}
    for pair in pairs(tree):
        b, a = product_of(pair)
        found[pair.path] = (b.square().sum(1) * a.square().sum(2)).sum(0)
    return found


def breadth(tree: Tree) -> float:
    """The effective rank: e to the entropy of how energy is shared by singular directions, as a mean over layers."""
    found = []
    for pair in pairs(tree):
        energy = torch.linalg.svdvals(small(product_of(pair))[1]).square().flatten()
        shares = energy[energy > 0] / energy.sum()
        found.append(float((-shares * shares.log()).sum().exp()) if len(shares) else 0.0)
    return sum(found) / len(found)


def split(tree: Tree, ranks: int) -> tuple[Tree, Tree]:
    """What comes before the last so many ranks of every layer, which is the empty tree if nothing does, and these."""
    ahead = rank(tree) - ranks
    back = _cut(tree, ahead, ranks)
    return (_cut(tree, 0, ahead) if ahead else {}), back


def _cut(tree: Tree, first: int, ranks: int) -> Tree:
    whole = rank(tree)
    if ranks > whole:
        raise TreeError(f"rank: wanted at most {whole}, which is all that the adapter has, came {ranks}")
    return tree_of(_slice(pair, first, ranks) for pair in of_rank(tree, ranks))


def _slice(pair: Pair, first: int, ranks: int) -> Pair:
    (b, a), groups = product_of(pair), groups_of(pair)
    at = slice(first // groups, (first + ranks) // groups)
    return pair_of((b[:, :, at], a[:, at]), pair)


def orthonormal(like: Tree, ranks: int, draw: torch.Generator) -> Tree:
    """A new adapter that changes nothing yet, on the same layers: the rows of A are orthonormal, and B is zeros.

    Where a layer has no room for so many rows, as many as there can be, and zeros below.
    """
    made = []
    for pair in of_rank(like, ranks):
        b, a = product_of(pair)
        rows = _frame(len(a), a.shape[2], ranks // len(a), draw).mT
        made.append(pair_of(padded((b.new_zeros(*b.shape[:2], rows.shape[1]), rows), ranks // len(a)), pair))
    return tree_of(made)


def frame(like: Tree, ranks: int, draw: torch.Generator) -> Tree:
    """A random frame on the same layers: the rows of A are orthonormal, and so are the columns of B.

    Where a layer has no room for so many, as many as there can be of each, and zeros behind them.
    """
    made = []
    for pair in of_rank(like, ranks):
        b, a = product_of(pair)
        into, out = (_frame(len(a), wide, ranks // len(a), draw) for wide in (a.shape[2], b.shape[1]))
        made.append(pair_of((_wide(out, ranks // len(a)), _wide(into, ranks // len(a)).mT), pair))
    return tree_of(made)


def _frame(groups: int, wide: int, ranks: int, draw: torch.Generator) -> Tensor:
    """Orthonormal columns [groups, wide, ranks], evenly distributed; one draw has one frame on every machine."""
    found = torch.randn(groups, wide, min(ranks, wide), generator=draw, dtype=torch.float64)
    q, r = torch.linalg.qr(found)
    columns: Tensor = q * torch.where(r.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0)[:, None]  # libraries differ in signs
    return columns


def _wide(columns: Tensor, ranks: int) -> Tensor:
    return torch.cat((columns, columns.new_zeros(*columns.shape[:2], ranks - columns.shape[2])), 2)


def turned(tree: Tree) -> Tree:
    """The same products in other factors: the rows of A are orthonormal, and all of the length is in B."""
    return tree_of(_turned(pair) for pair in pairs(tree))


def _turned(pair: Pair) -> Pair:
    q_b, core, q_a = small(product_of(pair))
    u, s, vt = torch.linalg.svd(core, full_matrices=False)
    return pair_of(padded(((q_b @ u) * s[:, None], vt @ q_a.mT), pair.b.shape[1]), pair)


def fitted(tree: Tree, most: int, energy: float = 1.0) -> tuple[Tree, float]:
    """The nearest adapter of the least rank that keeps this share of the energy, and the share that it loses.

    The rank is at most `most`, and one for all layers.
    """
    step = math.lcm(*(groups_of(pair) for pair in pairs(tree)))
    if most < step:
        raise TreeError(f"rank: the layers' groups want a multiple of {step}, came at most {most}")
    tails = _tails(tree, step, most // step)
    lost = tails / tails[0] if tails[0] else tails
    enough = (lost[1:] <= 1 - energy + ROUNDING).nonzero().flatten().tolist()
    steps = 1 + enough[0] if enough else most // step
    return best(tree, step * steps), float(lost[steps])


def _tails(tree: Tree, step: int, most: int) -> Tensor:
    """The energy beyond 0, 1, ... `most` steps of rank, summed from the smallest up so that little is not lost."""
    found = torch.zeros(most + 1, dtype=torch.float64)
    for pair in pairs(tree):
        b, a = product_of(pair)
        energy = torch.linalg.svdvals(small((b, a))[1]).square().sum(0).cpu()
        beyond = torch.cat((energy.flip(0).cumsum(0).flip(0), energy.new_zeros(1)))
        at = torch.arange(most + 1) * (step // len(a))
        found += beyond[at.clamp(max=len(energy))]
    return found
