"""Plays a study's runs, one after the other. Any number of workers may share one folder: a run is claimed by a lock."""

import contextlib
import fcntl
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedgen import places
from fedgen.errors import ClientError, TreeError
from fedgen.evaluate import Score, total
from fedgen.reproduce.frechet import measured
from fedgen.reproduce.reading import own
from fedgen.reproduce.study import TRIAL, Cell, Job, Study
from fedgen.reproduce.watch import Watch
from fedgen.run import Run
from fedgen.sample import BARE
from fedgen.store import write_whole

WAIT = 0.5  # seconds between two looks at what other workers are doing
DIGITS = 6
Found = dict[str, Any]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Bench:
    """Where a study is played: its data, and the folder that holds all that can be resumed."""

    study: Study
    data: Path
    work: Path
    salt: str = ""
    known: dict[Cell, Job] = field(default_factory=dict, repr=False)  # a cell's run never changes once it is known

    def job(self, cell: Cell) -> Job | None:
        """The run that a cell stands for; None as long as its trials are not all done."""
        if cell not in self.known and (rate := cell.rate or self.chosen(cell)):
            self.known[cell] = self.study.job(cell, rate, self.salt)
        return self.known.get(cell)

    def path(self, job: Job) -> Path:
        """Where a run's outcome is written; beside it the run's folder is, while it is played."""
        return self.work / "runs" / f"{job.key}.json"

    def found(self, job: Job) -> Found:
        """What came of a run that has been played."""
        found: Found = json.loads(self.path(job).read_text("utf-8"))
        return found

    def tries(self, cell: Cell) -> dict[float, float | None]:
        """The measure at each rate that has been tried; None where training diverged."""
        jobs = [job for trial in self.study.trials(cell) if (job := self.job(trial)) and self.path(job).exists()]
        return {job.rate: own_measure(self.found(job)) for job in jobs}

    def chosen(self, cell: Cell) -> float | None:
        """The rate with the best measure, the least if all diverged; None as long as trials are missing."""
        jobs = [self.job(trial) for trial in self.study.trials(cell)]
        if not all(job and self.path(job).exists() for job in jobs):
            return None
        found = self.tries(cell)
        return min(found, key=lambda rate: (found[rate] or math.inf, rate))

    def left(self) -> list[tuple[Cell, Job | None]]:
        """The cells that are not done, each with its run as far as that is known."""
        jobs = ((cell, self.job(cell)) for cell in self.study.cells())
        return [(cell, job) for cell, job in jobs if job is None or not self.path(job).exists()]


def own_measure(outcome: Found) -> float | None:
    """How good a method was to its clients at the end: by their own adapter where there is one."""
    value = own(outcome) if outcome["total"] else math.inf
    return value if math.isfinite(value) else None


def work(bench: Bench, until: float, say: Say) -> None:
    """Play whatever is left and nobody else is playing, till all is done or the clock says `until`."""
    spent: list[float] = []
    while (left := bench.left()) and time.time() < until:
        for _, job in left:
            if job is not None and _played(bench, job, spent):
                say(_line(job, bench.found(job), len(left) - 1, spent))
                break
        else:
            time.sleep(WAIT)


def _played(bench: Bench, job: Job, spent: list[float]) -> bool:
    """Whether this worker was the one to play it."""
    with _claim(bench.work / "claims" / job.key) as mine:
        if not mine or bench.path(job).exists():
            return False
        began = time.perf_counter()
        folder = bench.path(job).with_suffix("")
        shutil.rmtree(folder, ignore_errors=True)  # of a worker that was stopped; a run is short, so it starts anew
        found = play(bench, job, folder)
        spent.append(time.perf_counter() - began)
        write_whole(bench.path(job), json.dumps(found | {"seconds": round(spent[-1], 2)}).encode())
        shutil.rmtree(folder, ignore_errors=True)
        return True


@contextlib.contextmanager
def _claim(path: Path) -> Iterator[bool]:
    """Whether this process alone has the claim; a process that dies gives it back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def play(bench: Bench, job: Job, folder: Path) -> Found:
    """Play a run and read what came of it; one that failed is a result as well."""
    watch = Watch(job.cell.part.drift)
    said: Found = {"error": "", "total": {}, "clients": {}}
    try:
        run = places.run(job.resolved(bench.data, bench.work), folder, tell=watch.tell)
        said |= _read(run, job)
        said |= {"frechet": measured(run, job.cell.part.frechet)} if job.cell.part.frechet else {}
    except (ClientError, TreeError) as error:
        said["error"] = str(error).splitlines()[0]
    seen = {"rounds": watch.rounds, **watch.moves, "message": watch.message}
    return rounded({"kind": "text", "rank": 0, **seen, **said})  # type: ignore[no-any-return]


def _read(run: Run, job: Job) -> Found:
    facts, scores = run.facts, run.scores
    kinds = sorted({kind for own in scores.values() for kind in own})
    sums = {kind: total(own[kind] for own in scores.values() if kind in own) for kind in kinds}
    whole = bool(job.cell.part.sweep) or job.cell.seed == TRIAL
    return {
        "kind": facts["kind"], "parameters": facts["parameters"], "full_message": facts["full_bytes"],
        "rank": run.plan.adapter.rank, "backbone_hash": facts["backbone_hash"],
        "failures": len(run.outcome["failures"]) + sum(len(line["failures"]) for line in run.journal),
        "total": _pairs(sums),
        "clients": {} if whole else {name: _pairs(own, but=BARE) for name, own in scores.items()},
    }  # fmt: skip


def _pairs(scores: Mapping[str, Score], but: str = "") -> dict[str, tuple[float, int]]:
    """Of each adapter the summed loss, and the words or pictures that it is of."""
    return {kind: (score.loss, score.words or score.terms) for kind, score in scores.items() if kind != but}


def rounded(said: Any) -> Any:
    """The same with numbers that are not longer than they need be; JSON has no word for those that are not finite."""
    if isinstance(said, float):
        return float(f"{said:.{DIGITS}g}") if math.isfinite(said) else None
    if isinstance(said, Mapping):
        return {key: rounded(value) for key, value in said.items()}
    return [rounded(value) for value in said] if isinstance(said, list | tuple) else said


def _line(job: Job, found: Found, left: int, spent: list[float]) -> str:
    cell, value = job.cell, own_measure(found)
    told = found["error"] or (f"{value:.4g}" if value else "no measure")
    swept = f"{cell.part.key}={cell.value} " if cell.part.sweep else ""
    what = f"{cell.method} in {cell.world}, {cell.part.optimizer} {job.rate:g}, {swept}seed {cell.seed}"
    minutes = left * sum(spent) / len(spent) / 60
    return f"{what}: {told} in {found['seconds']:.0f} s; {left} left, about {minutes:.0f} min for one worker"
