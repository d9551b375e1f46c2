"""A run read once, and the numbers that a report says of it."""

import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any

from fedgen import plan as plans
from fedgen.evaluate import Gains, Score, Yardstick, fall, gains, total, yardstick_of
from fedgen.plan import Plan
from fedgen.records import GLOBAL
from fedgen.report.wording import number
from fedgen.run import Run

BACKBONE, CLUSTER, PERSONAL = "backbone", "cluster", "personal"
KINDS = BACKBONE, GLOBAL, CLUSTER, PERSONAL
Line = Mapping[str, Any]


@dataclass(frozen=True)
class Digest:
    """Everything a report asks of a run; `scores` holds the clients that were measured under every adapter there is.

    `clusters` is what the run's folder says of them at its end: nothing before, and nothing in a flat run.
    """

    name: str
    plan: Plan
    facts: Mapping[str, Any]
    journal: Sequence[Line]
    outcome: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Score]]
    finished: bool
    began: datetime
    clusters: Mapping[str, Any]

    @property
    def yardstick(self) -> Yardstick:
        """The measure that the scores are read in."""
        return yardstick_of(self.facts)

    @property
    def kinds(self) -> list[str]:
        """The adapters that were measured, the bare backbone first."""
        found = next(iter(self.scores.values()), {})
        return [kind for kind in KINDS if kind in found]

    @property
    def grouped(self) -> dict[int, Line]:
        """What each round's line says of clusters; no round of a flat run is here."""
        return {line["round"]: line["clusters"] for line in self.journal if line.get("clusters")}

    @property
    def members(self) -> dict[str, int]:
        """How many clients each cluster has, as far as the run has come."""
        last: dict[str, int] = next(reversed(self.grouped.values()), {}).get("members", {})
        where = Counter(self.clusters.get("where", {}).values())
        found = {name: where[name] for name in last | where} if self.clusters else last
        return {name: found[name] for name in sorted(found, key=by_number) if name != GLOBAL}

    @property
    def clients(self) -> int:
        """How many clients the federation has."""
        return int(self.facts.get("clients", 0))

    @property
    def failures(self) -> list[Line]:
        """All failures, those of the last question too."""
        rounds = [failure for line in self.journal for failure in line["failures"]]
        return rounds + list(self.outcome.get("failures", []))

    @property
    def answered(self) -> list[int]:
        """How many updates came, a round; a journal from before this was counted says who was asked and failed."""
        by_default = [len(line["clients"]) - len(line["failures"]) for line in self.journal]
        return [int(line["metrics"].get("answered", n)) for line, n in zip(self.journal, by_default, strict=True)]

    @property
    def full_up(self) -> list[int]:
        """Bytes that full-model FedAvg would have sent up, a round: the weights of each client that answered."""
        return [answered * self.facts["full_bytes"] for answered in self.answered]

    @property
    def full_down(self) -> list[int]:
        """Bytes that full-model FedAvg would have sent down, a round: the weights to each client that was asked."""
        failed = [len(line["failures"]) for line in self.journal]
        return [sum(ends) * self.facts["full_bytes"] for ends in zip(self.answered, failed, strict=True)]

    @property
    def saved(self) -> float | None:
        """The share of full-model FedAvg's uplink that was not sent in the rounds so far; none of a full model's."""
        small = sum(self.full_up) and self.plan.adapter.of == "pairs"
        return 1 - self.sum("up") / sum(self.full_up) if small else None

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved plan as flat keys such as `adapter.rank`."""
        nested = tomllib.loads(plans.write(self.plan))
        top = {key: value for key, value in nested.items() if not isinstance(value, dict)}
        parts = {section: value for section, value in nested.items() if isinstance(value, dict)}
        return top | {f"{section}.{key}": value for section, part in parts.items() for key, value in part.items()}

    @property
    def sent(self) -> dict[int, float]:
        """Bytes that clients have sent by the end of each round."""
        return {line["round"]: float(up) for line, up in zip(self.journal, self.running("up"), strict=True)}

    @property
    def times(self) -> dict[int, float]:
        """Simulated seconds at the end of each round; nothing of a run without a clock."""
        return {line["round"]: line["metrics"]["clock"] for line in self.journal if "clock" in line["metrics"]}

    def sum(self, key: str) -> Any:
        """The total of a journal's column."""
        return sum(line[key] for line in self.journal)

    def running(self, key: str) -> list[int]:
        """A journal's column, summed up to each round."""
        return list(accumulate(line[key] for line in self.journal))

    def metric(self, key: str) -> tuple[list[int], list[float]]:
        """The rounds in which a metric was taken, and its values."""
        known = [line for line in self.journal if math.isfinite(line["metrics"].get(key, math.nan))]
        return [line["round"] for line in known], [line["metrics"][key] for line in known]

    def over(self, across: Mapping[int, float]) -> tuple[list[float], list[float]]:
        """The measure on validation rows, over what the rounds in which it was taken have come to."""
        points = [(across[turn], value) for turn, value in zip(*self.metric(self.yardstick.key), strict=True) if across]
        return [at for at, _ in points], [value for _, value in points]

    def pooled(self, kind: str) -> Score:
        """The score of all clients' held-out rows together."""
        return self.pooled_over(self.scores, kind)

    def pooled_over(self, clients: Iterable[str], kind: str) -> Score:
        """The score of some clients' held-out rows together."""
        return total(self.scores[client][kind] for client in clients)

    def measure(self, value: float) -> str:
        """A value of the measure, as exactly as it is shown."""
        return number(value, self.yardstick.digits)

    def measures(self, scores: Iterable[Score]) -> list[str]:
        """What the scores come to in the measure."""
        return [self.measure(self.yardstick.of(score)) for score in scores]

    def gains(self, kind: str) -> Gains:
        """What an adapter gained on the bare backbone."""
        return gains(self._of(BACKBONE), self._of(kind), self.yardstick)

    def fall(self, client: str, kind: str) -> float:
        """The relative fall of one client's measure from the bare backbone."""
        return fall(self.scores[client][BACKBONE], self.scores[client][kind], self.yardstick)

    def ranked(self) -> list[str]:
        """Clients from the least to the most gained under the last of the adapters."""
        return sorted(self.scores, key=lambda client: (self.fall(client, self.kinds[-1]), client))

    def _of(self, kind: str) -> dict[str, Score]:
        return {client: found[kind] for client, found in self.scores.items()}


