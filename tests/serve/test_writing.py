"""The batch of texts: what it refuses, how rows begin and end, and what one row's trouble does to the others."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from fedgen import Bank, lora
from fedgen.backbones import Language, LanguageBackbone
from fedgen.errors import BackboneError, BusyError, FedgenError, ServeError
from fedgen.records import Document
from fedgen.serve.engine.wishes import Broken, Draw, Ended, Event, Job, Piece, Write
from fedgen.serve.engine.writing import Writing
from fedgen.serve.pool import BARE, Adapter, Mixture, Slots
from fedgen.store import Card
from fedgen.tree import digest

LENGTH = 128
LONG = "every round some clients train, and their adapters are averaged. " * 2


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> LanguageBackbone:
    return Language(str(tiny_backbone), length=32, device="cpu").load()


@pytest.fixture
def slots(backbone: LanguageBackbone) -> Iterator[Slots]:
    """Room for two adapters."""
    with Bank(backbone.network, backbone.targets, 2, slots=2) as bank:
        yield Slots(bank)


@pytest.fixture
def writing(backbone: LanguageBackbone, slots: Slots) -> Writing:
    return Writing(backbone, slots, rows=3, chunk=8)


def adapter(slots: Slots, seed: int, loud: float = 0.3) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    tree = {key: loud * torch.randn(one.shape, generator=draw) for key, one in slots.bank.fresh(draw).items()}
    return Adapter(Card(kind="text", backbone="tiny", hash=digest(tree), rank=lora.rank(tree)), lambda: tree)


def job(wish: Write, under: Mixture | None = None, **more: Any) -> tuple[Job, list[Event]]:
    heard: list[Event] = []
    return Job(wish, [(1.0, under or {BARE: 1.0})], heard.append, **more), heard


def written(writing: Writing, *asked: tuple[Job, list[Event]]) -> list[str]:
    """Let all of them be written, from now to their ends."""
    for one, _ in asked:
        writing.join(one)
    over: set[Job] = set()
    while not over.issuperset(one for one, _ in asked):
        over.update(writing.step())
    return [text(heard) for _, heard in asked]


def text(heard: Sequence[Event]) -> str:
    return "".join(event.text for event in heard if isinstance(event, Piece))


def empty(writing: Writing) -> bool:
    """Whether no row has left anything behind."""
    slab, slots = writing._slab, writing.slots
    rows = [slab.read(row, 0, slab.length).any() for row in range(slab.rows)]
    return not len(writing) and writing.room() == slab.rows and not any(rows) and not slots._holders


# ---- what is refused


@pytest.mark.parametrize(
    "wish",
    [
        {"tokens": 0}, {"tokens": -3}, {"temperature": -0.1}, {"temperature": math.nan}, {"temperature": math.inf},
        {"top_p": -0.1}, {"top_p": 1.1}, {"top_p": math.nan}, {"stop": ("a", "")},
    ],
)  # fmt: skip
def test_settings_that_mean_nothing(writing: Writing, wish: dict[str, Any]) -> None:
    with pytest.raises(ServeError, match="text: wanted 1 token or more, a temperature from 0, top_p from 0 to 1"):
        writing.check(Write("every", **wish))


def test_a_picture(writing: Writing) -> None:
    with pytest.raises(ServeError, match="writes text and draws no pictures"):
        writing.check(Draw(Document("", "a harbour")))


def test_a_prompt_that_does_not_fit_is_told_by_how_much(writing: Writing, backbone: LanguageBackbone) -> None:
    given = len(backbone.ids(LONG))
    writing.check(Write(LONG, tokens=LENGTH - given))
    with pytest.raises(ServeError) as caught:
        writing.check(Write(LONG, tokens=LENGTH - given + 1))
    assert f"{given} tokens of prompt and {LENGTH - given + 1} to be written are more than the 128" in str(caught.value)
    assert f"it leaves room for {LENGTH - given}" in str(caught.value)
    with pytest.raises(ServeError, match="one of 127 tokens leaves room for one"):
        writing.check(Write("z" * 500, tokens=1))


def test_a_prompt_that_is_far_too_long_is_not_even_read(backbone: LanguageBackbone, slots: Slots) -> None:
    counted = _Counted(backbone.tokenizer)
    writing = Writing(LanguageBackbone("tiny", "", backbone.network, counted, 32), slots, rows=1, length=32)
    counted.asked = 0
    with pytest.raises(ServeError, match="prompt: 2049 characters are more than the 32 tokens that 'tiny' reads here"):
        writing.check(Write("z" * 2049))
    assert counted.asked == 0


def test_a_prompt_is_read_once_when_it_joins(backbone: LanguageBackbone, slots: Slots) -> None:
    counted = _Counted(backbone.tokenizer)
    writing = Writing(LanguageBackbone("tiny", "", backbone.network, counted, 32), slots, rows=1)
    counted.asked = 0
    writing.join(job(Write("every"))[0])
    assert counted.asked == 1
    assert writing._joining[0].ids == writing._joining[0].given.tolist() == backbone.ids("every")


class _Counted:
    """A tokenizer that knows how often it was asked for tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.eos_token_id, self.decode, self.asked = (
            tokenizer,
            tokenizer.eos_token_id,
            tokenizer.decode,
            0,
        )

    def __call__(self, text: str, **settings: Any) -> Any:
        self.asked += 1
        return self.tokenizer(text, **settings)


