"""What every answer is made from: the house, its door, the counts, and one request."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedgen.serve.api.guard import Door
from fedgen.serve.api.hearing import Receive
from fedgen.serve.api.metrics import Metrics
from fedgen.serve.api.runs import Library
from fedgen.serve.house import House
from fedgen.serve.keys import Who


@dataclass(frozen=True)
class Service:
    """One server."""

    house: House
    door: Door
    metrics: Metrics
    library: Library = field(default_factory=Library)


@dataclass(frozen=True)
class Call:
    """One request: who asks, what the path names, and where one learns that the client has left."""

    service: Service
    who: Who
    named: Mapping[str, str]
    receive: Receive

    @property
    def house(self) -> House:
        """What is served."""
        return self.service.house
