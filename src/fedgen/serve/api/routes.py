"""The paths of the server: what each takes, who may ask it, what it answers, and what does the work."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from fedgen.errors import ClosedError
from fedgen.serve.api import admin, answers, asks, images, models, text
from fedgen.serve.api.service import Call

Act = Callable[[Call, Any], Awaitable[object]]
Askers = Literal["anyone", "key", "admin"]
ENGINE = (404, 429, 503, 504)


@dataclass(frozen=True)
class Route:
    """One path and method: `ask` is the shape of its body, `errors` are its statuses beside the usual ones."""

    path: str
    act: Act
    answer: Any
    ask: type[Any] | None = None
    askers: Askers = "key"
    errors: Sequence[int] = ()
    streams: bool = False

    @property
    def method(self) -> str:
        """A question with a body is posted, and so is what changes something."""
        return "POST" if self.ask is not None or (self.askers == "admin" and "{" in self.path) else "GET"

    @property
    def statuses(self) -> list[int]:
        """Every status beside 200: those of keys and bodies, and its own."""
        keys = {"anyone": [], "key": [401], "admin": [401, 403]}[self.askers]
        return sorted({400, 500, *keys, *([408, 413, 415, 429] if self.ask is not None else []), *self.errors})


async def health(call: Call, ask: None) -> answers.Standing:
    """The process lives."""
    return answers.Standing(status="ok")


async def ready(call: Call, ask: None) -> answers.Standing:
    """The server answers; 503 while it starts and while it stops."""
    if not call.house.ready:
        raise ClosedError("the server is starting or stopping; ask it again in a moment")
    return answers.Standing(status="ready")


async def which(call: Call, ask: None) -> answers.Version:
    """Which release serves."""
    return answers.Version(version=version("fedgen-edge"))


ADAPTER = "/v1/lora_adapters/{name}"
ROUTES = (
    Route("/v1/models", models.list_models, answers.Models),
    Route("/v1/models/{id}", models.one_model, answers.Model, errors=(404,)),
    Route("/v1/completions", text.complete, answers.Completion, asks.CompletionAsk, errors=ENGINE, streams=True),
    Route("/v1/chat/completions", text.chat, answers.ChatCompletion, asks.ChatAsk, errors=ENGINE, streams=True),
    Route("/v1/images/generations", images.draw, answers.Pictures, asks.ImageAsk, errors=ENGINE, streams=True),
    Route("/v1/runs", models.list_runs, list[answers.Course]),
    Route("/v1/load_lora_adapter", admin.load_adapter, answers.Done, asks.LoadAsk, askers="admin", errors=(404,)),
    Route("/v1/unload_lora_adapter", admin.unload_adapter, answers.Done, asks.UnloadAsk, askers="admin", errors=(404,)),
    Route("/v1/lora_adapters", models.list_adapters, answers.Models, askers="admin"),
    Route(f"{ADAPTER}/pin", admin.pin_adapter, answers.Done, askers="admin", errors=(404,)),
    Route(f"{ADAPTER}/unpin", admin.unpin_adapter, answers.Done, askers="admin", errors=(404,)),
    Route(f"{ADAPTER}/rollback", admin.roll_back, answers.Done, askers="admin", errors=(404,)),
    Route("/health", health, answers.Standing, askers="anyone"),
    Route("/ready", ready, answers.Standing, askers="anyone", errors=(503,)),
    Route("/version", which, answers.Version, askers="anyone"),
)
