"""Ways to train in little memory: micro batches == whole ones, activations computed anew == kept, last layers == all
with the others zero and frozen, moments in main memory == beside the adapter. For texts and for pictures."""

import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoModelForCausalLM

import fedgen
from fedgen import lora, seeds, tree
from fedgen.backbones import Backbone, DiffusionBackbone, Language, LanguageBackbone
from fedgen.bank import Bank
from fedgen.client import Job, Start, Trained, Training, train
from fedgen.data.deal import count, take
from fedgen.records import Document, Rows, Tree
from fedgen.weights import AnyBank, Weights

CLOSE = 1e-5
LENGTH, RANK = 16, 4
SIZES = {"ann": 7, "bob": 1, "cleo": 4}  # rows: unequal, one client with less than a batch
SGD = Training(optimizer="sgd", lr=0.1, momentum=0.9, batch=5, epochs=2, clip=0.0)
WAYS = {
    "sgd": SGD,
    "adamw": Training(lr=1e-3, batch=5, epochs=2, clip=0.05, decay=0.1, warmup=0.3),
    "ahead": replace(SGD, ahead=0.1),
}
NETWORKS = ["ddpm", "stable", "dit", "pixart"]  # one of each class of network


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> LanguageBackbone:
    return Language(str(tiny_backbone), length=LENGTH, device="cpu").load()


@pytest.fixture(scope="module")
def tables(backbone: LanguageBackbone, tiny_text: Path) -> dict[str, Rows]:
    """Each client's rows; the last of all is a question, of which only the answer counts, so that terms are unequal."""
    question = Document("", "a short answer.", prompt="what is it that counts here, and what does not?")
    found = {}
    for name, size in SIZES.items():
        rows = backbone.encode([Document(name, (tiny_text / f"{name}.txt").read_text("utf-8")), question])
        found[name] = take(rows, torch.tensor([*range(size - 1), count(rows) - 1]))
    return found


def pictures(denoiser: DiffusionBackbone) -> dict[str, Rows]:
    found = {}
    for name, size in SIZES.items():
        draw = torch.Generator().manual_seed(size)
        drawn = torch.randint(0, 256, (size, *denoiser.picture), generator=draw, dtype=torch.uint8)
        documents = [Document("", "", f"number {at}", str(at), picture=one) for at, one in enumerate(drawn)]
        found[name] = denoiser.encode(documents)
    return found


def start(bank: AnyBank, by: float = 0.1) -> Tree:
    """A start that changes something, so that every number has a slope from the first step."""
    draw = torch.Generator().manual_seed(1)
    return {key: value + by * torch.randn(value.shape, generator=draw) for key, value in bank.fresh(draw).items()}


def jobs_of(begin: Start, tables: Mapping[str, Rows]) -> list[Job]:
    return [Job(name, begin, rows, functools.partial(seeds.generator, 0, 1, name)) for name, rows in tables.items()]


def gap(a: Tree, b: Tree) -> float:
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a)


def same(some: list[Trained], others: list[Trained], close: float) -> None:
    """Adapters, losses and what was done are the same, and something was done."""
    pairs = zip(sorted(some, key=lambda one: one.name), sorted(others, key=lambda one: one.name), strict=True)
    for one, other in pairs:
        assert gap(one.adapter, other.adapter) <= close
        assert one.loss == pytest.approx(other.loss, rel=1e-5)
        assert (one.name, one.steps, one.terms) == (other.name, other.steps, other.terms)


# ---- micro batches


@pytest.mark.parametrize("micro", [1, 2, 4, 9])
@pytest.mark.parametrize("way", WAYS)
def test_micro_batches_are_the_whole_batch(
    way: str, micro: int, backbone: LanguageBackbone, tables: dict[str, Rows]
) -> None:
    training = WAYS[way]
    with Bank(backbone.network, ["q_proj", "down_proj"], RANK) as bank:
        jobs = jobs_of(Start(start(bank)), tables)
        whole = train(training, backbone, bank, jobs)
        same(train(replace(training, micro=micro), backbone, bank, jobs), whole, CLOSE)
    assert all(gap(done.adapter, jobs[0].start.adapter) > 10 * CLOSE for done in whole)


def test_a_pass_has_as_many_rows_as_are_said(backbone: LanguageBackbone, tables: dict[str, Rows]) -> None:
    """Seven rows in batches of five: the second batch has two, whose third chunk would be empty and is left out."""
    seen: list[int] = []
    network = backbone.network
    handle = network.register_forward_pre_hook(
        lambda _, given, named: seen.append(len(named["input_ids"])), with_kwargs=True
    )
    try:
        with Bank(network, ["q_proj"], RANK) as bank:
            (job, *_) = jobs_of(Start(start(bank)), tables)
            train(replace(SGD, epochs=1, micro=2), backbone, bank, [job])
    finally:
        handle.remove()
    assert seen == [2, 2, 1, 2]


