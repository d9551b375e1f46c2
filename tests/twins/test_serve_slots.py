"""Rows of slots laid together == each row alone == merged into the weights, and greedy tokens are the same.

And adapters that come and go in the slots, while a row is at work, change nothing for it.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedgen import Run, lora, tree
from fedgen.bank import Bank
from fedgen.serve.pool import BARE, Adapter, Mixture, Slots

CLOSE = 1e-4
RANK, WIDTH, STEPS = 4, 9, 12
Trees = Mapping[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def slots(tiny_run: Run) -> Iterator[Slots]:
    """Room for four adapters on the tiny run's backbone, which is wider than some of them."""
    plan = tiny_run.plan
    backbone: Any = plan.backbone.load()
    with Bank(backbone.network, plan.adapter.targets, RANK, slots=4) as bank:
        yield Slots(bank)


@pytest.fixture(scope="module")
def loud(tiny_run: Run) -> dict[str, Adapter]:
    """Adapters of several ranks that change much."""
    like, card = tiny_run.adapter("global")
    found = {}
    for seed, (name, rank) in enumerate({"a": 4, "b": 3, "c": 2, "d": 4, "e": 1, "f": 4, "g": 2}.items()):
        draw = torch.Generator().manual_seed(seed)
        made = {key: 0.2 * torch.randn(v.shape, generator=draw) for key, v in lora.resize(like, rank).items()}
        found[name] = Adapter(replace(card, hash=tree.digest(made), rank=rank), made.copy)
    return found


@pytest.fixture(scope="module")
def network(tiny_run: Run) -> nn.Module:
    """The backbone on its own, without a bank."""
    backbone: Any = tiny_run.plan.backbone.load()
    bare: nn.Module = backbone.network
    return bare


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(0, 290, (8, WIDTH), generator=torch.Generator().manual_seed(4))


@pytest.fixture(scope="module")
def rows(loud: dict[str, Adapter]) -> list[Mixture]:
    """A mixed crowd: whole adapters, mixtures of two and three, less than one, and the backbone."""
    a, b, c, d = (loud[name] for name in "abcd")
    return [
        {a: 1.0}, {a: 0.7, b: 0.7}, {}, {c: 1.5, a: -0.5, d: 0.2}, {BARE: 1.0}, {b: 0.3}, {a: 1.0}, {d: 1.0, BARE: 2.0},
    ]  # fmt: skip


def merged(network: nn.Module, mixture: Mixture) -> Any:
    """A copy with every product added to its weight."""
    changed = copy.deepcopy(network)
    for adapter, weight in mixture.items():
        for pair in lora.pairs(adapter.read()):
            layer: Any = changed.get_submodule(pair.path)
            layer.weight.data += weight * (pair.b @ pair.a)
    return changed


@torch.no_grad()
def logits(slots: Slots, ids: Tensor, *rows: Mixture) -> Tensor:
    network: Any = slots.bank.network
    with slots.lay(rows):
        found: Tensor = network(ids).logits
    return found


@torch.no_grad()
def greedy(network: Any, ids: Tensor) -> Tensor:
    for _ in range(STEPS):
        ids = torch.cat([ids, network(ids).logits[:, -1:].argmax(-1)], 1)
    return ids[:, WIDTH:]


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@torch.no_grad()
def test_any_batch_is_each_row_alone_and_the_merged_one(
    slots: Slots, rows: list[Mixture], network: nn.Module, ids: Tensor
) -> None:
    for row in rows:
        slots.hold([(1.0, row)])
    together = logits(slots, ids, *rows)
    hybrids = [merged(network, row) for row in rows]
    for at, (row, hybrid) in enumerate(zip(rows, hybrids, strict=True)):
        own = ids[at : at + 1]
        assert gap(together[at : at + 1], logits(slots, own, row)) < CLOSE
        assert gap(together[at : at + 1], hybrid(own).logits) < CLOSE
    bare: Any = network
    assert all(gap(together[at], bare(ids[at : at + 1]).logits[0]) > 0.1 for at in (0, 1, 3, 5, 6, 7))
    for part in ([6, 0], [1, 3, 2], [4, 2], [7, 5, 1, 0, 3]):  # any order, any company
        some = logits(slots, ids[part], *(rows[at] for at in part))
        assert gap(some, together[part]) < CLOSE
    with slots.lay(rows):
        written = greedy(slots.bank.network, ids)
    assert written.equal(torch.cat([greedy(hybrid, ids[at : at + 1]) for at, hybrid in enumerate(hybrids)]))
    assert written.unique(dim=0).shape[0] > len(rows) // 2
    for row in rows:
        slots.release([(1.0, row)])


@torch.no_grad()
def test_adapters_that_come_and_go_change_no_row_at_work(
    slots: Slots, loud: dict[str, Adapter], network: nn.Module, ids: Tensor
) -> None:
    """One row is continued while every other adapter passes through the slots beside it."""
    own: Mixture = {loud["a"]: 0.8, loud["c"]: 0.4}
    wanted = greedy(merged(network, own), ids[:1])
    slots.hold([(1.0, own)])
    seen, evictions, found = ids[:1], slots.evictions, []
    for at in range(STEPS):
        other: Mixture = {loud["bdefg"[at % 5]]: 1.0}
        slots.hold([(1.0, other)])
        said = logits(slots, seen.expand(2, -1), own, other)
        assert gap(said[1:], merged(network, other)(seen).logits) < CLOSE
        found.append(said[:1, -1:].argmax(-1))
        seen = torch.cat([seen, found[-1]], 1)
        slots.release([(1.0, other)])
    assert torch.cat(found, 1).equal(wanted)
    assert slots.evictions > evictions
    slots.release([(1.0, own)])
