"""Client-turns a second: a cohort through the bank, one at a time, and a plain PEFT loop with nothing federated.

    python bench/rounds.py [--repeats 5]

Same embedded backbone, same rows, same steps. Each repeat runs all three in turn, and ratios are taken repeat by
repeat, so they hold on a machine whose speed drifts. Peak memory is that of a process of its own.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import keep
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

from fedgen import places, seeds
from fedgen.bank import Bank
from fedgen.client import Job, Start, Training, order, train
from fedgen.data.deal import count, take
from fedgen.journal import Journal, line_of, save_checkpoint
from fedgen.places import inprocess
from fedgen.plan import Plan, read
from fedgen.records import GLOBAL, State
from fedgen.rounds import Server, play
from fedgen.run import peak_memory

CLIENTS, STEPS, RANK, TARGETS = 32, 4, 6, ("down_proj",)
ROWS, WAYS = (1, 4, 16), ("cohort", "one", "peft")
PLAN: dict[str, Any] = {
    "data": {"limit": 30000},
    "adapter": {"rank": RANK, "targets": list(TARGETS)},
    "evaluate": {"every": 0},
}


class Bench:
    """The embedded backbone and so many clients' rows, ready to be trained three ways."""

    def __init__(self, rows_a_step: int, clients: int = CLIENTS) -> None:
        self.plan: Plan = read(PLAN)
        self.backbone = self.plan.backbone.load()
        held, _ = inprocess.hold_data(self.plan, self.backbone)
        self.held = {name: held[name] for name in sorted(held)[:clients]}
        self.training = Training(batch=rows_a_step, steps=STEPS)
        self.wide = inprocess.settle(replace(self.plan, training=self.training), self.backbone).training.cohort

    def jobs(self, bank: Bank) -> list[Job]:
        """A job a client, all from the same start."""
        start = bank.fresh(torch.Generator().manual_seed(0))
        return [
            Job(name, Start(start), held.train, lambda use, name=name: seeds.generator(0, 1, name, use))
            for name, held in self.held.items()
        ]

    def bank(self, wide: int) -> None:
        """All clients through the bank, `wide` of them a pass."""
        with Bank(self.backbone.network, TARGETS, RANK) as bank:
            jobs = self.jobs(bank)
            for at in range(0, len(jobs), wide):
                train(self.training, self.backbone, bank, jobs[at : at + wide])

    def peft(self) -> None:
        """All clients one after the other with PEFT and torch.optim, as one would write it for a single machine."""
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(TARGETS), task_type="CAUSAL_LM")
        model = get_peft_model(self.backbone.network, config)
        start = {key: value.clone() for key, value in get_peft_model_state_dict(model).items()}
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        for name, held in self.held.items():
            set_peft_model_state_dict(model, start)
            optimizer = torch.optim.AdamW(trained, lr=self.training.lr, weight_decay=0.0)
            for picks in order(self.training, count(held.train), seeds.generator(0, 1, name, "order")):
                rows = take(held.train, picks.clamp(min=0))
                ids = rows["ids"].long()
                labels = ids.clone()
                labels[:, 1:][~rows["scored"]] = -100
                model(input_ids=ids, labels=labels, use_cache=False).loss.backward()
                torch.nn.utils.clip_grad_norm_(trained, self.training.clip)
                optimizer.step()
                optimizer.zero_grad()
        model.unload()
        self.backbone.network.requires_grad_(False)


def ways(bench: Bench) -> dict[str, Callable[[], None]]:
    """The three ways by name."""
    return {"cohort": lambda: bench.bank(bench.wide), "one": lambda: bench.bank(1), "peft": bench.peft}


def timed(act: Callable[[], None]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def peak(rows: int, way: str, into: Any) -> None:
    """Run one way in this process, for a few clients as memory does not grow with them, and say its peak in MB."""
    ways(Bench(rows, 8))[way]()
    into.put(peak_memory() / 2**20)


def memory(rows: int, way: str) -> float:
    spawn = multiprocessing.get_context("spawn")
    into = spawn.Queue()
    process = spawn.Process(target=peak, args=(rows, way, into))
    process.start()
    found: float = into.get()
    process.join()
    return round(found)


def speeds(rows: int, repeats: int) -> dict[str, Any]:
    """Turns a second of each way, and the ratios to the PEFT loop, repeat by repeat."""
    bench = Bench(rows)
    acts = ways(bench)
    for act in acts.values():
        act()
    taken = [{way: timed(act) for way, act in acts.items()} for _ in range(repeats)]
    ratios = {way: [each["peft"] / each[way] for each in taken] for way in ("cohort", "one")}
    return {
        "cohort_width": bench.wide,
        "turns_a_second": {way: round(CLIENTS / statistics.median(each[way] for each in taken), 2) for way in acts},
        "speed_over_peft": {way: spread(values) for way, values in ratios.items()},
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"min": round(min(values), 3), "median": round(statistics.median(values), 3), "max": round(max(values), 3)}


def overhead(repeats: int) -> dict[str, float]:
    """The share of a round of 32 clients that is not training: messages, folding, outer step, journal, checkpoint."""
    bench = Bench(4)
    plan = replace(bench.plan, training=replace(bench.training, cohort=bench.wide))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        place = inprocess.place(plan, bench.backbone, folder / "shelf", places.silent)
        names = sorted(place.sizes)[:CLIENTS]
        server = Server(0, names, place.sizes, read({"cohort": {"fraction": 1.0}}).cohort, plan.aggregate, plan.outer)
        state = State(0, {GLOBAL: place.start})
        shares = [_share(bench, server, state, place.ask, folder) for _ in range(repeats + 1)][1:]
    return spread(shares)


def _share(bench: Bench, server: Server, state: State, ask: Any, folder: Path) -> float:
    inside = 0.0

    def watched(*args: Any) -> Any:
        nonlocal inside
        began = time.perf_counter()
        done = train(*args)
        inside += time.perf_counter() - began
        return done

    import fedgen.turns as turns

    turns.train = watched
    began = time.perf_counter()
    state, report = play(server, state, ask)
    Journal(folder / "journal").append(line_of(report))
    save_checkpoint(folder / "checkpoint", state)
    turns.train = train
    return 1 - inside / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=["speed", "memory", "overhead"], help="measure this, keep the rest as it was")
    asked = parser.parse_args()
    found: dict[str, Any] = {"clients": CLIENTS, "steps": STEPS, "row_tokens": 128, "repeats": asked.repeats}
    found |= {"rank": RANK, "targets": TARGETS}
    if asked.only in (None, "speed"):
        found["speed"] = {f"{rows} rows a step": speeds(rows, asked.repeats) for rows in ROWS}
    if asked.only in (None, "memory"):
        found["peak_memory_mb"] = {f"{rows} rows a step": {way: memory(rows, way) for way in WAYS} for rows in ROWS}
    if asked.only in (None, "overhead"):
        found["share_of_a_round_not_training"] = overhead(asked.repeats)
    keep("rounds", found, over=asked.only is not None)


if __name__ == "__main__":
    main()
