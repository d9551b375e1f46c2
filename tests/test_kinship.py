"""Which clusters are one, and which one is two."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fedgen.errors import TreeError
from fedgen.kinship import halves, redundant


def cosines(*above: float, size: int) -> Tensor:
    """A table of likenesses, said by what stands above its diagonal, row by row."""
    found = torch.eye(size, dtype=torch.float64)
    rows, columns = torch.triu_indices(size, size, 1)
    found[rows, columns] = found[columns, rows] = torch.tensor(above, dtype=torch.float64)
    return found


def crowd(counts: tuple[int, int], noise: float, seed: int = 0) -> Tensor:
    """Likenesses of members who step in one of two directions that have nothing in common."""
    draw = torch.Generator().manual_seed(seed)
    ways = torch.eye(2, 50).repeat_interleave(torch.tensor(counts), 0)
    steps = F.normalize(ways + noise * torch.randn(ways.shape, generator=draw) / 50**0.5, dim=1).double()
    return steps @ steps.T


def test_clusters_as_alike_as_that_are_redundant_the_most_alike_first() -> None:
    table = cosines(0.1, 0.95, 0.2, 0.1, 0.99, 0.3, size=4)
    assert redundant(table, ["a", "b", "c", "d"], 0.9) == [("b", "d"), ("a", "c")]
    assert redundant(table, ["a", "b", "c", "d"], 0.95) == [("b", "d"), ("a", "c")]
    assert redundant(table, ["a", "b", "c", "d"], 0.97) == [("b", "d")]
    assert redundant(table, ["a", "b", "c", "d"], 1.0) == []


def test_no_cluster_is_merged_twice_at_a_time() -> None:
    table = cosines(0.95, 0.92, 0.97, size=3)
    assert redundant(table, ["a", "b", "c"], 0.9) == [("b", "c")]


def test_the_order_of_the_names_leaves_no_trace() -> None:
    table = cosines(0.95, 0.95, 0.95, 0.95, 0.95, 0.95, size=4)
    order = torch.tensor([2, 0, 3, 1])
    names = ["a", "b", "c", "d"]
    turned = redundant(table[order][:, order], [names[at] for at in order], 0.9)
    assert turned == redundant(table, names, 0.9) == [("a", "b"), ("c", "d")]


def test_members_who_step_apart_are_halved_the_larger_half_first() -> None:
    for counts in ((4, 7), (7, 4)):
        found = halves(crowd(counts, 0.5), 0.5, 3)
        assert found is not None
        assert found.bincount().tolist() == [7, 4]
        wanted = torch.arange(2).repeat_interleave(torch.tensor(counts))
        assert found.equal(wanted if counts[0] > counts[1] else 1 - wanted)


def test_the_order_of_the_members_leaves_no_trace() -> None:
    table, order = crowd((5, 5), 0.5), torch.randperm(10, generator=torch.Generator().manual_seed(3))
    found, turned = halves(table, 0.5, 2), halves(table[order][:, order], 0.5, 2)
    assert found is not None
    assert turned is not None
    assert found[0] == 0
    assert turned.equal(found[order]) or turned.equal(1 - found[order])


def test_the_mean_likeness_between_the_halves_decides() -> None:
    table = crowd((5, 5), 0.3)
    between = float(table[:5, 5:].mean())
    assert halves(table, between, 2) is None
    assert halves(table, between + 1e-6, 2) is not None
    assert halves(crowd((10, 0), 0.5), 0.5, 2) is None  # they agree


def test_a_half_with_too_few_members_splits_nothing() -> None:
    assert halves(crowd((8, 2), 0.3), 0.5, 2) is not None
    assert halves(crowd((8, 2), 0.3), 0.5, 3) is None
    assert halves(crowd((2, 1), 0.3), 0.5, 2) is None
    assert halves(torch.ones(1, 1), 2.0, 1) is None


def test_what_is_no_likeness_is_refused() -> None:
    for table in (torch.full((3, 3), torch.nan), torch.ones(3, 2)):
        with pytest.raises(TreeError, match="wanted 3 x 3 finite likenesses, came"):
            redundant(table, ["a", "b", "c"], 0.9)
        with pytest.raises(TreeError, match="wanted 3 x 3 finite likenesses, came"):
            halves(table, 0.5, 1)