def test_micro_batches_of_a_whole_model(backbone: LanguageBackbone, tables: dict[str, Rows]) -> None:
    with Weights(backbone.network) as bank:
        (job, *_) = jobs_of(Start(start(bank, 0.0)), tables)
        training = replace(SGD, lr=0.01, epochs=1)
        whole = train(training, backbone, bank, [job])
        same(train(replace(training, micro=2, checkpoint=True), backbone, bank, [job]), whole, CLOSE)


# ---- activations computed anew


@pytest.mark.parametrize("way", WAYS)
def test_computed_anew_is_as_kept(way: str, backbone: LanguageBackbone, tables: dict[str, Rows]) -> None:
    with Bank(backbone.network, ["q_proj", "down_proj"], RANK) as bank:
        jobs = jobs_of(Start(start(bank)), tables)
        kept = train(WAYS[way], backbone, bank, jobs)
        same(train(replace(WAYS[way], checkpoint=True), backbone, bank, jobs), kept, 0.0)


@pytest.mark.parametrize("kind", NETWORKS)
def test_pictures_are_learnt_the_same(kind: str, denoisers: dict[str, DiffusionBackbone]) -> None:
    denoiser = denoisers[kind]
    with Bank(denoiser.network, denoiser.targets, RANK) as bank:
        jobs = jobs_of(Start(start(bank)), pictures(denoiser))
        plain = train(SGD, denoiser, bank, jobs)
        same(train(replace(SGD, checkpoint=True), denoiser, bank, jobs), plain, 0.0)
        same(train(replace(SGD, micro=2), denoiser, bank, jobs), plain, CLOSE)
        same(train(replace(SGD, micro=2, checkpoint=True, offload=True), denoiser, bank, jobs), plain, CLOSE)
    assert all(gap(done.adapter, jobs[0].start.adapter) > 10 * CLOSE for done in plain)


# ---- the last layers


@pytest.mark.parametrize("kind", ["text", "stable", "pixart"])
def test_last_layers_are_all_with_the_others_zero_and_frozen(
    kind: str, backbone: LanguageBackbone, tables: dict[str, Rows], denoisers: dict[str, DiffusionBackbone]
) -> None:
    own: Backbone = backbone if kind == "text" else denoisers[kind]
    rows = tables if kind == "text" else pictures(denoisers[kind])
    every = lora.targets(own.network, own.targets)
    names = lora.last(every, 0.5)
    with Bank(own.network, names, RANK) as bank:
        begin = start(bank)
        few = train(replace(SGD, clip=0.1), own, bank, jobs_of(Start(begin), rows))
    with Bank(own.network, own.targets, RANK) as bank:
        nothing = tree.zeros(bank.fresh(torch.Generator().manual_seed(0)))
        free = nothing | {key: torch.ones_like(value) for key, value in begin.items()}
        all_of_them = train(replace(SGD, clip=0.1), own, bank, jobs_of(Start(nothing | begin, free), rows))
    assert 0 < len(names) < len(every)
    for one, other in zip(few, all_of_them, strict=True):
        assert gap(one.adapter, {key: other.adapter[key] for key in one.adapter}) < CLOSE
        assert all(not other.adapter[key].any() for key in other.adapter.keys() - one.adapter.keys())
        assert gap(one.adapter, begin) > 10 * CLOSE


# ---- moments in main memory


def test_moments_in_main_memory_move_lines_the_same(backbone: LanguageBackbone, tables: dict[str, Rows]) -> None:
    with Bank(backbone.network, ["q_proj"], RANK) as bank:
        jobs = jobs_of(Start(start(bank)), tables)
        for way in WAYS.values():
            plain = train(way, backbone, bank, jobs)
            same(train(replace(way, offload=True), backbone, bank, jobs), plain, 0.0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here, off which moments could be kept")
def test_moments_off_the_gpu(tiny_backbone: Path, tables: dict[str, Rows]) -> None:
    backbone = Language(str(tiny_backbone), length=LENGTH, device="cuda", dtype="float32").load()
    with Bank(backbone.network, ["q_proj"], RANK) as bank:
        jobs = jobs_of(Start(start(bank)), tables)
        same(train(replace(SGD, offload=True), backbone, bank, jobs), train(SGD, backbone, bank, jobs), CLOSE)


# ---- a whole run


@pytest.mark.filterwarnings("ignore::UserWarning")  # of PEFT, about a configuration that it does not look up
def test_a_run_on_the_last_layers_is_read_by_peft(tiny_plan: dict[str, Any], tmp_path: Path) -> None:
    settings = ["adapter.last=0.5", "training.micro=1", "training.checkpoint=true", "rounds=1"]
    run = fedgen.run(tiny_plan, tmp_path / "run", settings=settings)
    adapter, _ = run.adapter("global")
    assert {pair.path for pair in lora.pairs(adapter)} == set(run.plan.adapter.targets)
    assert all(".layers.1." in f".{path}." for path in run.plan.adapter.targets)
    folder = tiny_plan["backbone"]["source"]
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "run/adapters/global")
    assert gap(get_peft_model_state_dict(model), adapter) == 0
