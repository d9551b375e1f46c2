"""How long a turn takes on a client's device, when it can begin, and whether it is lost: all of it known beforehand."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from fedgen import seeds
from fedgen.devices import Hardware, Load
from fedgen.records import Offer, Reply

HOUR = 3600.0  # seconds


@dataclass(frozen=True)
class Flight:
    """A turn from its beginning to its end, in seconds of the clock; one that is lost never ends.

    An asynchronous one carries its `reply` from its beginning on: a change, or why there is none.
    """

    begin: float
    end: float
    offer: Offer
    reply: Reply | None = None

    @property
    def client(self) -> str:
        """Whose turn it is."""
        return self.offer.client

    @property
    def order(self) -> tuple[float, str]:
        """By what flights arrive one after the other."""
        return self.end, self.client


@dataclass(frozen=True)
class Pace:
    """How long clients' turns take on their devices, and which of them are lost.

    `messages` are the bytes of an offer's update and of the offer itself, which its rank alone does not say.
    """

    hardware: Mapping[str, Hardware]
    load: Load
    rows: Mapping[str, int]
    seed: int
    messages: Callable[[Offer], tuple[int, int]]

    def flight(self, offer: Offer, after: float) -> Flight:
        """The turn that a client begins, once its device is online."""
        device = self.hardware[offer.client]
        load = replace(self.load, messages=lambda rank: self.messages(offer))
        turn = load.seconds(device, offer.rank, self.rows[offer.client])
        draw = seeds.generator(self.seed, offer.round, offer.client, "lost")
        lost = torch.rand((), generator=draw).item() < device.lost
        begin = opened(device.hours, after)
        return Flight(begin, math.inf if lost else begin + turn.down + turn.work + turn.up, offer)

    def refusal(self, offer: Offer) -> str:
        """Why a device cannot take a turn; nothing if it can."""
        device = self.hardware[offer.client]
        if self.load.fits(device, offer.rank):
            return ""
        need = self.load.memory(offer.rank)
        return f"a turn at rank {offer.rank} takes {need:,} bytes, and its {device.kind} has {device.memory:,}"


def opened(hours: tuple[float, float], at: float) -> float:
    """The first moment from `at` on that lies in these hours of a day, which may wrap round midnight."""
    start, end = hours
    hour = at / HOUR % 24
    inside = start <= hour < end if start < end else hour >= start or hour < end
    return at if inside else at + (start - hour) % 24 * HOUR
