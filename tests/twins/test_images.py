"""Pictures: a cohort == one client at a time == a plain PEFT loop; a crowd's batch == each of it alone == by hand."""

import copy
import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import (
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from torch import Tensor, nn

from fedgen import lora, seeds
from fedgen.backbones import DiffusionBackbone
from fedgen.bank import Bank
from fedgen.client import Job, Start, Training, order, train
from fedgen.data.deal import count, take
from fedgen.records import Document, Rows, Tree

Denoisers = dict[str, DiffusionBackbone]

CLOSE = 1e-5
HALF = 0.5 + 0.01  # what rounding to bytes may take away, and a little for the order of sums
RANK = 4
SIZES = {"ann": 5, "bob": 1, "cleo": 4, "dan": 2}  # pictures: unequal, one client with less than a batch
NETWORKS = ["ddpm", "stable", "dit", "pixart"]  # one of each class of network
KINDS = [*NETWORKS, "classes", "flow"]
PLAIN = Training(batch=2, epochs=2, clip=0.0)
WAYS = {
    "adamw": replace(PLAIN, lr=1e-3, clip=0.05, decay=0.1),
    "sgd": replace(PLAIN, optimizer="sgd", lr=0.1, momentum=0.9, proximal=0.5),
}
# Adam makes rounding as large as its rate where slopes are small, as they are in the attention of these UNets.
TRAINED = [*((kind, "sgd") for kind in NETWORKS), ("dit", "adamw"), ("pixart", "adamw")]


def documents(denoiser: DiffusionBackbone, number: int) -> list[Document]:
    draw = torch.Generator().manual_seed(number)
    drawn = torch.randint(0, 256, (number, *denoiser.picture), generator=draw, dtype=torch.uint8)
    return [Document("", "", f"client {at}", str(at), picture=picture) for at, picture in enumerate(drawn)]


def adapter(denoiser: DiffusionBackbone, seed: int, by: float = 0.1, rank: int = RANK) -> Tree:
    """One that changes something, so that every factor has a slope from the first step."""
    draw = torch.Generator().manual_seed(seed)
    tree = lora.fresh(lora.targets(denoiser.network, denoiser.targets), rank, draw)
    return {key: value + by * torch.randn(value.shape, generator=draw) for key, value in tree.items()}


def filled(denoiser: DiffusionBackbone, trees: Sequence[Tree]) -> Bank:
    """A bank with these adapters in its slots from 1 on."""
    bank = Bank(denoiser.network, denoiser.targets, RANK, slots=len(trees))
    for at, tree in enumerate(trees):
        bank.write(at + 1, tree)
    return bank


def gap(a: Tensor, b: Tensor) -> float:
    """How far apart, as a share of the largest number."""
    return float((a - b).abs().max() / b.abs().max())


def apart(a: Tree, b: Tree) -> float:
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a)


# ---- training


def config_of(tree: Tree, denoiser: DiffusionBackbone) -> LoraConfig:
    rank = lora.rank(tree)
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=list(denoiser.targets))


def by_peft(denoiser: DiffusionBackbone, tree: Tree) -> DiffusionBackbone:
    """The denoiser with PEFT's own layers, which hold the adapter."""
    network = inject_adapter_in_model(config_of(tree, denoiser), copy.deepcopy(denoiser.network))
    set_peft_model_state_dict(network, {key.removeprefix(lora.PREFIX): value for key, value in tree.items()})
    return replace(denoiser, network=network.eval())


def slow_truth(denoiser: DiffusionBackbone, training: Training, task: Job) -> tuple[Tree, float]:
    """What one client would do if there were no fedgen: the adapter and its mean loss."""
    alone = by_peft(denoiser, task.start.adapter)
    weights = [weight for weight in alone.network.parameters() if weight.requires_grad]
    begin = [weight.detach().clone() for weight in weights]
    optimizer: torch.optim.Optimizer = torch.optim.SGD(weights, lr=training.lr, momentum=training.momentum)
    if training.optimizer == "adamw":
        optimizer = torch.optim.AdamW(weights, lr=training.lr, weight_decay=training.decay)
    losses, noise = [], task.draw("noise")
    for pick in order(training, count(task.rows), task.draw("order")):
        drawn = alone.draw(take(task.rows, pick.clamp(min=0)), noise)  # empty places of a batch draw noise too
        loss = alone.losses(take(drawn, pick >= 0))[0].mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        far = sum((weight - at).square().sum() for weight, at in zip(weights, begin, strict=True))
        (loss + training.proximal / 2 * far).backward()
        if training.clip:
            torch.nn.utils.clip_grad_norm_(weights, training.clip)
        optimizer.step()
    tree = {lora.PREFIX + key: value.detach() for key, value in get_peft_model_state_dict(alone.network).items()}
    return tree, sum(losses) / len(losses)


