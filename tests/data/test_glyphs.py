"""Glyphs: the same drawings every time, each style its own letters, and characters that nobody trains on."""

import itertools
import string
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from fedgen import plan
from fedgen.data.glyphs import (
    CHARACTERS,
    PLAIN,
    STYLES,
    Glyphs,
    character_of,
    drawings,
    glyph,
    has,
    prompt_of,
)
from fedgen.errors import DataError, PlanError
from fedgen.records import Document

pytest.importorskip("matplotlib", reason="the extra 'images' is not installed")
pytest.importorskip("PIL.Image", reason="the extra 'images' is not installed")

SMALL = Glyphs(styles=("bold", "bold slanted"), clients=2, characters="abcdefgh", copies=3, left_out=2, size=16)


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return SMALL.read()


def pictures(documents: Iterable[Document]) -> Tensor:
    return torch.stack([document.picture for document in documents if document.picture is not None])


def held(documents: list[Document]) -> dict[str, list[Document]]:
    """The documents of each owner."""
    return {name: [one for one in documents if one.owner == name] for name in {one.owner for one in documents}}


# --- what is read


def test_every_client_draws_every_character_so_many_times(documents: list[Document]) -> None:
    assert len(documents) == 2 * 2 * 8 * 3
    assert pictures(documents).shape == (96, 1, 16, 16)
    assert pictures(documents).dtype == torch.uint8
    assert list(dict.fromkeys(one.owner for one in documents)) == [
        "bold-1", "bold-2", "bold-slanted-1", "bold-slanted-2",
    ]  # fmt: skip
    assert {one.owner.rpartition("-")[0]: one.label for one in documents} == {
        "bold": "bold",
        "bold-slanted": "bold slanted",
    }
    for own in held(documents).values():
        assert [character_of(one.prompt) for one in own] == [c for c in "abcdefgh" for _ in range(3)]
        assert {one.text for one in own} == {""}


def test_the_same_drawings_every_time(documents: list[Document]) -> None:
    torch.rand(3)  # whatever else was drawn
    again = SMALL.read()
    assert again == documents
    assert pictures(again).equal(pictures(documents))


def test_no_client_draws_what_another_draws(documents: list[Document]) -> None:
    drawn = [picture.numpy().tobytes() for picture in pictures(documents)]
    assert len(set(drawn)) > 0.9 * len(drawn)  # at 16 pixels a shift may be lost


def test_characters_left_out_are_never_trained_on(documents: list[Document]) -> None:
    for own in held(documents).values():
        parts = {p: {character_of(one.prompt) for one in own if one.part == p} for p in ("train", "valid", "test")}
        assert [len(parts[part]) for part in ("train", "valid", "test")] == [5, 1, 2]
        assert set.union(*parts.values()) == set("abcdefgh")
    assert {one.part for one in documents} == {"train", "valid", "test"}


def test_clients_leave_out_different_characters() -> None:
    found = held(Glyphs(styles=("bold",), clients=6, copies=1, size=16).read())
    left = {name: frozenset(one.prompt for one in own if one.part == "test") for name, own in found.items()}
    assert {len(prompts) for prompts in left.values()} == {4}
    assert len(set(left.values())) == 6


def test_a_client_is_the_same_whoever_else_is_there(documents: list[Document]) -> None:
    alone = held(Glyphs(("bold slanted", "gothic"), 1, "abcdefgh", 3, 2, size=16).read())["bold-slanted-1"]
    among = held(documents)["bold-slanted-1"]
    assert alone == among
    assert pictures(alone).equal(pictures(among))


def test_with_a_tail_each_style_has_fewer_clients() -> None:
    styles = ("bold", "slanted", "serif", "mono")
    owners = {document.owner for document in Glyphs(styles, clients=4, tail=0.5, characters="abcdefgh").read()}
    assert [sum(owner.startswith(f"{style}-") for owner in owners) for style in styles] == [4, 2, 1, 1]


def test_with_words_a_prompt_says_the_style_too() -> None:
    found = Glyphs(("bold slanted",), 1, "aB3", 1, 1, words=True, size=16).read()
    assert [one.prompt for one in found] == [
        "the letter a, bold slanted",
        "the capital letter B, bold slanted",
        "the digit 3, bold slanted",
    ]


@pytest.mark.parametrize("style", ["", "bold slanted", "outline serif"])
def test_a_prompt_is_read_back_as_its_character(style: str) -> None:
    prompts = [prompt_of(character, style) for character in CHARACTERS]
    assert len(set(prompts)) == len(CHARACTERS) == 62
    assert [character_of(prompt) for prompt in prompts] == list(CHARACTERS)


# --- the faces


@pytest.mark.parametrize("style", STYLES)
def test_every_style_draws_every_letter_in_its_own_way(style: str) -> None:
    digits = has(style, "0")
    assert [c for c in CHARACTERS if not has(style, c)] == ([] if digits else list(string.digits))
    drawn = {c: glyph(style, c) for c in CHARACTERS if has(style, c)}
    for character, picture in drawn.items():
        ink = (255 - picture.float()).mean() / 255
        assert 0.01 < ink < 0.5, f"{style} {character}: {ink:.1%} is ink"
    assert len({picture.numpy().tobytes() for picture in drawn.values()}) == len(drawn)


