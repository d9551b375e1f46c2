"""Stop words are never said, nor anything that may become one; the rest is said at once."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from fedgen.backbones.spelling import Spelling
from fedgen.serve.engine.voice import Voice
from fedgen.serve.engine.wishes import Piece, Token


@pytest.fixture(scope="module")
def tokenizer(tiny_backbone: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_backbone)


def letters(tokenizer: Any, text: str) -> list[int]:
    """A token for each letter."""
    return [token for letter in text for token in tokenizer(letter, add_special_tokens=False)["input_ids"]]


def heard(tokenizer: Any, text: str, *stop: str, named: bool = False) -> tuple[list[Piece], Voice]:
    """What is said of a text whose letters come one by one."""
    voice, said = Voice(Spelling(tokenizer, []), stop), []
    for token in letters(tokenizer, text):
        said.append(voice.add(token, Token(tokenizer.decode([token]), -1.0) if named else None))
        if voice.over:
            break
    else:
        said.append(voice.rest())
    return [piece for piece in said if piece], voice


def text_of(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


def test_without_stop_words_every_letter_is_said_at_once(tokenizer: Any) -> None:
    pieces, voice = heard(tokenizer, "so it is")
    assert [piece.text for piece in pieces] == list("so it is")
    assert not voice.over


@pytest.mark.parametrize(
    ("text", "stop", "wanted"),
    [
        ("one END two", ["END"], "one "),
        ("one EN two", ["END"], "one EN two"),
        ("one EEND", ["END"], "one E"),
        ("one E", ["END"], "one E"),
        ("abababac.", ["ababac"], "ab"),
        ("it stops here", ["stop", "top"], "it "),
        ("it stops here", ["top", "s here"], "it s"),
        ("END", ["END"], ""),
        ("25 °C and on", ["°C"], "25 "),
        ("25 °F", ["°C"], "25 °F"),
        ("a.b", [".", "a.b"], "a"),
    ],
)
def test_a_stop_word_ends_it_and_is_not_said(tokenizer: Any, text: str, stop: list[str], wanted: str) -> None:
    pieces, voice = heard(tokenizer, text, *stop)
    assert text_of(pieces) == wanted
    assert voice.over == (wanted != text)


def test_only_what_may_be_a_stop_word_is_held_back(tokenizer: Any) -> None:
    pieces, _ = heard(tokenizer, "xENyENDz", "END")
    assert [piece.text for piece in pieces] == ["x", "ENy"]


def test_tokens_come_with_the_text_that_they_begin(tokenizer: Any) -> None:
    pieces, _ = heard(tokenizer, "xENyENDz", "END", named=True)
    assert [[told.text for told in piece.tokens] for piece in pieces] == [["x"], ["E", "N", "y"]]


def test_all_tokens_come_even_if_the_last_has_no_text(tokenizer: Any) -> None:
    voice = Voice(Spelling(tokenizer, []))
    half = letters(tokenizer, "é")[0]
    assert voice.add(half, Token("?", -1.0)) is None
    assert voice.rest() == Piece("", (Token("?", -1.0),))
    assert voice.rest() is None


def test_nothing_is_said_twice(tokenizer: Any) -> None:
    text = "ababcab abcabcd ab" * 3
    pieces, _ = heard(tokenizer, text, "abcd!", "bca!")
    assert text_of(pieces) == text
    assert all(a.text and b.text for a, b in pairwise(pieces))
