"""Every rule of the server worked by hand on a problem with two numbers: a layer 1 x 1 with an adapter (b, a)."""

import math

import pytest
import torch

from fedgen import lora
from fedgen.aggregate import AGGREGATES, Aggregate, Average, Changes, Exact, Fair, Padded, Residual, Stack, Turned
from fedgen.errors import TreeError
from fedgen.records import Tree, Update


def layer(*ranks: tuple[float, float]) -> Tree:
    """A 1 x 1 layer's adapter, one (b, a) a rank."""
    b, a = torch.tensor([[b for b, _ in ranks]]), torch.tensor([[a] for _, a in ranks])
    return lora.tree_of([lora.Pair("x", a, b)])


def factors_of(tree: Tree) -> list[tuple[float, float]]:
    (pair,) = lora.pairs(tree)
    return list(zip(pair.b[0].tolist(), pair.a[:, 0].tolist(), strict=True))


def product(tree: Tree) -> float:
    return sum(b * a for b, a in factors_of(tree))


def folded(rule: Aggregate, like: Tree, *updates: tuple[int, Tree]) -> tuple[Tree, dict[str, float]]:
    fold = rule.fold(like)
    for at, (examples, adapter) in enumerate(updates):
        fold.add(Update(1, f"c{at}", "global", adapter, examples))
    return fold.close(), dict(fold.told)


ONE, TWO = layer((2.0, 3.0)), layer((4.0, 1.0))  # products 6 and 4
START = layer((0.0, 1.0))
FACTORS = {  # what one example of ONE and three of TWO come to
    Average(): (3.5, 1.5),  # b = (2 + 3 x 4) / 4, a = (3 + 3 x 1) / 4: a product of 5.25 where 4.5 is the mean
    Average("uniform"): (3.0, 2.0),
    Padded("examples"): (3.5, 1.5),
    Padded("norm"): (2.8, 2.2),  # by 6 and 4: b = (6 x 2 + 4 x 4) / 10, a = (6 x 3 + 4 x 1) / 10
    Exact(): (math.sqrt(4.5), math.sqrt(4.5)),  # (6 + 3 x 4) / 4, balanced
    Exact("uniform"): (math.sqrt(5), math.sqrt(5)),
    Changes(): (math.sqrt(4.5), math.sqrt(4.5)),  # of one rank, as exact
    Changes("uniform"): (math.sqrt(5), math.sqrt(5)),
    Fair(ridge=2.25): (3.5 + (4.5 - 5.25) * 1.5 / (1.5 * 1.5 + 2.25), 1.5),  # 3.25: half of the way
    Fair("uniform", ridge=1e-12): (2.5, 2.0),  # all of the way: 2.5 x 2 is the mean product
}


@pytest.mark.parametrize("rule", FACTORS, ids=repr)
def test_the_factors_by_hand(rule: Aggregate) -> None:
    found, _ = folded(rule, START, (1, ONE), (3, TWO))
    (b, a) = factors_of(found)[0]
    wanted = FACTORS[rule]
    assert (abs(b), abs(a)) == pytest.approx(wanted, rel=1e-6)  # an SVD may turn both signs
    assert b * a == pytest.approx(wanted[0] * wanted[1], rel=1e-6)


def test_turned_by_hand() -> None:
    """Under the one A of 2: b = (1 + 3 x 5) / 4 = 4, a product of 8 as 8 x 1."""
    found, told = folded(Turned(), layer((0.0, 2.0)), (1, layer((1.0, 2.0))), (3, layer((5.0, 2.0))))
    ((b, a),) = factors_of(found)
    assert (abs(b), abs(a)) == pytest.approx((8.0, 1.0))
    assert b * a == pytest.approx(8.0)
    assert told == {}


def test_turned_wants_the_a_that_was_offered() -> None:
    with pytest.raises(TreeError, match=r"client 'c1': '.*x\.lora_A\.weight' is not the one that was offered"):
        folded(Turned(), layer((0.0, 2.0)), (1, layer((1.0, 2.0))), (3, layer((5.0, 2.5))))


def test_turned_takes_the_first_ranks_of_the_a_that_was_offered() -> None:
    """One trains both ranks, (1, 2) and (3, 4); one only the first, (5, 2): (1 + 5) / 2 x 2 + 3 / 2 x 4 = 12."""
    like = layer((0.0, 2.0), (0.0, 4.0))
    found, _ = folded(Turned(), like, (1, layer((1.0, 2.0), (3.0, 4.0))), (1, layer((5.0, 2.0))))
    assert product(found) == pytest.approx(12.0)
    with pytest.raises(TreeError, match="not the one that was offered"):
        folded(Turned(), like, (1, layer((5.0, 4.0))))


