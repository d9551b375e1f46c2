"""Noise, what is asked for and how a miss counts, against diffusers' own schedulers and the paper's formulas."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fedgen.backbones.schedule import Schedule, schedule_of
from fedgen.errors import BackboneError

diffusers = pytest.importorskip("diffusers")

CLOSE = 1e-5
COURSES = ["linear", "scaled_linear", "squaredcos_cap_v2"]
KINDS = ["epsilon", "v_prediction", "sample"]
BETAS = ["PNDMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler"]
TIMES = torch.tensor([0, 1, 250, 500, 998, 999])
SHAPE = (len(TIMES), 3, 4, 4)


def drawn(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def read(scheduler: Any, weighting: Any = "own", gamma: float = 5.0) -> Schedule:
    return schedule_of(scheduler, weighting, gamma)


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("course", COURSES)
def test_noise_and_what_is_asked_are_diffusers_own(course: str, kind: str) -> None:
    scheduler = diffusers.DDPMScheduler(beta_schedule=course, prediction_type=kind)
    clean, noise = drawn(0), drawn(1)
    noisy, asked = read(scheduler).noised(clean, noise, TIMES)
    wanted = {"epsilon": noise, "sample": clean, "v_prediction": scheduler.get_velocity(clean, noise, TIMES)}
    assert gap(noisy, scheduler.add_noise(clean, noise, TIMES)) < CLOSE
    assert gap(asked, wanted[kind]) < CLOSE


@pytest.mark.parametrize("name", BETAS)
def test_every_scheduler_of_betas_tells_the_same_course(name: str) -> None:
    settings = {"beta_schedule": "scaled_linear", "beta_start": 0.001, "prediction_type": "v_prediction"}
    found, wanted = (read(getattr(diffusers, kind)(**settings)) for kind in (name, "DDPMScheduler"))
    assert gap(found.signal, wanted.signal) < CLOSE
    assert gap(found.sigma, wanted.sigma) < CLOSE
    assert torch.equal(found.time, torch.arange(1000.0))
    assert found.asked is wanted.asked


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flows_are_diffusers_own(shift: float) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    found, clean, noise = read(scheduler), drawn(0), drawn(1)
    noisy, asked = found.noised(clean, noise, TIMES)
    assert gap(found.time.flip(0), scheduler.timesteps) < CLOSE
    assert gap(noisy, scheduler.scale_noise(clean, scheduler.timesteps.flip(0)[TIMES], noise)) < CLOSE
    assert gap(asked, noise - clean) < CLOSE


def test_a_solver_of_flows_tells_the_same_course() -> None:
    settings = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
    found = read(diffusers.DPMSolverMultistepScheduler(**settings))
    wanted = read(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert all(torch.equal(getattr(found, name), getattr(wanted, name)) for name in ("signal", "sigma", "time"))


def min_snr(kind: str, ratio: Tensor, gamma: float) -> Tensor:
    """The weights as Hang et al. (2023) write them."""
    capped = ratio.clamp(max=gamma)
    return {"epsilon": capped / ratio, "v_prediction": capped / (ratio + 1), "sample": capped}[kind]


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_is_the_papers(kind: str, gamma: float) -> None:
    scheduler = diffusers.DDPMScheduler(beta_schedule="scaled_linear", prediction_type=kind)
    kept = scheduler.alphas_cumprod.double()
    weight = read(scheduler, "min_snr", gamma).weight
    wanted = min_snr(kind, kept / (1 - kept), gamma)
    assert torch.allclose(weight.double(), wanted, rtol=1e-5, atol=0)
    assert weight.max() > 2 * weight.min()


def test_min_snr_of_a_flow_counts_the_miss_of_the_clean_picture() -> None:
    found, gamma = read(diffusers.FlowMatchEulerDiscreteScheduler(), "min_snr", 5.0), 5.0
    clean, noise, miss = drawn(0), drawn(1), drawn(2)
    noisy, asked = found.noised(clean, noise, TIMES)
    sigma = found.sigma[TIMES].view(-1, 1, 1, 1)
    guessed = noisy - sigma * (asked + miss)  # the clean picture, from a velocity that is missed by so much
    ratio = (found.signal / found.sigma).square().clamp(max=gamma)[TIMES]
    wanted = ratio * (guessed - clean).square().flatten(1).mean(1)
    assert torch.allclose(found.weight[TIMES] * miss.square().flatten(1).mean(1), wanted, rtol=1e-3, atol=1e-6)
    assert found.weight.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_by_its_own_measure_every_miss_counts_alike(kind: str) -> None:
    weight = read(diffusers.DDPMScheduler(prediction_type=kind)).weight
    assert torch.equal(weight, torch.ones(1000))


@pytest.mark.parametrize("weighting", ["own", "min_snr"])
def test_noise_to_the_very_end_breaks_nothing(weighting: str) -> None:
    scheduler = diffusers.DDPMScheduler(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    found = read(scheduler, weighting)
    assert found.signal[-1] < 1e-3
    assert found.weight.isfinite().all()


# ---- what is refused


@pytest.mark.parametrize("name", ["ScoreSdeVeScheduler", "EDMEulerScheduler", "KarrasVeScheduler"])
def test_a_scheduler_without_a_course_of_noise(name: str) -> None:
    with pytest.raises(BackboneError, match=rf"^scheduler: {name} has no course of noise to train on; wanted one with"):
        read(getattr(diffusers, name)())


def test_an_unknown_kind_of_prediction() -> None:
    scheduler = diffusers.DDIMScheduler(prediction_type="score")
    known = "epsilon, sample, v_prediction, flow_prediction"
    with pytest.raises(BackboneError, match=f"^scheduler: DDIMScheduler predicts 'score', wanted one of {known}; use"):
        read(scheduler)
