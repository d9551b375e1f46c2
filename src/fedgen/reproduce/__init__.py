"""The published experiments, played anew by one command: studies, the runs they come to, and what is made of them."""

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fedgen.errors import ClientError, DataError
from fedgen.reproduce import cifar10, ptb, result, study
from fedgen.reproduce.worker import Bench, Found, work

PREPARES: dict[str, Callable[[Path, Path, float], Found]] = {
    "ptb": ptb.prepare,
    "cifar10": cifar10.prepare,
    "": lambda data, work, minutes: {},
}


def reproduce(
    name: str, *, data: Path, work: Path, out: Path, quick: bool = False, minutes: float = 0, jobs: int = 0
) -> tuple[Path, Found]:
    """Play what is left of a study, for so many minutes (0: to its end), and write its result file and what is in it.

    All that can be resumed lies in `work`: the same call goes on where one was stopped. `jobs` is how many processes
    play, each with one thread (0: as many as there are cores).
    """
    until = time.time() + 60 * minutes if minutes else float("inf")
    wanted = study.read(name, quick=quick)
    if not data.is_dir():
        raise DataError(f"reproduce: '{data}' is no folder; name the one that holds the data with --data")
    work.mkdir(parents=True, exist_ok=True)
    data, work = data.absolute(), work.absolute()
    record = PREPARES[wanted.prepare](data, work, wanted.minutes)
    salt = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    bench = Bench(wanted, data, work, salt)
    codes = _labour(bench, until, jobs or os.cpu_count() or 1)
    path = out / f"{wanted.name}{'-quick' if quick else ''}.json"
    found = result.write(bench, record, path, quick=quick)
    if any(codes):
        raise ClientError(
            f"reproduce: a worker ended with code {max(map(abs, codes))}, see above; what is done is kept"
        )
    return path, found


def _labour(bench: Bench, until: float, jobs: int) -> list[int]:
    """Let so many processes work; how each ended."""
    if jobs == 1:
        _worker(bench, until)
        return [0]
    spawn = multiprocessing.get_context("spawn")
    team = [spawn.Process(target=_worker, args=(bench, until)) for _ in range(jobs)]
    for one in team:
        one.start()
    for one in team:
        one.join()
    return [one.exitcode or 0 for one in team]


def _worker(bench: Bench, until: float) -> None:
    torch.set_num_threads(1)  # so that a run comes out the same however many are played at once
    work(bench, until, _say)


def _say(line: str) -> None:
    print(line, flush=True)
