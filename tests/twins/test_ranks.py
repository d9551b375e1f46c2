"""Unequal ranks against dense matrices and slow loops: what is offered, what it comes to, and where a budget goes."""

import numpy as np
import pytest
import torch

from fedgen import factors, lora, tree
from fedgen.aggregate import Changes, Exact
from fedgen.allot import Wish, moved, spread
from fedgen.records import Tree, Update

Array = np.ndarray
LAYERS = {
    "deep": torch.nn.Linear(9, 20),
    "flat": torch.nn.Linear(14, 11),
    "grouped": torch.nn.Conv2d(8, 12, 3, groups=2),
}
SIZES = (7, 1, 30, 12)


def make(seed: int, ranks: int = 8) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    like = lora.fresh(LAYERS, ranks, draw)
    return {key: 0.4 * torch.randn(value.shape, generator=draw) for key, value in like.items()}


def dense(tree: Tree) -> list[Array]:
    """Every product, one a group."""
    found = []
    for pair in lora.pairs(tree):
        groups = 2 if pair.path == "grouped" else 1
        a, b = (half.flatten(1).double().numpy() for half in (pair.a, pair.b))
        found += [two @ one for one, two in zip(np.split(a, groups), np.split(b, groups), strict=True)]
    return found


def cut(matrix: Array, ranks: int) -> Array:
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :ranks] * s[:ranks] @ vt[:ranks]


def of_each(ranks: dict[str, int]) -> list[int]:
    """The rank of every product."""
    return [ranks["deep"], ranks["flat"], ranks["grouped"] // 2, ranks["grouped"] // 2]


def close(found: list[Array], wanted: list[Array]) -> bool:
    return all(np.abs(one - two).max() < 1e-5 for one, two in zip(found, wanted, strict=True))


UNEVEN = [
    {"deep": 2, "flat": 6, "grouped": 4},
    {"deep": 8, "flat": 1, "grouped": 2},
    {"deep": 8, "flat": 8, "grouped": 8},
    {"deep": 1, "flat": 3, "grouped": 6},
]


@pytest.mark.parametrize("ranks", UNEVEN, ids=str)
def test_what_is_offered_is_the_best_truncation(ranks: dict[str, int]) -> None:
    like = make(9)
    found = dense(factors.heads(factors.ordered(like), ranks))
    assert close(found, [cut(whole, r) for whole, r in zip(dense(like), of_each(ranks), strict=True)])
    assert ranks["deep"] == 8 or not close(found, dense(factors.heads(like, ranks)))  # the first columns are others


def test_changes_are_dense_sums() -> None:
    """like + sum p_k (B_k A_k - T_k(like)), of which the best 8 ranks stay."""
    like = make(9)
    updates = [factors.heads(make(seed), ranks) for seed, ranks in enumerate(UNEVEN)]
    fold = Changes().fold(like)
    for at, (size, update) in enumerate(zip(SIZES, updates, strict=True)):
        fold.add(Update(1, f"c{at}", "global", update, size))
    wanted = dense(like)
    for size, ranks, update in zip(SIZES, UNEVEN, updates, strict=True):
        offered = [cut(whole, r) for whole, r in zip(dense(like), of_each(ranks), strict=True)]
        for at, (sent, held) in enumerate(zip(dense(update), offered, strict=True)):
            wanted[at] = wanted[at] + size / sum(SIZES) * (sent - held)
    assert close(dense(fold.close()), [cut(whole, r) for whole, r in zip(wanted, (8, 8, 4, 4), strict=True)])


def test_with_equal_ranks_changes_are_the_exact_mean() -> None:
    folds = [rule.fold(make(9)) for rule in (Changes(), Exact())]
    for fold in folds:
        for at, size in enumerate(SIZES):
            fold.add(Update(1, f"c{at}", "global", make(at), size))
    one, two = (fold.close() for fold in folds)
    assert all(torch.equal(one[key], two[key]) for key in two)
    assert folds[0].told == folds[1].told


def test_how_far_an_update_moved_is_a_dense_difference() -> None:
    like, ranks = make(9), UNEVEN[0]
    update = factors.heads(make(3), ranks)
    held = [cut(whole, r) for whole, r in zip(dense(like), of_each(ranks), strict=True)]
    wanted = sum(float(((sent - own) ** 2).sum()) for sent, own in zip(dense(update), held, strict=True))
    assert moved(factors.ordered(like), update) == pytest.approx(wanted / tree.size(update), rel=1e-5)


COSTS = {"deep": 9 + 20, "flat": 14 + 11, "grouped": 2 * (8 * 9 + 6)}  # of a step, which for two groups is two ranks


def greedy(wishes: list[Wish], mean: float) -> list[dict[str, int]]:
    """One step at a time to whoever it is worth most to, until what is worth most next is too much."""
    steps = [dict.fromkeys(COSTS, 1) for _ in wishes]
    left = sum(mean * cost / (2 if path == "grouped" else 1) for _ in wishes for path, cost in COSTS.items())
    left -= len(wishes) * sum(COSTS.values())
    while True:
        found = []
        for at, wish in enumerate(wishes):
            values = [np.linalg.svd(one, compute_uv=False) ** 2 for one in dense(wish.adapter)]
            energies = {"deep": values[0], "flat": values[1], "grouped": values[2] + values[3]}
            for path, own in steps[at].items():
                if own < wish.most // (2 if path == "grouped" else 1):
                    found.append((wish.need * energies[path][own] / COSTS[path], at, path))
        if not found or COSTS[max(found)[2]] > left:
            return [{path: own * (2 if path == "grouped" else 1) for path, own in each.items()} for each in steps]
        _, at, path = max(found)
        steps[at][path] += 1
        left -= COSTS[path]


@pytest.mark.parametrize("mean", [1.0, 2.5, 4.0, 8.0])
def test_a_threshold_gives_what_a_slow_greedy_gives(mean: float) -> None:
    wishes = [
        Wish(factors.ordered(make(at)), most, need) for at, (most, need) in enumerate([(8, 1.0), (4, 3.0), (2, 0.2)])
    ]
    assert spread(wishes, mean) == greedy(wishes, mean)
