"""A result file, read: which runs it holds, how good each was to its clients, and what it took to get there."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from statistics import mean
from typing import Any

from fedgen.errors import StoreError
from fedgen.evaluate import Score
from fedgen.reproduce.watch import measure

Run = Mapping[str, Any]
OWN_FIRST = ("personal", "cluster", "global")  # whose score tells how good a method is to its clients
FULL = "fedavg-full"
UNITS = {"text": "perplexity per word", "image": "denoising loss"}


@dataclass(frozen=True)
class Result:
    """What a study came to."""

    content: Mapping[str, Any]

    @property
    def runs(self) -> list[Run]:
        """The runs that came to their end."""
        return [run for run in self.content["runs"] if not run["error"]]

    @property
    def kind(self) -> str:
        """Text or pictures."""
        return str(next((run["kind"] for run in self.runs), "text"))

    @property
    def unit(self) -> str:
        """What its measure is called; lower is better."""
        return UNITS[self.kind]

    def title(self, method: str) -> str:
        """A method's name on the page."""
        return str(self.content["methods"][method]["title"])

    def group(self, method: str) -> str:
        """The group a method is of."""
        return str(self.content["methods"][method]["group"])

    def worlds(self, optimizer: str = "adamw") -> list[str]:
        """The worlds that the main table has, in the study's order."""
        seen = {run["world"] for run in self.runs if not run["sweep"] and run["optimizer"] == optimizer}
        return [world for world in self.content["worlds"] if world in seen]

    def table(self, world: str, optimizer: str = "adamw") -> dict[str, list[Run]]:
        """By method, a run a seed, in the order of the methods."""
        of = [run for run in self.runs if (run["world"], run["optimizer"]) == (world, optimizer) and not run["sweep"]]
        found: dict[str, dict[int, Run]] = {}
        for run in of:
            found.setdefault(run["method"], {}).setdefault(run["seed"], run)
        return {name: list(found[name].values()) for name in self.content["methods"] if name in found}

    def sweep(self, *keys: str) -> dict[str, dict[Any, list[Run]]]:
        """By method and value, the runs in which one of these keys was swept."""
        found: dict[str, dict[Any, list[Run]]] = {}
        for run in self.runs:
            if run["sweep"] and run["key"] in keys:
                found.setdefault(run["method"], {}).setdefault(run["value"], []).append(run)
        return {name: dict(sorted(values.items())) for name, values in found.items()}


def read(path: Path) -> Result:
    """A result file."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{path}: wanted the result file of a study ({error}); `fedgen reproduce` writes one"
        ) from error
    if not isinstance(content, dict) or not {"about", "methods", "worlds", "runs"} <= content.keys():
        raise StoreError(f"{path}: wanted the result file of a study, came another; `fedgen reproduce` writes one")
    return Result(content)


# ---- one run


def quality(run: Run, pair: Sequence[float]) -> float:
    """The measure of a summed loss over so many words or pictures."""
    loss, terms = pair
    return measure(Score(loss, int(terms), int(terms) if run["kind"] == "text" else 0))


def own(run: Run) -> float:
    """The measure over all clients on held-out rows, each under its own adapter where it has one."""
    return quality(run, _best_kind(run["total"]))


def shared(run: Run) -> float | None:
    """The same under the shared adapter, if there is one."""
    pair = run["total"].get("cluster") or run["total"].get("global")
    return quality(run, pair) if pair else None


def bare(run: Run) -> float:
    """The same under the backbone alone."""
    return quality(run, run["total"]["backbone"])


def worst_tenth(run: Run) -> float | None:
    """The mean measure of the tenth of clients for which it is worst."""
    found = sorted((quality(run, _best_kind(scores)) for scores in run["clients"].values()), reverse=True)
    return mean(found[: max(1, len(found) // 10)]) if found else None


def gains(run: Run) -> list[float]:
    """By how much a personal step lowered each client's measure below the shared adapter's, the least first."""
    scores = [own for own in run["clients"].values() if {"global", "personal"} <= own.keys()]
    pairs = [(own.get("cluster", own["global"]), own["personal"]) for own in scores]
    return sorted(1 - quality(run, after) / quality(run, before) for before, after in pairs)


def _best_kind(scores: Mapping[str, Sequence[float]]) -> Sequence[float]:
    return next(scores[kind] for kind in OWN_FIRST if kind in scores)


def course(run: Run) -> list[tuple[int, float, int]]:
    """Round, validation measure and bytes sent up so far, of the rounds that were looked at."""
    sent = accumulate(line["up"] for line in run["rounds"])
    seen = zip(run["rounds"], sent, strict=True)
    return [(line["round"], line["measure"], up) for line, up in seen if line.get("measure") is not None]


def target(runs: Iterable[Run], seed: int) -> float | None:
    """The best validation measure among the rounds of the run of this seed."""
    return min((value for run in runs if run["seed"] == seed for _, value, _ in course(run)), default=None)


def reached(run: Run, wanted: float) -> tuple[int, int] | None:
    """The first round with this measure, and the bytes sent up till then."""
    return next(((turn, up) for turn, value, up in course(run) if value <= wanted), None)


# ---- several runs


def middle(runs: Sequence[Run]) -> list[tuple[int, float, float]]:
    """The course of runs that differ in their seed: the mean of those rounds that all have."""
    columns: dict[int, list[tuple[float, int]]] = {}
    for run in runs:
        for turn, value, up in course(run):
            columns.setdefault(turn, []).append((value, up))
    whole = {turn: rows for turn, rows in columns.items() if len(rows) == len(runs)}
    return [(turn, mean(v for v, _ in rows), mean(u for _, u in rows)) for turn, rows in sorted(whole.items())]


def alike(table: Mapping[str, Sequence[Run]]) -> dict[str, list[Run]]:
    """The runs of the seeds that all methods have, so that none is put beside others on seeds of its own."""
    common = set.intersection(*({run["seed"] for run in runs} for runs in table.values())) if table else set()
    return {name: [run for run in runs if run["seed"] in common] for name, runs in table.items()}


def late(values: Sequence[float]) -> float | None:
    """The mean of the last half of a run's rounds."""
    half = values[len(values) // 2 :]
    return mean(half) if half else None


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's correlation of two rankings."""
    ranks = [_ranks(first), _ranks(second)]
    centred = [[rank - mean(own) for rank in own] for own in ranks]
    lengths = [math.sqrt(math.fsum(rank * rank for rank in own)) for own in centred]
    return math.fsum(a * b for a, b in zip(*centred, strict=True)) / (math.prod(lengths) or math.nan)


def _ranks(values: Sequence[float]) -> list[float]:
    """The place of each, equal ones sharing the mean of theirs."""
    return [sum(other < value for other in values) + (values.count(value) + 1) / 2 for value in values]
