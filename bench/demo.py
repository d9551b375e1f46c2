"""The embedded federation as the demo runs it, and with one thing changed at a time: rank, layers, held-out rows.

    python bench/demo.py [NAME ...]

Each name is a variant below; what it gains and sends goes to one result file, and what is there is not run again.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import RESULTS, about
from outcome import outcome, pooled

import fedgen
from fedgen.cli import DEMOS
from fedgen.run import Run

LINEAR = 'adapter.targets=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]'
VARIANTS: dict[str, list[str]] = {
    "demo": [],
    "held out from the tail": ["deal.order=tail"],
    "seed 8": ["seed=8"],
    **{f"rank {rank}": [f"adapter.rank={rank}"] for rank in (2, 16)},
    "every linear layer, rank 4": ["adapter.rank=4", LINEAR],
    "personal adapters kept across rounds": ["personal.kind=keep", "personal.steps=8"],
    "exact average": ["aggregate.kind=exact"],
}


def found(run: Run, seconds: float) -> dict[str, Any]:
    """What one run of text came to."""
    scores = pooled(run)
    return outcome(run, seconds) | {
        "held_out_tokens": scores["backbone"].terms,
        "perplexity": {name: round(score.per_term, 3) for name, score in scores.items()},
        "bits_per_byte": {name: round(score.bits_per_byte, 4) for name, score in scores.items()},
        "falls": {
            client: {name: round(1 - score[name].per_term / score["backbone"].per_term, 4) for name in scores}
            for client, score in run.scores.items()
            if len(score) == len(scores)
        },
    }


def main() -> None:
    path = RESULTS / "demo.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name in sys.argv[1:] or VARIANTS:
        if name in kept:
            continue
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            run = fedgen.run(DEMOS / "text.toml", Path(folder) / "run", settings=VARIANTS[name])
            kept[name] = {"settings": VARIANTS[name]} | found(run, time.perf_counter() - began) | about()
        path.parent.mkdir(exist_ok=True)
        ordered = {each: kept[each] for each in VARIANTS if each in kept}
        path.write_text(json.dumps(ordered, indent=1) + "\n")
        print(name, json.dumps(kept[name]["gains"]), kept[name]["uplink_saved"], kept[name]["seconds"], flush=True)


if __name__ == "__main__":
    main()