@pytest.mark.parametrize(("kind", "way"), TRAINED)
def test_cohort_alone_and_plain_loop_send_the_same_update(kind: str, way: str, denoisers: Denoisers) -> None:
    denoiser, training = denoisers[kind], WAYS[way]
    start = Start(adapter(denoiser, 1, 0.3))
    jobs = [
        Job(
            name,
            start,
            denoiser.encode(documents(denoiser, size)),
            functools.partial(seeds.generator, 0, 1, name),
        )
        for name, size in SIZES.items()
    ]
    with Bank(denoiser.network, denoiser.targets, RANK) as bank:
        together = {done.name: done for done in train(training, denoiser, bank, jobs)}
        single = {task.name: train(training, denoiser, bank, [task])[0] for task in jobs}
    assert len({done.steps for done in together.values()}) > 1  # or nobody would ever be left alone
    for task in jobs:
        truth, loss = slow_truth(denoiser, training, task)
        assert apart(together[task.name].adapter, single[task.name].adapter) < CLOSE
        assert apart(together[task.name].adapter, truth) < CLOSE
        assert apart(truth, start.adapter) > 50 * CLOSE
        assert together[task.name].loss == pytest.approx(loss, rel=1e-5)
        assert together[task.name].terms == single[task.name].terms == 2 * count(task.rows)


# ---- the bank

SLOTS = [2, 0, 1, 1, 2, 0]


