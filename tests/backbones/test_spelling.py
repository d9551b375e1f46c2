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


@pytest.fixture(scope="module")
def bytes_in_runs() -> Any:
    """As Llama's first one spells rare characters: a token a byte, and a run of them is text as a whole or not."""
    words = {"?": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)}
    made = Tokenizer(models.BPE(words, [], unk_token="?", byte_fallback=True))
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
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


def test_bytes_that_never_become_a_character_are_shown_as_they_are(bytewise: Any) -> None:
    """Neither held back to the end nor read again and again."""
    spelling, lead = Spelling(bytewise, []), bytewise("é", add_special_tokens=False)["input_ids"][0]
    pieces = [spelling.add(lead) for _ in range(100)]
    assert pieces[:8] == ["", "", "", "\ufffd" * 3, "", "", "", "\ufffd" * 4]
    assert "".join(pieces) == "\ufffd" * 99  # the last may be half of one
    assert len(spelling._ids) <= FAR + 4


def test_a_character_behind_lost_bytes_is_whole(bytewise: Any) -> None:
    lead, *_ = bytewise("é", add_special_tokens=False)["input_ids"]
    for lost in range(1, 30):
        ids = [lead] * lost + bytewise("🙂", add_special_tokens=False)["input_ids"]
        spelling = Spelling(bytewise, [])
        assert "".join(spelling.add(token) for token in ids) == "\ufffd" * lost + "🙂"


@pytest.mark.parametrize("cut", [0, 1, 3, 20])
def test_no_character_is_torn_where_bytes_come_in_runs(bytes_in_runs: Any, cut: int) -> None:
    text = "日本語のテキスト 🙂🙃 and back"
    before, ids = (bytes_in_runs(part)["input_ids"] for part in (text[:cut], text[cut:]))
    spelling = Spelling(bytes_in_runs, before)
    assert "".join(spelling.add(token) for token in ids) == text[cut:]


def test_a_word_keeps_the_space_before_it(wordwise: Any) -> None:
    every, rounds, s = 1, 2, 3
    assert wordwise.decode([rounds]) == "round"
    spelling = Spelling(wordwise, [every])
    assert spelling.alone(rounds) == " round"
    assert [spelling.add(rounds), spelling.add(s), spelling.add(every)] == [" round", "s", " every"]
