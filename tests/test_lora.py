"""Targets, shapes, fresh adapters, and the pair view of a tree."""

import math

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedgen import lora
from fedgen.errors import BackboneError, TreeError


class Quantised(nn.Module):
    """A linear layer whose weight has no shape worth reading."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.in_features, self.out_features = into, out
        self.register_buffer("packed", torch.zeros(into * out // 2, dtype=torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        """Nothing that matters here."""
        return x.new_zeros(*x.shape[:-1], self.out_features)


class Block(nn.Module):
    """Some layers of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = nn.Linear(6, 4)
        self.big_q_proj = nn.Linear(6, 4)
        self.c_attn = Conv1D(9, 3)  # 3 in, 9 out
        self.conv = nn.Conv2d(4, 6, (3, 5))
        self.grouped = nn.Conv2d(4, 6, 3, groups=2)
        self.packed = Quantised(8, 10)
        self.to_out = nn.Sequential(nn.Linear(4, 4), nn.Dropout())
        self.norm = nn.LayerNorm(4)


NETWORK = nn.Sequential(Block(), Block())


def test_targets_are_found_by_last_name_or_whole_path_in_the_networks_order() -> None:
    found = lora.targets(NETWORK, ["to_out.0", "q_proj", "1.conv"])
    assert list(found) == ["0.q_proj", "0.to_out.0", "1.q_proj", "1.conv", "1.to_out.0"]
    assert found["1.conv"] is NETWORK[1].conv


def test_the_last_paths_are_those_of_the_highest_numbers() -> None:
    paths = ["layers.10.v", "layers.2.q", "layers.10.q", "head", "layers.2.v"]
    ordered = ["head", "layers.2.q", "layers.2.v", "layers.10.q", "layers.10.v"]
    for share, count in ((0.0, 0), (0.2, 1), (0.5, 2), (0.7, 4), (1.0, 5)):
        assert lora.last(paths, share) == ordered[5 - count :]


def test_a_target_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(BackboneError) as caught:
        lora.targets(NETWORK, ["q_proj", "k_proj"])
    assert "'k_proj'" in str(caught.value)
    assert "big_q_proj, c_attn, conv, grouped, packed, q_proj, to_out.0" in str(caught.value)
    with pytest.raises(BackboneError, match="''"):
        lora.targets(NETWORK, [])


@pytest.mark.parametrize(
    ("name", "shape_a", "shape_b"),
    [
        ("q_proj", (4, 6), (4, 4)),
        ("c_attn", (4, 3), (9, 4)),
        ("conv", (4, 4, 3, 5), (6, 4, 1, 1)),
        ("grouped", (4, 4, 3, 3), (6, 2, 1, 1)),
        ("packed", (4, 8), (10, 4)),
    ],
)
def test_shapes(name: str, shape_a: tuple[int, ...], shape_b: tuple[int, ...]) -> None:
    assert lora.shapes(NETWORK.get_submodule(f"0.{name}"), 4) == (shape_a, shape_b)


def test_a_layer_that_cannot_be_adapted_and_a_rank_that_does_not_fit_are_refused() -> None:
    with pytest.raises(BackboneError, match="type LayerNorm, only linear"):
        lora.shapes(NETWORK[0].norm, 4)
    with pytest.raises(BackboneError, match="type Block, only linear"):
        lora.shapes(NETWORK[0], 4)
    with pytest.raises(BackboneError, match="2 groups wants a multiple of that, came 3"):
        lora.shapes(NETWORK[0].grouped, 3)
    with pytest.raises(BackboneError, match="at least 1, came 0"):
        lora.shapes(NETWORK[0].q_proj, 0)


def test_a_fresh_adapter_changes_nothing_and_is_drawn_as_peft_draws() -> None:
    layers = {"wide": nn.Linear(400, 8), "conv": nn.Conv2d(16, 8, 3)}
    tree = lora.fresh(layers, 64, torch.Generator().manual_seed(7))
    assert list(tree) == sorted(tree)
    assert lora.rank(tree) == 64
    for pair in lora.pairs(tree):
        assert not pair.b.any()
        assert pair.a.dtype == pair.b.dtype == torch.float32
        bound = 1 / math.sqrt(pair.a[0].numel())  # kaiming with a = sqrt(5)
        assert 0.98 * bound < pair.a.abs().max() <= bound
        assert abs(pair.a.mean()) < 0.02 * bound
    again = lora.fresh(layers, 64, torch.Generator().manual_seed(7))
    other = lora.fresh(layers, 64, torch.Generator().manual_seed(8))
    assert all(torch.equal(tree[key], again[key]) for key in tree)
    assert not any(torch.equal(tree[key], other[key]) for key in tree if "lora_A" in key)


def test_pairs_and_back() -> None:
    tree = lora.fresh(lora.targets(NETWORK, ["q_proj", "conv", "grouped"]), 2, torch.Generator().manual_seed(0))
    found = lora.pairs(dict(reversed(tree.items())))
    assert [pair.path for pair in found] == ["0.conv", "0.grouped", "0.q_proj", "1.conv", "1.grouped", "1.q_proj"]
    back = lora.tree_of(reversed(found))
    assert list(back) == list(tree)
    assert all(back[key] is tree[key] for key in tree)


def pair(path: str, a: tuple[int, ...], b: tuple[int, ...]) -> lora.Pair:
    return lora.Pair(path, torch.ones(a), torch.ones(b))


def test_pairs_refuse_a_lone_half_a_foreign_key_and_factors_that_do_not_fit() -> None:
    whole = lora.tree_of([pair("x", (2, 5), (7, 2))])
    a, b = whole
    with pytest.raises(TreeError, match=r"'base_model.model.x.lora_B.weight' is missing, but its other half"):
        lora.pairs({a: whole[a]})
    with pytest.raises(TreeError, match=r"'base_model.model.x.lora_A.weight' is missing, but its other half"):
        lora.pairs({b: whole[b]})
    for foreign in ("x.lora_A.weight", "base_model.model.x.weight", "base_model.model.x.lora_embedding_A"):
        with pytest.raises(TreeError, match="is no key of one"):
            lora.pairs(whole | {foreign: torch.ones(2)})
    for shape_a, shape_b in [((2, 5), (7, 3)), ((0, 5), (7, 0)), ((3, 2, 1, 1), (4, 2, 1, 1)), ((2, 5), (7, 2, 1, 1))]:
        with pytest.raises(TreeError, match="the factors of 'x' do not fit"):
            lora.pairs(lora.tree_of([pair("x", shape_a, shape_b)]))


def test_rank_is_one_for_all() -> None:
    assert lora.rank(lora.tree_of([pair("x", (3, 5), (7, 3)), pair("y", (3, 2, 1, 1), (4, 3, 1, 1))])) == 3
    with pytest.raises(TreeError, match=r"one rank in all layers, came \[2, 3\]"):
        lora.rank(lora.tree_of([pair("x", (3, 5), (7, 3)), pair("y", (2, 5), (7, 2))]))
    with pytest.raises(TreeError, match="no layer"):
        lora.rank({})
