"""What noise does to a picture at each time, what the network is then asked for, and how much that counts."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fedgen.errors import BackboneError

Weighting = Literal["own", "min_snr"]
Ask = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # signal, sigma, clean, noise -> what is predicted


@dataclass(frozen=True)
class Schedule:
    """For each time the share of picture and of noise, the number the network knows it by, and the weight of a miss."""

    signal: Tensor
    sigma: Tensor
    time: Tensor
    weight: Tensor
    asked: Ask
    clean: Ask

    def noised(self, clean: Tensor, noise: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures with the noise of their times, and what the network should say of them."""
        shape = (-1, *[1] * (clean.dim() - 1))
        signal, sigma = self.signal.to(clean)[at].view(shape), self.sigma.to(clean)[at].view(shape)
        return signal * clean + sigma * noise, self.asked(signal, sigma, clean, noise)

    def cleaned(self, noisy: Tensor, time: Tensor, said: Tensor) -> Tensor:
        """The pictures behind the noise, if what the network said at this time of its own were the truth."""
        at = (self.time - time.to(self.time)).abs().argmin()
        return self.clean(self.signal[at].to(noisy), self.sigma[at].to(noisy), noisy, said)


ASKED: dict[str, Ask] = {
    "epsilon": lambda signal, sigma, clean, noise: noise,
    "sample": lambda signal, sigma, clean, noise: clean,
    "v_prediction": lambda signal, sigma, clean, noise: signal * noise - sigma * clean,
    "flow_prediction": lambda signal, sigma, clean, noise: noise - clean,
}
CLEAN: dict[str, Ask] = {  # signal, sigma, noisy, what is predicted -> clean
    "epsilon": lambda signal, sigma, noisy, said: (noisy - sigma * said) / signal,
    "sample": lambda signal, sigma, noisy, said: said,
    "v_prediction": lambda signal, sigma, noisy, said: signal * noisy - sigma * said,
    "flow_prediction": lambda signal, sigma, noisy, said: noisy - sigma * said,
}
# A miss of what is asked, squared, times this is the squared miss of the clean picture.
SEEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "epsilon": lambda signal, sigma: (sigma / signal).square(),
    "sample": lambda signal, sigma: torch.ones_like(sigma),
    "v_prediction": lambda signal, sigma: sigma.square(),
    "flow_prediction": lambda signal, sigma: sigma.square(),
}


def schedule_of(scheduler: Any, weighting: Weighting, gamma: float) -> Schedule:
    """Read a diffusers scheduler, fresh from its folder: sampling would change it.

    `own` counts every miss of what is asked alike, `min_snr` every miss of the clean picture by its signal-to-noise
    ratio, at most `gamma` (Hang et al. 2023).
    """
    kind, (signal, sigma, time) = _kind(scheduler), _course(scheduler)
    ratio = (signal / sigma).square().clamp(max=gamma)
    weight = torch.ones_like(sigma) if weighting == "own" else ratio * SEEN[kind](signal, sigma)
    weight = weight.nan_to_num(1.0)  # of noise alone that is asked for the noise: 0 times infinity, and 1 in the limit
    return Schedule(signal.float(), sigma.float(), time.float(), weight.float(), ASKED[kind], CLEAN[kind])


def _kind(scheduler: Any) -> str:
    flows = "FlowMatch" in type(scheduler).__name__
    kind = "flow_prediction" if flows else scheduler.config.get("prediction_type", "epsilon")
    if kind not in ASKED:
        raise BackboneError(
            f"scheduler: {type(scheduler).__name__} predicts '{kind}', wanted one of {', '.join(ASKED)}; use another"
        )
    return str(kind)


def _course(scheduler: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Signal, noise and time, from the cleanest to the noisiest."""
    steps = scheduler.config.get("num_train_timesteps", 0)
    kept = getattr(scheduler, "alphas_cumprod", None)  # schedulers of one family have one, and no other mark
    if _kind(scheduler) == "flow_prediction":
        sigma = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        shift = scheduler.config.get("shift") or scheduler.config.get("flow_shift") or 1.0
        sigma = shift * sigma / (1 + (shift - 1) * sigma)
        return 1 - sigma, sigma, sigma * steps
    if kept is None or not len(kept):
        raise BackboneError(
            f"scheduler: {type(scheduler).__name__} has no course of noise to train on; wanted one with betas, such as "
            "DDPMScheduler, or FlowMatchEulerDiscreteScheduler"
        )
    kept = kept.double()
    return kept.sqrt(), (1 - kept).sqrt(), torch.arange(len(kept))
