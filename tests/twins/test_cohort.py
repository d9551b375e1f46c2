"""A cohort at once == one client at a time == a plain PEFT and PyTorch loop that knows nothing of cohorts."""

import functools
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForCausalLM

from fedgen import lora, seeds
from fedgen.backbones import Language, LanguageBackbone
from fedgen.bank import Bank
from fedgen.client import Job, Start, Trained, Training, order, train
from fedgen.data.deal import count, take
from fedgen.records import Document, Rows, Tree
from fedgen.tree import is_finite, scale

CLOSE = 1e-5
LENGTH, RANK, NAMES = 16, 4, ["q_proj", "v_proj", "down_proj"]
SIZES = {"ann": 5, "bob": 1, "cleo": 4, "dan": 2}  # rows: unequal, one client with less than a batch
PLAIN = Training(lr=3e-3, batch=2, clip=0.0)  # Adam makes rounding as large as its rate where slopes are small


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> LanguageBackbone:
    return Language(str(tiny_backbone), length=LENGTH, device="cpu").load()


@pytest.fixture
def bank(backbone: LanguageBackbone) -> Iterator[Bank]:
    with Bank(backbone.network, NAMES, RANK) as bank:
        yield bank


@pytest.fixture(scope="module")
def tables(backbone: LanguageBackbone, tiny_text: Path) -> dict[str, Rows]:
    """Each client's rows; the last row of all is a question, of which only the answer counts."""
    question = Document("", "a short answer.", prompt="what is it that counts here, and what does not?")
    found = {}
    for name, size in SIZES.items():
        text = (tiny_text / f"{name}.txt").read_text("utf-8")
        rows = backbone.encode([Document(name, text), question])
        found[name] = take(rows, torch.tensor([*range(size - 1), count(rows) - 1]))
    return found


def job(name: str, rows: Rows, start: Tree) -> Job:
    return Job(name, Start(start), rows, functools.partial(seeds.generator, 0, 1, name))


def start(bank: Bank, rank: int = RANK, seed: int = 1) -> Tree:
    """A start that changes something, so that every factor has a slope from the first step."""
    draw = torch.Generator().manual_seed(seed)
    tree = lora.resize(bank.fresh(draw), rank) if rank == RANK else cut(bank.fresh(draw), rank)
    return {key: value + 0.1 * torch.randn(value.shape, generator=draw) for key, value in tree.items()}


def cut(tree: Tree, rank: int) -> Tree:
    """The first so many rows and columns of the factors."""
    return {key: (value[:rank] if "lora_A" in key else value[:, :rank]).clone() for key, value in tree.items()}


def jobs_of(bank: Bank, tables: dict[str, Rows]) -> list[Job]:
    return [job(name, rows, start(bank)) for name, rows in tables.items()]


def by_name(done: Sequence[Trained]) -> dict[str, Trained]:
    return {one.name: one for one in done}


def gap(a: Tree, b: Tree) -> float:
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a)


# ---- the slow truth


def peft_model(folder: Path, tree: Tree) -> Any:
    config = LoraConfig(r=lora.rank(tree), lora_alpha=lora.rank(tree), target_modules=NAMES, lora_dropout=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    set_peft_model_state_dict(model, tree)
    return model.eval()


def optimizer_of(training: Training, weights: list[Tensor]) -> torch.optim.Optimizer:
    if training.optimizer == "adamw":
        return torch.optim.AdamW(weights, lr=training.lr, weight_decay=training.decay)
    return torch.optim.SGD(weights, lr=training.lr, momentum=training.momentum, weight_decay=training.decay)


def distance(weights: list[Tensor], begin: list[Tensor]) -> Tensor:
    return sum((weight - at).square().sum() for weight, at in zip(weights, begin, strict=True))


def slow_truth(folder: Path, training: Training, task: Job) -> tuple[Tree, float]:
    """What one client would do if there were no fedgen: the adapter and its mean loss."""
    model = peft_model(folder, task.start.adapter)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    begin = [weight.detach().clone() for weight in weights]
    optimizer = optimizer_of(training, weights)
    picks = order(training, count(task.rows), task.draw("order"))
    steps = len(picks)
    rise, fall = (max(1, math.ceil(share * steps)) for share in (training.warmup, training.cooldown))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: min(1.0, (at + 1) / rise, (steps - at) / fall))
    losses = []
    for pick in picks:
        rows = take(task.rows, pick[pick >= 0])
        labels = rows["ids"].long()
        labels[:, 1:][~rows["scored"]] = -100
        loss = model(input_ids=rows["ids"].long(), labels=labels).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        (loss + training.proximal / 2 * distance(weights, begin)).backward()
        if training.clip:
            torch.nn.utils.clip_grad_norm_(weights, training.clip)
        optimizer.step()
        schedule.step()
    return {key: value.detach() for key, value in get_peft_model_state_dict(model).items()}, sum(losses) / len(losses)


