"""The Treebank's manner, its clients, and a backbone learnt in a moment."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from fedgen.backbones import Language
from fedgen.errors import DataError
from fedgen.records import Document
from fedgen.reproduce import ptb
from fedgen.reproduce.manner import commonest, joined, passages, treebank, with_rare
from fedgen.reproduce.pretraining import Shape, learn_tokenizer, network, pretrain
from fedgen.reproduce.ptb import Article, by_place, by_topics

TEXT = (
    "The cat, which Mr. Brown saw, wasn't there at all; it's some 3.5 miles away by now. "
    "In the U.S. about 40% of cats go."
)


def test_a_text_becomes_the_treebanks_words() -> None:
    assert [" ".join(words) for words in treebank(TEXT)] == [
        "the cat which mr. brown saw was n't there at all",
        "it 's some N miles away by now",
        "in the u.s. about N N of cats go",
    ]


def test_code_is_passed_over_and_lines_of_prose_are_joined() -> None:
    text = "import os, sys\n# This comment goes on\n# over two lines of text.\nx = {1: 2}\n\nAnd this is another one.\n"
    assert list(passages(text)) == ["This comment goes on over two lines of text.", "And this is another one."]


def test_words_beyond_the_commonest_are_rare_ones() -> None:
    sentences = [["b", "a", "a"], ["b", "c"]]
    known = commonest(sentences, 2)
    assert known == {"a", "b"}
    assert joined(with_rare(sentences, known)) == "b a a <eos> b <unk> <eos>"


NAMES = [f"client-{number}" for number in range(100)]


def articles(count: int) -> list[Article]:
    return [Article(f"{number} " + "word " * 170 + "<eos>", number % ptb.TOPICS) for number in range(count)]


@pytest.mark.parametrize("alpha", [0.01, 100.0])
def test_clients_hold_enough_articles_each_once_by_topics_as_skewed_as_asked(alpha: float) -> None:
    pool = articles(3000)
    held = by_topics(pool, NAMES, alpha, np.random.default_rng(0))
    every = [article for own in held.values() for article in own]
    assert list(held) == NAMES
    assert len(set(every)) == len(every)
    assert all(ptb.WORDS <= sum(article.words for article in own) < ptb.WORDS + 173 for own in held.values())
    most = [max(np.bincount([article.topic for article in own])) / len(own) for own in held.values()]
    assert (np.mean(most) > 0.8) == (alpha < 1)
    assert held == by_topics(pool, NAMES, alpha, np.random.default_rng(0))
    assert held != by_topics(pool, NAMES, alpha, np.random.default_rng(1))


def test_neighbours_are_held_by_one_client() -> None:
    pool = articles(3000)
    for own in by_place(pool, NAMES, np.random.default_rng(0)).values():
        first = pool.index(own[0])
        assert own == pool[first : first + len(own)]
        assert len(own) == 10


def treebank_folder(folder: Path) -> Path:
    draw = np.random.default_rng(0)
    for part, lines in (("train", 1500), ("valid", 100), ("test", 100)):
        words = [[f"w{at // ptb.LINES % 20}x{word}" for word in draw.integers(9, size=9)] for at in range(lines)]
        (folder / f"ptb.{part}.txt").write_text("".join(f" {' '.join(own)} \n" for own in words), "utf-8")
    return folder


@pytest.mark.filterwarnings("ignore:Maximum number of iterations")  # of topics that are none
def test_the_trials_clients_hold_nothing_of_any_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptb, "CLIENTS", 5)
    monkeypatch.setattr(ptb, "FEWER", 5)
    monkeypatch.setattr(ptb, "WORDS", 300)
    (tmp_path / "ptb").mkdir()
    treebank_folder(tmp_path / "ptb")
    ptb._write_clients(tmp_path, tmp_path / "clients")
    held = {
        path.stem: {json.loads(line)["text"] for line in path.read_text("utf-8").splitlines()}
        for path in (tmp_path / "clients").glob("*.jsonl")
    }
    assert set(held) == {
        f"{world}-{seed}" for world in ("topics-0.1", "topics-0.5", "articles") for seed in (*range(4), "trial")
    }
    trials = set().union(*(texts for name, texts in held.items() if name.endswith("trial")))
    tables = set().union(*(texts for name, texts in held.items() if not name.endswith("trial")))
    assert trials
    assert not trials & tables
    assert all(text.endswith(" <eos>") for text in tables)


def test_a_line_end_is_counted_as_a_word(tmp_path: Path) -> None:
    texts = ["the cat <unk> sat <eos> it was N years old <eos>"] * 30
    small = Shape(vocabulary=300, hidden=16, inner=16, layers=1, heads=2, reach=32, context=16, batch=2)
    record = pretrain(tmp_path, texts, small, minutes=1e-4, words=("<unk>", "<eos>"), said={"data": "a test"}, say=len)
    rows = Language(str(tmp_path), length=32, device="cpu").load().encode([Document("", texts[0])])
    assert int(rows["words"].sum()) == 11
    assert record["data"] == "a test"
    assert record["parameters"] > 0
    assert record == json.loads((tmp_path / "training.json").read_text("utf-8"))


def test_a_network_is_drawn_from_its_generator_alone() -> None:
    small = Shape(vocabulary=300, hidden=16, inner=16, layers=1, heads=2, reach=32, context=16)
    tokenizer = learn_tokenizer(["a b c"], 300)

    def drawn(seed: int) -> LlamaForCausalLM:
        return network(small, tokenizer, torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(0).lm_head.weight, drawn(0).lm_head.weight)
    assert not torch.equal(drawn(0).lm_head.weight, drawn(1).lm_head.weight)


def test_a_folder_that_is_missing_is_told_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ptb: wanted a folder of text, came nothing"):
        ptb.prepare(tmp_path, tmp_path / "work", 1)
    assert not (tmp_path / "work").exists()
