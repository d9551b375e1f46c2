"""The server's side alone, with 100, 10,000 and 100,000 registered clients of whom 1% take part.

    python bench/scale.py [--rounds 5]

Clients answer at once with a made-up update of a real adapter's shape; each size runs in a process of its own, so its
peak memory is its own. What is timed: sampling, offers, folding, outer step, journal line, checkpoint.
"""

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from machine import keep
from torch import nn

from fedgen import lora, tree
from fedgen.aggregate import Average
from fedgen.cohort import Uniform
from fedgen.journal import Journal, line_of, save_checkpoint
from fedgen.outer import Plain
from fedgen.records import GLOBAL, Offer, Reply, State, Update
from fedgen.rounds import Server, play
from fedgen.run import peak_memory

SIZES = (100, 10_000, 100_000)
LAYERS = {f"layers.{at}.down_proj": nn.Linear(512, 192) for at in range(4)}


def answers(offers: Iterable[Offer]) -> Iterator[Reply]:
    """Clients that train in no time: a message each, packed and unpacked as for a wire."""
    for offer in offers:
        raw = tree.pack(offer.adapter)
        adapter, _ = tree.unpack(raw)
        metrics = {"loss": 1.0, "terms": 1.0}
        yield Update(offer.round, offer.client, offer.cluster, adapter, 10, metrics, up=len(raw), down=len(raw))


def one(clients: int, rounds: int, into: Any) -> None:
    """Play some rounds at one size; say the median time a round and the peak memory."""
    names = [f"client-{at}" for at in range(clients)]
    sizes = dict.fromkeys(names, 10)
    server = Server(0, names, sizes, Uniform(fraction=0.01), Average(), Plain())
    state = State(0, {GLOBAL: lora.fresh(LAYERS, 6, torch.Generator().manual_seed(0))})
    taken = []
    with tempfile.TemporaryDirectory() as name:
        journal = Journal(Path(name) / "journal")
        for _ in range(rounds):
            began = time.perf_counter()
            state, report = play(server, state, answers)
            journal.append(line_of(report))
            save_checkpoint(Path(name) / "checkpoint", state)
            taken.append(time.perf_counter() - began)
    into.put((statistics.median(taken), peak_memory() / 2**20))


def measured(clients: int, rounds: int) -> dict[str, float]:
    spawn = multiprocessing.get_context("spawn")
    into = spawn.Queue()
    process = spawn.Process(target=one, args=(clients, rounds, into))
    process.start()
    seconds, memory = into.get()
    process.join()
    part = max(1, clients // 100)
    return {
        "take_part": part,
        "seconds_a_round": round(seconds, 4),
        "milliseconds_a_participant": round(1000 * seconds / part, 3),
        "peak_memory_mb": round(memory, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found = {str(clients): measured(clients, rounds) for clients in SIZES}
    growth = found["100000"]["peak_memory_mb"] / found["10000"]["peak_memory_mb"] - 1
    keep("scale", {"rounds": rounds, "registered": found, "memory_growth_10000_to_100000": round(growth, 4)})


if __name__ == "__main__":
    main()
