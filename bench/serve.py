"""Tokens a second of a mixed crowd, and what users feel over HTTP while it answers.

    python bench/serve.py [--repeats 7] [--quick] [--only engine|http|overload]

The engine: 16 rows under 16 adapters through the bank, beside one adapter merged into the weights (the fastest there
can be), PEFT's `adapter_names`, and PEFT's `set_adapter` row by row; the same with 256 adapters in memory. All ways
must write the same tokens first, or nothing is measured. Each repeat runs all ways in turn and ratios are taken repeat
by repeat, in wall and in CPU time, so they hold on a machine whose speed drifts.
"""

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from crowd import http_crowds, overload
from machine import keep
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedgen import Bank, lora, seeds
from fedgen.backbones import Language, LanguageBackbone
from fedgen.records import Tree
from fedgen.serve.engine.wishes import Event, Job, Piece, Write
from fedgen.serve.engine.writing import Writing
from fedgen.serve.pool import BARE, Adapter, Catalogue, Slots, load
from fedgen.store import Card, save_bundle
from fedgen.tree import digest

SEED, ROWS, RANK, WORDS, LOADED = 0, 16, 8, 10_000, 256
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
TARGETS = {"attention": ATTENTION, "every linear layer": (*ATTENTION, "gate_proj", "up_proj", "down_proj")}
END = "<end>"
GOALS = {  # of the medians by the wall
    "bank over merged": 0.90,
    "bank over adapter_names": 2.0,
    "bank over set_adapter": 5.0,
    "of 256 over bank": 0.95,
}


@dataclass(frozen=True)
class Lengths:
    """How long everything is: tokens of prompt and answer, repeats."""

    prompt: int = 32
    answer: int = 32
    repeats: int = 7


