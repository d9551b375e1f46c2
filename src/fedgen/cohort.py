"""Who takes part in a round: a number or a share of the registered clients, drawn without looking at all of them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from fedgen import seeds
from fedgen.errors import PlanError
from fedgen.records import Range


class Cohort(Protocol):
    """A rule that says who takes part."""

    @property
    def count(self) -> int:
        """How many clients a round takes; 0 means a fraction."""

    @property
    def fraction(self) -> float:
        """Which share of all clients a round takes, if no count is set."""

    def pick(self, names: Sequence[str], sizes: Mapping[str, int], *, run: int, turn: int) -> list[str]:
        """The names of this round's clients, each at most once, in the order of `names`' draw."""


@dataclass(frozen=True)
class Uniform:
    """`count` clients, or a `fraction` of all if that is 0, each as likely as any other."""

    fraction: Annotated[float, Range(0, 1, open=True)] = 0.25
    count: Annotated[int, Range(0)] = 0

    def pick(self, names: Sequence[str], sizes: Mapping[str, int], *, run: int, turn: int) -> list[str]:
        """Draw without replacement, in time that grows with the cohort alone."""
        draw = random.Random(seeds.seed(run, turn, "", "cohort"))
        return draw.sample(names, wanted(self, len(names)))


@dataclass(frozen=True)
class Weighted:
    """As `Uniform`, with a client's chance in proportion to its number of examples."""

    fraction: Annotated[float, Range(0, 1, open=True)] = 0.25
    count: Annotated[int, Range(0)] = 0

    def pick(self, names: Sequence[str], sizes: Mapping[str, int], *, run: int, turn: int) -> list[str]:
        """Draw one after the other, each in proportion to what is left (by exponential races)."""
        draw = random.Random(seeds.seed(run, turn, "", "cohort"))
        races = {name: draw.expovariate(max(sizes[name], 1)) for name in names}
        return sorted(names, key=races.__getitem__)[: wanted(self, len(names))]


def wanted(cohort: Cohort, clients: int) -> int:
    """How many clients a round takes."""
    if cohort.count > clients:
        raise PlanError(f"cohort.count: wanted {cohort.count} clients a round, there are {clients}; lower it")
    return cohort.count or max(1, round(cohort.fraction * clients))


COHORTS = {"uniform": Uniform, "weighted": Weighted}
