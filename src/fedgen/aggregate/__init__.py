"""How updates become one adapter: a rule opens a fold, which takes updates in any order and closes to the same."""

from fedgen.aggregate.folds import Aggregate, Fold, weight_of
from fedgen.aggregate.means import Average, Fair, Padded, Turned
from fedgen.aggregate.products import Exact, Residual, Stack

__all__ = [
    "AGGREGATES",
    "ANEW",
    "FLAT",
    "Aggregate",
    "Average",
    "Exact",
    "Fair",
    "Fold",
    "Padded",
    "Residual",
    "Stack",
    "Turned",
    "weight_of",
    "widest",
]

AGGREGATES = {
    "average": Average,
    "exact": Exact,
    "padded": Padded,
    "fair": Fair,
    "turned": Turned,
    "residual": Residual,
    "stack": Stack,
}
ANEW = (Exact, Turned, Residual, Stack)  # products in new factors each round, to which no factor has a straight way
FLAT = (Turned, Residual, Stack)  # their updates begin at one adapter of all, so the adapters of clusters are none


def widest(rule: Aggregate, rank: int) -> int:
    """The rank that the server's adapter takes at most, where clients train at this one."""
    if isinstance(rule, Residual):
        return rule.rank + rank
    return max(rule.rank, rank) if isinstance(rule, Stack) else rank