def test_padded_counts_what_a_narrow_update_lacks_as_zeros() -> None:
    """Of products 2 x 3 + 1 x 1 = 7 and 3 x 1: weights 0.7 and 0.3, and the second rank is 0.7 of the only one."""
    found, told = folded(
        Padded(), layer((0.0, 1.0), (0.0, 1.0)), (9, layer((2.0, 3.0), (1.0, 1.0))), (1, layer((3, 1)))
    )
    assert factors_of(found) == [pytest.approx((0.7 * 2 + 0.3 * 3, 0.7 * 3 + 0.3 * 1)), pytest.approx((0.7, 0.7))]
    assert told == {}


def test_padded_gives_no_weight_to_what_changes_nothing_unless_nothing_does() -> None:
    blank = layer((0.0, 5.0))
    assert factors_of(folded(Padded(), START, (1, ONE), (1, blank))[0]) == [pytest.approx((2.0, 3.0), rel=1e-5)]
    assert factors_of(folded(Padded(), START, (1, blank), (9, layer((0.0, 7.0))))[0]) == [pytest.approx((0.0, 6.0))]


@pytest.mark.parametrize("rule", [Padded(), Fair(), Turned()], ids=repr)
def test_an_update_wider_than_the_server_is_refused(rule: Aggregate) -> None:
    with pytest.raises(TreeError, match="update of client 'c0': rank 2, wanted at most 1, which is the server's"):
        folded(rule, START, (1, layer((2.0, 3.0), (1.0, 1.0))))


def test_residual_by_hand() -> None:
    """Two rounds: the moving part is the mean of factors, and the frozen one all that the products have beyond it."""
    first, told = folded(Residual(rank=2), START, (1, ONE), (3, TWO))
    assert factors_of(first)[2:] == [(3.5, 1.5)]
    assert sum(b * a for b, a in factors_of(first)[:2]) == pytest.approx(4.5 - 3.5 * 1.5)
    assert told == {"tail": 0.0}
    second, _ = folded(Residual(rank=2), first, (1, layer((1.0, 1.0))), (1, layer((3.0, 3.0))))
    assert factors_of(second)[2:] == [(2.0, 2.0)]
    assert product(second) == pytest.approx(-0.75 + (1 * 1 + 3 * 3) / 2)


def test_residual_says_what_its_cap_cut() -> None:
    """Frozen diag(4, 0), and diag(0, 2) said as (b, a) and (-b, -a): means of factors are zeros, and miss it."""
    eye = torch.eye(2)
    frozen = lora.tree_of([lora.Pair("x", eye[:1], 4 * eye[:, :1])])
    one, two = (lora.tree_of([lora.Pair("x", sign * eye[1:], sign * 2 * eye[:, 1:])]) for sign in (1, -1))
    like = lora.product_sum([(1.0, frozen), (1.0, one)])
    for cap, kept, lost in ((1, (4.0, 0.0), 2**2 / (4**2 + 2**2)), (2, (4.0, 2.0), 0.0)):
        found, told = folded(Residual(rank=cap), like, (1, one), (1, two))
        (pair,) = lora.pairs(found)
        assert pair.a.shape == (cap + 1, 2)
        assert torch.allclose(pair.b @ pair.a, torch.diag(torch.tensor(kept)), atol=1e-6)
        assert told == {"tail": pytest.approx(lost, abs=1e-12)}


def test_residual_wants_one_rank_and_no_more_than_the_adapter_has() -> None:
    with pytest.raises(TreeError, match=r"wanted moving parts of one rank, came \[1, 2\]; give all devices one rank"):
        folded(Residual(), layer((0, 1), (0, 1)), (1, ONE), (1, layer((2.0, 3.0), (1.0, 1.0))))
    with pytest.raises(TreeError, match="rank: wanted at most 1"):
        folded(Residual(), START, (1, layer((2.0, 3.0), (1.0, 1.0))))


def test_stack_by_hand() -> None:
    """On a product of 10: 10 + (6 + 3 x 4) / 4, in one rank, as a 1 x 1 layer has no more."""
    found, told = folded(Stack(), layer((5.0, 2.0)), (1, ONE), (3, TWO))
    assert product(found) == pytest.approx(14.5)
    apart = ((1 * 2 + 3 * 4) / 4) * ((1 * 3 + 3 * 1) / 4)  # of what averaging the factors would make
    assert told == {"tail": 0.0, "rank": 1.0, "cross": pytest.approx(abs(apart - 4.5) / 4.5), "breadth": 1.0}