def inputs(denoiser: DiffusionBackbone, rows: Rows) -> dict[str, Any]:
    """What the network's own signature calls a noisy picture, its time and what it is told."""
    given: dict[str, Any] = {"timestep": rows["time"]}
    given["sample" if denoiser.component == "unet" else "hidden_states"] = rows["noise"]
    if "text" in rows:
        given["encoder_hidden_states"] = rows["text"]
    if "seen" in rows:
        given["encoder_attention_mask"] = rows["seen"]
        given["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}
    if "class" in rows:
        given["class_labels"] = rows["class"]
    return given


def mixed_by_peft(denoiser: DiffusionBackbone, trees: Sequence[Tree]) -> Any:
    """PEFT's own model of a copy of the network, with every adapter in it by its slot."""
    model: Any = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for at, tree in enumerate(trees):
            config, name = config_of(tree, denoiser), f"slot{at + 1}"
            if model is None:
                model = get_peft_model(copy.deepcopy(denoiser.network), config, adapter_name=name)  # type: ignore[arg-type]
            else:
                model.add_adapter(name, config)
            assert not set_peft_model_state_dict(model, tree, adapter_name=name).unexpected_keys
    return model.eval()


def merged(network: nn.Module, parts: Mapping[float, Tree]) -> nn.Module:
    """A copy with every product added to its weight."""
    changed = copy.deepcopy(network)
    for weight, tree in parts.items():
        for pair in lora.pairs(tree):
            layer: Any = changed.get_submodule(pair.path)
            layer.weight.data += weight * (pair.b.flatten(1) @ pair.a.flatten(1)).view(layer.weight.shape)
    return changed


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_mixed_rows_of_a_denoiser_are_pefts_and_its_mixtures_the_merged_ones(kind: str, denoisers: Denoisers) -> None:
    denoiser = denoisers[kind]
    rows = denoiser.encode(documents(denoiser, len(SLOTS)))
    given = inputs(denoiser, denoiser.draw(rows, torch.Generator().manual_seed(0)))
    trees = [adapter(denoiser, 1, 0.2), adapter(denoiser, 2, 0.2, rank=2)]
    names = [f"slot{slot}" if slot else "__base__" for slot in SLOTS]
    wanted = mixed_by_peft(denoiser, trees)(**given, adapter_names=names).sample
    hybrid = merged(denoiser.network, {0.3: trees[0], 0.7: trees[1]})(**given).sample
    bare = denoiser.network(**given).sample
    with filled(denoiser, trees) as bank:
        with bank.rows(torch.tensor(SLOTS)):
            found = denoiser.network(**given).sample
        with bank.rows(torch.tensor([[1, 2]] * len(SLOTS)), torch.tensor([[0.3, 0.7]] * len(SLOTS))):
            mixture = denoiser.network(**given).sample
    assert gap(found, wanted) < CLOSE
    assert gap(mixture, hybrid) < CLOSE
    assert all((gap(found[at], bare[at]) > 1e-2) == bool(slot) for at, slot in enumerate(SLOTS))
    assert gap(mixture, bare) > 1e-2


# ---- painting


def draws(numbers: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def levels(a: Tensor, b: Tensor) -> int:
    """How many levels of a byte apart."""
    return int((a.int() - b.int()).abs().max())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_crowd_is_painted_as_each_of_it_alone(kind: str, guidance: float, denoisers: Denoisers) -> None:
    denoiser = denoisers[kind]
    asked, slots = documents(denoiser, 4), [2, 0, 1, 2]
    trees = [adapter(denoiser, 1, 0.3), adapter(denoiser, 2, 0.3)]

    def paint(bank: Bank, at: Sequence[int], slot: Sequence[int]) -> Tensor:
        with bank.rows(torch.tensor(slot)):
            return denoiser.paint([asked[one] for one in at], draws(at), steps=4, guidance=guidance)

    bare = denoiser.paint(asked, draws(range(4)), steps=4, guidance=guidance)
    with filled(denoiser, trees) as bank:
        together = paint(bank, range(4), slots)
        alone = torch.cat([paint(bank, [at], [slots[at]]) for at in range(4)])
        others = paint(bank, [3, 1], [slots[3], slots[1]])
    assert levels(together, alone) <= 1
    assert levels(others, together[[3, 1]]) <= 1
    assert levels(together[1], bare[1]) <= 1
    assert all(levels(together[at], bare[at]) > 1 for at in (0, 2, 3))


@torch.no_grad()
def by_hand(denoiser: DiffusionBackbone, asked: Sequence[Document], guidance: float) -> Tensor:
    """Pictures of four steps as floats, prompt and empty prompt in two passes, with nothing of fedgen's sampler."""
    scheduler = deterministic(denoiser.scheduler)
    scheduler.set_timesteps(4)
    made = torch.stack([torch.randn(denoiser.shape, generator=draw) for draw in draws(range(len(asked)))])
    own, empty = denoiser.condition.rows(asked), denoiser.condition.empty()
    bare = None if empty is None else {key: torch.cat([row] * len(asked)) for key, row in empty.items()}

    def said(told: Rows) -> Tensor:
        rows = told | {"noise": made, "time": time.repeat(len(asked))}
        out: Tensor = denoiser.network(**inputs(denoiser, rows)).sample
        return out[:, : denoiser.shape[0]]

    for time in scheduler.timesteps:
        guess = said(own) if bare is None else (1 - guidance) * said(bare) + guidance * said(own)
        made = scheduler.step(guess, time, made).prev_sample
    if denoiser.vae is not None:
        made = denoiser.vae.decode(made / denoiser.vae.config.scaling_factor).sample
    return (made / 2 + 0.5).clamp(0, 1)


def deterministic(scheduler: Any) -> Any:
    """A fresh scheduler without chance."""
    kind = type(scheduler)
    if kind.__name__ == "DDPMScheduler":
        kind = pytest.importorskip("diffusers").DDIMScheduler
    return kind.from_config(scheduler.config)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_what_two_passes_by_hand_make(kind: str, guidance: float, denoisers: Denoisers) -> None:
    denoiser = denoisers[kind]
    asked = documents(denoiser, 3)
    wanted = by_hand(denoiser, asked, guidance)
    made = denoiser.paint(asked, draws(range(3)), steps=4, guidance=guidance)
    assert (made - 255 * wanted).abs().max() < HALF
    if denoiser.condition.empty() is not None:
        assert (made - 255 * by_hand(denoiser, asked, 2.0)).abs().max() > 1