def test_a_sealed_prompt_for_another_backbone(writing: Writing, backbone: LanguageBackbone) -> None:
    writing.check(Write(backbone.seal("every")))
    with pytest.raises(BackboneError, match="sealed prompt: wanted a row of 32 finite numbers for each token"):
        writing.check(Write({"states": torch.zeros(4, 31)}))


def test_stages(writing: Writing) -> None:
    asked = Job(Write("every"), [(0.5, {BARE: 1.0}), (1.0, {BARE: 1.0})], print)
    with pytest.raises(ServeError, match="take turns between the steps of a picture alone"):
        writing.join(asked)
    assert empty(writing)


def test_more_rows_than_there_are(writing: Writing) -> None:
    for left in (2, 1, 0):
        writing.join(job(Write("every"))[0])
        assert writing.room() == left
    with pytest.raises(BusyError, match="rows: all 3 are at work"):
        writing.join(job(Write("every"))[0])
    assert len(writing) == 3


SMALL = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 0}


def unusual(network: nn.Module, tiny_backbone: Path, length: int = 0) -> Writing:
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    backbone = LanguageBackbone("odd", "", network.eval().requires_grad_(False), tokenizer, 32)
    ends = {path.rpartition(".")[2] for path, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    with Bank(copy.deepcopy(network), sorted(ends - {"lm_head"}), 2) as bank:
        return Writing(backbone, Slots(bank), rows=2, length=length)


@pytest.mark.parametrize(
    ("make", "came"),
    [
        (lambda: MambaForCausalLM(MambaConfig(**SMALL, state_size=4)), "NoneType|LinearAttentionLayer"),
        (lambda: BloomForCausalLM(BloomConfig(**SMALL, n_head=2)), "too many values to unpack"),
    ],
    ids=["mamba", "bloom"],
)
def test_a_model_that_cannot_share_its_passes(make: Callable[[], nn.Module], came: str, tiny_backbone: Path) -> None:
    with pytest.raises(BackboneError, match=f"serve: 'odd' cannot share its passes between rows: .*({came})") as caught:
        unusual(make(), tiny_backbone, length=32)
    assert "\n" not in str(caught.value)


def test_a_model_that_knows_no_bound(tiny_backbone: Path) -> None:
    with pytest.raises(BackboneError, match="serve: 'odd' knows no bound of what it reads; say how long a row may be"):
        unusual(BloomForCausalLM(BloomConfig(**SMALL, n_head=2)), tiny_backbone)


@pytest.mark.parametrize(("window", "length"), [(None, 64), (24, 24), (500, 64)])
def test_a_sliding_window_bounds_the_length(window: int | None, length: int, tiny_backbone: Path) -> None:
    config = MistralConfig(
        **SMALL, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, sliding_window=window,
        max_position_embeddings=64,
    )  # fmt: skip
    assert unusual(MistralForCausalLM(config), tiny_backbone).length == length


@pytest.mark.parametrize(("asked", "length"), [(0, LENGTH), (50, 50), (10**6, LENGTH)])
def test_the_length_is_at_most_the_models(backbone: LanguageBackbone, slots: Slots, asked: int, length: int) -> None:
    writing = Writing(backbone, slots, rows=2, length=asked, prefix_bytes=1000)
    assert writing.length == length
    assert writing.nbytes == pytest.approx(4 * 2 * length * 2 * 2 * 32 + 1000, rel=0.01)  # of two layers


# ---- how a row ends


def test_a_row_ends_when_its_tokens_are_written(writing: Writing, backbone: LanguageBackbone) -> None:
    asked, heard = job(Write("every", tokens=9))
    written(writing, (asked, heard))
    end = heard[-1]
    assert isinstance(end, Ended)
    assert (end.reason, end.given, end.cached, end.made) == ("length", len(backbone.ids("every")), 0, 9)
    assert not any(piece.tokens for piece in heard if isinstance(piece, Piece))
    assert empty(writing)


def test_a_row_ends_at_the_models_own_end(backbone: LanguageBackbone, slots: Slots) -> None:
    whole, heard = job(Write("a client", tokens=20, likely=0))
    written(Writing(backbone, slots), (whole, heard))
    told = [token for event in heard if isinstance(event, Piece) for token in event.tokens]
    assert len(told) == 20
    ids = backbone.ids("a client")
    with torch.no_grad():
        for _ in range(20):
            ids.append(int(backbone.network(torch.tensor([ids])).logits[0, -1].argmax()))
    made = ids[-20:]
    at = next(at for at, token in enumerate(made) if at > 2 and token not in made[:at])
    sooner = LanguageBackbone("tiny", "", backbone.network, _Ending(backbone.tokenizer, made[at]), 32)
    asked, heard = job(Write({"states": backbone.seal("a client")["states"]}, tokens=20))
    assert written(Writing(sooner, slots), (asked, heard)) == [backbone.tokenizer.decode(made[:at]).rstrip("\ufffd")]
    assert isinstance(heard[-1], Ended)
    assert (heard[-1].reason, heard[-1].made) == ("stop", at)


class _Ending:
    """A tokenizer that calls another token the end."""

    def __init__(self, tokenizer: Any, end: int) -> None:
        self.tokenizer, self.eos_token_id = tokenizer, end

    def decode(self, ids: Sequence[int], clean_up_tokenization_spaces: bool = False) -> str:
        said: str = self.tokenizer.decode([one for one in ids if one != self.eos_token_id])
        return said

    def __call__(self, text: str, **settings: Any) -> Any:
        return self.tokenizer(text, add_special_tokens=False)


def test_a_row_ends_at_a_stop_word_that_is_not_said(writing: Writing) -> None:
    (whole,) = written(writing, job(Write("every", tokens=20)))
    stop = whole[6:9]
    asked, heard = job(Write("every", tokens=20, stop=("never said", stop)))
    assert written(writing, (asked, heard)) == [whole[: whole.index(stop)]]
    assert isinstance(heard[-1], Ended)
    assert heard[-1].reason == "stop"
    assert empty(writing)


def test_a_share_of_nothing_is_the_likeliest_token(writing: Writing) -> None:
    """As OpenAI's servers take `top_p` 0."""
    writing.check(Write("every", top_p=0.0))
    rows = job(Write("every", temperature=1.5, top_p=0.0)), job(Write("every", temperature=0.0))
    assert len(set(written(writing, *rows))) == 1


def test_probabilities_are_told_where_they_are_asked_for(writing: Writing) -> None:
    (_, quiet), (_, bare), (_, full) = rows = [job(Write("every", tokens=6, likely=likely)) for likely in (-1, 0, 3)]
    assert len(set(written(writing, *rows))) == 1
    told = [[token for event in heard if isinstance(event, Piece) for token in event.tokens] for heard in (bare, full)]
    assert not any(event.tokens for event in quiet if isinstance(event, Piece))
    assert [len(tokens) for tokens in told] == [6, 6]
    assert [token.likely[0][1] for token in told[1]] == pytest.approx([token.logprob for token in told[0]], abs=1e-5)
    assert all(len(token.likely) == 3 for token in told[1])


# ---- rows beside each other


def test_a_long_prompt_stalls_nobody_by_more_than_a_chunk(writing: Writing, backbone: LanguageBackbone) -> None:
    short, _ = job(Write("every", tokens=60, likely=0))
    writing.join(short)
    writing.step()
    writing.join(job(Write(LONG, tokens=1), user="long")[0])
    writing.join(job(Write("a", tokens=1))[0])
    steps, made = 0, writing._writing[0].made
    while writing._joining:
        read = sum(row.read for row in writing._joining)
        writing.step()
        assert sum(row.read for row in writing._joining) - read <= 8
        steps += 1
        assert writing._writing[0].made == made + steps
    assert steps >= len(backbone.ids(LONG)) / 8


def test_lines_are_gathered_when_the_rows_change_and_not_for_each_token(backbone: LanguageBackbone) -> None:
    class Counted(Slots):
        laid = 0

        def gather(self, rows: Sequence[Mixture]) -> Any:
            self.laid += 1
            return Slots.gather(self, rows)

    with Bank(backbone.network, backbone.targets, 2, slots=2) as bank:
        slots = Counted(bank)
        ann = adapter(slots, 0)
        writing = Writing(backbone, slots, rows=3)
        written(writing, job(Write("every", tokens=20), {ann: 1.0}), job(Write("a client", tokens=20)))
        assert slots.laid == 1
        written(writing, job(Write("every", tokens=20), {ann: 1.0}), job(Write("a client", tokens=5)))
        assert slots.laid == 3
        writing.join(job(Write("every", tokens=20), {ann: 1.0})[0])
        writing.step()
        writing.join(job(Write("a client holds its own text " * 2, tokens=3))[0])
        writing.chunk = 4
        for _ in range(5):  # a prompt is read beside a row that writes
            writing.step()
        assert slots.laid == 5


def test_an_adapter_that_cannot_be_held_is_its_rows_trouble_alone(writing: Writing) -> None:
    ann = adapter(writing.slots, 0)
    (alone,) = written(writing, job(Write("every", tokens=12), {ann: 1.0}))
    going, heard = job(Write("every", tokens=12), {ann: 1.0})
    writing.join(going)
    writing.step()
    gone = Adapter(Card(kind="text", backbone="tiny", hash="0" * 64, rank=2), dict)
    with pytest.raises(FedgenError):
        writing.join(job(Write("every"), {gone: 1.0})[0])
    assert len(writing) == 1
    while len(writing):
        writing.step()
    assert text(heard) == alone
    assert empty(writing)


def test_numbers_that_blow_up_are_their_rows_trouble_alone(writing: Writing) -> None:
    wild, ann = adapter(writing.slots, 1, loud=1e25), adapter(writing.slots, 0)
    (alone,) = written(writing, job(Write(LONG, tokens=12), {ann: 1.0}))
    (_, broken), (_, heard) = rows = [job(Write(LONG, tokens=12), {one: 1.0}) for one in (wild, ann)]
    assert written(writing, *rows) == ["", alone]
    assert isinstance(broken[-1], Broken)
    assert "makes numbers that are not finite" in str(broken[-1].error)
    assert isinstance(heard[-1], Ended)
    assert empty(writing)  # its place too, where a NaN would spoil whoever comes next
    assert written(writing, job(Write(LONG, tokens=12), {ann: 1.0})) == [alone]
    assert not writing.prefixes.find("", {wild: 1.0}, writing.backbone.ids(LONG))


@pytest.mark.parametrize("steps", [0, 1, 4])
def test_a_pass_that_fails_leaves_nothing_behind(writing: Writing, steps: int) -> None:
    jobs = [job(Write(prompt, tokens=60))[0] for prompt in (LONG, "every", "a client")]
    for one in jobs:
        writing.join(one)
    for _ in range(steps):
        writing.step()
    network: Any = writing.backbone.network

    def failing(*_: object) -> None:
        raise RuntimeError("no memory")

    hook = network.lm_head.register_forward_pre_hook(failing)  # when all layers have laid what they keep
    try:
        with pytest.raises(RuntimeError, match="no memory"):
            writing.step()
    finally:
        hook.remove()
    for one in jobs:
        writing.leave(one)
        writing.leave(one)  # who is out already stays out
    assert empty(writing)


def test_an_ear_that_fails_is_its_rows_trouble_alone(writing: Writing) -> None:
    def deaf(event: Event) -> None:
        raise OSError("nobody listens")

    failing = Job(Write("every", tokens=12), [(1.0, {BARE: 1.0})], deaf)
    (alone,) = written(writing, job(Write("every", tokens=12)))
    going, heard = job(Write("every", tokens=12))
    assert written(writing, (failing, []), (going, heard))[1] == alone
    assert empty(writing)


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_whoever_leaves_leaves_nothing_behind(writing: Writing, steps: int) -> None:
    ann, bob = adapter(writing.slots, 0), adapter(writing.slots, 1)
    rows = [job(Write(LONG, tokens=30), {ann: 1.0}), job(Write("a", tokens=30), {bob: 1.0}), job(Write(LONG, tokens=9))]
    for one, _ in rows:
        writing.join(one)
    for _ in range(steps):
        writing.step()
    for (one, heard), left in zip(rows, (2, 1, 0), strict=True):
        said = len(heard)
        writing.leave(one)
        assert len(writing) == left
        assert len(heard) == said
    assert empty(writing)


def test_a_known_beginning_is_said(writing: Writing) -> None:
    (first, _), (second, heard) = job(Write(LONG, tokens=3), user="ann"), job(Write(LONG, tokens=3), user="ann")
    written(writing, (first, []))
    written(writing, (second, heard))
    assert isinstance(heard[-1], Ended)
    assert heard[-1].cached == (len(writing.backbone.ids(LONG)) - 1) // 16 * 16
