"""Client-turns a second: fedgen in process and on Ray, and a plain Flower + PEFT simulation of the same work.

    python bench/places.py [--sizes 1x1 4x1 4x4] [--repeats 2] [--rounds 2] [--clients 32]

Same embedded backbone, same rows in the same order, same steps from the same adapter. The plain simulation is measured
as it is usually written, with text, tokenizer, model and Trainer set up in every `train` call, and with the model kept
by the actor and a plain loop. Each repeat runs all ways in turn, each in processes of its own, and ratios are taken
repeat by repeat. The first round, in which models are loaded, is not counted, nor is what comes before it: both are
told as the start. That all ways did the same is not taken on trust: steps and tokens must be equal in every round, the
loss and the last adapter nearly so.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import torch
from apart import apart
from machine import about, keep
from peers import START, Played, Work
from safetensors.torch import save_file

import fedgen
from fedgen import seeds, tree
from fedgen.backbones.language import EMBEDDED
from fedgen.client import order
from fedgen.data.deal import count, take
from fedgen.data.stdlib import FEDERATED
from fedgen.errors import PlanError
from fedgen.places import inprocess
from fedgen.plan import Plan, read
from fedgen.records import Client, Report, Update
from fedgen.turns import SHARED

CORES, LENGTH, RANK, TARGETS = 2, 128, 6, ("down_proj",)
SIZES = [(1, 1), (4, 1), (4, 4)]  # steps of a client's turn, and rows a step
WAYS = {
    "inprocess": f"fedgen in one process of {CORES} torch threads",
    "ray": f"fedgen on Ray, {CORES} actors",
    "usual": f"Flower + PEFT, {CORES} actors, everything set up in every call",
    "cached": f"Flower + PEFT, {CORES} actors, the model kept by the actor, a plain loop",
}
GOALS = {"usual": 5.0, "cached": 1.5}  # how many times as fast in process is to be
ALIKE = 1e-3  # how far a round's loss, relatively, and a number of the last adapter may lie from those in process


def plan_of(clients: int, rounds: int, steps: int, rows: int) -> dict[str, Any]:
    """The work as a plan: everyone takes part in every round, and nothing is measured between rounds."""
    return {
        "name": "places",
        "rounds": rounds,
        "backbone": {"length": LENGTH},
        "data": {"limit": 30000, "modules": list(FEDERATED[:clients])},
        "deal": {"order": "tail", "valid": 0.01, "test": 0.01},  # nearly all that a peer tokenises is trained on
        "adapter": {"rank": RANK, "targets": list(TARGETS)},
        "training": {"steps": steps, "batch": rows},
        "cohort": {"fraction": 1.0},
        "personal": {"kind": "none"},
        "evaluate": {"every": 0, "rows": 1},
    }


def write(plan: Plan, folder: Path) -> Work:
    """Everything that fedgen would train on, as text and batch by batch, and the adapter it would start from."""
    backbone = plan.backbone.load()
    documents, shares = inprocess.shared_out(plan)
    held, _ = inprocess.hold(plan, backbone, documents, shares)
    folder.mkdir(parents=True)
    for at, name in enumerate(sorted(held)):
        client, picks = held[name], picks_of(plan, held[name])
        save_file(batches(client, picks), folder / f"{at}.safetensors")
        own = {"texts": [documents[one].text for one in shares[name]], "picks": picks.tolist()}
        (folder / f"{at}.json").write_text(json.dumps(own | {"examples": count(client.train)}))
    with plan.adapter.bank(backbone.network, RANK) as bank:
        save_file(bank.fresh(seeds.generator(plan.seed, -1, "", "adapter"), RANK), folder / START)
    training, targets = plan.training, list(TARGETS)
    return Work(str(folder), str(EMBEDDED), len(held), plan.rounds, RANK, targets, LENGTH, training.lr, training.clip)


def picks_of(plan: Plan, client: Client) -> torch.Tensor:
    """Which of its rows a client trains on, in order, [rounds, steps, rows]; they are the first rows of its text."""
    draws = [seeds.generator(plan.seed, turn + 1, client.name, f"{SHARED} order") for turn in range(plan.rounds)]
    return torch.stack([order(plan.training, count(client.train), draw) for draw in draws])


def batches(client: Client, picks: torch.Tensor) -> dict[str, torch.Tensor]:
    """A client's rows as picked: [rounds, steps, rows, tokens]."""
    rows = take(client.train, picks.clamp(min=0))
    scored = rows["scored"] & (picks >= 0).unsqueeze(-1)
    ids = rows["ids"].long()
    labels = ids[..., 1:].masked_fill(~scored, -100)
    return {"ids": ids[..., :-1].contiguous(), "labels": labels, "examples": torch.tensor(count(client.train))}


def ours(place: str, contents: Sequence[dict[str, Any]], folder: Path) -> list[Played]:
    """All rounds of each plan in turn with fedgen, run folders and all."""
    torch.set_num_threads(CORES)
    return [our(place, content, folder / str(at)) for at, content in enumerate(contents)]


def our(place: str, content: dict[str, Any], folder: Path) -> Played:
    """The rounds of one plan."""
    ends: list[float] = []
    steps: list[int] = []

    def tell(event: object) -> None:
        if isinstance(event, Report):
            ends.append(time.perf_counter())
        elif isinstance(event, Update) and event.adapter:
            steps.extend([0] * (event.round - len(steps)))
            steps[-1] += int(event.metrics["steps"])

    settings = [f"place={place}", *([f"ray.actors={CORES}"] if place == "ray" else [])]
    run = fedgen.run(content, folder, settings=settings, tell=tell)
    told = [line["metrics"] for line in run.journal]
    adapter = tree.pack(run.adapter("global")[0])
    return Played(ends, steps, [int(each["terms"]) for each in told], [each["loss"] for each in told], adapter)


