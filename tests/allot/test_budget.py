"""Where a budget of ranks goes, worked by hand: two layers of 2 x 2, in which a rank takes four numbers."""

import pytest
import torch

from fedgen import lora
from fedgen.allot import Wish, mean_ranks, spread
from fedgen.records import Tree


def layers(**lengths: tuple[float, ...]) -> Tree:
    """An adapter in order, of these singular values."""
    return lora.tree_of(
        lora.Pair(path, torch.eye(len(own)), torch.diag(torch.tensor(own))) for path, own in lengths.items()
    )


ONE = layers(k=(4.0, 3.0), q=(9.0, 1.0))


def test_a_layer_that_has_more_is_given_more() -> None:
    """Budget: 2 layers x 1.5 ranks = 3; one each, and the third to k, whose second is 3 where q's is 1."""
    assert spread([Wish(ONE, 2)], 1.5) == [{"k": 2, "q": 1}]


def test_a_client_that_needs_more_is_given_more() -> None:
    """Second ranks are worth 9 and 1 to the first, and to the second 9/10 and 1/10: of 6 ranks, two are over."""
    assert spread([Wish(ONE, 2), Wish(ONE, 2, 0.1)], 1.5) == [{"k": 2, "q": 2}, {"k": 1, "q": 1}]
    assert spread([Wish(ONE, 2), Wish(ONE, 2, 0.2)], 1.5) == [{"k": 2, "q": 1}, {"k": 2, "q": 1}]


def test_nobody_has_more_than_it_carries_nor_less_than_one() -> None:
    assert spread([Wish(ONE, 1, 100.0), Wish(ONE, 2)], 1.5) == [{"k": 1, "q": 1}, {"k": 2, "q": 2}]
    assert spread([Wish(ONE, 2), Wish(ONE, 2)], 1.0) == [{"k": 1, "q": 1}] * 2


def test_who_is_alike_has_the_same_even_where_that_leaves_some_over() -> None:
    assert spread([Wish(ONE, 2), Wish(ONE, 2)], 1.25) == [{"k": 1, "q": 1}] * 2  # one is over, and two want it
    assert spread([Wish(ONE, 2), Wish(ONE, 2)], 1.5) == [{"k": 2, "q": 1}] * 2


def test_a_budget_that_is_enough_gives_all_that_is_carried() -> None:
    wide = layers(k=(4.0, 3.0, 2.0, 0.0), q=(5.0, 0.0, 0.0, 0.0))
    assert spread([Wish(wide, 2), Wish(wide, 4), Wish(wide, 1)], 9.0) == [dict.fromkeys("kq", r) for r in (2, 4, 1)]


def test_a_rank_that_takes_more_numbers_is_worth_less() -> None:
    wide = lora.Pair("q", torch.eye(2, 10), torch.diag(torch.tensor([9.0, 3.0])))
    tree = lora.tree_of([*lora.pairs(layers(k=(4.0, 2.0))), wide])  # seconds are worth 4 / 4 and 9 / 12
    assert spread([Wish(tree, 2)], 1.5) == [{"k": 2, "q": 1}]


def test_means_are_of_clients_by_layer_and_of_layers_by_client() -> None:
    found = mean_ranks({"bob": {"k": 1, "q": 2}, "ann": {"k": 4, "q": 4}})
    assert found == {"layers": {"k": 2.5, "q": 3.0}, "clients": {"ann": 4.0, "bob": 1.5}}
    assert list(found["clients"]) == ["ann", "bob"]
    assert mean_ranks({}) == {}


@pytest.mark.parametrize("mean", [1.0, 1.7, 2.0])
def test_the_budget_is_kept(mean: float) -> None:
    found = spread([Wish(ONE, 2, need) for need in (1.0, 0.3, 2.0)], mean)
    assert sum(sum(ranks.values()) for ranks in found) <= mean * 2 * 3
