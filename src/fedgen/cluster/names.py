"""Names that last: clusters found anew are matched to the old ones, and no number is given twice."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import count

import numpy as np
from torch import Tensor

from fedgen.records import GLOBAL

NUMBERED = re.compile(r"cluster-(\d+)")


def named(
    labels: Tensor, clients: Sequence[str], before: Mapping[str, str], taken: Iterable[str] = ()
) -> dict[str, str]:
    """Which cluster each client is in: by the old name where most members are shared, else by the next free number.

    `before` says where clients were, `taken` has every name that was ever given. A client of several rows is in the
    cluster of its first one.
    """
    found: dict[str, int] = {}
    for client, label in zip(clients, labels.tolist(), strict=True):
        found.setdefault(client, label)
    kept = _matched(found, {client: name for client, name in before.items() if name != GLOBAL})
    used = [int(match[1]) for name in {*taken, *before.values()} if (match := NUMBERED.fullmatch(name))]
    free = count(max(used, default=0) + 1)
    names = {label: kept.get(label) or f"cluster-{next(free)}" for label in sorted(set(found.values()))}
    return {client: names[label] for client, label in found.items()}


def _matched(found: Mapping[str, int], before: Mapping[str, str]) -> dict[int, str]:
    """The old names of new clusters: of all ways to match them, one that leaves most clients under their old name."""
    from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]  # most of a second to import

    shared = Counter((label, before[client]) for client, label in found.items() if client in before)
    new, old = sorted({label for label, _ in shared}), sorted({name for _, name in shared})
    table = np.array([[shared[label, name] for name in old] for label in new]).reshape(len(new), len(old))
    pairs = zip(*(places.tolist() for places in linear_sum_assignment(table, maximize=True)), strict=True)
    return {new[row]: old[column] for row, column in pairs if table[row, column]}
