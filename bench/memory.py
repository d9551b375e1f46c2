"""What a turn takes of a small device's memory, and in how much time: each way to train in a process of its own.

    python bench/memory.py [--steps 1] [--quick]

A turn of a random Llama of a hundred million weights, and one of the embedded image backbone with a larger batch.
`turn` is the most memory above what is `loaded`, program and backbone; `peak` is both. Seconds are those of the
processor, on one thread, so that they hold on a machine that does other things too. What must learn the same must come
to the same loss. Quantised backbones are also held against each other: what they still know of text.
"""

import argparse
import ctypes
import functools
import gc
import json
import logging
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from machine import about, keep
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from fedgen import seeds
from fedgen.backbones import Backbone, Diffusion, DiffusionBackbone, Language
from fedgen.backbones.language import EMBEDDED
from fedgen.bank import Bank
from fedgen.client import Job, Start, Training, order, train
from fedgen.data import Stdlib
from fedgen.data.deal import take
from fedgen.evaluate import score
from fedgen.places.inprocess import last_of
from fedgen.records import Document, Rows
from fedgen.run import peak_memory

SEED, RANK, LENGTH, SHARE = 0, 8, 128, 0.25
BATCH = {"text": 4, "image": 32}
LIBRARY = {"text": "bitsandbytes", "image": "diffusers"}
SAME = 1e-3  # losses that are as far apart are the same
LLAMA = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 14, "num_attention_heads": 12}
Found = dict[str, Any]


@dataclass(frozen=True)
class Way:
    """One way to train: settings of [training], of [backbone] and of [adapter]; or every weight, in a plain loop."""

    training: Mapping[str, Any] = field(default_factory=dict)
    backbone: Mapping[str, Any] = field(default_factory=dict)
    last: float = 1.0
    full: bool = False
    same: bool = False  # whether it must learn what plain training does


THIN: dict[str, Any] = {"micro": 1, "checkpoint": True, "optimizer": "sgd"}
WAYS = {
    "every weight": Way(full=True),
    "plain": Way(same=True),
    "micro = 1": Way({"micro": 1}, same=True),
    "checkpoint": Way({"checkpoint": True}, same=True),
    f"last = {SHARE}": Way(last=SHARE),
    "sgd": Way({"optimizer": "sgd"}),
    "bfloat16": Way(backbone={"dtype": "bfloat16"}),
    "8 bits": Way(backbone={"bits": 8}),
    "4 bits": Way(backbone={"bits": 4}),
    "all, bfloat16": Way(THIN, {"dtype": "bfloat16"}, SHARE),
    "all, 4 bits": Way(THIN, {"dtype": "bfloat16", "bits": 4}, SHARE),
}


def llama(folder: Path, *, small: bool) -> None:
    """A folder with a random Llama, and the embedded backbone's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    shape = LLAMA | ({"num_hidden_layers": 2} if small else {})
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, tie_word_embeddings=True, **shape)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def loaded(kind: str, folder: str, way: Way) -> Backbone:
    if kind == "image":
        return Diffusion(device="cpu", **way.backbone).load()
    return Language(folder, length=LENGTH, device="cpu", **way.backbone).load()


def rows_of(backbone: Backbone, number: int) -> Rows:
    """As many rows as a turn takes, of anything at all."""
    draw = torch.Generator().manual_seed(SEED)
    if isinstance(backbone, DiffusionBackbone):
        drawn = torch.randint(256, (number, *backbone.picture), dtype=torch.uint8, generator=draw)
        return backbone.encode([Document("", "", "a letter", picture=picture) for picture in drawn])
    rows = backbone.encode([Document("", "some words that are of no account. " * 40 * number)])
    ids = torch.randint(1, backbone.network.config.vocab_size, (number, LENGTH + 1), dtype=torch.int32, generator=draw)
    return take(rows, torch.arange(number)) | {"ids": ids}


def job_of(bank: Bank, rows: Rows) -> Job:
    start = bank.fresh(torch.Generator().manual_seed(SEED))
    return Job("one", Start(start), rows, functools.partial(seeds.generator, SEED, 1, "one"))


def adapted(backbone: Backbone, rows: Rows, training: Training, last: float) -> float:
    """A turn as fedgen takes it; its loss."""
    targets = last_of(backbone, backbone.targets, last)
    with Bank(backbone.network, targets, RANK) as bank:
        return train(training, backbone, bank, [job_of(bank, rows)])[0].loss


def whole(backbone: Backbone, rows: Rows, training: Training) -> float:
    """The same turn over every weight of the model, in a plain loop; its loss."""
    network = backbone.network.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, foreach=False)
    losses, draw = [], seeds.generator(SEED, 1, "one", "noise")
    for picks in order(training, training.batch * training.steps, seeds.generator(SEED, 1, "one", "order")):
        sums, counts = backbone.losses(backbone.draw(take(rows, picks), draw))
        loss = sums.sum() / counts.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), training.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return sum(losses) / len(losses)


def resident() -> int:
    """Bytes that this process holds now, with what was freed given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmRSS:")).split()[1])


