"""Diffusion models of every kind: loading, rows, losses and painting."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedgen.backbones import BACKBONES, Diffusion, DiffusionBackbone, Language
from fedgen.backbones.diffusion import TARGETS
from fedgen.bank import Bank
from fedgen.data import join, take
from fedgen.errors import BackboneError
from fedgen.records import Document, Rows

KINDS = ["ddpm", "classes", "stable", "dit", "pixart", "flow"]
PROMPTED = ["stable", "pixart", "flow"]


def pictures(denoiser: DiffusionBackbone, count: int = 3) -> list[Document]:
    """Documents with a prompt, a label and a picture of the denoiser's own size."""
    draw = torch.Generator().manual_seed(1)
    drawn = torch.randint(0, 256, (count, *denoiser.picture), generator=draw, dtype=torch.uint8)
    return [Document("ann", "", f"client {at}", str(at), picture=picture) for at, picture in enumerate(drawn)]


def draws(count: int, first: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + at) for at in range(count)]


def load(folder: Path, **settings: Any) -> DiffusionBackbone:
    return Diffusion(str(folder), **({"device": "cpu"} | settings)).load()


def noised(denoiser: DiffusionBackbone, count: int = 3) -> Rows:
    return denoiser.draw(denoiser.encode(pictures(denoiser, count)), torch.Generator().manual_seed(0))


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


# ---- loading

SHAPES = {  # what the denoiser sees, and the picture that it is of
    "ddpm": ((3, 8, 8), (3, 8, 8)),
    "classes": ((1, 8, 8), (1, 8, 8)),
    "stable": ((4, 8, 8), (3, 16, 16)),
    "dit": ((4, 8, 8), (3, 16, 16)),
    "pixart": ((1, 8, 8), (1, 8, 8)),
    "flow": ((1, 8, 8), (1, 8, 8)),
}


