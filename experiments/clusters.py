"""What clusters are worth: local, one global adapter, clusters, clusters that exchange, and the true groups.

    python experiments/clusters.py [glyphs] [text] [--work WORK] [--out OUT]

Every arm of a world has the same clients, rounds, cohorts and steps (`plans/clusters-WORLD.toml`); without federation a
client takes as many steps as it does on average in the others. Runs are kept in WORK and gone on with. Written are
OUT.json and OUT.png, of all runs that are there.
"""

import argparse
import functools
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from clusters_figures import arms

import fedgen
from fedgen.evaluate import Gains, Score, gains, total
from fedgen.places import inprocess
from fedgen.plan import Plan
from fedgen.records import GLOBAL
from fedgen.run import Run
from fedgen.store import write_whole
from fedgen.turns import CLUSTER

PLANS = Path(__file__).parent / "plans"
SEEDS = (0, 1, 2)
FLAT = ["cluster.kind=none", "exchange.kind=none"]
ARMS: dict[str, list[str]] = {
    "local": [*FLAT, "cohort.fraction=1.0", "training.steps=1", "personal.kind=keep", "personal.steps=5"],
    "global": FLAT,
    "clusters": ["exchange.kind=none"],
    "exchange": [],
    "oracle": ["cluster.kind=oracle", "exchange.kind=none"],
}
TRIED: dict[str, list[str]] = {
    "of whole adapters": ["exchange.of=adapters", "exchange.strength=0.1"],
    "little data takes more": ["exchange.thin=1.0"],
    "from the nearest alone": ["exchange.temperature=0.1"],
    "from the mean": ["exchange.kind=global", "exchange.strength=1.0"],
    "shared A": ["exchange.kind=shared_a"],
    "clusters, twice the rate": ["exchange.kind=none", "training.lr=0.01"],
    "exchange, twice the rate": ["training.lr=0.01"],
}
WORLDS = ("glyphs", "text")


def folder(world: str, arm: str, seed: int, work: Path) -> Path:
    """Where a run is kept."""
    return work / f"{world}-{arm.replace(' ', '-').replace(',', '')}-{seed}"


def play(world: str, arm: str, seed: int, work: Path) -> Run:
    """The run of an arm, new, gone on with, or there."""
    where = folder(world, arm, seed, work)
    if (where / "plan.toml").exists():
        return fedgen.resume(where)
    settings = [*(ARMS | TRIED)[arm], f"seed={seed}"]
    return fedgen.run(PLANS / f"clusters-{world}.toml", where, settings=settings)


# ---- what a run came to


def shared(scores: Mapping[str, Score]) -> str:
    """Under which name a client's shared adapter is scored."""
    return CLUSTER if CLUSTER in scores else GLOBAL


def gained(run: Run, adapter: str, names: Iterable[str]) -> Gains:
    """What these clients gained over the bare backbone by an adapter, or by the shared one."""
    scores = {name: run.scores[name] for name in names}
    after = {name: one[adapter or shared(one)] for name, one in scores.items()}
    return gains({name: one["backbone"] for name, one in scores.items()}, after, run.yardstick)


def known(run: Run) -> dict[str, tuple[str, int]]:
    """Each client's true group, and how much it holds: characters, or pictures."""
    plan = run.plan
    return dealt(Plan(seed=plan.seed, data=plan.data, partition=plan.partition))


@functools.cache
def dealt(plan: Plan) -> dict[str, tuple[str, int]]:
    """The same of a plan's data and partition alone."""
    return {
        name: (documents[0].label, sum(len(document.text) or 1 for document in documents))
        for name, documents in inprocess.holdings(plan).items()
    }


