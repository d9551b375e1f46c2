"""Cutting adapters along their rank, frames, and the rank that a sum is worth: against dense matrices."""

import pytest
import torch
from torch import Tensor, nn

from fedgen import factors, lora
from fedgen.errors import TreeError
from fedgen.records import Tree

LAYERS = {"flat": nn.Linear(9, 5), "conv": nn.Conv2d(4, 10, 3), "grouped": nn.Conv2d(4, 6, 3, groups=2)}


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(seed: int, rank: int) -> Tree:
    like, chance = lora.fresh(LAYERS, rank, draw(seed)), draw(seed + 100)
    return {key: torch.randn(value.shape, generator=chance) for key, value in like.items()}


def blocks(tree: Tree) -> list[Tensor]:
    """Every product as dense matrices in double, one a group."""
    found = []
    for pair in lora.pairs(tree):
        groups = 2 if pair.path == "grouped" else 1
        a, b = pair.a.double().flatten(1).chunk(groups), pair.b.double().flatten(1).chunk(groups)
        found += [one_b @ one_a for one_a, one_b in zip(a, b, strict=True)]
    return found


def far(found: list[Tensor], wanted: list[Tensor]) -> float:
    return max(float((one - two).abs().max()) for one, two in zip(found, wanted, strict=True))


def same(one: Tree, two: Tree) -> bool:
    return list(one) == list(two) and all(torch.equal(one[key], two[key]) for key in one)


# ---- cuts


def test_split_undoes_stacking_bit_for_bit() -> None:
    front, back = make(1, 4), make(2, 2)
    ahead, behind = factors.split(lora.product_sum([(1, front), (1, back)]), 2)
    assert same(ahead, front)
    assert same(behind, back)


def test_where_all_is_tail_nothing_is_ahead() -> None:
    front, back = factors.split(make(1, 4), 4)
    assert front == {}
    assert same(back, make(1, 4))


def test_the_head_is_the_first_ranks_of_each_group() -> None:
    whole = make(1, 4)
    found = {pair.path: pair for pair in lora.pairs(factors.head(whole, 2))}
    for pair in lora.pairs(whole):
        rows = [0, 2] if pair.path == "grouped" else [0, 1]  # a group has half of the ranks
        assert found[pair.path].a.equal(pair.a[rows])
        assert found[pair.path].b.equal(pair.b[:, : 1 if pair.path == "grouped" else 2])
    assert same(factors.head(whole, 4), whole)


def test_a_head_padded_again_is_the_adapter_without_its_tail() -> None:
    front, back = factors.split(make(3, 6), 2)
    wanted = [one - two for one, two in zip(blocks(make(3, 6)), blocks(back), strict=True)]
    assert far(blocks(lora.resize(front, 6)), wanted) < 1e-5


@pytest.mark.parametrize("ranks", [0, 3, 6])
def test_a_cut_that_is_none_is_refused(ranks: int) -> None:
    """Nothing, half of a group's rank, more than there is."""
    for cut in (factors.head, factors.split):
        with pytest.raises(TreeError, match="rank: "):
            cut(make(1, 4), ranks)


# ---- frames


def grams(tree: Tree, end: str) -> list[tuple[str, Tensor]]:
    """A A^T and B^T B of every layer, one a group."""
    found = []
    for pair in lora.pairs(tree):
        b, a = lora.product_of(pair)
        found += [(pair.path, one) for one in (a @ a.mT if end == "a" else b.mT @ b)]
    return found


def test_rows_are_orthonormal_and_change_nothing_yet() -> None:
    found = factors.orthonormal(make(1, 2), 4, draw(7))
    assert lora.rank(found) == 4
    lora.check_layers(found, make(1, 2), "drawn")
    for _, gram in grams(found, "a"):
        assert far([gram], [torch.eye(len(gram), dtype=torch.float64)]) < 1e-6
    assert all(not pair.b.any() for pair in lora.pairs(found))
    assert same(found, factors.orthonormal(make(2, 8), 4, draw(7)))  # the layers count, not what was on them
    other = factors.orthonormal(make(1, 2), 4, draw(8))
    assert not any(torch.equal(found[key], other[key]) for key in found if "lora_A" in key)


