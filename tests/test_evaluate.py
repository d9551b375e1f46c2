"""Scores: alone as in a batch, as transformers' own loss says, over all of the text's words and bytes."""

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedgen.backbones import Language, LanguageBackbone
from fedgen.bank import Bank
from fedgen.data.deal import count, take
from fedgen.evaluate import YARDSTICKS, Score, fall, gains, score, total, yardstick_of
from fedgen.records import Document, Rows

LENGTH = 24
TEXT = "The naïve café opened at 25 °C; 東京 — déjà vu 🎈.\n\tTwo  spaces, a tab,\r\nand the end. "


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> LanguageBackbone:
    return Language(str(tiny_backbone), length=LENGTH, device="cpu").load()


def adapters(bank: Bank, number: int) -> torch.Tensor:
    """Lines that change something, after one of zeros."""
    draw = torch.Generator().manual_seed(0)
    return torch.cat([torch.zeros(1, bank.layout.width), 0.3 * torch.randn(number, bank.layout.width, generator=draw)])


def rows_of(backbone: LanguageBackbone, folder: Path, name: str, most: int) -> Rows:
    found = backbone.encode([Document("", (folder / f"{name}.txt").read_text("utf-8"))])
    return take(found, torch.arange(most))


def test_a_batch_scores_as_each_alone(backbone: LanguageBackbone, bank: Bank, tiny_text: Path) -> None:
    names, lines = ["ann", "bob", "cleo"], adapters(bank, 2)
    tables = [rows_of(backbone, tiny_text, name, 2 + at) for at, name in enumerate(names)]
    tasks = list(zip(lines, tables, strict=True))
    together = score(backbone, bank, tasks, batch=4)
    for found, task in zip(together, tasks, strict=True):
        (alone,) = score(backbone, bank, [task], batch=1)
        assert found.loss == pytest.approx(alone.loss, rel=1e-6)
        assert (found.terms, found.words, found.bytes) == (alone.terms, alone.words, alone.bytes)
        assert found.terms == count(task[1]) * LENGTH
    same = rows_of(backbone, tiny_text, "ann", 2)
    bare, other = score(backbone, bank, [(lines[0], same), (lines[1], same)])
    assert abs(bare.loss - other.loss) > 0.1


def test_the_same_text_in_transformers_own_loss(backbone: LanguageBackbone, bank: Bank, tiny_backbone: Path) -> None:
    network, tokenizer = (
        AutoModelForCausalLM.from_pretrained(tiny_backbone),
        AutoTokenizer.from_pretrained(tiny_backbone),
    )
    ids = [tokenizer.eos_token_id, *tokenizer(TEXT, add_special_tokens=False)["input_ids"]]
    loss, terms = 0.0, 0
    with torch.no_grad():
        for at in range(0, len(ids) - 1, LENGTH):  # rows of LENGTH predictions; each begins at the last one's end
            row = torch.tensor([ids[at : at + LENGTH + 1]])
            loss += network(input_ids=row, labels=row).loss.item() * (row.shape[1] - 1)
            terms += row.shape[1] - 1
    (found,) = score(backbone, bank, [(adapters(bank, 0)[0], backbone.encode([Document("", TEXT)]))])
    assert found.terms == terms == len(ids) - 1
    assert found.loss == pytest.approx(loss, rel=1e-5)
    assert (found.words, found.bytes) == (len(TEXT.split()), len(TEXT.encode()))
    assert found.per_term == pytest.approx(math.exp(loss / terms), rel=1e-5)
    assert found.per_word == pytest.approx(math.exp(loss / len(TEXT.split())), rel=1e-5)
    assert found.bits_per_byte == pytest.approx(loss / math.log(2) / len(TEXT.encode()), rel=1e-5)


def test_an_adapter_is_scored_as_merged_weights(backbone: LanguageBackbone, bank: Bank, tiny_backbone: Path) -> None:
    line, network = adapters(bank, 1)[1], AutoModelForCausalLM.from_pretrained(tiny_backbone)
    tree = bank.layout.tree(line, 2)
    for key, a in tree.items():
        if "lora_A" in key:
            path = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
            network.get_submodule(path).weight.data += tree[key.replace("lora_A", "lora_B")] @ a
    rows = backbone.encode([Document("", TEXT)])
    ids = rows["ids"].long()
    with torch.no_grad():
        logits = network(input_ids=ids[:, :-1]).logits
    each = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(rows["scored"].shape)
    (found,) = score(backbone, bank, [(line, rows)])
    assert found.loss == pytest.approx(each[rows["scored"]].sum().item(), rel=1e-5)


