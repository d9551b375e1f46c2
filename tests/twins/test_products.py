"""The algebra on thin factors against dense matrices."""

import math
import time

import pytest
import torch
from torch import Tensor

from fedgen import lora
from fedgen.errors import TreeError
from fedgen.records import Tree

LAYERS = {  # A's shape behind the rank, B's first, groups
    "deep.linear": ((20,), 14, 1),
    "flat": ((9,), 5, 1),
    "conv": ((4, 3, 3), 10, 1),
    "grouped": ((4, 3, 3), 6, 2),
}


def make(seed: int, rank: int, dtype: torch.dtype = torch.float32) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    made = []
    for path, (into, out, groups) in LAYERS.items():
        end = (1, 1) if len(into) == 3 else ()
        a = torch.randn(rank, *into, generator=draw).to(dtype)
        b = torch.randn(out, rank // groups, *end, generator=draw).to(dtype)
        made.append(lora.Pair(path, a, b))
    return lora.tree_of(made)


def blocks(tree: Tree) -> list[Tensor]:
    """Every product as dense matrices in double, one a group."""
    found = []
    for pair in lora.pairs(tree):
        groups = LAYERS[pair.path][2]
        a, b = pair.a.double().flatten(1).chunk(groups), pair.b.double().flatten(1).chunk(groups)
        found += [one_b @ one_a for one_a, one_b in zip(a, b, strict=True)]
    return found


def distance(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The relative Frobenius distance over all layers."""
    gap = sum(float((one - two).square().sum()) for one, two in zip(found, wanted, strict=True))
    return math.sqrt(gap / sum(float(one.square().sum()) for one in wanted))


def test_a_grouped_convolutions_blocks_are_what_it_computes() -> None:
    """The dense twin itself is held against torch's convolution."""
    tree, x = make(0, 4), torch.randn(2, 4, 7, 7, generator=torch.Generator().manual_seed(1))
    pair = next(pair for pair in lora.pairs(tree) if pair.path == "grouped")
    slow = torch.nn.functional.conv2d(torch.nn.functional.conv2d(x, pair.a), pair.b, groups=2)
    dense = torch.cat(blocks({key: value for key, value in tree.items() if "grouped" in key})).float()
    assert torch.allclose(torch.nn.functional.conv2d(x, dense.view(6, 4, 3, 3)), slow, atol=1e-4)


@pytest.mark.parametrize("ranks", [(2, 2, 2), (2, 4, 8), (16, 16, 16)])
def test_the_mean_of_products_is_exact(ranks: tuple[int, ...]) -> None:
    parts = [(share, make(seed, rank)) for seed, (share, rank) in enumerate(zip((0.5, 0.3, 0.2), ranks, strict=True))]
    summed = lora.product_sum(parts)
    assert lora.rank(summed) == sum(ranks)
    wanted = [
        sum(share * one for (share, _), one in zip(parts, row, strict=True))
        for row in zip(*(blocks(tree) for _, tree in parts), strict=True)
    ]
    assert distance(blocks(summed), wanted) < 1e-6
    lossless = lora.resize(summed, 28)  # every layer is at most 14 wide, a group of two at most 28
    assert distance(blocks(lossless), wanted) < 1e-6


@pytest.mark.parametrize("rank", [2, 4, 6])
def test_the_best_of_a_rank_is_the_truncated_svd(rank: int) -> None:
    tree = make(3, 8)
    found, wanted = blocks(lora.best(tree, rank)), []
    for dense in blocks(tree):
        kept = rank // 2 if dense.shape == (3, 36) else rank
        u, s, vt = torch.linalg.svd(dense, full_matrices=False)
        wanted.append(u[:, :kept] * s[:kept] @ vt[:kept])
    assert lora.rank(lora.best(tree, rank)) == rank
    assert distance(found, wanted) < 1e-6


def test_the_best_has_balanced_factors() -> None:
    for pair in lora.pairs(lora.best(make(3, 8), 4)):
        if pair.path != "grouped":
            a, b = pair.a.flatten(1), pair.b.flatten(1)
            assert torch.allclose(a @ a.T, b.T @ b, atol=1e-4)
            assert torch.allclose(a @ a.T, torch.diag(torch.diag(a @ a.T)), atol=1e-4)


@pytest.mark.parametrize("rank", [10, 24, 64])
def test_a_wider_rank_is_exact(rank: int) -> None:
    tree = make(4, 8)
    wide = lora.resize(tree, rank)
    assert lora.rank(wide) == rank
    assert distance(blocks(wide), blocks(tree)) < 1e-12
    assert lora.rank(lora.best(tree, rank)) == rank
    assert distance(blocks(lora.best(tree, rank)), blocks(tree)) < 1e-6
    back = lora.resize(wide, 8)
    assert distance(blocks(back), blocks(tree)) < 1e-6


def test_the_same_rank_leaves_every_bit() -> None:
    tree = make(4, 8)
    same = lora.resize(tree, 8)
    assert all(torch.equal(same[key], tree[key]) for key in tree)


def test_inner_is_of_the_products() -> None:
    one, two = make(5, 2), make(6, 6)
    wanted = sum(float((a * b).sum()) for a, b in zip(blocks(one), blocks(two), strict=True))
    assert lora.inner(one, two) == pytest.approx(wanted, rel=1e-10)
    assert lora.inner(two, one) == pytest.approx(wanted, rel=1e-10)
    assert lora.inner(one, one) == pytest.approx(sum(float(a.square().sum()) for a in blocks(one)), rel=1e-10)


def test_inner_does_not_see_which_factors_make_a_product() -> None:
    one, two = make(5, 2), make(6, 2)
    turned = {key: value * (3.0 if "lora_A" in key else 1 / 3.0) for key, value in one.items()}
    assert lora.inner(turned, two) == pytest.approx(lora.inner(one, two), rel=1e-5)


def dense_gram(trees: list[Tree]) -> Tensor:
    lines = torch.stack([torch.cat([block.flatten() for block in blocks(tree)]) for tree in trees])
    return lines @ lines.T


@pytest.mark.parametrize("wide", [3, 1024])
def test_the_gram_of_many_is_the_dense_one_for_mixed_ranks(wide: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However few ranks are taken at once."""
    monkeypatch.setattr(lora, "WIDE", wide)
    trees = [make(seed, rank) for seed, rank in enumerate((2, 8, 4, 2, 6))]
    found, wanted = lora.gram(trees), dense_gram(trees)
    assert found.dtype == torch.float64
    assert found.equal(found.T)
    assert (found - wanted).abs().max() < 1e-9 * wanted.abs().max()


def test_cosines_are_those_of_the_dense_products() -> None:
    one, two = make(1, 4), make(2, 2)
    nothing = {key: value * ("lora_A" in key) for key, value in make(3, 4).items()}
    against = {key: value * (-2.0 if "lora_B" in key else 1.0) for key, value in one.items()}
    wanted = dense_gram([one, two])
    alike = float(wanted[0, 1] / (wanted[0, 0] * wanted[1, 1]).sqrt())
    assert 0.001 < abs(alike) < 0.5
    cosines = torch.tensor(
        [[1, alike, 0, -1], [alike, 1, 0, -alike], [0, 0, 1, 0], [-1, -alike, 0, 1]], dtype=torch.float64
    )
    assert lora.cosines([one, two, nothing, against]).allclose(cosines, rtol=0, atol=1e-12)


def test_a_gram_of_two_hundred_takes_no_time() -> None:
    trees = [make(seed, 4) for seed in range(200)]
    began = time.process_time()
    found = lora.gram(trees)
    assert time.process_time() - began < 5  # a loop over the 40,000 pairs takes a minute
    wanted = dense_gram(trees)
    assert (found - wanted).abs().max() < 1e-9 * wanted.abs().max()


def test_compacting_says_what_it_loses() -> None:
    parts = [(0.7, make(1, 4)), (-0.4, make(2, 2))]
    wanted = [0.7 * one - 0.4 * two for one, two in zip(blocks(parts[0][1]), blocks(parts[1][1]), strict=True)]
    for rank in (2, 4):
        found, lost = lora.compact(parts, rank)
        assert lora.rank(found) == rank
        assert lost == pytest.approx(distance(blocks(found), wanted) ** 2, rel=1e-5)
        assert 0.01 < lost < 0.9
    whole, none = lora.compact(parts, 6)
    assert distance(blocks(whole), wanted) < 1e-6
    assert 0 <= none < 1e-12


@pytest.mark.parametrize("rank", [2, 4, 8])
def test_energy_kept_is_what_the_best_loses(rank: int) -> None:
    tree = make(7, 8)
    lost = distance(blocks(lora.best(tree, rank)), blocks(tree)) ** 2
    assert lora.energy_kept(tree, rank) == pytest.approx(1 - lost, abs=1e-6)
    assert lora.energy_kept({key: value * 0 for key, value in tree.items()}, rank) == 1.0


def test_apart_error_against_dense_matrices() -> None:
    parts = [(weight, make(seed, 4)) for seed, weight in enumerate((120.0, 7.0, 55.0))]
    apart = {key: sum(weight / 182 * tree[key].double() for weight, tree in parts) for key in parts[0][1]}
    exact = [
        sum(weight / 182 * one for (weight, _), one in zip(parts, row, strict=True))
        for row in zip(*(blocks(tree) for _, tree in parts), strict=True)
    ]
    assert lora.apart_error(parts) == pytest.approx(distance(blocks(apart), exact), rel=1e-9)
    assert lora.apart_error(parts) > 0.1


def test_apart_error_counts_a_narrower_adapter_as_padded() -> None:
    narrow, wide = make(1, 2), make(2, 4)
    padded = lora.resize(narrow, 4)
    assert lora.apart_error([(1.0, narrow), (2.0, wide)]) == pytest.approx(lora.apart_error([(1, padded), (2, wide)]))


def test_apart_error_is_none_where_one_half_is_shared() -> None:
    one, two = make(1, 4), make(2, 4)
    shared = {key: one[key] if "lora_A" in key else value for key, value in two.items()}
    assert lora.apart_error([(1.0, one), (3.0, shared)]) < 1e-12
    assert lora.apart_error([(1.0, one)]) < 1e-12
    nothing = {key: value * 0 for key, value in one.items()}
    assert lora.apart_error([(1.0, nothing), (1.0, nothing)]) == 0.0


def test_half_precision_is_worked_on_in_double_and_given_back() -> None:
    tree = make(8, 4, torch.bfloat16)
    summed = lora.product_sum([(1.0, tree), (1.0, tree)])
    assert all(value.dtype == torch.bfloat16 for value in summed.values())
    assert distance(blocks(summed), [2 * one for one in blocks(tree)]) < 1e-12


def test_no_dense_matrix_is_made() -> None:
    """Two layers of 200,000 x 200,000 would be 640 GB."""
    draw = torch.Generator().manual_seed(0)
    key = f"{lora.PREFIX}x.lora_"
    one, two = (
        {
            f"{key}A.weight": torch.randn(2, 200_000, generator=draw),
            f"{key}B.weight": torch.randn(200_000, 2, generator=draw),
        }
        for _ in range(2)
    )
    assert lora.rank(lora.best(lora.product_sum([(0.5, one), (0.5, two)]), 3)) == 3
    assert lora.apart_error([(1.0, one), (1.0, two)]) > 0.5
    assert lora.inner(one, one) > abs(lora.inner(one, two))


def test_what_does_not_fit_is_refused() -> None:
    tree = make(0, 4)
    part = {key: value for key, value in tree.items() if "flat" not in key}
    with pytest.raises(TreeError, match="'flat' is not in all of them"):
        lora.product_sum([(1.0, tree), (1.0, part)])
    other = tree | {f"{lora.PREFIX}flat.lora_A.weight": torch.zeros(4, 8)}
    with pytest.raises(TreeError, match="'flat' is not in all of them"):
        lora.inner(tree, other)
    with pytest.raises(TreeError, match="at least one, came none"):
        lora.product_sum([])
    with pytest.raises(TreeError, match="wanted more than 0"):
        lora.apart_error([(0.0, tree)])
    for rank in (3, 0, -2):
        with pytest.raises(TreeError, match=f"a positive multiple of 2, came {rank}"):
            lora.resize({key: value for key, value in tree.items() if "grouped" in key}, rank)
    bad = tree | {f"{lora.PREFIX}flat.lora_A.weight": torch.full((4, 9), math.nan)}
    for refused in (lambda: lora.best(bad, 2), lambda: lora.cosines([tree, bad])):
        with pytest.raises(TreeError, match="the factors of 'flat' hold NaN"):
            refused()
    with pytest.raises(TreeError, match="'flat' is not in all of them"):
        lora.gram([tree, tree, part])
