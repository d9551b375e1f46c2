"""The one file that a study comes to: how it was done, the learning rates, and every run."""

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fedgen import plan as plans
from fedgen.methods import METHODS
from fedgen.reproduce.study import TRIAL, Cell, Part, Study
from fedgen.reproduce.worker import Bench, Found, rounded
from fedgen.store import write_whole

LIBRARIES = ("fedgen-edge", "torch", "transformers", "numpy", "scikit-learn")
TOLD = (
    "rounds", "clients", "total", "kind", "parameters", "message", "full_message", "rank", "failures",
    "backbone_hash",
    "seconds", "drift", "spread", "apart", "frechet", "error",
)  # fmt: skip


def write(bench: Bench, backbone: Found, path: Path, *, quick: bool = False) -> Found:
    """Gather what has been played so far, and write it as one file."""
    study = bench.study
    cells = list({_name(cell): cell for cell in study.cells() if cell.seed != TRIAL}.values())
    runs = [run for cell in cells if (run := _run(bench, cell))]
    names = list(dict.fromkeys(cell.method for cell in cells))
    found: Found = {
        "about": _about(study, cells, runs) | {"quick": quick},
        "plan": plans.write(plans.read(study.plan)),
        "worlds": study.worlds,
        "trial": asdict(study.trial),
        "last": study.last,
        "backbone": backbone,
        "methods": {name: asdict(METHODS[name]) for name in names},
        "rates": _rates(bench, names),
        "runs": runs,
    }
    found = rounded(found)
    write_whole(path, _compact(found).encode())
    return found


def _name(cell: Cell) -> tuple[Any, ...]:
    """What tells one run from another, whatever part asks for it."""
    part = cell.part
    swept = (part.sweep, part.key, cell.value, part.settings, part.frechet)
    return part.optimizer, cell.world, cell.method, cell.seed, *swept


def _about(study: Study, cells: list[Cell], runs: list[Found]) -> Found:
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in LIBRARIES},
        "threads": 1,
        "seeds": sorted({cell.seed for cell in cells}, key=str),
        "study": study.name,
        "title": study.title,
        "minutes": round(sum(run["seconds"] for run in runs) / 60, 1),
        "wanted": len(cells),
        "missing": len(cells) - len(runs),
    }


def _run(bench: Bench, cell: Cell) -> Found | None:
    job = bench.job(cell)
    if job is None or not bench.path(job).exists():
        return None
    part, found = cell.part, bench.found(job)
    named = {"method": cell.method, "world": cell.world, "optimizer": part.optimizer, "rate": job.rate}
    swept = {"seed": cell.seed, "sweep": part.sweep, "key": part.key, "value": cell.value}
    return named | swept | {key: found[key] for key in TOLD if key in found}


def _rates(bench: Bench, names: Iterable[str]) -> dict[str, Any]:
    """By world, optimizer and method: what each rate came to where rates were chosen."""
    study, kinds = bench.study, dict.fromkeys(part.optimizer for part in bench.study.parts)
    return {
        world: {
            kind: {
                name: {f"{rate:g}": value for rate, value in sorted(tries.items())}
                for name in names
                if (tries := bench.tries(Cell(Part((world,), optimizer=kind), name, world, TRIAL)))
            }
            for kind in kinds
        }
        for world in study.trial.worlds
    }


def _compact(found: Found) -> str:
    """JSON with a line a run, so that a change of one run is a change of one line."""
    runs = found["runs"]
    head = json.dumps({**found, "runs": []}, indent=1, ensure_ascii=False).rstrip("}\n ").rstrip("]").rstrip("[")
    lines = ",\n".join(json.dumps(run, ensure_ascii=False, separators=(",", ":")) for run in runs)
    return f"{head}[\n{lines}\n]\n}}\n"