WAYS = {
    "adamw": PLAIN,
    "adamw-epochs": replace(PLAIN, epochs=2),
    "adamw-steps": replace(PLAIN, steps=4),
    "adamw-clip": replace(PLAIN, epochs=2, clip=0.05),
    "adamw-decay": replace(PLAIN, epochs=2, decay=0.3),
    "adamw-proximal": replace(PLAIN, epochs=2, proximal=0.5),
    "adamw-warmup": replace(PLAIN, epochs=2, warmup=0.6),
    "adamw-cooldown": replace(PLAIN, epochs=2, cooldown=0.6),
    "sgd": replace(PLAIN, optimizer="sgd", lr=0.1),
    "sgd-momentum": replace(PLAIN, optimizer="sgd", lr=0.1, momentum=0.9, epochs=2),
    "sgd-decay": replace(PLAIN, optimizer="sgd", lr=0.1, decay=0.3, epochs=2),
    "all-at-once": Training(lr=3e-3, epochs=3, batch=3, warmup=0.3, decay=0.1, clip=0.5, proximal=0.5),
}


@pytest.mark.parametrize("way", WAYS)
def test_cohort_alone_and_plain_loop_send_the_same_update(
    way: str, tiny_backbone: Path, bank: Bank, backbone: LanguageBackbone, tables: dict[str, Rows]
) -> None:
    training, jobs = WAYS[way], jobs_of(bank, tables)
    together = by_name(train(training, backbone, bank, jobs))
    assert len({done.steps for done in together.values()}) > 1 or training.steps  # or nobody would ever be left alone
    for task in jobs:
        (alone,) = train(training, backbone, bank, [task])
        truth, loss = slow_truth(tiny_backbone, training, task)
        assert gap(together[task.name].adapter, alone.adapter) < CLOSE
        assert gap(together[task.name].adapter, truth) < CLOSE
        assert gap(truth, task.start.adapter) > 1e-3
        assert together[task.name].loss == pytest.approx(loss, abs=1e-4)
        assert (together[task.name].steps, together[task.name].terms) == (alone.steps, alone.terms)


def test_each_way_is_another_way(bank: Bank, backbone: LanguageBackbone, tables: dict[str, Rows]) -> None:
    """No setting is idle: each changes what the client sends, or the twins above would prove nothing."""
    task = job("ann", tables["ann"], start(bank))
    found = [train(training, backbone, bank, [task])[0].adapter for training in WAYS.values()]
    assert all(gap(one, two) > 10 * CLOSE for at, one in enumerate(found) for two in found[:at])


def test_unequal_ranks_share_a_pass(
    tiny_backbone: Path, bank: Bank, backbone: LanguageBackbone, tables: dict[str, Rows]
) -> None:
    training = replace(PLAIN, epochs=2, clip=0.1, decay=0.1)
    jobs = [job(name, rows, start(bank, rank)) for (name, rows), rank in zip(tables.items(), (2, 4, 1, 3), strict=True)]
    for done in train(training, backbone, bank, jobs):
        (task,) = [task for task in jobs if task.name == done.name]
        assert lora.rank(done.adapter) == lora.rank(task.start.adapter)
        assert gap(done.adapter, slow_truth(tiny_backbone, training, task)[0]) < CLOSE


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_dropout_is_the_jobs_own(
    optimizer: Any, bank: Bank, backbone: LanguageBackbone, tables: dict[str, Rows]
) -> None:
    training = replace(PLAIN, optimizer=optimizer, epochs=2, dropout=0.3)
    jobs = jobs_of(bank, tables)
    together = by_name(train(training, backbone, bank, jobs))
    without = by_name(train(replace(training, dropout=0.0), backbone, bank, jobs))
    for task in jobs:
        (alone,) = train(training, backbone, bank, [task])
        assert gap(together[task.name].adapter, alone.adapter) < CLOSE
        assert gap(together[task.name].adapter, without[task.name].adapter) > 1e-4


@pytest.mark.parametrize(("by", "clip"), [(math.inf, 0.0), (1e30, 0.1)])  # no numbers at all, and too large ones
@pytest.mark.parametrize("spoilt", ["ann", "bob"])  # the first of the pass to the end, and one that is done early
def test_numbers_that_are_none_stay_with_their_client(
    spoilt: str, by: float, clip: float, *, bank: Bank, backbone: LanguageBackbone, tables: dict[str, Rows]
) -> None:
    training = replace(PLAIN, epochs=2, clip=clip, proximal=0.1)
    jobs = jobs_of(bank, tables)
    wrong = [replace(task, start=Start(scale(task.start.adapter, by))) for task in jobs]
    mixed = [bad if bad.name == spoilt else good for good, bad in zip(jobs, wrong, strict=True)]
    healthy, found = by_name(train(training, backbone, bank, jobs)), by_name(train(training, backbone, bank, mixed))
    assert math.isnan(found[spoilt].loss)
    assert not is_finite(found[spoilt].adapter)
    for name in set(SIZES) - {spoilt}:
        assert gap(found[name].adapter, healthy[name].adapter) == 0
        assert found[name].loss == healthy[name].loss
