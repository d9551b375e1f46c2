"""How updates become one adapter: a rule opens a fold, which takes updates in any order and closes to the same."""

from typing import Any, Literal

from fedgen.aggregate.folds import Aggregate, Fold, weight_of
from fedgen.aggregate.means import Average, Fair, Padded, Turned
from fedgen.aggregate.products import Changes, Exact, Residual, Stack

__all__ = [
    "AGGREGATES",
    "ANEW",
    "FLAT",
    "Aggregate",
    "Average",
    "Changes",
    "Exact",
    "Fair",
    "Fold",
    "Padded",
    "Residual",
    "Sends",
    "Stack",
    "Turned",
    "takes",
    "weight_of",
    "widest",
]

AGGREGATES = {
    "average": Average,
    "exact": Exact,
    "changes": Changes,
    "padded": Padded,
    "fair": Fair,
    "turned": Turned,
    "residual": Residual,
    "stack": Stack,
}
Sends = Literal["whole", "narrowing", "part", "b", "increment", "top"]
ANEW = (
    Exact,
    Changes,
    Turned,
    Residual,
    Stack,
)  # products in new factors each round, to which no factor has a straight way
FLAT = (Turned, Residual, Stack)  # their updates begin at one adapter of all, so the adapters of clusters are none


def takes(rule: type[Any], sends: Sends) -> bool:
    """Whether a rule can take what clients send: whole adapters, unless it is one of a few."""
    own = {
        Average: {"whole", "part", "b"},
        Exact: {"whole", "narrowing"},
        Padded: {"whole", "narrowing"},
        Turned: {"b"},
        Residual: {"top"},
        Stack: {"increment"},
    }
    return sends in own.get(rule, {"whole"})


def widest(rule: Aggregate, rank: int) -> int:
    """The rank that the server's adapter takes at most, where clients train at this one."""
    if isinstance(rule, Residual):
        return rule.rank + rank
    return max(rule.rank, rank) if isinstance(rule, Stack) else rank
