"""Hybrids: mixtures of two clusters' adapters, judged against a face of both styles that nobody ever trained on.

    python experiments/hybrids.py [--work WORK] [--out OUT]

Clients draw bold, slanted or serif letters (`plans/hybrids.toml`); the server groups them by their encoded prompts. The
clusters' adapters alone are mixed, over a grid of weights. The best weights are chosen on one draw of noise and told on
another. The judge, trained on real faces, chooses among the eight styles that bold, slanted and serif add up to. Runs
are kept in WORK and gone on with. Written are OUT.json, and of the first seed OUT.png and OUT-weights.png.
"""

import argparse
import json
import string
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from clusters_figures import weights_map

import fedgen
from fedgen.data.glyphs import drawings, prompt_of
from fedgen.quality.judge import Judge
from fedgen.records import Document
from fedgen.run import Run
from fedgen.sample import BARE, Sampler, Wish, compact, route, sampler, spelled
from fedgen.sheet import empty, save_sheet
from fedgen.store import write_whole

PLAN = Path(__file__).parent / "plans" / "hybrids.toml"
SEEDS = (0, 1, 2)
PAIRS = {"bold slanted": ("bold", "slanted"), "bold serif": ("serif", "bold")}
AMONG = ("plain", "bold", "slanted", "bold slanted", "serif", "bold serif", "slanted serif", "bold slanted serif")
GRID = (0.5, 0.7, 0.85, 1.0, 1.2, 1.4)
LETTERS = string.ascii_lowercase
STEPS, GUIDANCE, CHOSEN_ON, TOLD_ON = 10, 1.0, 100, (200, 201)


def wishes(adapter: str, words: str, seed: int) -> list[Wish]:
    """Every letter once under one adapter, from its own noise."""
    return [
        Wish(adapter, Document("", "", prompt_of(letter, words)), 1000 * seed + at) for at, letter in enumerate(LETTERS)
    ]


def drawn(voice: Sampler, adapters: Sequence[str], words: str, seeds: Sequence[int]) -> dict[str, Tensor]:
    """What each adapter draws of the letters, from the same noise."""
    asked = [wish for adapter in adapters for seed in seeds for wish in wishes(adapter, words, seed)]
    made = torch.stack(list(voice.paint(asked, steps=STEPS, guidance=GUIDANCE)))
    return dict(zip(adapters, made.split(len(LETTERS) * len(seeds)), strict=True))


