"""Pictures on the way: those that began together move in step, and one pass of the network takes many who did not."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedgen.backbones.folder import library_of
from fedgen.backbones.quiet import silence
from fedgen.errors import BackboneError
from fedgen.records import Rows

Say = Callable[[Tensor, Tensor, Rows], Tensor]  # noisy pictures, their times, what each is told -> what is said


@dataclass(eq=False)
class Canvas:
    """Pictures that began together: a scheduler of their own, as diffusers' keep a state, draws, and what each is told.

    With a guidance other than 1 the network sees each twice, side by side, with and without its prompt.
    """

    scheduler: Any
    draws: Sequence[torch.Generator]
    told: Rows
    made: Tensor
    guidance: float = 1.0
    done: int = 0
    heard: tuple[Tensor, Tensor, Tensor] | None = None  # what was last seen, at which time, and what was said of it

    @property
    def views(self) -> int:
        """How many rows of the network each picture is."""
        return 1 if self.guidance == 1 else 2

    @property
    def rows(self) -> int:
        """How many rows of a pass are its own."""
        return len(self.made) * self.views

    @property
    def steps(self) -> int:
        """Passes from noise to picture, which may be more than were asked for: some schedulers look twice."""
        return len(self.scheduler.timesteps)

    @property
    def time(self) -> Tensor:
        """Where it stands."""
        now: Tensor = self.scheduler.timesteps[self.done]
        return now

    def seen(self) -> Tensor:
        """The pictures as the scheduler has the network see them; flow matching scales nothing, and does not say so."""
        scale = getattr(self.scheduler, "scale_model_input", lambda made, time: made)
        seen: Tensor = scale(self.made, self.time)
        return seen

    def move(self, seen: Tensor, said: Tensor) -> None:
        """One step on, by what the network said of what it saw."""
        if self.views == 2:
            own, bare = said.unflatten(0, (-1, 2)).unbind(1)
            said = bare + self.guidance * (own - bare)
        self.heard = seen, self.time, said
        self.made = self.scheduler.step(said, self.time, self.made, **self._chance()).prev_sample
        self.done += 1

    def _chance(self) -> dict[str, Any]:
        """A stochastic scheduler's noise comes from each picture's own draw."""
        takes = "generator" in inspect.signature(self.scheduler.step).parameters
        return {"generator": list(self.draws)} if takes else {}


def sampler(scheduler: Any, steps: int) -> Any:
    """A scheduler of one canvas' own; in place of the stochastic DDPM its deterministic twin."""
    if steps < 1:
        raise BackboneError(f"steps: wanted at least 1 step to draw a picture, came {steps}")
    kind = type(scheduler)
    if kind.__name__ == "DDPMScheduler":
        kind = library_of("diffusers").DDIMScheduler
    with silence():
        found = kind.from_config(scheduler.config)
    try:
        found.set_timesteps(steps)
    except ValueError as error:
        raise BackboneError(f"steps: {kind.__name__} draws no picture in {steps} ({error}); ask for others") from error
    return found


def begun(scheduler: Any, draws: Sequence[torch.Generator], told: Rows, noise: Tensor, guidance: float) -> Canvas:
    """Pictures that are nothing but noise yet; flow matching begins at 1, and does not say so."""
    return Canvas(scheduler, draws, told, noise * getattr(scheduler, "init_noise_sigma", 1.0), guidance)


def doubled(told: Rows, empty: Rows) -> Rows:
    """Every row twice, side by side: as it is, and empty."""
    both = {key: torch.stack([value, empty[key].to(value).expand_as(value)], 1) for key, value in told.items()}
    return {key: value.flatten(0, 1) for key, value in both.items()}


def advance(say: Say, canvases: Sequence[Canvas]) -> None:
    """One pass of the network over the rows of all, each at its own time; then each moves by its own scheduler."""
    seen, rows = [canvas.seen() for canvas in canvases], [canvas.rows for canvas in canvases]
    noisy = torch.cat([own.repeat_interleave(canvas.views, 0) for canvas, own in zip(canvases, seen, strict=True)])
    time = torch.cat([canvas.time.expand(canvas.rows) for canvas in canvases]).to(noisy.device)
    told = {key: torch.cat([canvas.told[key] for canvas in canvases]) for key in canvases[0].told}
    for canvas, own, said in zip(canvases, seen, say(noisy, time, told).split(rows), strict=True):
        canvas.move(own, said)