def test_the_table_names_every_kind() -> None:
    assert dict(BACKBONES) == {"language": Language, "diffusion": Diffusion}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_loads_frozen_and_says_what_it_is(
    kind: str, denoisers: dict[str, DiffusionBackbone], pipelines: dict[str, Path]
) -> None:
    denoiser = denoisers[kind]
    assert (denoiser.kind, denoiser.name, denoiser.looks) == ("image", pipelines[kind].name, 4)
    assert denoiser.component == ("unet" if kind in ("ddpm", "classes", "stable") else "transformer")
    assert (denoiser.shape, denoiser.picture) == SHAPES[kind]
    assert denoiser.length == 16
    assert not denoiser.network.training
    assert not any(weight.requires_grad for weight in denoiser.network.parameters())
    assert {weight.dtype for weight in denoiser.network.parameters()} == {torch.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_attention_is_adapted_and_convolutions_where_there_is_little_of_it(
    kind: str, denoisers: dict[str, DiffusionBackbone]
) -> None:
    attention, convolutions = ("to_q", "to_k", "to_v", "to_out.0"), ("conv1", "conv2")
    assert denoisers[kind].targets == ((*attention, *convolutions) if kind in ("ddpm", "classes") else TARGETS)


def test_convolutions_that_are_not_there_are_not_adapted() -> None:
    """A transformer with next to no attention, as its many classes take nearly all of its weights."""
    diffusers = pytest.importorskip("diffusers")
    settings = {"num_attention_heads": 1, "attention_head_dim": 4, "in_channels": 1, "num_layers": 1, "sample_size": 4}
    with torch.random.fork_rng():
        network = diffusers.DiTTransformer2DModel(num_embeds_ada_norm=4000, **settings)
    bare: Any = DiffusionBackbone("", "", "transformer", network, *[None] * 4, Diffusion())  # type: ignore[arg-type]
    assert bare.targets == TARGETS
    with Bank(network, bare.targets, 2):
        pass


def test_the_dtype_is_the_one_asked_for(pipelines: dict[str, Path]) -> None:
    found = load(pipelines["stable"], dtype="bfloat16")
    parts = [found.network, found.vae, found.condition.encoder]  # type: ignore[attr-defined]
    assert {weight.dtype for part in parts for weight in part.parameters()} == {torch.bfloat16}
    losses, _ = found.losses(noised(found))
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
    assert found.paint(pictures(found), draws(3), steps=2, guidance=2.0).shape == (3, 3, 16, 16)


@pytest.mark.parametrize(("kind", "size"), [("ddpm", 16), ("stable", 32), ("pixart", 12), ("dit", 24)])
def test_a_picture_of_another_size(kind: str, size: int, pipelines: dict[str, Path]) -> None:
    own, found = load(pipelines[kind]), load(pipelines[kind], size=size)
    assert found.picture == (own.picture[0], size, size)
    assert found.length == own.length * size**2 // own.picture[1] ** 2
    assert found.row_bytes() > 1.5 * own.row_bytes() > 0
    losses, _ = found.losses(noised(found))
    assert losses.isfinite().all()
    assert found.paint(pictures(found, 1), draws(1), steps=2).shape == (1, *found.picture)


def test_the_memory_of_a_row_is_what_its_backward_pass_keeps(denoisers: dict[str, DiffusionBackbone]) -> None:
    """Measured on more rows than one, so that only what grows with the rows counts."""
    denoiser, kept = denoisers["pixart"], []
    for count in (1, 2, 3):
        held: dict[int, int] = {}

        def weigh(tensor: Tensor, held: dict[int, int] = held) -> Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        rows = noised(denoiser, count)
        rows["picture"].requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(weigh, lambda tensor: tensor):
            denoiser.losses(rows)
        kept.append(sum(held.values()))
    assert kept[2] - kept[1] == pytest.approx(kept[1] - kept[0], rel=0.05)
    assert denoiser.row_bytes() == pytest.approx(kept[1] - kept[0], rel=0.25)


# ---- rows


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_become_rows_and_rows_losses(kind: str, denoisers: dict[str, DiffusionBackbone]) -> None:
    denoiser = denoisers[kind]
    rows = denoiser.encode(pictures(denoiser))
    told = {"stable": {"text"}, "dit": {"class"}, "classes": {"class"}, "ddpm": set()}.get(kind, {"text", "seen"})
    assert set(rows) == {"picture"} | told
    assert rows["picture"].shape == (3, *denoiser.shape)
    losses, terms = denoiser.losses(denoiser.draw(rows, torch.Generator().manual_seed(0)))
    assert terms.tolist() == [1, 1, 1]
    assert losses.isfinite().all()
    assert (losses > 0).all()
    assert len(set(losses.tolist())) == 3


@pytest.mark.parametrize("kind", ["ddpm", "pixart"])
def test_pixels_are_numbers_between_minus_one_and_one(kind: str, denoisers: dict[str, DiffusionBackbone]) -> None:
    ends = torch.tensor([0, 255], dtype=torch.uint8).repeat(denoisers[kind].picture[1] // 2)
    picture = ends.expand(denoisers[kind].picture)
    rows = denoisers[kind].encode([Document("", "", "a client", "0", picture=picture)])
    assert rows["picture"].unique().tolist() == [-1, 1]


@torch.no_grad()
def test_latents_are_the_vaes_scaled(denoisers: dict[str, DiffusionBackbone]) -> None:
    denoiser = denoisers["stable"]
    documents = pictures(denoiser, 20)  # more than go through the VAE at once
    clean = torch.stack([document.picture for document in documents if document.picture is not None]) / 127.5 - 1
    wanted = denoiser.vae.encode(clean).latent_dist.mean * denoiser.vae.config.scaling_factor
    assert gap(denoiser.encode(documents)["picture"], wanted) < 1e-5


def test_nothing_makes_a_table_without_columns(denoisers: dict[str, DiffusionBackbone]) -> None:
    assert denoisers["stable"].encode([]) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_chance_comes_row_by_row(kind: str, denoisers: dict[str, DiffusionBackbone]) -> None:
    denoiser, draw = denoisers[kind], torch.Generator().manual_seed(0)
    rows, together = denoiser.encode(pictures(denoiser)), noised(denoiser)
    alone = join([denoiser.draw(take(rows, torch.tensor([at])), draw) for at in range(3)])
    assert list(alone) == list(together)
    assert all(torch.equal(alone[key], together[key]) for key in together)
    assert set(together) == {*rows, "time", "kept", "noise"}


def test_times_are_all_times_and_prompts_are_left_out_as_often_as_said(pipelines: dict[str, Path]) -> None:
    denoiser = load(pipelines["pixart"], drop=0.25)
    rows = {"picture": torch.zeros(2000, 1, 1, 1)}
    drawn = denoiser.draw(rows, torch.Generator().manual_seed(0))
    assert 0 <= drawn["time"].min() < 10
    assert 990 < drawn["time"].max() < 1000
    assert drawn["kept"].float().mean() == pytest.approx(0.75, abs=0.04)
    assert drawn["noise"].std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_loss_is_the_mean_squared_miss_by_hand(kind: str, denoisers: dict[str, DiffusionBackbone]) -> None:
    denoiser = denoisers[kind]
    rows = noised(denoiser) | {"kept": torch.tensor([True, True, True])}
    schedule = denoiser.schedule
    signal, sigma = (values[rows["time"]].view(-1, 1, 1, 1) for values in (schedule.signal, schedule.sigma))
    clean, noise = rows["picture"], rows["noise"]
    noisy, time = signal * clean + sigma * noise, schedule.time[rows["time"]]
    said = by_hand(denoiser, noisy, time, rows)[:, : denoiser.shape[0]]
    wanted = {"flow": noise - clean, "dit": signal * noise - sigma * clean, "pixart": signal * noise - sigma * clean}
    missed = (said - wanted.get(kind, noise)).square().flatten(1).mean(1)
    assert torch.allclose(denoiser.losses(rows)[0], missed, rtol=1e-5)


def by_hand(denoiser: DiffusionBackbone, noisy: Tensor, time: Tensor, told: Rows) -> Tensor:
    """The network called as its own signature has it."""
    call: Any = denoiser.network
    if denoiser.component == "unet":
        found = call(noisy, time, told["text"]) if "text" in told else call(noisy, time, class_labels=told.get("class"))
    elif "class" in told:
        found = call(noisy, timestep=time, class_labels=told["class"])
    else:
        seen = {"encoder_hidden_states": told["text"], "encoder_attention_mask": told["seen"]}
        more = {"resolution": None, "aspect_ratio": None}
        found = call(noisy, timestep=time, added_cond_kwargs=more, **seen)
    sample: Tensor = found.sample
    return sample


def test_min_snr_weighs_the_same_misses(pipelines: dict[str, Path]) -> None:
    own, weighted = load(pipelines["pixart"]), load(pipelines["pixart"], weighting="min_snr", gamma=2.0)
    rows = noised(own)
    ratio = own.scheduler.alphas_cumprod / (1 - own.scheduler.alphas_cumprod)
    weight = (ratio.clamp(max=2.0) / (ratio + 1))[rows["time"]]
    assert torch.allclose(weighted.losses(rows)[0], own.losses(rows)[0] * weight, rtol=1e-4)


# ---- the empty prompt


@pytest.mark.parametrize("kind", [*PROMPTED, "dit"])
@torch.no_grad()
def test_a_prompt_that_is_always_left_out_is_the_empty_one(kind: str, pipelines: dict[str, Path]) -> None:
    never, always = load(pipelines[kind], drop=0.0), load(pipelines[kind], drop=1.0)
    rows = noised(always)
    assert not rows["kept"].any()
    empty = always.condition.empty()
    assert empty is not None
    bare = rows | {key: value.expand(3, *value.shape[1:]) for key, value in empty.items()}
    assert torch.equal(always.losses(rows)[0], never.losses(bare)[0])
    assert gap(always.losses(rows)[0], never.losses(rows)[0]) > 1e-4


@pytest.mark.parametrize("kind", [*PROMPTED, "dit"])
@torch.no_grad()
def test_a_prompt_that_is_never_left_out_needs_no_empty_one(kind: str, pipelines: dict[str, Path]) -> None:
    never = load(pipelines[kind], drop=0.0)
    rows = noised(never)
    assert rows["kept"].all()
    assert torch.equal(never.losses(rows | {"kept": ~rows["kept"]})[0], never.losses(rows)[0])


@torch.no_grad()
def test_each_row_is_told_its_own(pipelines: dict[str, Path]) -> None:
    denoiser = load(pipelines["pixart"], drop=0.5)
    rows = noised(denoiser) | {"kept": torch.tensor([True, False, True])}
    found, kept, left = (
        denoiser.losses(rows | {"kept": torch.tensor(which)})[0]
        for which in ([True, False, True], [True] * 3, [False] * 3)
    )
    assert torch.equal(found, torch.stack([kept[0], left[1], kept[2]]))


# ---- painting


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_painted(kind: str, denoisers: dict[str, DiffusionBackbone]) -> None:
    denoiser, heard = denoisers[kind], list[tuple[int, int]]()
    asked = [replace(document, picture=None) for document in pictures(denoiser)]
    made = denoiser.paint(asked, draws(3), steps=3, guidance=2.0, told=lambda *at: heard.append(at))
    assert (made.dtype, tuple(made.shape)) == (torch.uint8, (3, *denoiser.picture))
    assert heard[-1] == (len(heard), len(heard))
    assert [at for at, _ in heard] == [*range(1, len(heard) + 1)]
    assert gap(made[0].float(), made[1].float()) > 10
    again = denoiser.paint(asked, draws(3), steps=3, guidance=2.0)
    assert torch.equal(again, made)
    assert not torch.equal(denoiser.paint(asked, draws(3, first=7), steps=3, guidance=2.0), made)


def test_a_denoiser_of_prompts_paints_what_is_asked(denoisers: dict[str, DiffusionBackbone]) -> None:
    denoiser = denoisers["pixart"]
    one, other = (
        denoiser.paint([Document("", "", prompt)], draws(1), steps=3, guidance=3.0) for prompt in ("a client", "")
    )
    assert gap(one.float(), other.float()) > 2


def scheduled(denoiser: DiffusionBackbone, name: str, settings: dict[str, Any]) -> DiffusionBackbone:
    """The denoiser with another scheduler."""
    diffusers: Any = pytest.importorskip("diffusers")
    return replace(denoiser, scheduler=getattr(diffusers, name)(**settings))


CHANCY: Sequence[tuple[str, dict[str, Any]]] = [
    ("EulerAncestralDiscreteScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
]


@pytest.mark.parametrize(("name", "settings"), CHANCY, ids=[name for name, _ in CHANCY])
def test_the_chance_of_a_scheduler_is_each_pictures_own(
    name: str, settings: dict[str, Any], denoisers: dict[str, DiffusionBackbone]
) -> None:
    denoiser = scheduled(denoisers["ddpm"], name, settings)
    state = torch.get_rng_state()
    asked = pictures(denoiser)
    made = denoiser.paint(asked, draws(3), steps=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(denoiser.paint(asked, draws(3), steps=4), made)
    alone = denoiser.paint(asked[1:2], draws(1, first=1), steps=4)
    assert gap(alone[0].float(), made[1].float()) <= 1


def test_painting_changes_neither_schedule_nor_scheduler(denoisers: dict[str, DiffusionBackbone]) -> None:
    denoiser = denoisers["stable"]
    times, kept = denoiser.scheduler.timesteps, denoiser.scheduler.alphas_cumprod.clone()
    denoiser.paint(pictures(denoiser), draws(3), steps=2)
    assert denoiser.scheduler.timesteps is times
    assert torch.equal(denoiser.scheduler.alphas_cumprod, kept)


@pytest.mark.parametrize("steps", [0, -3])
def test_no_steps_at_all(steps: int, denoisers: dict[str, DiffusionBackbone]) -> None:
    with pytest.raises(BackboneError, match=f"^steps: wanted at least 1 step to draw a picture, came {steps}$"):
        denoisers["ddpm"].paint(pictures(denoisers["ddpm"]), draws(3), steps=steps)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_changes_losses_and_pictures(kind: str, denoisers: dict[str, DiffusionBackbone]) -> None:
    denoiser = denoisers[kind]
    rows, asked = noised(denoiser), pictures(denoiser)
    bare, made = denoiser.losses(rows)[0], denoiser.paint(asked, draws(3), steps=3)
    with Bank(denoiser.network, denoiser.targets, 2) as bank:
        line = 0.3 * torch.randn(1, bank.layout.width, generator=torch.Generator().manual_seed(0))
        line.requires_grad_()
        with bank.carry(line):
            losses, _ = denoiser.losses(rows)
            changed = denoiser.paint(asked, draws(3), steps=3)
        losses.sum().backward()
    assert line.grad is not None
    assert line.grad.isfinite().all()
    assert gap(losses.detach(), bare) > 1e-3
    assert gap(changed.float(), made.float()) > 2
    assert torch.equal(denoiser.losses(rows)[0], bare)
