"""The embedded federation of pictures as the demo runs it, and with another seed: what is judged of what it draws.

    python bench/glyphs.py [NAME ...]

Each name is a variant below; what it gains, draws and sends goes to one file of results, and what is there stays.
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import RESULTS, about
from outcome import outcome, pooled

import fedgen
from fedgen.cli import DEMOS
from fedgen.exhibit import QUALITY, SAMPLES
from fedgen.run import Run

VARIANTS: dict[str, list[str]] = {"demo": [], "seed 8": ["seed=8"]}


def found(run: Run, seconds: float) -> dict[str, Any]:
    """What one run of pictures came to."""
    scores = pooled(run)
    return outcome(run, seconds) | {
        "held_out_pictures": scores["backbone"].terms,
        "denoising_loss": {name: round(run.yardstick.of(score), 5) for name, score in scores.items()},
        "measures": json.loads((run.folder / QUALITY).read_text("utf-8"))["measures"],
    }


def main() -> None:
    path = RESULTS / "glyphs.json"
    kept: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    for name in sys.argv[1:] or [name for name in VARIANTS if name not in kept]:
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            run = fedgen.run(DEMOS / "images.toml", Path(folder) / "run", settings=VARIANTS[name])
            if name == "demo":
                shutil.copy(run.folder / SAMPLES / "side-by-side.png", RESULTS / "glyphs.png")
            kept[name] = about() | {"seed": run.plan.seed} | found(run, time.perf_counter() - began)
        path.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
        print(name, json.dumps(kept[name]["measures"]["rows"]), f"{kept[name]['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
