"""Which rank each client's device carries, what it is offered of an adapter, and where a budget of ranks goes."""

from fedgen.allot.budget import Wish, by_kind, mean_ranks, moved, spread
from fedgen.allot.fitting import Fit, fitted
from fedgen.allot.rules import Allot, Carried, Dealt, Needed

__all__ = [
    "ALLOTS",
    "Allot",
    "Carried",
    "Dealt",
    "Fit",
    "Needed",
    "Wish",
    "by_kind",
    "fitted",
    "mean_ranks",
    "moved",
    "spread",
]

ALLOTS: dict[str, type[Allot]] = {"dealt": Dealt, "carried": Carried, "needed": Needed}
