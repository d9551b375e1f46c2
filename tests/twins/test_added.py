"""A small adapter trained on top of frozen ones, against the same trained alone on a backbone with those merged in."""

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch

from fedgen import lora, seeds
from fedgen.backbones import Backbone, Language
from fedgen.bank import Bank
from fedgen.client import Job, Training, train
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
    (fast,) = train(TRAINING, backbone, wide, [Job("ann", start.adapter, rows, draw, start.free)])

    below = lora.product_sum([(1 - whole, cluster), (whole, everyone)]) if whole else cluster
    alone = merged(other, below)
    (slow,) = train(TRAINING, alone, Bank(alone.network, backbone.targets, OWN), [Job("ann", top, rows, draw)])
    assert fast.loss == pytest.approx(slow.loss, rel=1e-5)
    assert lora.rank(fast.adapter) == rule.rank(RANK)
    for done, still, own in zip(*(lora.pairs(tree) for tree in (fast.adapter, below, slow.adapter)), strict=True):
        assert done.a[:-OWN].equal(still.a)
        assert done.b[:, :-OWN].equal(still.b)
        assert done.a[-OWN:] == pytest.approx(own.a, abs=1e-5)
        assert done.b[:, -OWN:] == pytest.approx(own.b, abs=1e-5)
        assert own.b.abs().max() > 0.01


def test_in_a_convolution_with_groups_only_its_own_ranks_move() -> None:
    layers = {"conv": torch.nn.Conv2d(4, 6, 3, groups=2)}
    draw = torch.Generator().manual_seed(0)
    below = lived(lora.fresh(layers, 4, draw), 1)
    offer = Offer(1, "ann", GLOBAL, below, "score")
    start = Added(own=2).begin(None, offer, lambda rank: lora.fresh(layers, rank, draw))
    assert start
    assert start.free
    still = {key: half.where(start.free[key] == 0, 0) for key, half in start.adapter.items()}
    assert lora.gram([below, lora.product_sum([(1, below), (-1, still)])])[1, 1] == pytest.approx(0, abs=1e-9)
    assert sum(float(half.sum()) for half in start.free.values()) == 2 * 4 * 9 + 6 * 1
