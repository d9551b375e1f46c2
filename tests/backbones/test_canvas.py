"""Pictures on the way: many canvases in one pass are each as if alone, and what they would become can be shown."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedgen.backbones import DiffusionBackbone
from fedgen.backbones.canvas import Canvas, doubled
from fedgen.backbones.conditions import Prompts
from fedgen.backbones.schedule import schedule_of
from fedgen.errors import BackboneError, DataError
from fedgen.records import Document

diffusers = pytest.importorskip("diffusers")

Denoisers = dict[str, DiffusionBackbone]

KINDS = ["ddpm", "classes", "stable", "dit", "pixart", "flow"]
CLOSE = 1e-4
SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDIMScheduler": {},
    "PNDMScheduler": {},
    "EulerDiscreteScheduler": {},
    "EulerAncestralDiscreteScheduler": {},
    "HeunDiscreteScheduler": {},
    "UniPCMultistepScheduler": {},
    "DPMSolverMultistepScheduler": {"algorithm_type": "sde-dpmsolver++"},
}
COURSES = [(5, 1.0), (7, 3.0), (4, 0.0), (5, 2.0)]  # steps and guidance


def scheduled(denoiser: DiffusionBackbone, name: str) -> DiffusionBackbone:
    """The denoiser with another scheduler."""
    return replace(denoiser, scheduler=getattr(diffusers, name)(**SCHEDULERS[name]))


def begun(denoiser: DiffusionBackbone, at: int, steps: int, guidance: float = 1.0, size: int = 1) -> Canvas:
    asked = [Document("", "", f"client {at + one}", str(at + one)) for one in range(size)]
    draws = [torch.Generator().manual_seed(at + one) for one in range(size)]
    return denoiser.begin(asked, draws, steps=steps, guidance=guidance)


def finished(denoiser: DiffusionBackbone, canvas: Canvas) -> Tensor:
    while canvas.done < canvas.steps:
        denoiser.advance([canvas])
    return canvas.made


def in_turn(denoiser: DiffusionBackbone, canvases: Sequence[Canvas]) -> list[Tensor]:
    """All of them in one crowd: each joins a step after the one before it, and leaves when it is done."""
    step = 0
    while running := [one for at, one in enumerate(canvases) if at <= step and one.done < one.steps]:
        denoiser.advance(running)
        step += 1
    assert all(canvas.done == canvas.steps for canvas in canvases)
    return [canvas.made for canvas in canvases]


def gap(a: Tensor, b: Tensor) -> float:
    """How far apart, as a share of the largest number."""
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("kind", [*KINDS, *SCHEDULERS])
def test_canvases_that_share_passes_are_each_as_alone(kind: str, denoisers: Denoisers) -> None:
    denoiser = scheduled(denoisers["stable"], kind) if kind in SCHEDULERS else denoisers[kind]
    courses = [*enumerate(COURSES)]
    together = in_turn(denoiser, [begun(denoiser, at, *course) for at, course in courses])
    alone = [finished(denoiser, begun(denoiser, at, *course)) for at, course in courses]
    other = finished(denoiser, begun(denoiser, 1, 4, 1.0))
    assert all(gap(one, two) < CLOSE for one, two in zip(together, alone, strict=True))
    assert gap(other, alone[1]) > 100 * CLOSE


def test_a_canvas_of_several_pictures_moves_beside_one_of_one(denoisers: Denoisers) -> None:
    denoiser = denoisers["pixart"]
    three, one = begun(denoiser, 0, 4, 3.0, size=3), begun(denoiser, 7, 6)
    assert (three.rows, three.views, one.rows, one.views) == (6, 2, 1, 1)
    found, _ = in_turn(denoiser, [three, one])
    assert found.shape == (3, *denoiser.shape)
    for at in range(3):
        assert gap(found[at], finished(denoiser, begun(denoiser, at, 4, 3.0))[0]) < CLOSE


def test_what_knows_no_empty_prompt_is_not_guided(denoisers: Denoisers) -> None:
    canvas = begun(denoisers["classes"], 0, 4, 3.0)
    assert (canvas.views, canvas.guidance) == (1, 1.0)


def test_every_row_twice_side_by_side() -> None:
    told, empty = {"text": torch.tensor([[1.0], [2.0]])}, {"text": torch.tensor([[9.0]])}
    assert doubled(told, empty)["text"].tolist() == [[1], [9], [2], [9]]
    assert doubled({}, {}) == {}


def test_steps_that_a_scheduler_looks_at_twice_are_counted(denoisers: Denoisers) -> None:
    heun = begun(scheduled(denoisers["ddpm"], "HeunDiscreteScheduler"), 0, 4)
    assert (heun.steps, heun.done) == (7, 0)


def test_steps_that_a_scheduler_cannot_take_are_refused(denoisers: Denoisers) -> None:
    runge_kutta = scheduled(denoisers["ddpm"], "PNDMScheduler")
    with pytest.raises(BackboneError, match=r"^steps: PNDMScheduler draws no picture in 2 \(.*\); ask for others$"):
        begun(runge_kutta, 0, 2)
    assert begun(runge_kutta, 0, 4).steps > 4


# ---- what it would be


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_picture_behind_the_noise_is_diffusers_own_guess(name: str, kind: str) -> None:
    scheduler = getattr(diffusers, name)(prediction_type=kind, **{"clip_sample": False} if name[0] == "D" else {})
    schedule = schedule_of(scheduler, "own", 5.0)
    scheduler.set_timesteps(10)
    time = scheduler.timesteps[4]
    draw = torch.Generator().manual_seed(0)
    made, said = (
        scheduler.init_noise_sigma * torch.randn(1, 3, 4, 4, generator=draw),
        torch.rand(1, 3, 4, 4, generator=draw),
    )
    seen = scheduler.scale_model_input(made, time)
    wanted = scheduler.step(said, time, made).pred_original_sample
    assert gap(schedule.cleaned(seen, time, said), wanted) < 0.01


@pytest.mark.parametrize("kind", ["classes", "dit", "flow"])
def test_what_is_asked_for_leads_back_to_the_clean_picture(kind: str, denoisers: Denoisers) -> None:
    schedule, draw = denoisers[kind].schedule, torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 1, 1, 4, 4, generator=draw)
    for at in (torch.tensor([3]), torch.tensor([700])):
        noisy, wanted = schedule.noised(clean, noise, at)
        assert gap(schedule.cleaned(noisy, schedule.time[at[0]], wanted), clean) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_sketches_come_near_to_the_picture(kind: str, denoisers: Denoisers) -> None:
    denoiser = denoisers[kind]
    canvas, sketches = begun(denoiser, 2, 20, 2.0), list[Tensor]()
    assert denoiser.sketch(canvas).shape == (1, *denoiser.picture)  # noise, as nothing was heard yet
    while canvas.done < canvas.steps:
        denoiser.advance([canvas])
        sketches.append(denoiser.sketch(canvas).float())
    end = denoiser.shown(canvas.made).float()
    far = [float((sketch - end).square().mean()) for sketch in sketches]
    assert far[-1] < 4
    assert far[-1] < far[len(far) // 2] < far[0]


# ---- from other threads


@pytest.mark.parametrize("kind", ["pixart", "dit", "ddpm"])
def test_what_can_never_be_drawn_is_refused_without_drawing(kind: str, denoisers: Denoisers) -> None:
    denoiser = denoisers[kind]
    bad = {"pixart": "a cat " * 40, "dit": "no class"}.get(kind)
    denoiser.check(Document("", "", "a cat", "3"))
    if bad is not None:
        with pytest.raises(DataError, match=r"^prompt '|^label '"):
            denoiser.check(Document("", "", bad, bad))


def test_a_sealed_prompt_is_checked_for_its_shape(denoisers: Denoisers) -> None:
    denoiser = denoisers["pixart"]
    sealed = denoiser.seal("a cat")
    denoiser.check(sealed)
    for bad in (sealed | {"text": sealed["text"][:, :3]}, sealed | {"text": sealed["text"] * math.nan}, {}):
        with pytest.raises(BackboneError, match=r"sealed prompt: wanted finite .*; seal it for this backbone"):
            denoiser.check(bad)
    with pytest.raises(BackboneError, match="wanted finite a class, came"):
        denoisers["dit"].check(sealed)


def test_a_prompt_that_is_too_long_is_seen_while_others_are_read(denoisers: Denoisers) -> None:
    """Reading sets a tokenizer to cut, and checking not to; where the two meet, nothing would be too long."""
    condition = denoisers["pixart"].condition
    assert isinstance(condition, Prompts)
    short, long = [Document("", "", "a client")], [Document("", "", "a client " * 4000)]

    def refused() -> bool:
        try:
            condition.check(long)
        except DataError:
            return True
        return False

    with ThreadPoolExecutor(4) as pool:
        tasks = [(pool.submit(refused), [pool.submit(condition.rows, short) for _ in range(10)]) for _ in range(10)]
    assert all(task.result() for task, _ in tasks)
    wanted = condition.rows(short)["text"]
    assert all(task.result()["text"].equal(wanted) for _, read in tasks for task in read)