def test_gothic_and_script_have_no_digits() -> None:
    assert [style for style in STYLES if not has(style, "7")] == ["gothic", "bold gothic", "bold script"]
    found = Glyphs(("gothic", "bold"), 1, "abcdef0123", 1, 2).read()
    assert {owner: len(own) for owner, own in held(found).items()} == {"gothic-1": 6, "bold-1": 10}
    assert {one.part for one in found if one.owner == "gothic-1"} == {"train", "valid", "test"}


@pytest.mark.parametrize("size", [16, 32])
def test_no_two_styles_draw_the_same_letters(size: int) -> None:
    letters = {style: torch.stack([glyph(style, c, size) for c in "agQ"]) for style in STYLES}
    for one, other in itertools.combinations(STYLES, 2):
        assert not letters[one].equal(letters[other]), f"{one} is {other}"


def test_no_two_plain_styles_have_a_character_alike() -> None:
    for character in CHARACTERS:
        drawn = {glyph(style, character).numpy().tobytes() for style in PLAIN}
        assert len(drawn) == len(PLAIN), character


def test_letters_that_unicode_put_elsewhere_are_those_letters() -> None:
    for style in ("gothic", "bold gothic", "outline", "outline serif", "bold script"):
        points = {STYLES[style].point(c) for c in string.ascii_letters}
        assert len(points) == 52
    assert STYLES["outline"].point("C") == "ℂ"
    assert STYLES["gothic"].point("Z") == "ℨ"
    assert STYLES["bold gothic"].point("C") == "\U0001d56e"


# --- one drawing


def middle(picture: Tensor) -> tuple[float, float]:
    """The row and the column about which the ink lies."""
    ink, places = (255 - picture.float())[0], torch.arange(32.0)
    return float(ink.sum(1) @ places / ink.sum()), float(ink.sum(0) @ places / ink.sum())


def test_a_glyph_is_ink_on_paper_larger_or_elsewhere_as_asked() -> None:
    plain = glyph("plain", "o")
    assert plain.shape == (1, 32, 32)
    assert (int(plain[0, 0, 0]), int(plain.min())) == (255, 0)
    (row, column), (lower, right) = middle(plain), middle(glyph("plain", "o", across=0.1, down=0.1))
    assert (lower - row, right - column) == pytest.approx((3.2, 3.2), abs=0.3)
    assert column == pytest.approx(15.5, abs=0.3)  # in the middle, wherever the face puts it
    assert (glyph("plain", "o", scale=1.1) < 128).sum() > (plain < 128).sum()


def test_drawings_come_from_their_generator_alone() -> None:
    one, again, other = (drawings("bold", "g", 4, 32, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.stack(one).equal(torch.stack(again))
    assert len({picture.numpy().tobytes() for picture in (*one, *other)}) == 8


# --- what cannot be

WRONG = [
    ({"styles": ("bold", "fat")}, "styles: 'fat' is none; there are plain, plain STIX, plain Modern, bold,"),
    ({"styles": ()}, "styles and characters: wanted some of each left to train on, came 0 styles, 26 characters"),
    ({"styles": ("bold", "bold")}, "styles: wanted each once, came 'bold' again"),
    ({"characters": "abc!"}, "characters: wanted letters and digits, each once, came 'abc!'"),
    ({"characters": "abcdeé"}, "characters: wanted letters and digits, each once, came 'abcdeé'"),
    ({"characters": "abca"}, "characters: wanted letters and digits, each once, came 'abca'"),
    ({"characters": ""}, "styles and characters: wanted some of each left to train on, came 6 styles, 0 characters"),
    ({"left_out": 18}, "styles and characters: wanted some of each left to train on, came 6 styles, 26 characters, 18"),
    ({"characters": "ab", "left_out": 1}, "styles and characters: wanted some of each left to train on"),
    ({"characters": string.digits}, "style 'gothic': wanted more than 6 of the characters, came 0"),
    ({"characters": "abcdef" + string.digits}, "style 'gothic': wanted more than 6 of the characters, came 6"),
]


@pytest.mark.parametrize(("keys", "line"), WRONG, ids=[str(keys) for keys, _ in WRONG])
def test_what_cannot_be_drawn_is_refused(keys: dict[str, object], line: str) -> None:
    with pytest.raises(DataError) as caught:
        Glyphs(**keys).read()  # type: ignore[arg-type]
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_plan_of_wrong_glyphs_is_refused_as_a_plan() -> None:
    for keys, line in (
        ({"styles": ["fat"]}, "data: styles: 'fat' is none"),
        ({"size": 20}, "data.size: 20 is not one of 16, 32"),
        ({"copies": 0}, "data.copies: wanted a whole number at least 1, came 0"),
    ):
        with pytest.raises(PlanError) as caught:
            plan.read({"data": {"kind": "glyphs"} | keys})
        assert str(caught.value).startswith(line)
