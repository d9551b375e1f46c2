"""Low-rank adapters: which layers they sit on, a tree seen as pairs, and exact algebra on the products B A.

No dense out x in matrix is ever formed: a product is handled by QR of its thin factors and a small SVD. The factors
of a convolution are flattened to matrices; a grouped one is a batch of products, one a group, under the same rules.
Trees made here have their keys in alphabetical order.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedgen.errors import BackboneError, TreeError
from fedgen.records import Tree

PREFIX = "base_model.model."
A_END, B_END = ".lora_A.weight", ".lora_B.weight"
WIDE = 1024  # ranks of a Gram matrix at once, so that its memory grows with the adapters and not with their square
TINY = 1e-300  # in place of a length of zero

Shape = tuple[int, ...]
Product = tuple[Tensor, Tensor]  # B [groups, out, r] and A [groups, r, in] in float64


@runtime_checkable
class _Linear(Protocol):
    """What every linear layer has, a quantised one included."""

    in_features: object
    out_features: object


@dataclass(frozen=True)
class Pair:
    """The two thin factors of one layer: A reads the input, B writes the output."""

    path: str
    a: Tensor
    b: Tensor


# ---- pairs of a tree


def pairs(tree: Tree) -> list[Pair]:
    """The tree's pairs, sorted by path."""
    for key in tree:
        if not key.startswith(PREFIX) or not key.endswith((A_END, B_END)):
            raise TreeError(f"adapter: '{key}' is no key of one, wanted '{PREFIX}<layer>{A_END}' or '...{B_END}'")
    return [_pair(tree, path) for path in sorted({key[len(PREFIX) : -len(A_END)] for key in tree})]


def _pair(tree: Tree, path: str) -> Pair:
    keys = PREFIX + path + A_END, PREFIX + path + B_END
    for key, other in (keys, keys[::-1]):
        if key not in tree:
            raise TreeError(f"adapter: '{key}' is missing, but its other half '{other}' is there")
    pair = Pair(path, tree[keys[0]], tree[keys[1]])
    _check(pair)
    return pair


