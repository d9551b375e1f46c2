"""What a run's adapters draw: sheets of samples and measures of them, if they have been made and written down."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedgen.errors import StoreError
from fedgen.exhibit import QUALITY, SAMPLES
from fedgen.report import markup
from fedgen.report.wording import ABSENT, number

OPENS, ENDS = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"  # the first and the last bytes of every whole PNG
BROKEN = OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError  # of other content
REMEDY = "draw the samples anew"


@dataclass(frozen=True)
class Sheet:
    """One picture of many samples: its file in the run's folder, its title, and what to see in it."""

    file: str
    title: str
    note: str = ""


def gallery(folder: Path) -> list[str]:
    """The sheets and the measures as pieces of a page; what is broken is said, what was never drawn is not."""
    path = folder / QUALITY
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_bytes())
        sheets = [Sheet(str(each["file"]), str(each["title"]), str(each.get("note", ""))) for each in found["sheets"]]
        measures = _measures(**found["measures"])
    except BROKEN as error:
        return [markup.notice(f"{QUALITY}: wanted sheets and measures, came something else ({error!r}); {REMEDY}")]
    return [markup.figures(*(_sheet(folder, sheet) for sheet in sheets), wide=True), measures]


def _measures(columns: Sequence[str], rows: Sequence[Sequence[Any]], note: str) -> str:
    """A table of the measures, its numbers as people read them."""
    for row in rows:
        if len(row) != len(columns) + 1:
            raise ValueError(f"{len(row)} cells in a row, wanted {len(columns) + 1}")
    head = ["", *(f"{column[:1].upper()}{column[1:]}" for column in columns)]
    return markup.table(note, head, map(_cells, rows)) if rows else ""


def _cells(row: Sequence[Any]) -> list[str]:
    """A row's cells; all of its numbers have four digits behind the point where one of them needs as many."""
    small = any(isinstance(cell, float) and 0 < abs(cell) < 0.1 for cell in row)
    return [_cell(cell, 4 if small else 2) for cell in row]


def _cell(cell: Any, digits: int) -> str:
    if isinstance(cell, int | float):
        return number(cell, digits)
    return ABSENT if cell is None else str(cell)


def _sheet(folder: Path, sheet: Sheet) -> str:
    """A sheet as a figure that holds its picture, or why there is none."""
    try:
        raw = _png(folder, sheet.file)
    except StoreError as error:
        return markup.notice(error)
    across, down = (int.from_bytes(raw[at : at + 4], "big") for at in (16, 20))
    source = f"data:image/png;base64,{base64.b64encode(raw).decode()}"
    return markup.figure(sheet.title, markup.picture(source, f"Samples: {sheet.title}", across, down), note=sheet.note)


def _png(folder: Path, name: str) -> bytes:
    """A whole PNG of the run's samples; nothing else is put on a page."""
    path = Path(name)
    if len(path.parts) != 2 or path.parts[0] != SAMPLES or path.suffix != ".png":
        raise StoreError(f"sheet '{name}': wanted {SAMPLES}/NAME.png in the run's folder; {REMEDY}")
    try:
        raw = (folder / path).read_bytes()
    except (OSError, ValueError) as error:
        raise StoreError(f"sheet '{name}': cannot be read ({error}); {REMEDY}") from error
    if not raw.startswith(OPENS) or not raw.endswith(ENDS):
        raise StoreError(f"sheet '{name}': wanted a whole PNG, came {len(raw):,} bytes of something else; {REMEDY}")
    return raw
