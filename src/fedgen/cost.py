"""What a plan costs before it is run: bytes, memory, and what a turn is to each kind of device."""

from dataclasses import dataclass
from statistics import median_low

from fedgen import tree
from fedgen.cohort import wanted
from fedgen.devices import CLASSES, Burden, burdens
from fedgen.plan import Plan
from fedgen.run import Place


@dataclass(frozen=True)
class Cost:
    """What a plan costs before it is run."""

    clients: int
    cohort: int
    backbone_parameters: int
    adapter_parameters: int
    message: int
    down_message: int
    full_message: int
    row_bytes: int
    rows_a_pass: int
    devices: tuple[Burden, ...] = ()

    @property
    def round_bytes(self) -> int:
        """Bytes a round on the way up."""
        return self.cohort * self.message

    @property
    def round_down_bytes(self) -> int:
        """Bytes a round on the way down."""
        return self.cohort * self.down_message

    @property
    def saved(self) -> float:
        """The share of full-model FedAvg's uplink that is not sent."""
        return 1 - self.message / self.full_message


def cost_of(settled: Plan, place: Place) -> Cost:
    """The plan's cost at a place."""
    facts = place.facts
    up, down = settled.passage.sizes(place.start, settled.adapter.rank)
    return Cost(
        clients=len(place.sizes),
        cohort=wanted(settled.cohort, len(place.sizes)),
        backbone_parameters=facts["parameters"],
        adapter_parameters=tree.size(place.start),
        message=up,
        down_message=down,
        full_message=facts["full_bytes"],
        row_bytes=facts["row_bytes"],
        rows_a_pass=settled.training.cohort * settled.training.rows_a_pass,
        devices=_burdens(settled, place),
    )


def _burdens(settled: Plan, place: Place) -> tuple[Burden, ...]:
    """What a turn is to the clients' devices; where these are not known, to one of each class with the median rows."""
    if place.load is None:
        return ()
    known, adapter = place.hardware or CLASSES, settled.adapter
    rows = place.sizes if place.hardware else dict.fromkeys(CLASSES, median_low(place.sizes.values()))
    some = adapter.ranks if place.hardware else ()
    rank = adapter.rank if adapter.of == "pairs" else 0
    ranks = settled.allot.ranks(sorted(known), rank, some, known, place.load)
    return burdens(known, place.load, ranks, rows)