def theirs(works: Sequence[Work], *, cached: bool) -> list[Played]:
    """The same with the plain simulation."""
    from peers.plain import simulate

    return simulate(works, CORES, cached=cached)


def timed(act: Callable[[], list[Played]]) -> tuple[float, list[Played]]:
    """A way in a process of its own: how long it took to the end of its first round, and what it played."""
    began = time.perf_counter()
    played = apart(act)
    return played[0].ends[0] - began, played


def known() -> list[str]:
    """The ways there are: Ray is left out, with a word, by a fedgen that has no such place."""
    try:
        read({}, ["place=ray"])
    except PlanError as error:
        print(f"left out: {WAYS['ray']} ({error})")
        return [way for way in WAYS if way != "ray"]
    return list(WAYS)


def once(contents: Sequence[dict[str, Any]], ways: Sequence[str]) -> dict[str, tuple[float, list[Played]]]:
    """Every way in turn, each through all sizes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["FLWR_HOME"] = str(folder / "flwr")
        works = [write(read(content), folder / "work" / str(at)) for at, content in enumerate(contents)]
        acts: dict[str, Callable[[], list[Played]]] = {
            "inprocess": partial(ours, "inprocess", contents, folder / "inprocess"),
            "ray": partial(ours, "ray", contents, folder / "ray"),
            "usual": partial(theirs, works, cached=False),
            "cached": partial(theirs, works, cached=True),
        }
        return {way: timed(acts[way]) for way in ways}


def same(found: dict[str, Played]) -> dict[str, Any]:
    """What was done in a round, and how far the ways lie from each other; refused if that is more than rounding."""
    first = found["inprocess"]
    adapter, _ = tree.unpack(first.adapter)
    loss = furthest = 0.0
    for way, played in found.items():
        if (played.steps, played.terms) != (first.steps, first.terms):
            raise SystemExit(f"{way}: {played.steps} steps on {played.terms} tokens, in process {first}")
        other, _ = tree.unpack(played.adapter)
        tree.check(other, adapter, way)
        both = zip(played.loss, first.loss, strict=True)
        loss = max(loss, *(abs(own - wanted) / wanted for own, wanted in both))
        furthest = max(furthest, *((other[key] - adapter[key]).abs().max().item() for key in adapter))
        if max(loss, furthest) > ALIKE:
            raise SystemExit(f"{way}: losses {played.loss}, in process {first.loss}; adapters {furthest:.2g} apart")
    went = {"steps": first.steps[0], "tokens": first.terms[0], "loss": [round(value, 4) for value in first.loss]}
    return went | {"loss_apart": float(f"{loss:.1g}"), "adapter_apart": float(f"{furthest:.1g}")}


def measured(repeats: Sequence[dict[str, Played]], clients: int) -> dict[str, Any]:
    """The speeds of all ways at one size, and their ratios, repeat by repeat."""
    ways = list(repeats[0])
    rounds = {way: [[b - a for a, b in pairwise(found[way].ends)] for found in repeats] for way in ways}
    middle = {way: [statistics.median(own) for own in each] for way, each in rounds.items()}
    every = {way: list(chain.from_iterable(each)) for way, each in rounds.items()}
    ratios = {
        f"{way} over {peer}": spread([b / a for a, b in zip(middle[way], middle[peer], strict=True)])
        for peer in GOALS
        for way in ways[: ways.index(peer)]
    }
    checked = [same(found) for found in repeats]
    goals = {f"inprocess over {peer}": wish for peer, wish in GOALS.items()}
    return {
        "a_round": checked[0],
        "turns_a_second": {way: round(clients / statistics.median(own), 2) for way, own in every.items()},
        "seconds_a_round": {way: spread(own) for way, own in every.items()},
        "speed": ratios,
        "goals": {name: {"wanted": wish, "met": ratios[name]["median"] >= wish} for name, wish in goals.items()},
    }


def size_of(word: str) -> tuple[int, int]:
    """Steps and rows of a word such as 4x1."""
    steps, _, rows = word.partition("x")
    return int(steps), int(rows)


def spread(values: list[float]) -> dict[str, float]:
    return {"min": round(min(values), 3), "median": round(statistics.median(values), 3), "max": round(max(values), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=2, help="so many are timed, after one that is not")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--sizes", nargs="+", type=size_of, default=SIZES, help="steps x rows a step")
    asked = parser.parse_args()
    os.environ.pop("OMP_NUM_THREADS", None)  # each way says itself how many threads it takes
    ways = known()
    contents = [plan_of(asked.clients, asked.rounds + 1, *size) for size in asked.sizes]
    done = [once(contents, ways) for _ in range(asked.repeats)]
    found: dict[str, Any] = {"versions": about()["versions"] | {name: version(name) for name in ("flwr", "ray")}}
    found |= {"clients": asked.clients, "row_tokens": LENGTH, "rank": RANK, "targets": TARGETS, "seed": 0}
    found |= {"cores": CORES, "repeats": asked.repeats, "rounds_timed": asked.rounds}
    found["ways"] = {way: WAYS[way] for way in ways}
    found["start_seconds"] = {way: spread([each[way][0] for each in done]) for way in ways}
    for at, (steps, rows) in enumerate(asked.sizes):
        name = f"{steps} step{'s' * (steps > 1)} of {rows} row{'s' * (rows > 1)}"
        found[name] = measured([{way: each[way][1][at] for way in ways} for each in done], asked.clients)
    keep("places", found)


if __name__ == "__main__":
    main()
