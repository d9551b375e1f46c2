"""Tokens as text while they come is the text of all tokens, and half a character is never shown."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fedgen.backbones.spelling import FAR, Spelling

TEXTS = ["", "the quick brown fox. " * 9, "naïve café, 25 °C", "日本語のテキスト 🙂🙃 and back", " \n\n  indented\t"]


@pytest.fixture(scope="module")
def bytewise(tiny_backbone: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_backbone)


@pytest.fixture(scope="module")
def wordwise() -> Any:
    """As Llama's first one: a sign for each space, and the first space of a text is not read back."""
    words = {word: at for at, word in enumerate(["?", "▁every", "▁round", "s", "▁", "."])}
    made = Tokenizer(models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("cut", [0, 3])
def test_piece_by_piece_is_the_whole(bytewise: Any, text: str, cut: int) -> None:
    ids = bytewise(text, add_special_tokens=False)["input_ids"]
    spelling = Spelling(bytewise, ids[:cut])
    pieces = [spelling.add(token) for token in ids[cut:]]
    assert not any("\ufffd" in piece for piece in pieces)
    assert "".join(pieces) == text[len(bytewise.decode(ids[:cut])) :]
    assert spelling.rest() == ""


def test_what_is_read_again_does_not_grow(bytewise: Any) -> None:
    spelling = Spelling(bytewise, [])
    for token in bytewise("the quick brown fox " * 50)["input_ids"]:
        spelling.add(token)
        assert len(spelling._ids) <= FAR + 1


def test_half_a_character_is_not_shown_at_the_end(bytewise: Any) -> None:
    spelling = Spelling(bytewise, [])
    ids = bytewise("x🙂", add_special_tokens=False)["input_ids"]
    assert "".join(spelling.add(token) for token in ids[:-1]) == "x"
    assert spelling.rest() == ""


def test_bytes_that_are_no_character_are_told_as_such_once_they_cannot_become_one(bytewise: Any) -> None:
    spelling = Spelling(bytewise, [])
    lead, letter = bytewise("é", add_special_tokens=False)["input_ids"][0], bytewise("x")["input_ids"][0]
    assert [spelling.add(token) for token in (lead, letter)] == ["", "\ufffdx"]


def test_a_word_keeps_the_space_before_it(wordwise: Any) -> None:
    every, rounds, s = 1, 2, 3
    assert wordwise.decode([rounds]) == "round"
    spelling = Spelling(wordwise, [every])
    assert spelling.alone(rounds) == " round"
    assert [spelling.add(rounds), spelling.add(s), spelling.add(every)] == [" round", "s", " every"]
