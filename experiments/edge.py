"""Few bytes, unequal ranks, and time to a target: what each way costs and what it keeps.

    python experiments/edge.py bytes|ranks|time [--only TEXT] [--seeds N] [--work WORK] [--out OUT]

Every arm of a study has the same clients, rounds and steps (`plans/edge-*.toml`) and differs in the settings below.
Runs are kept in WORK and gone on with. OUT/edge-STUDY.json and its picture are written of all runs that are there.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
import edge_figures

import fedgen
from fedgen import lora
from fedgen.evaluate import total
from fedgen.records import GLOBAL
from fedgen.run import Run
from fedgen.store import write_whole

HERE = Path(__file__).parent
Arms = Mapping[str, list[str]]


def compress(*settings: str) -> list[str]:
    """The settings of a run whose updates are compressed."""
    return ['guards=["compress"]', *(f"compress.{setting}" for setting in settings)]


NEAREST, FEEDBACK = "rounding=nearest", "feedback=true"
BYTES: Arms = {
    "plain": [],
    "16 bits": compress("bits=16"),
    "8 bits": compress("bits=8"),
    "4 bits": compress("bits=4"),
    "4 bits, both ways": compress("bits=4", "down=4"),
    "25%, 4 bits, feedback": compress("bits=4", "top=0.25", NEAREST, FEEDBACK, "lossless=zstd"),
    "10%, 4 bits, feedback": compress("bits=4", "top=0.1", NEAREST, FEEDBACK, "lossless=zstd"),
    "25%, signs, feedback": compress("bits=1", "top=0.25", FEEDBACK, "lossless=zstd"),
    "10%, 4 bits": compress("bits=4", "top=0.1", NEAREST, "lossless=zstd"),
    "signs, feedback": compress("bits=1", FEEDBACK),
    "signs": compress("bits=1"),
    "A drawn, B in 4 bits": ["share.kind=increment", "share.half=b", *compress("bits=4")],
    "B alone, 4 bits": ["share.half=b", *compress("bits=4")],
    "thin": compress("bits=1", "top=0.25", FEEDBACK, "lossless=zstd", "down=8"),
}
MIXED = "adapter.ranks=[2, 4, 8, 16, 32]"
EVEN = "training.even=0.5"  # this and the rates are the best of a few tried with the first seed (LOG.md)
STACK = ["share.kind=increment", "aggregate.kind=stack", "aggregate.rank=64", "training.even=0.25", "training.lr=0.04"]
FACTORS = [MIXED, EVEN, "training.lr=0.05"]
RANKS: Arms = {
    "all 2": ["adapter.rank=2", *STACK],
    "all 32": STACK,
    "stack": [MIXED, *STACK],
    "all 2, averaged": ["adapter.rank=2", "training.lr=0.02"],
    "all 32, averaged": ["training.lr=0.01"],
    "all 32, thin": [
        "training.lr=0.01",
        *compress("bits=1", "top=0.25", FEEDBACK, "lossless=zstd", "down=8"),
    ],
    "changes": [*FACTORS, "aggregate.kind=changes"],
    "exact": [*FACTORS, "aggregate.kind=exact"],
    "padded": [*FACTORS, "aggregate.kind=padded"],
}
DEVICES = f"devices.file={HERE / 'plans' / 'edge-devices.toml'}"
TIME: Arms = {
    "wait for all": [DEVICES],
    "30% spare": [DEVICES, "cohort.count=14", "fleet.spare=0.3"],
    "asynchronous": [DEVICES, "rounds=32", "fleet.buffer=5"],
}
ONCE = {  # tried with one seed
    "16 bits",
    "8 bits",
    "4 bits, both ways",
    "10%, 4 bits, feedback",
    "25%, signs, feedback",
    "10%, 4 bits",
    "signs",
    "A drawn, B in 4 bits",
    "B alone, 4 bits",
    "all 2, averaged",
    "all 32, averaged",
    "exact",
    "changes",
    "padded",
}
STUDIES: dict[str, tuple[tuple[str, ...], Arms]] = {
    "bytes": (("text", "glyphs"), BYTES),
    "ranks": (("ranks",), RANKS),
    "time": (("time",), TIME),
}


def play(world: str, arm: str, settings: list[str], seed: int, work: Path) -> Run:
    """The run of an arm, new, gone on with, or there."""
    where = folder(world, arm, seed, work)
    if (where / "plan.toml").exists():
        return fedgen.resume(where)
    return fedgen.run(HERE / "plans" / f"edge-{world}.toml", where, settings=[*settings, f"seed={seed}"])


def folder(world: str, arm: str, seed: int, work: Path) -> Path:
    """Where a run is kept."""
    words = "".join(char if char.isalnum() else " " for char in arm).split()
    return work / "-".join([world, *words, str(seed)])


def found(run: Run) -> dict[str, Any]:
    """The figures of one run: the shared adapter on held-out rows, bytes a turn, and what each round told."""
    journal, scores = run.journal, run.scores.values()
    turns = round(sum(answered(line) for line in journal))
    asked = sum(len(line["clients"]) for line in journal)
    up, down = sum(line["up"] for line in journal), sum(line["down"] for line in journal)
    told = {
        key: [line["metrics"][key] for line in journal if key in line["metrics"]]
        for key in ("tail", "cross", "breadth", "clock", "waited", "late", run.yardstick.key)
    }
    return {
        "measure": run.yardstick.of(total(one[GLOBAL] for one in scores)),
        "backbone": run.yardstick.of(total(one["backbone"] for one in scores)),
        "up": up / turns,
        "down": down / asked,
        "of_full": up / turns / run.facts["full_bytes"],
        "turns": turns,
        "asked": asked,
        "rank": lora.rank(run.adapter(GLOBAL)[0]),
        "sent": list(accumulate(line["up"] for line in journal)),
        "told": {key: values for key, values in told.items() if values},
        "seconds": round(sum(line["seconds"] for line in journal)),
    }


def answered(line: Mapping[str, Any]) -> float:
    """How many updates a round took in."""
    known: float = line["metrics"].get("answered", len(line["clients"]) - len(line["failures"]))
    return known


def collected(study: str, work: Path, seeds: int) -> dict[str, Any]:
    """The figures of every finished run of a study."""
    worlds, arms = STUDIES[study]
    result: dict[str, Any] = {}
    for world in worlds:
        done = {arm: _done(world, arm, work, seeds) for arm in arms}
        first = next(run for runs in done.values() for run in runs.values())
        result[world] = {
            "measure": first.yardstick.name,
            "key": first.yardstick.key,
            "clients": first.facts["clients"],
            "rounds": len(first.journal),
            "machine": first.facts["machine"],
            "versions": first.facts["versions"],
            "arms": {
                arm: {
                    "settings": [each for each in arms[arm] if each != DEVICES],
                    "runs": {seed: found(run) for seed, run in runs.items()},
                }
                for arm, runs in done.items()
                if runs
            },
        }
    return result


def _done(world: str, arm: str, work: Path, seeds: int) -> dict[str, Run]:
    there = {str(seed): folder(world, arm, seed, work) for seed in range(seeds)}
    return {seed: Run(path) for seed, path in there.items() if (path / "scores.json").exists()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--only", default="", help="play only worlds and arms with this text in 'WORLD: ARM'")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--collect", action="store_true", help="play nothing")
    parser.add_argument("--work", type=Path, default=Path("runs/edge"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    args = parser.parse_args()
    worlds, arms = STUDIES[args.study]
    tasks = [(seed, world, arm) for seed in range(args.seeds) for world in worlds for arm in arms]
    for seed, world, arm in [] if args.collect else tasks:
        if args.only in f"{world}: {arm}" and not (seed and arm in ONCE):
            run = play(world, arm, arms[arm], seed, args.work)
            brief = {key: value for key, value in found(run).items() if key not in ("told", "sent")}
            print(world, arm, seed, json.dumps(brief), flush=True)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "threads": torch.get_num_threads(),
        "worlds": collected(args.study, args.work, args.seeds),
    }
    path = args.out / f"edge-{args.study}.json"
    write_whole(path, (json.dumps(result, indent=1) + "\n").encode())
    edge_figures.DRAWN[args.study](path.with_suffix(".png"), result["worlds"])
    print(f"{path} and its picture; python docs/edge_results.py makes the page of it")


if __name__ == "__main__":
    main()
