"""Pixels: every mode of a picture as the same bytes, upright, on white, and in one size."""

import io
import sys
from typing import Any

import numpy as np
import pytest
import torch

from fedgen.data.pixels import Mode, pillow, pixels, same_size
from fedgen.errors import DataError
from fedgen.records import Document

Image = pytest.importorskip("PIL.Image", reason="the extra 'images' is not installed")
COLOURS = [[(255, 0, 0), (0, 255, 0)], [(0, 0, 255), (255, 255, 255)]]


def colours() -> Any:
    return Image.fromarray(np.array(COLOURS, dtype=np.uint8))


def saved(picture: Any, kind: str, **settings: Any) -> Any:
    """The picture, written and opened again."""
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return Image.open(io.BytesIO(file.getvalue()))


def test_colours_and_grey_are_channels_first() -> None:
    found = pixels(colours(), 0, "RGB")
    assert (found.dtype, found.shape, found.is_contiguous()) == (torch.uint8, (3, 2, 2), True)
    assert found.permute(1, 2, 0).tolist() == [[list(colour) for colour in row] for row in COLOURS]
    assert pixels(colours(), 0, "grey").tolist() == [[[76, 150], [29, 255]]]


@pytest.mark.parametrize("mode", ["P", "CMYK", "YCbCr", "HSV"])
def test_other_modes_come_out_as_colours(mode: str) -> None:
    other = colours().convert(mode, palette=Image.Palette.ADAPTIVE) if mode == "P" else colours().convert(mode)
    found, wanted = pixels(other, 0, "RGB"), pixels(colours(), 0, "RGB")
    assert (found.int() - wanted.int()).abs().max() <= 2


def test_black_and_white_is_zero_and_255() -> None:
    assert pixels(Image.fromarray(np.eye(2) > 0), 0, "grey").tolist() == [[[255, 0], [0, 255]]]


def test_what_is_seen_through_is_white() -> None:
    half = np.array([[[0, 0, 0, 255], [0, 0, 0, 128], [9, 9, 9, 0]]], dtype=np.uint8)
    assert pixels(Image.fromarray(half), 0, "grey").tolist() == [[[0, 127, 255]]]
    assert pixels(Image.fromarray(half).convert("LA"), 0, "grey").tolist() == [[[0, 127, 255]]]
    palette = saved(Image.fromarray(np.array([[0, 1]], dtype=np.uint8)), "png", transparency=1)
    assert pixels(palette, 0, "grey").tolist() == [[[0, 255]]]


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_sixteen_bits_of_grey_become_eight(kind: str) -> None:
    deep = saved(Image.fromarray(np.array([[0, 256, 257, 32768, 65535]], dtype=np.uint16)), kind)
    assert deep.mode.startswith("I")
    assert pixels(deep, 0, "grey").tolist() == [[[0, 1, 1, 128, 255]]]
    assert pixels(deep, 0, "RGB")[:, 0, 3].tolist() == [128] * 3


@pytest.mark.parametrize("values", [np.array([[0.5]], dtype=np.float32), np.array([[70000]], dtype=np.int32)])
def test_pixels_whose_white_is_unknown(values: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"pixels of mode '[FI]', whose white is unknown"):
        pixels(Image.fromarray(values), 0, "grey")


def test_a_camera_s_rotation_is_undone() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # lay the camera on its side: shown turned clockwise by a quarter
    found = pixels(saved(colours(), "png", exif=exif), 0, "RGB")
    assert found.permute(1, 2, 0).tolist() == [[[0, 0, 255], [255, 0, 0]], [[255, 255, 255], [0, 255, 0]]]


@pytest.mark.parametrize("mode", ["RGB", "grey"])
def test_a_size_scales_and_crops_about_the_centre(mode: Mode) -> None:
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 200  # the middle third alone is left
    found = pixels(Image.fromarray(wide), 4, mode)
    assert found.shape == (3 if mode == "RGB" else 1, 4, 4)
    assert (found[:, :, 1:3].int() - 200).abs().max() <= 2
    assert found.min() > 150


def test_a_picture_of_the_right_size_is_left_as_it_is() -> None:
    values = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    assert torch.equal(pixels(Image.fromarray(values), 5, "RGB"), pixels(Image.fromarray(values), 0, "RGB"))


def test_scaling_down_averages_what_lies_between() -> None:
    stripes = np.tile(np.array([[0, 255]], dtype=np.uint8), (64, 32))
    middle = pixels(Image.fromarray(stripes), 8, "grey")[:, 2:-2, 2:-2].int()
    assert (middle - 127).abs().max() <= 4  # taking every eighth pixel would give 0 or 255


def test_one_size_or_the_two_that_differ() -> None:
    small, large = (Document("", "", picture=torch.zeros(1, 2, width, dtype=torch.uint8)) for width in (2, 3))
    assert same_size([("a", small), ("b", small)]) == [small, small]
    assert same_size([]) == []
    with pytest.raises(DataError, match=r"wanted one size, came 2 x 2 in a and 3 x 2 in c; .*data\.size"):
        same_size([("a", small), ("b", small), ("c", large)])


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(DataError, match=r"wanted the extra 'images', .* pip install fedgen-edge\[images\]"):
        pillow()
