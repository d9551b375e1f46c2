"""The published rules against dense matrices, written from the formulas in the papers; nothing here is factored."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from fedgen import factors, lora
from fedgen.aggregate import Aggregate, Average, Exact, Fair, Padded, Residual, Stack, Turned
from fedgen.records import Tree, Update

Array = np.ndarray
LAYERS = {"grouped": torch.nn.Conv2d(8, 12, 3, groups=2), "flat": torch.nn.Linear(14, 11)}
BLOCKS = [("flat", 0), ("grouped", 0), ("grouped", 1)]
SIZES = (7, 1, 30, 12)
SHARES = [size / sum(SIZES) for size in SIZES]


def make(seed: int, ranks: int = 4) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    like = lora.fresh(LAYERS, ranks, draw)
    return {key: 0.4 * torch.randn(value.shape, generator=draw) for key, value in like.items()}


def dense(tree: Tree, path: str, group: int) -> tuple[Array, Array]:
    """B [out, r] and A [r, in] of one group."""
    pair = next(pair for pair in lora.pairs(tree) if pair.path == path)
    groups = 2 if path == "grouped" else 1
    a, b = (half.flatten(1).double().numpy() for half in (pair.a, pair.b))
    return np.split(b, groups)[group], np.split(a, groups)[group]


def times(tree: Tree, path: str, group: int) -> Array:
    b, a = dense(tree, path, group)
    return b @ a


def folded(rule: Aggregate, like: Tree, adapters: Sequence[Tree]) -> Tree:
    fold = rule.fold(like)
    for at, (size, adapter) in enumerate(zip(SIZES, adapters, strict=True)):
        fold.add(Update(1, f"c{at}", "global", adapter, size))
    return fold.close()


def cut(matrix: Array, ranks: int) -> Array:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :ranks] * s[:ranks] @ vt[:ranks]


def mean(matrices: Sequence[Array], shares: Sequence[float] = SHARES) -> Array:
    return sum(share * matrix for share, matrix in zip(shares, matrices, strict=True))


def close(found: Array, wanted: Array) -> bool:
    return bool(np.abs(found - wanted).max() < 3e-6 * max(1.0, float(np.abs(wanted).max())))


SAME = [make(seed) for seed in range(4)]
MIXED = [make(seed, ranks) for seed, ranks in enumerate((2, 4, 8, 6))]


@pytest.mark.parametrize("where", BLOCKS, ids=str)
def test_fedit_averages_a_and_b(where: tuple[str, int]) -> None:
    found = dense(folded(Average(), make(9), SAME), *where)
    bs, factors_a = zip(*(dense(tree, *where) for tree in SAME), strict=True)
    assert close(found[0], mean(bs))
    assert close(found[1], mean(factors_a))


@pytest.mark.parametrize("where", BLOCKS, ids=str)
def test_flexlora_is_the_svd_of_the_dense_mean(where: tuple[str, int]) -> None:
    """SVD of sum p_k B_k A_k, the first r kept: a group of two has half of the ranks."""
    ranks = 8 // (2 if where[0] == "grouped" else 1)
    whole = mean([times(tree, *where) for tree in MIXED])
    assert close(times(folded(Exact(), make(9, 8), MIXED), *where), cut(whole, ranks))
    assert not close(whole, cut(whole, ranks))


@pytest.mark.parametrize("where", BLOCKS, ids=str)
def test_hetlora_pads_and_weighs_by_the_norm_of_the_whole_update(where: tuple[str, int]) -> None:
    norms = [np.sqrt(sum(np.square(times(tree, *block)).sum() for block in BLOCKS)) for tree in MIXED]
    shares = [norm / sum(norms) for norm in norms]
    ranks = 8 // (2 if where[0] == "grouped" else 1)
    wanted_b, wanted_a = np.zeros(()), np.zeros(())
    for share, tree in zip(shares, MIXED, strict=True):
        b, a = dense(tree, *where)
        more = ranks - len(a)
        wanted_b = wanted_b + share * np.pad(b, ((0, 0), (0, more)))
        wanted_a = wanted_a + share * np.pad(a, ((0, more), (0, 0)))
    found = dense(folded(Padded(), make(9, 8), MIXED), *where)
    assert close(found[0], wanted_b)
    assert close(found[1], wanted_a)


@pytest.mark.parametrize("ridge", [1e-3, 0.5])
@pytest.mark.parametrize("where", BLOCKS, ids=str)
def test_lora_fair_is_a_dense_ridge_regression(where: tuple[str, int], ridge: float) -> None:
    """Min over D of ||M - (B + D) A||^2 + ridge ||D||^2, as least squares with sqrt(ridge) I below."""
    bs, factors_a = zip(*(dense(tree, *where) for tree in SAME), strict=True)
    b, a = mean(bs), mean(factors_a)
    gap = mean([times(tree, *where) for tree in SAME]) - b @ a
    left = np.vstack([a.T, np.sqrt(ridge) * np.eye(len(a))])
    right = np.vstack([gap.T, np.zeros((len(a), len(b)))])
    more = np.linalg.lstsq(left, right, rcond=None)[0].T
    found = dense(folded(Fair(ridge=ridge), make(9), SAME), *where)
    assert close(found[0], b + more)
    assert close(found[1], a)
    assert np.abs(more).max() > 0.01


def under(tree: Tree, like: Tree) -> Tree:
    """The tree with the A of another."""
    return tree | {key: value for key, value in like.items() if "lora_A" in key}


@pytest.mark.parametrize("where", BLOCKS, ids=str)
def test_fedsvd_is_the_dense_svd_of_the_mean_under_one_a(where: tuple[str, int]) -> None:
    """B' = U_r S_r and A' = V_r^T, each up to the sign of its ranks."""
    like = make(9)
    found = folded(Turned(), like, [under(tree, like) for tree in SAME])
    b, a = dense(found, *where)
    whole = mean([dense(tree, *where)[0] for tree in SAME]) @ dense(like, *where)[1]
    u, s, vt = np.linalg.svd(whole, full_matrices=False)
    assert close(b @ a, whole)
    assert close(a @ a.T, np.eye(len(a)))
    assert close(np.abs(a), np.abs(vt[: len(a)]))
    assert close(np.abs(b), np.abs(u[:, : len(a)] * s[: len(a)]))


@pytest.mark.parametrize("where", BLOCKS, ids=str)
def test_fedex_adds_what_the_mean_of_factors_misses(where: tuple[str, int]) -> None:
    """W <- W + mean(B_k A_k) - mean(B) mean(A), over two rounds, W being the frozen part: exact under a wide cap."""
    state, base = make(9), np.zeros(1)
    for turn in range(2):
        updates = [make(10 * turn + seed) for seed in range(4)]
        state = folded(Residual(rank=24), state, updates)
        bs, factors_a = zip(*(dense(tree, *where) for tree in updates), strict=True)
        base = base + mean([times(tree, *where) for tree in updates]) - mean(bs) @ mean(factors_a)
    frozen, moving = factors.split(state, 4)
    assert close(times(frozen, *where), base)
    assert close(dense(moving, *where)[0], mean(bs))
    assert close(dense(moving, *where)[1], mean(factors_a))
    assert close(times(state, *where), base + mean(bs) @ mean(factors_a))


@pytest.mark.parametrize("where", BLOCKS, ids=str)
def test_fedex_under_a_narrow_cap_keeps_the_best_of_what_is_missed(where: tuple[str, int]) -> None:
    frozen, _ = factors.split(folded(Residual(rank=6), make(9), SAME), 4)
    bs, factors_a = zip(*(dense(tree, *where) for tree in SAME), strict=True)
    missed = mean([times(tree, *where) for tree in SAME]) - mean(bs) @ mean(factors_a)
    assert close(times(frozen, *where), cut(missed, 3 if where[0] == "grouped" else 6))


@pytest.mark.parametrize("where", BLOCKS, ids=str)
def test_flora_concatenates(where: tuple[str, int]) -> None:
    """G + [B_1 ... B_K] [p_1 A_1; ...; p_K A_K], of whatever ranks."""
    start = make(9)
    bs, factors_a = zip(*(dense(tree, *where) for tree in MIXED), strict=True)
    wide = np.hstack(bs) @ np.vstack([share * a for share, a in zip(SHARES, factors_a, strict=True)])
    found = folded(Stack(), start, MIXED)
    assert close(times(found, *where), times(start, *where) + wide)
    narrow = folded(Stack(rank=6), start, MIXED)
    ranks = 3 if where[0] == "grouped" else 6
    assert close(times(narrow, *where), cut(times(start, *where) + wide, ranks))