def model(folder: Path) -> LanguageBackbone:
    """A Llama of six layers at random, with a tokenizer that reads single bytes and can spell every token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = [END, *alphabet, *(f"<{at}>" for at in range(WORDS - len(alphabet) - 1))]
    raw = Tokenizer(models.BPE(vocab={token: at for at, token in enumerate(known)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END, bos_token=END)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=384, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=6,
        max_position_embeddings=256, initializer_range=0.05, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Language(str(folder), device="cpu").load()


def adapter(layers: Mapping[str, nn.Module], at: int) -> Adapter:
    """An adapter that changes what is written."""
    draw = seeds.generator(SEED, at, "", "adapter")
    tree: Tree = {
        key: value + 0.05 * torch.randn(value.shape, generator=draw)
        for key, value in lora.fresh(layers, RANK, draw).items()
    }
    card = Card(kind="text", backbone="bench", hash=digest(tree), rank=RANK)
    return Adapter(card, lambda: tree)


class Ways:
    """One crowd, answered in several ways."""

    def __init__(self, folder: Path, lengths: Lengths, targets: Sequence[str]) -> None:
        self.lengths, self.bare, self.targets = lengths, model(folder), targets
        network: Any = self.bare.network
        layers = lora.targets(network, targets)
        self.adapters = [adapter(layers, at) for at in range(LOADED)]
        self.new = [adapter(layers, LOADED + at).read() for at in range(20)]
        self.prompts = [f"{at:02}: the way of row {at:02}".ljust(lengths.prompt - 1, ".") for at in range(ROWS)]
        self.peft = wrapped(network, self.adapters[:ROWS], targets)
        merged = wrapped(network, self.adapters[:1], targets).merge_and_unload()
        self.merged = LanguageBackbone("merged", "", merged, self.bare.tokenizer, self.bare.length)
        self.hot = self.batch(copy.deepcopy(network), ROWS)
        self.full = self.batch(copy.deepcopy(network), LOADED)
        self.alone = self.batch(self.merged.network, 1)

    def batch(self, network: nn.Module, loaded: int) -> Writing:
        """A batch of texts with so many adapters in memory."""
        slots = Slots(Bank(network, self.targets, RANK, loaded + 1))  # one to be written while the others are in use
        for one in self.adapters[:loaded]:
            slots.hold([(1.0, {one: 1.0})])
        backbone = LanguageBackbone("bench", "", network, self.bare.tokenizer, self.bare.length)
        return Writing(backbone, slots, rows=ROWS, prefix_bytes=0)

    def ids(self) -> torch.Tensor:
        """The prompts as tokens."""
        return torch.tensor([self.bare.ids(prompt) for prompt in self.prompts])

    def engine(self, batch: Writing, under: Sequence[Adapter]) -> list[str]:
        """All rows through the engine's batch, each under its own adapter."""
        heard: list[list[str]] = [[] for _ in self.prompts]

        def ear(said: list[str]) -> Callable[[Event], None]:
            return lambda event: said.append(event.text) if isinstance(event, Piece) else None

        with torch.no_grad():
            for prompt, one, said in zip(self.prompts, under, heard, strict=True):
                batch.join(Job(Write(prompt, tokens=self.lengths.answer), [(1.0, {one: 1.0})], ear(said)))
            while len(batch):
                batch.step()
        return ["".join(said) for said in heard]

    def by_bank(self) -> list[str]:
        """16 adapters, of 16 in memory."""
        return self.engine(self.hot, self.adapters[:ROWS])

    def by_full_bank(self) -> list[str]:
        """16 adapters, of 256 in memory."""
        return self.engine(self.full, self.adapters[:: LOADED // ROWS])

    def by_same(self) -> list[str]:
        """16 adapters of 256 in memory, the ones of `by_bank`."""
        return self.engine(self.full, self.adapters[:ROWS])

    def by_merged(self) -> list[str]:
        """The same engine on one merged adapter."""
        return self.engine(self.alone, [BARE] * ROWS)

    @torch.no_grad()
    def by_merged_generate(self) -> list[str]:
        """`generate` of transformers on one merged adapter."""
        return self.generated(self.merged.network, self.ids())

    @torch.no_grad()
    def by_adapter_names(self) -> list[str]:
        """PEFT's own mixed batch."""
        return self.generated(self.peft, self.ids(), adapter_names=[str(at) for at in range(ROWS)])

    @torch.no_grad()
    def by_set_adapter(self) -> list[str]:
        """PEFT, row after row."""
        said = []
        for at, row in enumerate(self.ids()):
            self.peft.set_adapter(str(at))
            said += self.generated(self.peft, row[None])
        return said

    def generated(self, network: Any, ids: torch.Tensor, **more: Any) -> list[str]:
        """What transformers writes, as text."""
        made = network.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=self.lengths.answer, do_sample=False,
            eos_token_id=None, pad_token_id=0, **more,
        )  # fmt: skip
        return [self.bare.tokenizer.decode(row[ids.shape[1] :]) for row in made]

    def check(self) -> None:
        """All ways write the same, and adapters matter."""
        wanted = self.by_adapter_names()
        for way in (self.by_bank, self.by_same, self.by_set_adapter):
            odd = [pair for pair in zip(way(), wanted, strict=True) if pair[0] != pair[1]]
            if odd:
                raise SystemExit(f"{way.__name__}: wrote {odd[0][0]!r}, PEFT wrote {odd[0][1]!r}")
        if self.by_merged()[0] != wanted[0] or self.by_merged_generate()[0] != wanted[0]:
            raise SystemExit("merged: wrote something else than the bank under the same adapter")
        if len(set(self.engine(self.hot, [BARE] * ROWS)) & set(wanted)):
            raise SystemExit("the adapters change nothing; this would measure nothing")


def wrapped(network: nn.Module, adapters: Sequence[Adapter], targets: Sequence[str]) -> Any:
    """PEFT's own model of a copy of the network, with these adapters in it."""
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(targets), task_type="CAUSAL_LM")
    made: Any = get_peft_model(copy.deepcopy(network), config, adapter_name="0")  # type: ignore[arg-type]
    for at, one in enumerate(adapters):
        if at:
            made.add_adapter(str(at), config)
        set_peft_model_state_dict(made, one.read(), adapter_name=str(at))
    return made.eval()


