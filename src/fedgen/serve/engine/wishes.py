"""What is asked of an engine, one row at a time, and what it tells while it works."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from fedgen.records import Document, Rows
from fedgen.serve.pool import Course


@dataclass(frozen=True)
class Write:
    """A text to be continued, plain or sealed. `likely` is how many of the likeliest tokens are told beside each one.

    With `likely` below 0 no probability is told.
    """

    prompt: str | Rows
    tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    likely: int = -1


@dataclass(frozen=True)
class Draw:
    """A picture to be drawn, of a prompt or label or of a sealed prompt; so many sketches are told on the way."""

    asked: Document | Rows
    steps: int = 20
    guidance: float = 2.0
    seed: int = 0
    sketches: int = 0


@dataclass(frozen=True)
class Token:
    """One token that was written: its text, its log-probability, and the likeliest in its place."""

    text: str
    logprob: float
    likely: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """More text: what can be shown now, and the tokens behind it where probabilities were asked for."""

    text: str
    tokens: tuple[Token, ...] = ()


@dataclass(frozen=True)
class Sketch:
    """A picture on the way, [channels, high, wide] in bytes, the `at`-th of those asked for."""

    picture: Tensor
    at: int


@dataclass(frozen=True)
class Drawn:
    """The picture, [channels, high, wide] in bytes; `Ended` follows."""

    picture: Tensor


@dataclass(frozen=True)
class Ended:
    """A row's end (`length` or `stop`): tokens of the prompt, how many of them were known before, and tokens made.

    `waited` and `seconds` are from the question to the row's begin and to its end. Of a picture, `made` is its steps.
    """

    reason: str
    given: int = 0
    cached: int = 0
    made: int = 0
    waited: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Broken:
    """Why a row came to nothing."""

    error: Exception


Event = Piece | Sketch | Drawn | Ended | Broken


@dataclass(eq=False)
class Job:
    """One row: the wish, under which adapters, whose it is, and who is told. `tell` is called by the engine's thread.

    `gone` is set from outside when nobody waits any more; `deadline` is a time of `time.monotonic`.
    """

    wish: Write | Draw
    under: Course
    tell: Callable[[Event], None]
    user: str = ""
    deadline: float = math.inf
    gone: bool = False
    asked: float = field(default_factory=time.monotonic)
    began: float = 0.0

    def ended(self, reason: str, *, given: int = 0, cached: int = 0, made: int = 0) -> None:
        """Tell that the row is over, and what it took."""
        now = time.monotonic()
        self.tell(Ended(reason, given, cached, made, max(0.0, self.began - self.asked), now - self.asked))
