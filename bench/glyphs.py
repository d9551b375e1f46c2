"""The embedded federation of pictures as the demo runs it, and with another seed: what is judged of what it draws.

    python bench/glyphs.py [NAME ...]

Each name is a variant below; what it gains, draws and sends goes to one file of results, and what is there stays.
"""

import json
import shutil
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from machine import RESULTS, about

import fedgen
from fedgen.cli import DEMOS
from fedgen.evaluate import total
from fedgen.exhibit import QUALITY, SAMPLES
from fedgen.report import digest
from fedgen.run import Run
from fedgen.screen import gains_of

VARIANTS: dict[str, list[str]] = {"demo": [], "seed 8": ["seed=8"]}


def found(run: Run, seconds: float) -> dict[str, Any]:
    """What one run came to."""
    scores, yardstick = run.scores, run.yardstick
    names = dict.fromkeys(name for score in scores.values() for name in score)
    pooled = {name: total(score[name] for score in scores.values() if name in score) for name in names}
    gains = {name: gains_of(scores, name, yardstick) for name in names if name != "backbone"}
    return {
        "clients": len(scores),
        "rounds": len(run.journal),
        "held_out_pictures": pooled["backbone"].terms,
        "denoising_loss": {name: round(yardstick.of(score), 5) for name, score in pooled.items()},
        "gains": {name: asdict(gain) for name, gain in gains.items() if gain},
        "measures": json.loads((run.folder / QUALITY).read_text("utf-8"))["measures"],
        "adapter_message_bytes": run.journal[0]["up"] // len(run.journal[0]["clients"]),
        "full_model_bytes": run.facts["full_bytes"],
        "uplink_saved": round(digest.read(run).saved or 0, 5),
        "seconds": round(seconds),
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
