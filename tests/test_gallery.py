"""What the page of a run says of what its adapters draw, whole and broken."""

import base64
import json
import re
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from fedgen import Run, report
from fedgen.report.gallery import gallery

MEASURES = {
    "columns": ["backbone", "global", "personal"],
    "rows": [
        ["Fréchet distance on <named> features", 12.345, 9.0, 1234.5],
        ["kernel distance", 0.00123, 0.5, float("nan")],
        ["style judged right", "31.2%", None, "64.0%"],
    ],
    "note": "512 pictures a column & 20 steps",
}


def png(across: int, down: int) -> bytes:
    """A grey picture, written by hand."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", across, down, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(across) for _ in range(down)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture
def run(tiny_run: Run, tmp_path: Path) -> Run:
    """A copy of the run that all share, with two sheets beside it."""
    found = Run(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    (found.folder / "samples").mkdir()
    (found.folder / "samples" / "styles.png").write_bytes(png(6, 4))
    (found.folder / "samples" / "words.png").write_bytes(png(3, 3))
    return found


def lay(run: Run, quality: Any) -> None:
    """Put a file of measures beside a run: a value as JSON, or bytes."""
    raw = quality if isinstance(quality, bytes) else json.dumps(quality).encode()
    (run.folder / "quality.json").write_bytes(raw)


def drawn(run: Run, quality: Any) -> str:
    """The page of a run with this beside it."""
    lay(run, quality)
    return report.write(run).read_text("utf-8")


def notices(page: str) -> list[str]:
    """What is said of sheets and measures that cannot be shown."""
    return [said for said in re.findall(r'<p class="notice" role="note">(.*?)</p>', page) if "draw the samples" in said]


def sheet(file: str) -> dict[str, str]:
    return {"file": file, "title": "Same noise, <three> adapters", "note": "rows: \"a\" & 'b'"}


def test_sheets_and_measures_are_on_the_page(run: Run) -> None:
    page = drawn(run, {"sheets": [sheet("samples/styles.png"), sheet("samples/words.png")], "measures": MEASURES})
    assert notices(page) == []
    assert "<h2>What they draw</h2>" in page
    found = re.findall(r'<img src="data:image/png;base64,(.*?)" alt="(.*?)" width="(\d+)" height="(\d+)">', page)
    assert [base64.b64decode(raw) for raw, *_ in found] == [png(6, 4), png(3, 3)]
    assert [rest for _, *rest in found] == [
        ["Samples: Same noise, &lt;three&gt; adapters", "6", "4"],
        ["Samples: Same noise, &lt;three&gt; adapters", "3", "3"],
    ]
    assert page.count("<h3>Same noise, &lt;three&gt; adapters</h3>") == 2
    assert page.count('<p class="note">rows: &quot;a&quot; &amp; &#x27;b&#x27;</p>') == 2
    assert "img-src data:" in page.partition("<title>")[0]


def test_numbers_are_as_people_read_them_and_texts_as_they_are(run: Run) -> None:
    page = drawn(run, {"sheets": [], "measures": MEASURES})
    table = next(part for part in re.findall(r"<table.*?</table>", page, re.DOTALL) if "kernel" in part)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
    assert rows == [
        ["", "Backbone", "Global", "Personal"],
        ["Fréchet distance on &lt;named&gt; features", "12.35", "9.00", "1,234"],
        ["kernel distance", "0.0012", "0.5000", "–"],
        ["style judged right", "31.2%", "–", "64.0%"],
    ]
    assert '<p class="caption">512 pictures a column &amp; 20 steps</p>' in page


def test_a_run_that_drew_nothing_has_no_such_part(run: Run) -> None:
    assert "What they draw" not in report.write(run).read_text("utf-8")


BAD_FILES = [
    ("samples/none.png", "cannot be read"),
    ("samples/cut.png", "wanted a whole PNG, came 40 bytes"),
    ("samples/page.png", "wanted a whole PNG"),
    ("samples/folder.png", "cannot be read"),
    ("samples/page.html", "wanted samples/NAME.png"),
    ("samples/../samples/styles.png", "wanted samples/NAME.png"),
    ("../styles.png", "wanted samples/NAME.png"),
    ("/samples/styles.png", "wanted samples/NAME.png"),
    ("styles.png", "wanted samples/NAME.png"),
    ("samples/\0.png", "cannot be read"),
    ("", "wanted samples/NAME.png"),
]


@pytest.mark.parametrize(("file", "said"), BAD_FILES)
def test_a_broken_sheet_is_said_beside_the_whole_ones(file: str, said: str, run: Run) -> None:
    samples = run.folder / "samples"
    (samples / "cut.png").write_bytes(png(6, 4)[:40])
    (samples / "page.png").write_text("<script>alert(1)</script>", "utf-8")
    (samples / "folder.png").mkdir()
    (run.folder.parent / "styles.png").write_bytes(png(2, 2))
    lay(run, {"sheets": [sheet(file), sheet("samples/words.png")], "measures": MEASURES})
    sheets, measures = gallery(run.folder)
    (found,) = notices(sheets)
    assert said in found
    assert sheets.count("<img ") == 1
    assert "kernel distance" in measures


BROKEN = [
    b"",
    b"{",
    b"\xff\xfe\xff",
    b"[" * 100_000,
    b"[]",
    b"3",
    {},
    {"sheets": [], "measures": None},
    {"sheets": {"file": "samples/styles.png"}, "measures": MEASURES},
    {"sheets": [{"file": "samples/styles.png"}], "measures": MEASURES},
    {"sheets": [None], "measures": MEASURES},
    {"sheets": [], "measures": {"columns": ["backbone"], "rows": [["distance", 1.0, 2.0]], "note": ""}},
    {"sheets": [], "measures": {"columns": [1], "rows": [["distance", 1.0]], "note": ""}},
    {"sheets": [], "measures": {"columns": ["backbone"], "rows": [3], "note": ""}},
    {"sheets": [], "measures": {"columns": ["backbone"], "rows": [["distance", 10**400]], "note": ""}},
    {"sheets": [], "measures": MEASURES | {"more": 1}},
]


@pytest.mark.parametrize("quality", BROKEN, ids=range(len(BROKEN)))
def test_a_broken_file_is_said(quality: Any, run: Run) -> None:
    lay(run, quality)
    (said,) = gallery(run.folder)
    (found,) = notices(said)
    assert "quality.json: wanted sheets and measures, came something else" in found


def test_the_rest_of_the_page_stands(run: Run) -> None:
    page = drawn(run, b"{")
    assert len(notices(page)) == 1
    assert "What the adapters gained" in page