def smallest(run: Run) -> list[str]:
    """The clients of the quarter of true groups that hold the least."""
    sizes: dict[str, int] = {}
    for label, size in known(run).values():
        sizes[label] = sizes.get(label, 0) + size
    few = sorted(sizes, key=lambda label: (sizes[label], label))[: max(1, len(sizes) // 4)]
    return [name for name, (label, _) in known(run).items() if label in few]


def found(run: Run) -> dict[str, Any]:
    """The figures of one run; `shared` is each client's own cluster's adapter, before the gate."""
    few, scores = smallest(run), run.scores.values()
    local = all("personal" in one for one in scores) and run.plan.training.steps == 1
    result: dict[str, Any] = {
        "curve": [line["metrics"][run.yardstick.key] for line in run.journal],
        "backbone": run.yardstick.of(total(one["backbone"] for one in scores)),
        "seconds": round(sum(line["seconds"] for line in run.journal)),
        "quality": run.clusters.get("quality", {}),
        "groups": len({*run.clusters.get("where", {}).values()}),
        "refused": sum(cluster == GLOBAL for cluster in run.clusters.get("uses", {}).values()),
        "message_bytes": run.journal[0]["up"] // len(run.journal[0]["clients"]),
    }
    for name, adapter in {"shared": "", "personal": "personal"}.items():
        if name == "shared" and local:
            continue
        every = gained(run, adapter, run.scores)
        result[name] = {
            "measure": run.yardstick.of(total(one[adapter or shared(one)] for one in scores)),
            "fall": every.mean,
            "worst_tenth": every.worst_decile,
            "smallest_quarter": gained(run, adapter, few).mean,
        }
    return result


def rounds_to(curve: Sequence[float], goal: float) -> int:
    """The first round whose measure is as good; 0 if none is."""
    return next((at for at, value in enumerate(curve, 1) if value <= goal), 0)


def finished(there: Path) -> bool:
    """Whether a run is in this folder that came to its end."""
    return (there / "plan.toml").exists() and Run(there).finished


def collected(world: str, work: Path) -> dict[str, Any]:
    """The figures of every finished run of a world, by arm and seed, and what the goals ask of them."""
    done = {
        arm: {str(seed): found(Run(there)) for seed in SEEDS if finished(there := folder(world, arm, seed, work))}
        for arm in ARMS | TRIED
    }
    run = Run(folder(world, "global", SEEDS[0], work))
    result: dict[str, Any] = {
        "measure": run.yardstick.name,
        "clients": len(run.scores),
        "groups": len({label for label, _ in known(run).values()}),
        "versions": run.facts["versions"],
        "machine": run.facts["machine"],
        "arms": {arm: done[arm] for arm in ARMS},
        "tried": {arm: {"settings": TRIED[arm], "runs": done[arm]} for arm in TRIED if done[arm]},
    }
    result["rounds_to_best_of_global"] = {
        arm: [
            rounds_to(done[arm][seed]["curve"], min(done["global"][seed]["curve"]))
            for seed in done[arm]
            if seed in done["global"]
        ]
        for arm in ("clusters", "exchange", "oracle")
    }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="*", metavar="WORLD", help="glyphs, text, or both; none: only collect")
    parser.add_argument("--work", type=Path, default=Path("runs/clusters"), help="where the runs are kept")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "clusters")
    args = parser.parse_args()
    if unknown := set(args.worlds) - set(WORLDS):
        parser.error(f"wanted {' or '.join(WORLDS)}, came {min(unknown)}")
    asked = [(arm, seed) for seed in SEEDS for arm in ARMS] + [(arm, SEEDS[0]) for arm in TRIED]
    for arm, seed in asked:
        for world in args.worlds:
            run = play(world, arm, seed, args.work)
            print(world, arm, seed, json.dumps(found(run)), flush=True)
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "threads": torch.get_num_threads(),
        "settings": {"seeds": SEEDS, "arms": ARMS},
        "worlds": {
            world: collected(world, args.work)
            for world in WORLDS
            if finished(folder(world, "global", SEEDS[0], args.work))
        },
    }
    write_whole(args.out.with_suffix(".json"), (json.dumps(result, indent=1) + "\n").encode())
    arms(args.out.with_suffix(".png"), result["worlds"])
    print(f"{args.out}.json and .png; python docs/cluster_results.py makes the page of it")


if __name__ == "__main__":
    main()
