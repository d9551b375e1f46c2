"""A crowd's texts, whoever else is in the batch == each row alone == its adapters merged into the weights.

In every family: with rows that join and leave between tokens, prompts read in chunks, beginnings that were known, and
adapters that come and go meanwhile.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from fedgen import Bank, lora, seeds
from fedgen.backbones import LanguageBackbone
from fedgen.errors import BusyError
from fedgen.records import Rows, Tree
from fedgen.serve.engine.reader import Reader
from fedgen.serve.engine.wishes import Ended, Event, Job, Piece, Write
from fedgen.serve.engine.writing import Writing
from fedgen.serve.pool import BARE, Adapter, Mixture, Slots
from fedgen.store import Card
from fedgen.tree import digest

CLOSE, LIKELY, RANK, LENGTH = 1e-4, 20, 3, 96
BASE: dict[str, Any] = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "initializer_range": 0.15}
SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(**BASE, **SHAPE, num_key_value_heads=2, max_position_embeddings=LENGTH)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**BASE, n_embd=32, n_layer=2, n_head=4, n_positions=LENGTH)),
    "neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**BASE, **SHAPE, max_position_embeddings=LENGTH)),
}


@dataclass(frozen=True)
class Crowd:
    """A backbone, adapters on it, and room for fewer of them than there are."""

    bare: nn.Module
    backbone: LanguageBackbone
    slots: Slots
    adapters: list[Adapter]
    known: dict[Any, tuple[str, Tensor]] = field(default_factory=dict)  # what was worked out by hand

    def writing(self, **settings: Any) -> Writing:
        return Writing(self.backbone, self.slots, **{"rows": 4, "chunk": 8, "prefix_bytes": 0} | settings)


@pytest.fixture(scope="module", params=FAMILIES)
def crowd(request: pytest.FixtureRequest, tiny_backbone: Path) -> Iterator[Crowd]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FAMILIES[request.param]().eval().requires_grad_(False)
    bare = copy.deepcopy(network)
    backbone = LanguageBackbone("tiny", "", network, AutoTokenizer.from_pretrained(tiny_backbone), LENGTH)
    layers = lora.targets(network, backbone.targets)
    trees = [loud(layers, seed, rank) for seed, rank in enumerate((3, 2, 1, 3, 2, 3))]
    adapters = [
        Adapter(Card(kind="text", backbone="tiny", hash=digest(one), rank=lora.rank(one)), lambda one=one: one)
        for one in trees
    ]  # fmt: skip
    with Bank(network, backbone.targets, RANK, slots=4) as bank:
        yield Crowd(bare, backbone, Slots(bank), adapters)


def loud(layers: dict[str, nn.Module], seed: int, rank: int) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    return {key: 0.3 * torch.randn(one.shape, generator=draw) for key, one in lora.fresh(layers, rank, draw).items()}


@dataclass
class Ask:
    """One row: what is written, under what, and in which step it joins; and what came of it."""

    prompt: str | Rows
    under: Mixture
    tokens: int = 12
    joins: int = 0
    leaves: int = 10**6
    temperature: float = 0.0
    top_p: float = 1.0
    user: str = ""
    heard: list[Event] = field(default_factory=list)

    def job(self) -> Job:
        wish = Write(self.prompt, self.tokens, self.temperature, self.top_p, seed=7, likely=LIKELY)
        return Job(wish, [(1.0, self.under)], self.heard.append, self.user)

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.heard if isinstance(event, Piece))

    @property
    def shares(self) -> Tensor:
        """The log-probabilities of each token that was written and of the likeliest in its place."""
        told = [one for event in self.heard if isinstance(event, Piece) for one in event.tokens]
        return torch.tensor([[one.logprob, *(value for _, value in one.likely)] for one in told])

    @property
    def end(self) -> Ended:
        last = self.heard[-1]
        assert isinstance(last, Ended)
        return last


def answered(writing: Writing, asks: Sequence[Ask]) -> Sequence[Ask]:
    """Let all join in their steps, and some leave before they are done."""
    at, jobs = 0, [ask.job() for ask in asks]
    waiting, over = list(jobs), set[Job]()
    while len(over) < len(jobs):
        for job in [job for job, ask in zip(jobs, asks, strict=True) if job in waiting and ask.joins <= at]:
            with contextlib.suppress(BusyError):  # no row, or no slot for its adapter: it waits for the next step
                writing.join(job)
                waiting.remove(job)
        over.update(writing.step())
        for job, ask in zip(jobs, asks, strict=True):
            if ask.leaves <= at and job not in over and job not in waiting:
                writing.leave(job)
                over.add(job)
        at += 1
    return asks


def merged(crowd: Crowd, under: Mixture) -> nn.Module:
    """A copy of the bare network with every product added to its weight."""
    changed = copy.deepcopy(crowd.bare)
    for adapter, weight in under.items():
        for pair in lora.pairs(adapter.read()):
            layer: Any = changed.get_submodule(pair.path)
            product = weight * (pair.b @ pair.a)
            layer.weight.data += product.T if type(layer).__name__ == "Conv1D" else product
    return changed


@torch.no_grad()
def by_hand(crowd: Crowd, ask: Ask) -> tuple[str, Tensor]:
    """The likeliest tokens, one after the other, each by a pass over the whole text."""
    network: Any = merged(crowd, ask.under)
    given, made, shares = crowd.backbone.given(ask.prompt), [], []
    for _ in range(ask.tokens):
        kind = {"input_ids": given[None]} if given.dim() == 1 else {"inputs_embeds": given[None]}
        best = network(**kind, use_cache=False).logits[0, -1].log_softmax(-1).sort(descending=True)
        token = int(best.indices[0])
        if token == crowd.backbone.end:
            break
        made.append(token)
        shares.append(torch.cat([best.values[:1], best.values[:LIKELY]]))
        new = torch.tensor([token])
        given = torch.cat([given, new if given.dim() == 1 else network.get_input_embeddings()(new)])
    return crowd.backbone.tokenizer.decode(made).rstrip("\ufffd"), torch.stack(shares)


def is_by_hand(crowd: Crowd, ask: Ask) -> None:
    asked = ask.prompt if isinstance(ask.prompt, str) else id(ask.prompt)
    name = (asked, tuple(ask.under.items()), ask.tokens)
    if name not in crowd.known:
        crowd.known[name] = by_hand(crowd, ask)
    text, shares = crowd.known[name]
    assert ask.text.rstrip("\ufffd") == text  # a row may end in bytes that are no character
    assert ask.shares.shape == shares.shape
    assert (ask.shares - shares).abs().max() < CLOSE


LONG = "the quick brown fox jumps over the lazy dog, "


def asks(crowd: Crowd) -> list[Ask]:
    """Rows of all sorts: bare, one adapter, mixtures; short and long; that come early and late."""
    a, b, c, d, e, f = crowd.adapters
    return [
        Ask("every round", {a: 1.0}, tokens=20),
        Ask(LONG, {b: 1.0}, tokens=5),
        Ask("a client", {BARE: 1.0}, tokens=9),
        Ask("", {a: 0.7, c: 0.7}, tokens=15, joins=2),
        Ask("naïve", {b: 0.5, a: -0.4, c: 1.2}, tokens=3, joins=3),
        Ask(LONG + "once", {c: 1.0}, joins=4),
        Ask("its own text", {d: 1.0}, tokens=7, joins=9),
        Ask(LONG, {e: 1.0}, joins=10),
        Ask("it", {f: 1.0}, joins=11),
        Ask("every round", {a: 1.0}, tokens=20, joins=12),
    ]


def test_any_batch_is_each_row_merged(crowd: Crowd) -> None:
    found = answered(crowd.writing(), asks(crowd))
    assert crowd.slots.evictions or len(crowd.adapters) <= 4
    for ask in found:
        is_by_hand(crowd, ask)
    assert len({ask.text for ask in found}) == len(found) - 1  # the adapters matter, and one row is asked twice


def test_any_batch_is_each_row_alone(crowd: Crowd) -> None:
    together = answered(crowd.writing(), asks(crowd))
    for ask, one in zip(asks(crowd), together, strict=True):
        answered(crowd.writing(rows=1), [ask])
        assert ask.text == one.text
        assert (ask.shares - one.shares).abs().max() < CLOSE


def test_rows_that_are_let_go_change_nothing(crowd: Crowd) -> None:
    found = asks(crowd)
    for at, leaves in ((1, 1), (2, 6), (5, 5), (6, 12)):
        found[at].leaves = leaves
    answered(crowd.writing(rows=5), found)
    for at in (0, 3, 4, 7, 8, 9):
        is_by_hand(crowd, found[at])
    assert not any(isinstance(event, Ended) for at in (2, 5) for event in found[at].heard)


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_a_prompt_in_chunks_is_the_prompt(crowd: Crowd, chunk: int) -> None:
    rows = [Ask("it", {crowd.adapters[1]: 1.0}), Ask(LONG, {crowd.adapters[0]: 1.0}, joins=1), Ask("to", {BARE: 1.0})]
    for ask in answered(crowd.writing(chunk=chunk), rows):
        is_by_hand(crowd, ask)


def test_a_known_beginning_changes_nothing(crowd: Crowd) -> None:
    a, b = crowd.adapters[:2]
    writing = crowd.writing(prefix_bytes=1 << 20)
    known = {
        "new": Ask(LONG, {a: 1.0}, user="ann"),
        "begins alike": Ask(LONG + "again", {a: 1.0}, user="ann"),
        "the same": Ask(LONG, {a: 1.0}, user="ann"),
        "another adapter": Ask(LONG, {a: 0.5, b: 0.5}, user="ann"),
        "another user": Ask(LONG, {a: 1.0}, user="bob"),
    }
    for ask in known.values():
        answered(writing, [ask])
        is_by_hand(crowd, ask)
    assert [name for name, ask in known.items() if ask.end.cached] == ["begins alike", "the same"]


def test_a_swap_in_mid_batch_changes_no_running_row_and_every_later_one(crowd: Crowd) -> None:
    old, new, *others = crowd.adapters
    names = {"global": old}  # a name is a pointer, which a row follows once, when it joins
    writing, first = crowd.writing(), Ask("every round", {names["global"]: 1.0}, tokens=20)
    writing.join(first.job())
    for _ in range(5):
        writing.step()
    names["global"] = new
    later = Ask("every round", {names["global"]: 1.0}, tokens=20)
    writing.join(later.job())
    for other in others:  # more than there is room for: what nobody uses makes room
        answered(writing, [Ask("it", {other: 1.0}, tokens=1)])
    while len(writing):
        writing.step()
    is_by_hand(crowd, first)
    is_by_hand(crowd, later)
    assert first.text != later.text


def test_a_sealed_prompt_beside_plain_ones_is_the_prompt(crowd: Crowd) -> None:
    a, b = crowd.adapters[:2]
    found = [
        Ask(LONG, {a: 1.0}),
        Ask(crowd.backbone.seal(LONG), {a: 1.0}),
        Ask("it", {b: 1.0}),
        Ask(crowd.backbone.seal("it"), {b: 1.0}, joins=1),
    ]
    plain, sealed, short, later = answered(crowd.writing(prefix_bytes=1 << 20), found)
    for ask in found:
        is_by_hand(crowd, ask)
    assert (sealed.text, later.text) == (plain.text, short.text)


def test_the_server_writes_what_the_command_writes(crowd: Crowd) -> None:
    found = asks(crowd)[:6]
    for at, ask in enumerate(found):
        ask.temperature = (0.8, 0.0)[at % 2]
    for ask in answered(crowd.writing(), found):
        crowd.slots.hold([(1.0, ask.under)])
        with crowd.slots.lay([ask.under]):
            draw = seeds.generator(7, -1, "", "sample")
            said = "".join(crowd.backbone.write(ask.prompt, tokens=ask.tokens, temperature=ask.temperature, draw=draw))
        crowd.slots.release([(1.0, ask.under)])
        assert ask.text == said


def test_by_chance_a_row_is_its_own(crowd: Crowd) -> None:
    found = asks(crowd)[:6]
    for at, ask in enumerate(found):
        ask.temperature, ask.top_p = (0.0, 0.9, 1.3)[at % 3], (1.0, 0.6)[at % 2]
    together = answered(crowd.writing(), found)
    for ask, other in zip(asks(crowd), together, strict=False):
        ask.temperature, ask.top_p = other.temperature, other.top_p
        assert answered(crowd.writing(rows=1), [ask])[0].text == other.text


@torch.no_grad()
def test_logits_of_a_pass_are_the_merged_ones(crowd: Crowd) -> None:
    a, b, c = crowd.adapters[:3]
    mixtures: list[Mixture] = [{a: 1.0}, {BARE: 1.0}, {b: 0.5, c: 0.9}]
    draw = torch.Generator().manual_seed(0)
    given = [torch.randint(1, 300, (count,), generator=draw) for count in (9, 4, 17)]
    reader = Reader(crowd.backbone, 5, LENGTH)
    for one in mixtures:
        crowd.slots.hold([(1.0, one)])
    with crowd.slots.lay(mixtures):
        reader.read([4, 0, 2], [ids[:at] for ids, at in zip(given, (2, 3, 10), strict=True)], [0, 0, 0])
        found = reader.read([4, 0, 2], [ids[at:] for ids, at in zip(given, (2, 3, 10), strict=True)], [2, 3, 10])
    for one in mixtures:
        crowd.slots.release([(1.0, one)])
    networks: list[Any] = [merged(crowd, one) for one in mixtures]
    wanted = torch.cat([network(ids[None]).logits[:, -1] for network, ids in zip(networks, given, strict=True)])
    assert (found - wanted).abs().max() < CLOSE