def read(run: Run) -> Digest:
    """Read a run's folder, finished or not."""
    began = datetime.fromisoformat(run.facts["began"]) if run.facts else datetime.now(UTC)
    outcome, scores = run.outcome, _whole(run.scores, run.yardstick)
    name, ended = run.folder.resolve().name, bool(outcome)
    return Digest(name, run.plan, run.facts, run.journal, outcome, scores, ended, began, run.clusters)


def _whole(scores: Mapping[str, Mapping[str, Score]], yardstick: Yardstick) -> dict[str, Mapping[str, Score]]:
    kinds = {kind for found in scores.values() for kind in found}
    return {
        client: found
        for client, found in scores.items()
        if found.keys() == kinds and BACKBONE in kinds and all(_is_sound(score, yardstick) for score in found.values())
    }


def _is_sound(score: Score, yardstick: Yardstick) -> bool:
    """Whether there is a measure that a number can hold: not without terms, nor after a loss that is no number."""
    return score.terms > 0 and 0 < yardstick.of(score) < math.inf


def by_number(name: str) -> list[tuple[int, str]]:
    """Sorts names with numbers in them: cluster-2 comes before cluster-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def per_word(score: Score) -> float:
    """Perplexity per word, or not a number where words were not counted."""
    return score.per_word if score.words else math.nan


def per_byte(score: Score) -> float:
    """Bits per byte, or not a number where bytes were not counted."""
    return score.bits_per_byte if score.bytes else math.nan