def _check(pair: Pair) -> None:
    a, b = pair.a.shape, pair.b.shape
    linear = len(a) == len(b) == 2 and a[0] == b[1] > 0
    conv = len(a) == len(b) == 4 and b[2:] == (1, 1) and b[1] > 0 and a[0] % b[1] == 0 and b[0] % (a[0] // b[1]) == 0
    if not linear and not conv:
        raise TreeError(f"adapter: the factors of '{pair.path}' do not fit: A is {tuple(a)} and B is {tuple(b)}")


def tree_of(parts: Iterable[Pair]) -> Tree:
    """The tree of these pairs."""
    halves = [(part.path, end, half) for part in parts for end, half in ((A_END, part.a), (B_END, part.b))]
    return dict(sorted((PREFIX + path + end, half) for path, end, half in halves))


def rank(tree: Tree) -> int:
    """The one rank of the whole tree."""
    found = sorted({pair.a.shape[0] for pair in pairs(tree)})
    if len(found) != 1:
        raise TreeError(f"adapter: wanted one rank in all layers, came {found or 'no layer'}; resize it to one rank")
    return found[0]


# ---- layers of a network


def targets(network: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """The layers whose path is one of the names or ends with one, in the network's order."""
    modules = dict(network.named_modules())
    for name in names or ("",):
        if not name or not any(is_called(path, name) for path in modules):
            known = ", ".join(sorted({short(path) for path, layer in modules.items() if _is_adaptable(layer)}))
            raise BackboneError(f"adapter.targets: '{name}' is no layer of this backbone; those to adapt are: {known}")
    return {path: layer for path, layer in modules.items() if any(is_called(path, name) for name in names)}


def last(paths: Iterable[str], share: float) -> list[str]:
    """The last share of these paths, in the order of their words, with numbers as numbers."""
    words = [path.split(".") for path in paths]
    words.sort(key=lambda path: [(int(word), "") if word.isdigit() else (-1, word) for word in path])
    return [".".join(path) for path in words[len(words) - round(share * len(words)) :]]


def is_called(path: str, name: str) -> bool:
    """Whether a target's name means the layer at this path."""
    return path == name or path.endswith("." + name)


def short(path: str) -> str:
    """The name that a target would have: the last word of the path, with the numbers after it."""
    words = path.split(".")
    return ".".join(words[max((at for at, word in enumerate(words) if not word.isdigit()), default=0) :])


def _is_adaptable(layer: nn.Module) -> bool:
    return isinstance(layer, (Conv1D, nn.Conv2d, _Linear))


def shapes(layer: nn.Module, rank: int) -> tuple[Shape, Shape]:
    """The shapes of A and B for this layer, as PEFT has them."""
    if rank < 1:
        raise BackboneError(f"rank: wanted at least 1, came {rank}")
    if isinstance(layer, nn.Conv2d):
        return _conv_shapes(layer, rank)
    if isinstance(layer, Conv1D):
        into, out = layer.weight.shape
        return (rank, into), (out, rank)
    if isinstance(layer, _Linear) and isinstance(layer.in_features, int) and isinstance(layer.out_features, int):
        return (rank, layer.in_features), (layer.out_features, rank)
    raise BackboneError(f"targets: no adapter fits a layer of type {type(layer).__name__}, only linear ones and Conv2d")


def _conv_shapes(layer: nn.Conv2d, rank: int) -> tuple[Shape, Shape]:
    if rank % layer.groups:
        raise BackboneError(f"rank: a Conv2d with {layer.groups} groups wants a multiple of that, came {rank}")
    high, wide = layer.kernel_size
    return (rank, layer.in_channels, high, wide), (layer.out_channels, rank // layer.groups, 1, 1)


def fresh(layers: Mapping[str, nn.Module], rank: int, draw: torch.Generator) -> Tree:
    """A new adapter that changes nothing yet: A is drawn as PEFT draws it, layer by layer, and B is zeros."""
    made = []
    for path, layer in layers.items():
        shape_a, shape_b = shapes(layer, rank)
        a = nn.init.kaiming_uniform_(torch.empty(shape_a), a=math.sqrt(5), generator=draw)
        made.append(Pair(path, a, torch.zeros(shape_b)))
    return tree_of(made)


# ---- exact algebra on products


def product_sum(parts: Sequence[tuple[float, Tree]]) -> Tree:
    """The weighted sum of the products, exactly: factors stacked, ranks added."""
    return tree_of(pair_of(stacked(row), row[0][1]) for row in aligned(parts))


def best(tree: Tree, rank: int) -> Tree:
    """The nearest adapter of this rank (Eckart and Young), its two factors balanced."""
    return tree_of(pair_of(_truncate(product_of(pair), rank // groups_of(pair)), pair) for pair in of_rank(tree, rank))


def resize(tree: Tree, rank: int) -> Tree:
    """The same adapter at another rank: exact upwards, the nearest one downwards."""
    return tree_of(_resize(pair, rank) for pair in of_rank(tree, rank))


def compact(parts: Sequence[tuple[float, Tree]], rank: int) -> tuple[Tree, float]:
    """The nearest adapter of this rank to the weighted sum of the products, and the share of energy that it loses."""
    made, lost, total = [], 0.0, 0.0
    for pair in of_rank(product_sum(parts), rank):
        product, lengths = _truncated(product_of(pair), rank // groups_of(pair))
        made.append(pair_of(product, pair))
        lost += float(lengths[:, rank // groups_of(pair) :].square().sum())
        total += float(lengths.square().sum())
    return tree_of(made), lost / total if total else 0.0


def inner(a: Tree, b: Tree) -> float:
    """The inner product of two adapters' products."""
    return float(gram([a, b])[0, 1])


def gram(trees: Sequence[Tree]) -> Tensor:
    """The inner products of the adapters' products, each with each [n, n], exactly and by r x r blocks."""
    found = torch.zeros(len(trees), len(trees), dtype=torch.float64)
    for row in aligned([(1.0, tree) for tree in trees]):
        b, a = stacked(row)
        owner = torch.tensor([at for at, (_, pair) in enumerate(row) for _ in range(pair.b.shape[1])])
        for some, mine in zip(torch.arange(len(owner)).split(WIDE), owner.split(WIDE), strict=True):
            blocks = ((b[:, :, some].mT @ b) * (a[:, some] @ a.mT)).sum(0)
            sums = found.new_zeros(len(some), len(trees)).index_add_(1, owner, blocks.cpu())
            found.index_add_(0, mine, sums)
    return (found + found.mT) / 2


def cosines(trees: Sequence[Tree]) -> Tensor:
    """How alike the adapters' products are [n, n]; one that changes nothing is like itself alone."""
    found = gram(trees)
    length = found.diagonal().clamp(min=0).sqrt()
    alike = found / (length[:, None] * length).clamp(min=TINY)
    return alike.clamp(-1, 1).fill_diagonal_(1)


def energy_kept(tree: Tree, rank: int) -> float:
    """The share of the squared singular values that `best` at this rank would keep, over all layers."""
    kept = total = 0.0
    for pair in of_rank(tree, rank):
        energy = torch.linalg.svdvals(small(product_of(pair))[1]).square()
        kept += float(energy[:, : rank // groups_of(pair)].sum())
        total += float(energy.sum())
    return kept / total if total else 1.0


def apart_error(parts: Sequence[tuple[float, Tree]]) -> float:
    """How far averaging A and B apart is from the mean of the products: the relative Frobenius error."""
    weight = sum(share for share, _ in parts)
    if not weight > 0:
        raise TreeError(f"apart: the weights of {len(parts)} adapters sum to {weight}, wanted more than 0")
    wrong = size = 0.0
    for row in aligned([(share / weight, tree) for share, tree in parts]):
        exact, apart = stacked(row), mean_apart(row)
        gap = torch.cat((exact[0], -apart[0]), 2), torch.cat((exact[1], apart[1]), 1)
        wrong += float(small(gap)[1].square().sum())
        size += float(small(exact)[1].square().sum())
    return math.sqrt(wrong / size) if size else (math.inf if wrong else 0.0)


def check_layers(tree: Tree, like: Tree, where: str) -> None:
    """Raise unless both adapt the same layers of the same shapes, whatever their ranks."""
    found, wanted = ({pair.path: _layer(pair) for pair in pairs(one)} for one in (tree, like))
    if found != wanted:
        odd = min(path for path in found | wanted if found.get(path) != wanted.get(path))
        raise TreeError(f"{where}: '{odd}' is not in all of them in one shape; all must adapt the same layers")


def aligned(parts: Sequence[tuple[float, Tree]]) -> list[list[tuple[float, Pair]]]:
    """For each layer, every part's weight and pair; all parts must adapt the same layers of the same shapes."""
    if not parts:
        raise TreeError("adapters: wanted at least one, came none")
    for _, tree in parts[1:]:
        check_layers(tree, parts[0][1], "adapters")
    columns = [[(share, pair) for pair in pairs(tree)] for share, tree in parts]
    return [list(row) for row in zip(*columns, strict=True)]


def _layer(pair: Pair) -> tuple[int, ...]:
    """What the factors say of their layer, whatever the rank."""
    return (groups_of(pair), pair.b.shape[0], *pair.a.shape[1:])


def of_rank(tree: Tree, rank: int) -> list[Pair]:
    """The tree's pairs, once it is sure that they can have this rank."""
    found = pairs(tree)
    for pair in found:
        if rank < 1 or rank % groups_of(pair):
            raise TreeError(f"rank: '{pair.path}' can have a positive multiple of {groups_of(pair)}, came {rank}")
    return found


def groups_of(pair: Pair) -> int:
    """How many groups its convolution has; 1 for every other layer."""
    return pair.a.shape[0] // pair.b.shape[1]


def product_of(pair: Pair) -> Product:
    """The factors as matrices in float64, a batch of one a group."""
    groups = groups_of(pair)
    if not (pair.a.isfinite().all() and pair.b.isfinite().all()):
        raise TreeError(f"adapter: the factors of '{pair.path}' hold NaN or infinity")
    a = pair.a.detach().double().reshape(groups, pair.b.shape[1], -1)
    return pair.b.detach().double().reshape(groups, pair.b.shape[0] // groups, -1), a


def pair_of(product: Product, pair: Pair) -> Pair:
    """The product as a pair on the same layer as `pair`."""
    b, a = product
    shape_b = (pair.b.shape[0], b.shape[2], *pair.b.shape[2:])
    return Pair(pair.path, a.reshape(-1, *pair.a.shape[1:]).to(pair.a.dtype), b.reshape(shape_b).to(pair.b.dtype))


def stacked(row: Sequence[tuple[float, Pair]]) -> Product:
    """The weighted sum of one layer's products, exactly: factors side by side."""
    products = [(share, *product_of(pair)) for share, pair in row]
    return torch.cat([share * b for share, b, _ in products], 2), torch.cat([a for _, _, a in products], 1)


def mean_apart(row: Sequence[tuple[float, Pair]]) -> Product:
    """What averaging the factors gives; a narrower one counts as padded with zeros."""
    widest = max(pair.a.shape[0] for _, pair in row)
    products = [(share, *product_of(_resize(pair, widest))) for share, pair in row]
    b = torch.stack([share * b for share, b, _ in products]).sum(0)
    a = torch.stack([share * a for share, _, a in products]).sum(0)
    return b, a


def _resize(pair: Pair, rank: int) -> Pair:
    b, a = product_of(pair)
    wanted = rank // a.shape[0]
    return pair_of(padded((b, a), wanted) if wanted >= a.shape[1] else _truncate((b, a), wanted), pair)


def padded(product: Product, rank: int) -> Product:
    """The same product with zeros up to this rank (of each group)."""
    b, a = product
    more = rank - a.shape[1]
    return torch.cat((b, b.new_zeros(*b.shape[:2], more)), 2), torch.cat((a, a.new_zeros(len(a), more, a.shape[2])), 1)


def small(product: Product) -> tuple[Tensor, Tensor, Tensor]:
    """Q_b, core, Q_a with B A = Q_b core Q_a^T: the core has all of the product's singular values and is small."""
    q_b, r_b = torch.linalg.qr(product[0])
    q_a, r_a = torch.linalg.qr(product[1].mT)
    return q_b, r_b @ r_a.mT, q_a


def _truncate(product: Product, rank: int) -> Product:
    return _truncated(product, rank)[0]


def _truncated(product: Product, rank: int) -> tuple[Product, Tensor]:
    """The nearest product of this rank, and the singular values of the whole one, group by group."""
    q_b, core, q_a = small(product)
    u, s, vt = torch.linalg.svd(core, full_matrices=False)
    root = s[:, :rank].sqrt()
    b = (q_b @ u[:, :, :rank]) * root[:, None, :]
    a = root[:, :, None] * (vt[:, :rank] @ q_a.mT)
    return padded((b, a), rank), s