def judged(judge: Judge, made: Tensor, wanted: str) -> dict[str, float]:
    """Shares of pictures that are judged the wanted style, and the right letter."""
    letters = list(LETTERS) * (len(made) // len(LETTERS))
    said = judge.letters(made, LETTERS)
    return {
        "style": mean(style == wanted for style in judge.styles(made, AMONG)),
        "letter": mean(one == two for one, two in zip(said, letters, strict=True)),
    }


def real(style: str, copies: int = 4) -> Tensor:
    """The real face, drawn with the same freedom as the clients' own pictures."""
    draw = torch.Generator().manual_seed(1)
    each = [drawings(style, letter, copies, 32, draw) for letter in LETTERS]
    return torch.stack([picture for turn in zip(*each, strict=True) for picture in turn])


def clusters(run: Run) -> dict[str, str]:
    """The cluster that each style's clients are in, and a stop if it is not theirs alone."""
    where, labels = run.clusters["where"], run.clusters["labels"]
    found = {label: {where[name] for name in where if labels[name] == label} for label in set(labels.values())}
    if any(len(own) != 1 for own in found.values()) or len(set.union(*found.values())) != len(found):
        raise SystemExit(f"{run.folder}: the clusters are not the styles: {found}")
    return {label: own.pop() for label, own in sorted(found.items())}


def hybrid(voice: Sampler, judge: Judge, wanted: str) -> dict[str, Any]:
    """One hybrid of one run: the grid, the best of it on new noise, and what stands beside it."""
    names = [clusters(voice.run)[style] for style in PAIRS[wanted]]
    mixtures = {spelled(dict(zip(names, pair, strict=True))): pair for pair in product(GRID, repeat=2)}
    grid: dict[str, list[tuple[tuple[float, float], dict[str, float]]]] = {}
    for words in ("", wanted):
        made = drawn(voice, list(mixtures), words, [CHOSEN_ON])
        grid[words] = [(pair, judged(judge, made[mixture], wanted)) for mixture, pair in mixtures.items()]
    ranked = [(cell["style"] + cell["letter"], words, pair) for words, cells in grid.items() for pair, cell in cells]
    _, words, pair = max(ranked)
    best, said = spelled(dict(zip(names, pair, strict=True))), voice.encode(prompt_of("a", wanted))
    routed = {gain: route(voice.run, said, top=2, gain=gain) for gain in (1.0, 2.0)}
    beside = {
        "best weights": best,
        "weights 1 and 1": spelled(dict.fromkeys(names, 1.0)),
        **{f"routed by the prompt, gain {gain:g}": spelled(one) for gain, one in routed.items()},
        "switched half way": f"{names[0]} until 0.5 then {names[1]}",
        f"{PAIRS[wanted][0]} alone": names[0],
        f"{PAIRS[wanted][1]} alone": names[1],
        "global": "global",
        "backbone": BARE,
    }
    made = drawn(voice, list(beside.values()), words, TOLD_ON)
    _, _, lost = compact(voice.run, dict(zip(names, pair, strict=True)), voice.run.plan.adapter.rank)
    return {
        "weights": pair,
        "prompt names the style": bool(words),
        "routed": routed[1.0],
        "judged": {name: judged(judge, made[adapter], wanted) for name, adapter in beside.items()},
        "real face": judged(judge, real(wanted), wanted),
        "energy lost at one adapter's rank": lost,
        "grid": [[*pair, cell["style"], cell["letter"]] for pair, cell in grid[words]],
        "pictures": {name: made[adapter][: len(LETTERS)] for name, adapter in beside.items()},
    }


def sheet(path: Path, found: dict[str, Any]) -> None:
    """A block a hybrid: the two alone, the hybrid, and the real face."""
    rows = []
    for wanted, one in found.items():
        shown = [f"{style} alone" for style in PAIRS[wanted]]
        rows += [(name, one["pictures"][name]) for name in [*shown, "best weights"]]
        rows += [(f"real {wanted}", real(wanted, 1)), ("", empty())]
    save_sheet(path, rows[:-1], {"steps": STEPS, "guidance": GUIDANCE})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/hybrids"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "hybrids")
    args = parser.parse_args()
    began, judge, results = time.monotonic(), Judge(), {}
    for seed in SEEDS:
        folder = args.work / f"hybrids-{seed}"
        there = (folder / "plan.toml").exists()
        run = fedgen.resume(folder) if there else fedgen.run(PLAN, folder, settings=[f"seed={seed}"])
        voice = sampler(run)
        found = {wanted: hybrid(voice, judge, wanted) for wanted in PAIRS}
        if seed == SEEDS[0]:
            sheet(args.out.with_suffix(".png"), found)
            weights_map(args.out.with_name(f"{args.out.name}-weights.png"), found)
        for one in found.values():
            del one["pictures"]
        results[str(seed)] = found
        told = {wanted: (one["weights"], one["judged"]) for wanted, one in found.items()}
        print(seed, json.dumps(told), flush=True)
    content = {
        "date": datetime.now(UTC).date().isoformat(),
        "threads": torch.get_num_threads(),
        "minutes": round((time.monotonic() - began) / 60, 1),
        "versions": run.facts["versions"],
        "settings": {"among": AMONG, "steps": STEPS, "guidance": GUIDANCE, "pictures": len(TOLD_ON) * len(LETTERS)},
        "seeds": results,
    }
    write_whole(args.out.with_suffix(".json"), (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
