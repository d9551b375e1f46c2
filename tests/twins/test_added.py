"""A small adapter trained on top of frozen ones, against the same trained alone on a backbone with those merged in."""

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedgen import lora, seeds
from fedgen.backbones import Backbone, Language
from fedgen.bank import Bank
from fedgen.client import Job, Start, Training, train
from fedgen.personal import Added
from fedgen.records import GLOBAL, Document, Offer, Rows, Tree

RANK, OWN = 4, 2
TRAINING = Training(steps=3, batch=2, lr=1e-2, decay=0.1, clip=0.5)


def lived(tree: Tree, seed: int) -> Tree:
    """An adapter that changes something."""
    draw = torch.Generator().manual_seed(seed)
    return {key: half + 0.2 * torch.randn(half.shape, generator=draw) for key, half in tree.items()}


def merged(backbone: Backbone, tree: Tree) -> Backbone:
    """A copy of the backbone with every product added to its weight."""
    changed: Any = copy.deepcopy(backbone)
    for pair in lora.pairs(tree):
        weight: Any = changed.network.get_submodule(pair.path).weight
        weight.data += (pair.b.flatten(1) @ pair.a.flatten(1)).view(weight.shape)
    return changed  # type: ignore[no-any-return]


@pytest.fixture
def text(tiny_backbone: Path, tiny_text: Path) -> tuple[Backbone, Rows]:
    backbone = Language(str(tiny_backbone), length=16, device="cpu").load()
    return backbone, backbone.encode([Document("", (tiny_text / "ann.txt").read_text("utf-8")[:400])])


@pytest.mark.parametrize("whole", [0.0, 0.25])
def test_on_top_of_frozen_adapters_is_alone_on_a_merged_backbone(text: tuple[Backbone, Rows], whole: float) -> None:
    (backbone, rows), rule = text, Added(own=OWN, whole=whole)
    other = copy.deepcopy(backbone)
    wide = Bank(backbone.network, backbone.targets, rule.rank(RANK))
    cluster, everyone = (lived(wide.fresh(torch.Generator().manual_seed(seed), RANK), seed) for seed in (1, 2))
    top = wide.fresh(torch.Generator().manual_seed(3), OWN)
    offer = Offer(1, "ann", "cluster-1", cluster, "score", {GLOBAL: everyone})
    start = rule.begin(None, offer, lambda rank: top)
    assert start is not None
    draw = functools.partial(seeds.generator, 0, 1, "ann")
    (fast,) = train(TRAINING, backbone, wide, [Job("ann", start, rows, draw)])

    below = lora.product_sum([(1 - whole, cluster), (whole, everyone)]) if whole else cluster
    alone = merged(other, below)
    (slow,) = train(TRAINING, alone, Bank(alone.network, backbone.targets, OWN), [Job("ann", Start(top), rows, draw)])
    assert fast.loss == pytest.approx(slow.loss, rel=1e-5)
    assert lora.rank(fast.adapter) == rule.rank(RANK)
    for done, still, own in zip(*(lora.pairs(tree) for tree in (fast.adapter, below, slow.adapter)), strict=True):
        assert done.a[:-OWN].equal(still.a)
        assert done.b[:, :-OWN].equal(still.b)
        assert done.a[-OWN:] == pytest.approx(own.a, abs=1e-5)
        assert done.b[:, -OWN:] == pytest.approx(own.b, abs=1e-5)
        assert own.b.abs().max() > 0.01


class Dot(nn.Module):
    """A backbone of one grouped convolution, whose loss is its distance from ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, groups=2)
        self.network, self.length = self, 1

    def draw(self, rows: Rows, draw: torch.Generator) -> Rows:
        """No chance."""
        return rows

    def losses(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """A row is one term."""
        missed = (self.conv(rows["x"]) - 1).square().flatten(1).mean(1)
        return missed, torch.ones_like(missed, dtype=torch.long)


def test_in_a_convolution_with_groups_only_its_own_ranks_move() -> None:
    torch.manual_seed(0)
    backbone: Any = Dot()
    bank = Bank(backbone, ["conv"], Added(own=2).rank(4))
    below = lived(bank.fresh(torch.Generator().manual_seed(1), 4), 1)
    offer = Offer(1, "ann", GLOBAL, below, "score")
    start = Added(own=2).begin(None, offer, lambda rank: bank.fresh(torch.Generator().manual_seed(2), rank))
    assert start
    assert start.free
    draw = functools.partial(seeds.generator, 0, 1, "ann")
    job = Job("ann", start, {"x": torch.randn(6, 4, 5, 5)}, draw)
    (done,) = train(TRAINING, backbone, bank, [job])
    for key, half in done.adapter.items():
        moves = start.free[key] > 0
        assert half[~moves].equal(start.adapter[key][~moves])
        assert (half[moves] != start.adapter[key][moves]).any()
    added = lora.product_sum([(1, done.adapter), (-1, below)])
    assert lora.energy_kept(added, 2) == pytest.approx(1)
    assert lora.inner(added, added) > 1e-6


def test_nothing_is_dropped_out_of_what_stands_still() -> None:
    assert Added().training(Training(dropout=0.5)).dropout == 0
