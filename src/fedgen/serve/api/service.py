"""What every answer is made from: the house, its door, the counts, and one request."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fedgen.errors import BusyError
from fedgen.serve.api.guard import Door
from fedgen.serve.api.hearing import Receive
from fedgen.serve.api.metrics import Metrics
from fedgen.serve.api.runs import Library
from fedgen.serve.house import House
from fedgen.serve.keys import Who

BODIES = 32  # that are read and made into rows at once, each of up to 8 MiB
WAIT = 5.0  # seconds for one of these places


@dataclass(frozen=True)
class Service:
    """One server."""

    house: House
    door: Door
    metrics: Metrics
    library: Library = field(default_factory=Library)
    bodies: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(BODIES))

    async def admit(self) -> None:
        """Wait for a place among the bodies; whoever has one gives it back."""
        try:
            async with asyncio.timeout(WAIT):
                await self.bodies.acquire()
        except TimeoutError:
            raise BusyError(
                f"server: {BODIES} other requests are being read; ask again in {WAIT:.0f} s", WAIT
            ) from None


@dataclass(frozen=True)
class Call:
    """One request: who asks, what the path names, and where one learns that the client has left.

    `queued` is called once the body has become rows in a queue, which has a bound of its own.
    """

    service: Service
    who: Who
    named: Mapping[str, str]
    receive: Receive
    queued: Callable[[], None]

    @property
    def house(self) -> House:
        """What is served."""
        return self.service.house