def measured(kind: str, name: str, folder: str, steps: int) -> Found:
    """One way's turn, in this process."""
    quiet()
    way, training = WAYS[name], Training(steps=steps, batch=BATCH[kind], cohort=1)
    backbone = loaded(kind, folder, way)
    rows = rows_of(backbone, steps * training.batch)
    with torch.no_grad():  # a file that is mapped is in memory once it has been read
        backbone.losses(backbone.draw(take(rows, torch.arange(1)), torch.Generator()))
    before = resident()
    Path("/proc/self/clear_refs").write_text("5")  # from here on the peak is the turn's
    began = time.process_time()
    if way.full:
        loss = whole(backbone, rows, training)
    else:
        loss = adapted(backbone, rows, replace(training, **way.training), way.last)
    seconds = time.process_time() - began
    weights = sum(weight.numel() * weight.element_size() for weight in backbone.network.parameters())
    found = {"weights": weights, "loaded": before, "turn": peak_memory() - before, "peak": peak_memory()}
    megabytes = {what: round(size / 2**20) for what, size in found.items()}
    return megabytes | {"seconds": round(seconds, 2), "loss": round(loss, 5)}


def knows(bits: int, steps: int) -> Found:
    """What the embedded model still knows in so many bits: its perplexity, and that after a turn on such text."""
    quiet()
    backbone = Language(length=LENGTH, device="cpu", bits=bits).load()
    rows = backbone.encode(Stdlib(limit=30000).read()[:12])
    count = len(rows["ids"])
    held = take(rows, torch.arange(0, count, 4)[:24])
    own = take(rows, torch.tensor([at for at in range(count) if at % 4])[:64])
    with Bank(backbone.network, backbone.targets, RANK) as bank:
        (done,) = train(Training(steps=steps, cohort=1), backbone, bank, [job_of(bank, own)])
        line = bank.layout.vector(done.adapter)
        bare, after = score(backbone, bank, [(torch.zeros_like(line), held), (line, held)])
    return {"backbone": round(bare.per_term, 3), "adapted": round(after.per_term, 3)}


def quiet() -> None:
    """One thread, and no advice of the libraries."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def apart(act: Any, *given: Any) -> Found:
    """What comes of an act in a process of its own."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        found: Found = pool.apply(act, given)
    return found


def ways_of(kind: str) -> list[str]:
    """Only language models are quantised."""
    return [name for name, way in WAYS.items() if kind == "text" or "bits" not in way.backbone]


def compared(kind: str, folder: str, steps: int) -> dict[str, Found]:
    """Every way, with its time as a ratio to plain."""
    import_module(LIBRARY[kind])  # it is the program's, whichever way it trains
    found = {name: apart(measured, kind, name, folder, steps) for name in ways_of(kind)}
    plain = found["plain"]
    for name, seen in found.items():
        seen["time"] = round(seen["seconds"] / plain["seconds"], 2)
        if WAYS[name].same and abs(seen["loss"] - plain["loss"]) > SAME * plain["loss"]:
            raise SystemExit(f"{kind}, {name}: wanted the loss of plain training, {plain['loss']}, came {seen['loss']}")
    return found


def table(found: Mapping[str, Mapping[str, Found]]) -> str:
    """In megabytes, as a page would have it."""
    lines = ["| backbone | way | weights, MB | turn, MB | peak, MB | time |", "|---|---|---|---|---|---|"]
    for kind, ways in found.items():
        for name, seen in ways.items():
            held = f"{seen['weights']:,} | {seen['turn']:,} | {seen['peak']:,}"
            lines.append(f"| {kind} | {name} | {held} | {seen['time']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="only see that it works; nothing is kept")
    asked = parser.parse_args()
    steps = 1 if asked.quick else asked.steps
    with tempfile.TemporaryDirectory() as folder:
        llama(Path(folder), small=asked.quick)
        found = {kind: compared(kind, folder, steps) for kind in BATCH}
    bits = {str(number): apart(knows, number, 4 if asked.quick else 12) for number in (16, 8, 4)}
    facts: Found = {"seed": SEED, "rank": RANK, "length": LENGTH, "batch": BATCH, "steps": steps, "threads": 1}
    facts |= {"ways": found, "perplexity_by_bits": bits}
    if asked.quick:
        print(json.dumps(about() | facts, indent=1))
    else:
        keep("memory", facts)
    print(table(found))


if __name__ == "__main__":
    main()
