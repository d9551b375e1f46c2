"""Between the engine's thread, which tells, and a coroutine of the server, which waits and may be left at any time."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedgen.errors import LateError
from fedgen.serve.api.answers import packed
from fedgen.serve.api.errors import refusal
from fedgen.serve.api.metrics import Metrics
from fedgen.serve.engine.wishes import Broken, Ended, Event, Job, Piece

ALIVE = 15.0  # seconds of silence after which a stream says that it lives
STALLED = 60.0  # seconds in which nothing was read, after which nobody is taken to read
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Heard = tuple[int, Event]
Say = Callable[[list[Heard]], Awaitable[bytes]]  # what was heard, as events
STILL, DONE = b": still there\n\n", b"data: [DONE]\n\n"


class LeftError(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Stream:
    """An answer that comes in parts, each a whole server-sent event."""

    parts: AsyncIterator[bytes]


class Hearing:
    """What the rows of one question tell, in order. A slow listener hears more at once; one that stops loses the rows.

    The deque is the only thing that two threads share: the one appends, the other takes.
    """

    def __init__(self, metrics: Metrics, kind: str) -> None:
        self.jobs: Sequence[Job] = ()
        self._metrics, self._kind = metrics, kind
        self._loop = asyncio.get_running_loop()
        self._woken = asyncio.Event()
        self._called, self._since = False, 0.0
        self._stalled = False
        self._heard: deque[Heard] = deque()
        self._left = False

    def __enter__(self) -> "Hearing":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Whatever goes wrong, no row is left at work for nobody."""
        if kind is not None:
            self.leave()

    def ear(self, at: int) -> Callable[[Event], None]:
        """What the row `at` is given to tell."""
        last, first = time.monotonic(), True

        def tell(event: Event) -> None:
            nonlocal last, first
            now = time.monotonic()
            if isinstance(event, Piece):
                self._metrics.piece(now - last, first=first)
                last, first = now, False
            elif isinstance(event, Ended):
                self._metrics.ended(self._kind, event)
            self._heard.append((at, event))
            if self._called:
                self._stalled = self._stalled or now - self._since > STALLED
                if self._stalled:
                    self.leave()
            else:
                self._called, self._since = True, now
                with contextlib.suppress(RuntimeError):  # the server has ended, and nobody hears
                    self._loop.call_soon_threadsafe(self._woken.set)

        return tell

    async def some(self, seconds: float | None = None) -> list[Heard]:
        """All that was told since the last time, as soon as it is something; nothing after so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        if self._left:
            raise LeftError
        if self._stalled:
            raise LateError(f"the answer was not read for {STALLED:.0f} s, and is broken off")
        self._woken.clear()
        self._called = False  # before it is emptied: whatever comes later calls again
        found = [self._heard.popleft() for _ in range(len(self._heard))]
        for _, event in found:
            if isinstance(event, Broken):
                raise event.error
        return found

    async def all(self) -> list[Heard]:
        """All that is told, until every row has ended."""
        found: list[Heard] = []
        ended = 0
        while ended < len(self.jobs):
            more = await self.some()
            found += more
            ended += sum(isinstance(event, Ended) for _, event in more)
        return found

    def leave(self) -> None:
        """Want nothing more: what is not done need not be."""
        for job in self.jobs:
            job.gone = True

    async def watch(self, receive: Receive) -> None:
        """Leave when the client does."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.leave()
        self._left = True
        self._woken.set()


async def whole(hearing: Hearing, receive: Receive) -> list[Heard]:
    """All that the rows tell, unless the client leaves before."""
    watching = asyncio.create_task(hearing.watch(receive))
    try:
        return await hearing.all()
    finally:
        watching.cancel()
        hearing.leave()


async def begun(hearing: Hearing, receive: Receive, say: Say, end: bytes = b"") -> Stream:
    """A stream, as soon as there is something to say: what goes wrong before is no stream yet."""
    watching = asyncio.create_task(hearing.watch(receive))
    try:
        first = await hearing.some(ALIVE)
    except BaseException:
        watching.cancel()
        hearing.leave()
        raise
    return Stream(_parts(hearing, watching, say, first, end))


async def _parts(
    hearing: Hearing, watching: "asyncio.Task[None]", say: Say, heard: list[Heard], end: bytes
) -> AsyncIterator[bytes]:
    ended = 0
    try:
        while True:
            yield await say(heard) or STILL
            ended += sum(isinstance(event, Ended) for _, event in heard)
            if ended == len(hearing.jobs):
                break
            heard = await hearing.some(ALIVE)
        if end:
            yield end
    except LeftError:
        return
    except Exception as error:  # noqa: BLE001  whatever it is, a stream that began can only say it
        yield event_of(refusal(error).body, "error")
    finally:
        watching.cancel()
        hearing.leave()


def event_of(content: object, name: str = "") -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + packed(content) + b"\n\n"
