"""A run's mixtures, row by row == merged into the weights == PEFT's `cat` of its bundles == one compact adapter.

And adapters that take turns between the steps of a picture == two networks in turn, by hand.
"""

import copy
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from fedgen import Bank, Run, lora, seeds
from fedgen.backbones import DiffusionBackbone
from fedgen.records import Document, Tree
from fedgen.sample import BARE, Sampler, Wish, compact, mixture, sampler
from fedgen.store import save_bundle

CLOSE = 1e-5
RANKS = {"ann": 4, "bob": 3, "cleo": 2}
MIXTURES = ["client/ann=0.7,client/bob=0.7", "client/cleo=1.5,client/ann=-0.5,global=0.2", "client/bob", BARE]


def loud(tree: Tree, seed: int, rank: int) -> Tree:
    """An adapter of this rank on the same layers that changes much."""
    draw = torch.Generator().manual_seed(seed)
    wide = lora.resize(tree, rank)
    return {key: 0.2 * torch.randn(value.shape, generator=draw) for key, value in wide.items()}


@pytest.fixture(scope="module")
def run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny run, with the clients' own adapters made loud and of several ranks."""
    run = Run(Path(shutil.copytree(tiny_run.folder, tmp_path_factory.mktemp("runs") / "loud")))
    shelf, like = run.shelf(), run.adapter("global")[0]
    for seed, (name, rank) in enumerate(RANKS.items()):
        shelf.put(name, run.plan.rounds + 1, loud(like, seed, rank))
    shelf.flush()
    return run


@pytest.fixture(scope="module")
def voice(run: Run) -> Iterator[Sampler]:
    found = sampler(run)
    with found.bank:
        yield found


@pytest.fixture
def network(run: Run) -> nn.Module:
    """The run's backbone on its own, without a bank."""
    found: Any = run.plan.backbone.load()
    bare: nn.Module = found.network
    return bare


@pytest.fixture(scope="module")
def ids() -> Tensor:
    return torch.randint(0, 290, (len(MIXTURES), 9), generator=torch.Generator().manual_seed(4))


def merged(network: nn.Module, parts: Mapping[str, float], trees: Mapping[str, Tree]) -> nn.Module:
    """A copy with every product added to its weight."""
    changed = copy.deepcopy(network)
    for name, weight in parts.items():
        for pair in lora.pairs(trees.get(name, {})):
            layer: Any = changed.get_submodule(pair.path)
            layer.weight.data += weight * (pair.b.flatten(1) @ pair.a.flatten(1)).view(layer.weight.shape)
    return changed


@torch.no_grad()
def routed(voice: Sampler, ids: Tensor) -> Tensor:
    network: Any = voice.backbone.network
    with voice.under([mixture(text) for text in MIXTURES]):
        found: Tensor = network(ids).logits
    return found


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@torch.no_grad()
def test_mixtures_row_by_row_are_the_merged_ones(run: Run, voice: Sampler, network: Any, ids: Tensor) -> None:
    trees = {name: run.adapter(name)[0] for name in ("global", *(f"client/{name}" for name in RANKS))}
    hybrids: list[Any] = [merged(network, mixture(text), trees) for text in MIXTURES]
    wanted = torch.cat([hybrid(ids[at : at + 1]).logits for at, hybrid in enumerate(hybrids)])
    assert gap(routed(voice, ids), wanted) < CLOSE
    assert all(gap(one, bare) > 0.01 for one, bare in zip(wanted[:3], network(ids).logits, strict=False))


@torch.no_grad()
def test_mixtures_row_by_row_are_pefts_of_the_exported_bundles(
    run: Run, voice: Sampler, network: Any, ids: Tensor, tmp_path: Path
) -> None:
    model: Any = None
    for name in ("global", *(f"client/{name}" for name in RANKS)):
        word = name.removeprefix("client/")
        save_bundle(tmp_path / word, *run.adapter(name))
        if model is None:
            model = PeftModel.from_pretrained(network, tmp_path / word, adapter_name=word)
        else:
            model.load_adapter(tmp_path / word, adapter_name=word)
    wanted = []
    for at, text in enumerate(MIXTURES[:3]):
        parts = {name.removeprefix("client/"): weight for name, weight in mixture(text).items()}
        model.base_model.add_weighted_adapter(list(parts), list(parts.values()), f"mix{at}", combination_type="cat")
        model.set_adapter(f"mix{at}")
        wanted.append(model(ids[at : at + 1]).logits)
    assert gap(routed(voice, ids)[:3], torch.cat(wanted)) < CLOSE


@torch.no_grad()
def test_a_compact_adapter_of_all_ranks_is_the_mixture_and_a_narrow_one_is_off_as_it_says(
    run: Run, voice: Sampler, network: Any, ids: Tensor
) -> None:
    parts = mixture(MIXTURES[1])
    wanted = routed(voice, ids)[1:2]
    whole, _, none = compact(run, parts)
    assert lora.rank(whole) == 2 + 4 + 4
    assert gap(merged(network, {"it": 1.0}, {"it": whole})(ids[1:2]).logits, wanted) < CLOSE
    assert none < 1e-9
    off = {}
    for rank in (4, 1):
        narrow, _, lost = compact(run, parts, rank)
        off[lost] = gap(merged(network, {"it": 1.0}, {"it": narrow})(ids[1:2]).logits, wanted)
    assert CLOSE < off[min(off)] < off[max(off)]


def test_adapters_in_turn_are_two_networks_in_turn(tiny_run: Run, denoisers: dict[str, DiffusionBackbone]) -> None:
    denoiser, steps = denoisers["classes"], 4
    like = lora.fresh(lora.targets(denoiser.network, denoiser.targets), 2, torch.Generator().manual_seed(0))
    trees = {name: loud(like, seed, 2) for seed, name in enumerate("ab")}
    networks: list[Any] = [merged(denoiser.network, mixture(text), trees) for text in ("a", "a=0.5,b=0.5", "b")]
    scheduler = type(denoiser.scheduler).from_config(denoiser.scheduler.config)
    scheduler.set_timesteps(steps)
    label = torch.tensor([3])
    made = torch.randn(1, *denoiser.shape, generator=seeds.generator(7, -1, "", "sample"))
    with torch.no_grad():
        for at, time in enumerate(scheduler.timesteps):
            said = networks[(0, 1, 1, 2)[at]](made, time, class_labels=label).sample
            made = scheduler.step(said, time, made).prev_sample
    wanted = 255 * (made / 2 + 0.5).clamp(0, 1)
    with Bank(denoiser.network, denoiser.targets, 2) as bank:
        lines = {name: bank.layout.vector(tree) for name, tree in trees.items()}
        voice = Sampler(tiny_run, denoiser, bank, lines)
        wish = Wish("a until 0.25 then a=0.5,b=0.5 until 0.75 then b", Document("", "", label="3"), 7)
        found, *others = voice.paint(
            [wish, Wish("a", wish.asked, 7), Wish("a=0.5,b=0.5", wish.asked, 7), Wish("b", wish.asked, 7)],
            steps=steps, guidance=1.0,
        )  # fmt: skip
    assert (found - wanted[0]).abs().max() < 0.51  # a rounding to bytes
    assert all((found.int() - other.int()).abs().max() > 2 for other in others)
