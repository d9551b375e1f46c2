"""Pictures as files people look at: PNGs that carry how they were made, and contact sheets with a name to each row."""

import io
import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgen.data.pixels import pillow
from fedgen.store import write_whole

LEAST = 48  # pixels a side at which a small picture is shown, by whole multiples
GAP, MARGIN, TEXT = 4, 12, 15
PAPER, INK = (255, 255, 255), (90, 90, 90)


def save_png(path: Path, picture: Tensor, made: Mapping[str, object]) -> None:
    """One picture [channels, high, wide] in bytes, whole or not at all, with how it was made in its `parameters`."""
    write_whole(path, png(picture, made))


def png(picture: Tensor, made: Mapping[str, object]) -> bytes:
    """One picture as a PNG, with how it was made in its `parameters`."""
    return _png(_image(picture), made)


def save_sheet(
    path: Path, rows: Sequence[tuple[str, Tensor]], made: Mapping[str, object], heads: Sequence[str] = ()
) -> None:
    """Rows of pictures [n, channels, high, wide], each with its name beside it; a row without pictures is a gap.

    Columns that have heads are wide enough for them.
    """
    shown = [(name, pictures) for name, pictures in rows if len(pictures)]
    high, wide = shown[0][1].shape[-2:]
    times = max(1, -(-LEAST // high))
    font = import_module("PIL.ImageFont").load_default(TEXT)
    widest = max((int(font.getlength(head)) + 2 * GAP for head in heads), default=0)
    cell = max(wide * times, widest) + GAP, high * times + GAP
    aside = (cell[0] - GAP - wide * times) // 2
    left = MARGIN + GAP + int(max(font.getlength(name) for name, _ in rows))
    across = left + cell[0] * max(len(pictures) for _, pictures in shown) + MARGIN
    tall = [cell[1] if len(pictures) else cell[1] // 3 for _, pictures in rows]
    top = MARGIN + (2 * TEXT if heads else 0)
    sheet = pillow().new("RGB", (across, sum(tall) + top + MARGIN), PAPER)
    pen = import_module("PIL.ImageDraw").Draw(sheet)
    for at, head in enumerate(heads):
        pen.text(
            (left + at * cell[0] + (cell[0] - GAP) // 2, MARGIN + TEXT // 2), head, fill=INK, font=font, anchor="mm"
        )
    for (name, pictures), step in zip(rows, tall, strict=True):
        pen.text((MARGIN, top + step // 2), name, fill=INK, font=font, anchor="lm")
        for at, picture in enumerate(pictures):
            image = _image(picture).convert("RGB")
            image = image.resize((wide * times, high * times), pillow().Resampling.NEAREST)
            sheet.paste(image, (left + at * cell[0] + aside, top))
        top += step
    write_whole(path, _png(sheet, made))


def _image(picture: Tensor) -> Any:
    grey = picture.shape[0] == 1
    return pillow().fromarray((picture[0] if grey else picture.movedim(0, -1)).contiguous().numpy())


def _png(image: Any, made: Mapping[str, object]) -> bytes:
    notes = import_module("PIL.PngImagePlugin").PngInfo()
    notes.add_text("parameters", json.dumps(made, ensure_ascii=True))
    raw = io.BytesIO()
    image.save(raw, format="PNG", pnginfo=notes)
    return raw.getvalue()


def empty() -> Tensor:
    """A row of a sheet without pictures."""
    return torch.zeros(0, 1, 1, 1, dtype=torch.uint8)
