"""Where and on what a measurement was taken, and the file it is kept in."""

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def about() -> dict[str, Any]:
    """The machine, the versions, the date."""
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "transformers", "diffusers", "peft")},
        "date": datetime.now(UTC).date().isoformat(),
    }


def keep(name: str, content: dict[str, Any], *, over: bool = False) -> None:
    """Write a result file beside the scripts, if asked `over` the one that is there, and say what is in it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text()) if over and path.exists() else {}
    text = json.dumps(before | about() | content, indent=1) + "\n"
    path.write_text(text)
    print(text)
