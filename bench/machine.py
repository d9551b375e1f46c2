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
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "date": datetime.now(UTC).date().isoformat(),
    }


def keep(name: str, content: dict[str, Any]) -> None:
    """Write a result file beside the scripts, and say what is in it."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(about() | content, indent=1) + "\n"
    (RESULTS / f"{name}.json").write_text(text)
    print(text)
