"""Pictures as files: PNGs that say how they were made, sheets of rows, and nothing half written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedgen.errors import StoreError
from fedgen.sheet import GAP, MARGIN, PAPER, TEXT, empty, save_png, save_sheet

Image = pytest.importorskip("PIL.Image", reason="the extra 'images' is not installed")

MADE: dict[str, Any] = {"prompt": "the “letter” é, 1", "seed": 3, "guidance": 2.0, "seeds": [1, 2]}


def flat(count: int, *colour: int, side: int = 32) -> Tensor:
    """So many pictures of one colour, or of one grey."""
    return torch.tensor(colour, dtype=torch.uint8).view(1, -1, 1, 1).expand(count, -1, side, side)


def opened(path: Path) -> Any:
    """The picture in a file, read whole."""
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        return picture


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_a_picture_is_read_back_as_it_was_with_how_it_was_made(channels: int, mode: str, tmp_path: Path) -> None:
    picture = torch.randint(0, 256, (channels, 6, 9), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    save_png(tmp_path / "new" / "one.png", picture, MADE)
    found = opened(tmp_path / "new" / "one.png")
    assert (found.size, found.mode) == ((9, 6), mode)
    values = torch.frombuffer(bytearray(found.tobytes()), dtype=torch.uint8).view(6, 9, channels)
    assert values.movedim(-1, 0).equal(picture)
    assert json.loads(found.text["parameters"]) == MADE


def test_the_same_picture_is_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "other"):
        save_sheet(tmp_path / name, [("bold-1", flat(3, 9))], MADE)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def cell(found: Any, row: int, column: int, side: int) -> tuple[int, ...]:
    """The colour in the middle of a place of a sheet whose rows have no name."""
    across = MARGIN + GAP + column * (side + GAP) + side // 2
    colour: tuple[int, ...] = found.getpixel((across, MARGIN + row * (side + GAP) + side // 2))
    return colour


def test_rows_of_different_lengths_stand_below_each_other(tmp_path: Path) -> None:
    save_sheet(tmp_path / "sheet.png", [("", flat(3, 200)), ("", flat(1, 100))], MADE)
    found, side = opened(tmp_path / "sheet.png"), 64  # 32 pixels are shown twice as large
    assert found.size == (2 * MARGIN + GAP + 3 * (side + GAP), 2 * MARGIN + 2 * (side + GAP))
    assert [cell(found, 0, at, side) for at in range(3)] == [(200, 200, 200)] * 3
    assert [cell(found, 1, at, side) for at in range(3)] == [(100, 100, 100), PAPER, PAPER]
    assert json.loads(found.text["parameters"]) == MADE


@pytest.mark.parametrize(("side", "shown"), [(8, 48), (16, 48), (28, 56), (32, 64), (48, 48), (100, 100)])
def test_small_pictures_are_shown_by_whole_multiples(side: int, shown: int, tmp_path: Path) -> None:
    save_sheet(tmp_path / "sheet.png", [("", flat(1, 10, 20, 30, side=side))], {})
    found = opened(tmp_path / "sheet.png")
    assert found.size == (2 * MARGIN + GAP + shown + GAP, 2 * MARGIN + shown + GAP)
    assert sum(count for count, colour in found.getcolors(10) if colour == (10, 20, 30)) == shown**2


def test_a_pixel_of_a_small_picture_stays_one_square(tmp_path: Path) -> None:
    picture = torch.tensor([[0, 255], [255, 0]], dtype=torch.uint8)[None, None]
    save_sheet(tmp_path / "sheet.png", [("", picture)], {})
    found = opened(tmp_path / "sheet.png").crop((MARGIN + GAP, MARGIN, MARGIN + GAP + 48, MARGIN + 48))
    assert sorted(found.getcolors()) == [(2 * 24**2, (0, 0, 0)), (2 * 24**2, (255, 255, 255))]


def test_names_stand_beside_their_rows_and_make_room(tmp_path: Path) -> None:
    rows = [("backbone", flat(1, 0)), ("a client's very long name: its own", flat(1, 0))]
    save_sheet(tmp_path / "bare.png", [("", pictures) for _, pictures in rows], {})
    save_sheet(tmp_path / "named.png", rows, {})
    bare, named = opened(tmp_path / "bare.png"), opened(tmp_path / "named.png")
    room = named.size[0] - bare.size[0]
    assert room > 100
    assert named.size[1] == bare.size[1]
    for row in range(2):
        beside = (0, MARGIN + row * 68, room + MARGIN, MARGIN + (row + 1) * 68)
        assert len(named.crop(beside).getcolors(4096)) > 1
    begin = MARGIN + GAP  # no name runs into the pictures
    assert named.crop((room + begin, 0, *named.size)).tobytes() == bare.crop((begin, 0, *bare.size)).tobytes()


def test_heads_stand_above_their_columns_and_make_room(tmp_path: Path) -> None:
    rows = [("ann", flat(3, 0)), ("bob", flat(2, 0))]
    save_sheet(tmp_path / "bare.png", rows, {})
    save_sheet(tmp_path / "short.png", rows, {}, ["a", "b", "c"])
    save_sheet(tmp_path / "long.png", rows, {}, ["a", "the other one", "c"])
    bare, short, long = (opened(tmp_path / f"{name}.png") for name in ("bare", "short", "long"))
    above = short.size[1] - bare.size[1]
    assert above == 2 * TEXT
    assert short.crop((0, above + MARGIN, *short.size)).tobytes() == bare.crop((0, MARGIN, *bare.size)).tobytes()
    black = (0, 0, 0)
    step = (long.size[0] - bare.size[0]) // 3 + 64 + GAP
    assert step > 64 + GAP
    middle = [
        [x for x in range(long.size[0]) if long.getpixel((x, above + MARGIN + 68 * row + 1)) == black] for row in (0, 1)
    ]
    assert [len(own) for own in middle] == [3 * 64, 2 * 64]
    assert middle[0][64] - middle[0][0] == step
    for column, x in enumerate(middle[0][::64]):  # each head is in the middle above its column, and within it
        left, right = x - (step - 64) // 2, x + 64 + (step - 64) // 2
        ink = [at for at in range(left, right) if any(long.getpixel((at, y)) != PAPER for y in range(MARGIN + TEXT))]
        assert abs((ink[0] + ink[-1]) / 2 - (x + 32)) <= 3, column


def test_a_row_without_pictures_is_a_gap(tmp_path: Path) -> None:
    rows = [("", flat(2, 7)), ("", empty()), ("", flat(2, 9))]
    save_sheet(tmp_path / "sheet.png", rows, {})
    found = opened(tmp_path / "sheet.png")
    assert found.size[1] == 2 * MARGIN + 2 * 68 + 68 // 3
    assert found.getpixel((MARGIN + GAP, found.size[1] - MARGIN - 68)) == (9, 9, 9)


def test_names_that_are_no_plain_words_can_be_drawn(tmp_path: Path) -> None:
    names = ["łódź 東京", "two\nlines", "\x00\t", "\u202e" + "x" * 50]
    save_sheet(tmp_path / "sheet.png", [(name, flat(1, 0)) for name in names], {})
    assert opened(tmp_path / "sheet.png").size[1] == 2 * MARGIN + 4 * 68


def test_a_sheet_is_whole_or_not_there(tmp_path: Path) -> None:
    save_sheet(tmp_path / "sheet.png", [("", flat(1, 7))], {})
    before = (tmp_path / "sheet.png").read_bytes()
    with pytest.raises(TypeError):  # how it was made cannot be said
        save_sheet(tmp_path / "sheet.png", [("", flat(5, 9))], {"prompt": object()})
    with pytest.raises(StoreError, match=r"sheet\.png"):
        save_sheet(tmp_path / "sheet.png" / "below.png", [("", flat(1, 9))], {})
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]
    assert (tmp_path / "sheet.png").read_bytes() == before