def test_columns_of_a_frame_are_orthonormal_too() -> None:
    found = factors.frame(make(1, 2), 4, draw(7))
    for end in "ab":
        for _, gram in grams(found, end):
            assert far([gram], [torch.eye(len(gram), dtype=torch.float64)]) < 1e-6
    assert same(found, factors.frame(make(1, 2), 4, draw(7)))


def test_where_there_is_no_room_the_rest_is_zeros() -> None:
    """The flat layer reads 9 and writes 5; a group of the grouped one writes 3."""
    for made, end, room in (
        (factors.orthonormal, "a", {"flat": 9}),
        (factors.frame, "a", {"flat": 9}),
        (factors.frame, "b", {"flat": 5, "conv": 10, "grouped": 3}),
    ):
        for path, gram in grams(made(make(1, 2), 12, draw(7)), end):
            wanted = torch.eye(len(gram), dtype=torch.float64)
            wanted[room.get(path, 12) :] = 0
            assert far([gram], [wanted]) < 1e-6


def test_frames_are_drawn_evenly() -> None:
    """The mean of many is nothing and the mean of the squares is 1 / width: no direction is preferred."""
    like = lora.fresh({"flat": nn.Linear(4, 1)}, 1, draw(0))
    drawn = torch.cat([next(iter(factors.orthonormal(like, 1, draw(seed)).values())) for seed in range(400)])
    assert drawn.mean(0).abs().max() < 0.1  # 4 standard errors of 1 / sqrt(4 x 400)
    assert (drawn.square().mean(0) - 0.25).abs().max() < 0.05


def test_turning_keeps_the_products_and_makes_the_rows_orthonormal() -> None:
    found = factors.turned(make(1, 4))
    assert far(blocks(found), blocks(make(1, 4))) < 1e-5
    for _, gram in grams(found, "a"):
        assert far([gram], [torch.eye(len(gram), dtype=torch.float64)]) < 1e-6
    for _, gram in grams(found, "b"):
        assert far([gram], [gram.diagonal().diag()]) < 1e-5
    blank = {key: value * ("lora_A" in key) for key, value in make(1, 4).items()}
    for _, gram in grams(factors.turned(blank), "a"):  # where B is zeros, A still gets a frame of its own rows
        assert far([gram], [torch.eye(len(gram), dtype=torch.float64)]) < 1e-6


# ---- the rank that a sum is worth


@pytest.mark.parametrize("energy", [0.5, 0.8, 0.95])
def test_the_least_rank_that_keeps_the_energy(energy: float) -> None:
    whole = make(5, 8)
    found, lost = factors.fitted(whole, 32, energy)
    rank = lora.rank(found)
    assert lost == pytest.approx(1 - lora.energy_kept(whole, rank), abs=1e-9)
    assert 1 - lost >= energy > (lora.energy_kept(whole, rank - 2) if rank > 2 else 0.0)
    assert far(blocks(found), blocks(lora.best(whole, rank))) == 0


def test_all_the_energy_is_exact_and_no_rank_is_spent_on_rounding() -> None:
    one, two = make(1, 2), make(2, 2)
    for parts, rank in (([(1.0, one), (0.5, two)], 4), ([(0.3, one), (0.7, one)], 2)):
        whole = lora.product_sum(parts)
        found, lost = factors.fitted(whole, 64)
        assert lora.rank(found) == rank
        assert lost < 1e-13
        assert far(blocks(found), blocks(whole)) < 1e-5


def test_no_rank_is_wider_than_the_widest_layer_needs() -> None:
    found, lost = factors.fitted(make(1, 40), 64)  # the widest product is 10 x 36
    assert lora.rank(found) == 10
    assert lost == 0
    assert far(blocks(found), blocks(make(1, 40))) < 1e-4


def test_the_most_is_the_most() -> None:
    found, lost = factors.fitted(make(1, 8), 5)  # groups of two: 4
    assert lora.rank(found) == 4
    assert lost == pytest.approx(1 - lora.energy_kept(make(1, 8), 4))
    assert lost > 0.01
    with pytest.raises(TreeError, match="multiple of 2, came at most 1"):
        factors.fitted(make(1, 8), 1)