def test_stack_takes_the_ranks_that_the_energy_wants() -> None:
    """diag(4, 2, 1) of an adapter diag(4, 0, 0) and increments of ranks 1 and 2, each of half a weight."""
    eye = torch.eye(3)
    grown = lora.tree_of([lora.Pair("x", eye[:1], 4 * eye[:, :1])])
    one = lora.tree_of([lora.Pair("x", eye[1:2], 4 * eye[:, 1:2])])
    two = lora.tree_of([lora.Pair("x", eye[1:], eye[:, 1:] * torch.tensor([0.0, 2.0]))])
    for rule, kept, lost in (
        (Stack("uniform"), 3, 0.0),
        (Stack("uniform", energy=0.95), 2, 1 / 21),
        (Stack("uniform", energy=0.9), 2, 1 / 21),
        (Stack("uniform", energy=0.7), 1, 5 / 21),
        (Stack("uniform", rank=1), 1, 5 / 21),
    ):
        found, told = folded(rule, grown, (1, one), (9, two))
        (pair,) = lora.pairs(found)
        wanted = torch.diag(torch.tensor([4.0, 2.0, 1.0]) * (torch.arange(3) < kept))
        assert torch.allclose(pair.b @ pair.a, wanted, atol=1e-6)
        assert told["tail"] == pytest.approx(lost, abs=1e-12)
        assert told["rank"] == kept


def test_exact_tells_what_its_rank_cut() -> None:
    eye = torch.eye(2)
    one, two = (lora.tree_of([lora.Pair("x", eye[[at]], size * eye[:, [at]])]) for at, size in enumerate((6.0, 2.0)))
    _, told = folded(Exact("uniform"), one, (1, one), (1, two))
    # the tail is of 3 x 3 + 1 x 1; apart (1/2, 1/2) x (3, 1) is off by 1.5, 0.5, 1.5 and 0.5
    assert told == {"tail": pytest.approx(1 / 10), "cross": pytest.approx(math.sqrt(5 / 10)), "breadth": 1.0}


def test_what_is_told_of_ranks_is_how_many_there_really_are() -> None:
    """Of lengths 3 and 1, shares of 0.9 and 0.1: e^(-0.9 ln 0.9 - 0.1 ln 0.1)."""
    one = lora.tree_of([lora.Pair("x", torch.diag(torch.tensor([3.0, 1.0])), torch.eye(2))])
    _, told = folded(Exact(), one, (1, one))
    assert told == {
        "tail": pytest.approx(0.0, abs=1e-12),
        "cross": pytest.approx(0.0, abs=1e-7),
        "breadth": pytest.approx(0.9**-0.9 * 0.1**-0.1),
    }


GROWN = lora.tree_of([lora.Pair("x", torch.diag(torch.tensor([4.0, 2.0])), torch.eye(2))])  # 4 and 2 on the diagonal


def first(size: float) -> Tree:
    return lora.tree_of([lora.Pair("x", torch.tensor([[size, 0.0]]), torch.tensor([[1.0], [0.0]]))])


def test_a_narrow_client_does_not_pull_to_zero_what_it_never_held() -> None:
    """It was offered the 4 of 4 and 2, and made a 5 of it; the other, which held both, changed nothing."""
    found, _ = folded(Changes("uniform"), GROWN, (1, first(5.0)), (1, GROWN))
    (pair,) = lora.pairs(found)
    assert torch.allclose(pair.b @ pair.a, torch.diag(torch.tensor([4.5, 2.0])), atol=1e-6)
    pulled, _ = folded(Exact("uniform"), GROWN, (1, first(5.0)), (1, GROWN))
    (pair,) = lora.pairs(pulled)
    assert torch.allclose(pair.b @ pair.a, torch.diag(torch.tensor([4.5, 1.0])), atol=1e-6)


def test_what_nobody_held_stays_as_it_is() -> None:
    found, _ = folded(Changes(), GROWN, (1, first(5.0)), (3, first(1.0)))  # by examples: (5 + 3 x 1) / 4 = 2
    (pair,) = lora.pairs(found)
    assert torch.allclose(pair.b @ pair.a, torch.diag(torch.tensor([2.0, 2.0])), atol=1e-6)


def test_every_kind_is_worked_by_hand_here() -> None:
    assert set(AGGREGATES.values()) == {type(rule) for rule in FACTORS} | {Turned, Residual, Stack}
