"""What compression takes: each pipeline's speed at both ends, and its share of the turn that made the change.

    python bench/bytes.py [--again 5]

A turn is really trained: a client of the embedded text backbone at rank 8, one pass over its rows; and one step of a
random Llama of a hundred million weights whose adapter has four million numbers. Then what the client trained is sent,
residual and all, and opened again. After a single step only B has moved, so there zstd gains more than it ever will.
Seconds are those of the processor, on one thread; speeds are in megabytes of the plain adapter, 4 bytes a number. Of so
many times the fastest counts. More than two percent of a turn is an error.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from machine import keep
from memory import job_of, llama, rows_of

from fedgen import tree
from fedgen.backbones import Backbone, Language
from fedgen.bank import Bank
from fedgen.client import Training, train
from fedgen.data import Stdlib
from fedgen.data.deal import count
from fedgen.guards import Compress, Guards
from fedgen.records import GLOBAL, Offer, Rows, Tree, Update
from fedgen.store import Shelf

LENGTH = 128
MOST = 2.0  # percent of a turn
WAYS = {
    "32 bits": Compress(32),
    "16 bits": Compress(16),
    "8 bits": Compress(8),
    "4 bits": Compress(4),
    "4 bits, zstd": Compress(4, lossless="zstd"),
    "signs": Compress(1, feedback=True),
    "top 25%, 4 bits, zstd": Compress(4, top=0.25, feedback=True, lossless="zstd"),
    "top 25%, signs, zstd": Compress(1, top=0.25, feedback=True, lossless="zstd"),
    "top 10%, 4 bits, zstd": Compress(4, top=0.1, feedback=True, lossless="zstd"),
}


def seconds(act: Callable[[], Any], again: int = 1) -> tuple[float, Any]:
    """The processor's fastest time for it, and what came of it."""
    taken, found = [], None
    for _ in range(again):
        began = time.process_time()
        found = act()
        taken.append(time.process_time() - began)
    return min(taken), found


def turn(backbone: Backbone, rows: Rows, training: Training, rank: int) -> tuple[Tree, Tree, float]:
    """What a turn begins at, what it comes to, and how long it takes."""
    with Bank(backbone.network, backbone.targets, rank) as bank:
        job = job_of(bank, rows)
        taken, done = seconds(lambda: train(training, backbone, bank, [job])[0])
        return job.start.adapter, done.adapter, taken


def small() -> tuple[Tree, Tree, float]:
    backbone = Language(length=LENGTH, device="cpu").load()
    documents = Stdlib(limit=40_000, modules=("argparse",)).read()
    return turn(backbone, backbone.encode(documents), Training(), 8)


def large() -> tuple[Tree, Tree, float]:
    with tempfile.TemporaryDirectory() as folder:
        llama(Path(folder), small=False)
        backbone = Language(folder, length=LENGTH, device="cpu").load()
        rows = rows_of(backbone, 8)
        assert count(rows) == 8
        return turn(backbone, rows, Training(steps=1, batch=8), 96)


def measured(way: Compress, start: Tree, trained: Tree, taken: float, again: int) -> dict[str, float]:
    guards, offer, size = Guards((way,)), Offer(2, "one", GLOBAL, start), 4 * tree.size(start)
    shelf = Shelf()
    guards.sent(trained, replace(offer, round=1), shelf)  # so that something is owed
    out, sent = seconds(lambda: guards.sent(trained, offer, shelf), again)
    reply = Update(2, "one", GLOBAL, sent, 1)
    back, found = seconds(lambda: guards.opened(reply, offer), again)
    assert isinstance(found, Update)
    message = len(tree.pack(sent))
    return {
        "bits_a_number": round(8 * message / tree.size(start), 3),
        "times_smaller": round(len(tree.pack(start)) / message, 1),
        "encode_mb_s": round(size / out / 1e6),
        "decode_mb_s": round(size / back / 1e6),
        "share_of_turn_percent": round(100 * (out + back) / taken, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", type=int, default=5)
    again = parser.parse_args().again
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, made in (("embedded", small), ("large", large)):
        start, trained, taken = made()
        ways = {label: measured(way, start, trained, taken, again) for label, way in WAYS.items()}
        found[name] = {"numbers": tree.size(start), "turn_seconds": round(taken, 2), "ways": ways}
    worst = max(way["share_of_turn_percent"] for world in found.values() for way in world["ways"].values())
    keep("bytes", found | {"most_of_a_turn_percent": worst})
    if worst > MOST:
        raise SystemExit(f"compression: wanted at most {MOST} % of a turn, came {worst} %")


if __name__ == "__main__":
    main()