def timed(act: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the wall and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    act()
    return time.perf_counter() - wall, time.process_time() - processor


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def engine(lengths: Lengths, targets: Sequence[str]) -> dict[str, Any]:
    """The ratios of all ways, and how long a new adapter takes to go live."""
    with tempfile.TemporaryDirectory() as folder:
        ways = Ways(Path(folder), lengths, targets)
        ways.check()
        acts = {
            "bank": ways.by_bank, "of 256": ways.by_full_bank, "merged": ways.by_merged,
            "merged, generate": ways.by_merged_generate, "adapter_names": ways.by_adapter_names,
            "set_adapter": ways.by_set_adapter,
        }  # fmt: skip
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in acts}
        for at in range(lengths.repeats):
            order = list(acts)[at % len(acts) :] + list(acts)[: at % len(acts)]
            for name in order:
                taken[name].append(timed(acts[name]))
        tokens = ROWS * lengths.answer
        pairs = [("of 256", "bank"), *(("bank", name) for name in acts if name not in ("bank", "of 256"))]
        ratios = {
            f"{own} over {other}": {
                clock: spread([b[at] / a[at] for a, b in zip(taken[own], taken[other], strict=True)])
                for at, clock in enumerate(("wall", "processor"))
            }
            for own, other in pairs
        }
        step = min(wall for wall, _ in taken["bank"]) / lengths.answer
        return {
            "rows": ROWS, "adapters": ROWS, "loaded": LOADED, "rank": RANK,
            "prompt": lengths.prompt, "answer": lengths.answer, "repeats": lengths.repeats,
            "tokens_a_second": {name: round(tokens / min(wall for wall, _ in found)) for name, found in taken.items()},
            "ratios": ratios,
            "goals_reached": {name: ratios[name]["wall"]["median"] >= goal for name, goal in GOALS.items()},
            "new_adapter_in_steps": live(ways, Path(folder), step),
        }  # fmt: skip


def live(ways: Ways, folder: Path, step: float) -> dict[str, float]:
    """How long a bundle takes from the disk to its name and its slot, as a share of one step of 16 rows."""
    found = []
    slots, catalogue = ways.hot.slots, Catalogue(ways.hot.slots.bank.layout)
    for at, tree in enumerate(ways.new):
        save_bundle(folder / f"new-{at}", tree, Card(kind="text", backbone="bench"))
        began = time.perf_counter()
        adapter = load(f"new-{at}", folder)
        catalogue.publish("new", adapter, kind="loaded")
        course = [(1.0, {adapter: 1.0})]
        slots.hold(course)
        found.append((time.perf_counter() - began) / step)
        slots.release(course)
    return spread(found)


def main() -> None:
    """Measure, and keep what came out."""
    wanted = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    wanted.add_argument("--repeats", type=int, default=Lengths.repeats)
    wanted.add_argument("--quick", action="store_true", help="short: to see that it works, not to be kept")
    wanted.add_argument("--only", choices=["engine", "http", "overload"])
    asked = wanted.parse_args()
    lengths = Lengths(answer=8, repeats=2) if asked.quick else Lengths(repeats=asked.repeats)
    parts: dict[str, Callable[[], Mapping[str, Any]]] = {
        "engine": lambda: {name: engine(lengths, targets) for name, targets in TARGETS.items()},
        "http": lambda: http_crowds(quick=asked.quick),
        "overload": lambda: overload(quick=asked.quick),
    }
    found = {name: part() for name, part in parts.items() if asked.only in (None, name)}
    if asked.quick:
        print(found)
    else:
        keep("serve", {"goals": GOALS} | found, over=asked.only is not None)


if __name__ == "__main__":
    main()