@pytest.mark.parametrize(
    "texts",
    [
        [TEXT],
        ["one", "two three", "four"],
        ["  leading space", "no end", "\n"],
        ["東京" * 40, "é" * 50],
        ["a" * 100 + " " + "b" * 100],
        ["🎈👩‍🚀 family " * 9],
    ],
)
def test_words_and_bytes_add_up_to_the_texts_own(backbone: LanguageBackbone, texts: list[str]) -> None:
    rows = backbone.encode([Document("", text) for text in texts])
    assert int(rows["words"].sum()) == sum(len(text.split()) for text in texts)
    assert int(rows["bytes"].sum()) == sum(len(text.encode()) for text in texts)


def test_an_answers_words_and_bytes_are_its_own(backbone: LanguageBackbone) -> None:
    rows = backbone.encode([Document("", "voilà, 42", prompt="what is it?"), Document("", "no", prompt="sure?")])
    assert rows["words"].tolist() == [2, 1]
    assert rows["bytes"].tolist() == [len("voilà, 42".encode()), 2]


def test_scores_by_hand() -> None:
    found = Score(loss=6 * math.log(8), terms=6, words=3, bytes=9)
    assert found.per_term == pytest.approx(8)
    assert found.per_word == pytest.approx(64)
    assert found.bits_per_byte == pytest.approx(2)


def test_a_total_weighs_each_token_alike() -> None:
    found = total([Score(1.5, 2, 1, 4), Score(0.5, 6, 3, 8)])
    assert found == Score(2.0, 8, 4, 12)
    assert found.per_term == pytest.approx(math.exp(0.25))


def scores(**perplexities: float) -> dict[str, Score]:
    return {name: Score(4 * math.log(value), 4) for name, value in perplexities.items()}


TEXT_YARD, IMAGE_YARD = YARDSTICKS["text"], YARDSTICKS["image"]


def test_each_kind_is_read_in_its_own_measure() -> None:
    found = Score(loss=2.0, terms=4)
    assert TEXT_YARD.of(found) == found.per_term == pytest.approx(math.exp(0.5))
    assert IMAGE_YARD.of(found) == 0.5
    assert TEXT_YARD.of(Score(1e6, 1)) == math.inf
    assert (TEXT_YARD.unit, IMAGE_YARD.unit) == ("per token", "per picture")


def test_a_run_says_its_kind_and_older_ones_are_of_text() -> None:
    assert yardstick_of({"kind": "image"}) == IMAGE_YARD
    assert yardstick_of({"kind": "text"}) == yardstick_of({}) == TEXT_YARD


def test_gains_of_pictures_by_hand() -> None:
    before, after = Score(0.8, 4), Score(0.6, 4)
    assert fall(before, after, IMAGE_YARD) == pytest.approx(0.25)
    found = gains({"a": before, "b": before}, {"a": after, "b": before}, IMAGE_YARD)
    assert (found.mean, found.worst_decile, found.gained) == (pytest.approx(0.125), 0.0, 1)


def test_gains_by_hand() -> None:
    found = gains(scores(a=10, b=20, c=40), scores(a=5, b=25, c=30), TEXT_YARD)
    falls = [0.5, -0.25, 0.25]
    assert found.mean == pytest.approx(sum(falls) / 3)
    assert found.spread == pytest.approx(math.sqrt(sum((fall - sum(falls) / 3) ** 2 for fall in falls) / 3))
    assert found.worst_decile == pytest.approx(-0.25)
    assert (found.gained, found.clients) == (2, 3)


def test_the_worst_decile_is_the_mean_of_a_tenth() -> None:
    before = scores(**{f"c{at}": 100.0 for at in range(20)})
    after = scores(**{f"c{at}": 100.0 - at for at in range(20)})
    found = gains(before, after, TEXT_YARD)
    assert found.worst_decile == pytest.approx((0.0 + 0.01) / 2)
    assert (found.gained, found.clients) == (19, 20)


def test_no_change_is_no_gain() -> None:
    found = gains(scores(a=10, b=20), scores(a=10, b=20), TEXT_YARD)
    assert (found.mean, found.spread, found.worst_decile, found.gained) == (0, 0, 0, 0)
