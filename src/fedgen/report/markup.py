"""The pieces of a page: every text is escaped here, so that no caller can forget it."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

STYLE = (Path(__file__).parent / "style.css").read_text("utf-8")
# the page can load nothing, whatever a name in it says; its pictures are in the page itself
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

Shape = Literal["line", "band", "dash", "dot", "ring"]  # of a mark in a figure


@dataclass(frozen=True)
class Tile:
    """One big number: what it is, and on what it stands."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Key:
    """What a mark in a figure means: its label, its colour's name in the style, its shape."""

    label: str
    color: str
    shape: Shape = "line"


@dataclass(frozen=True)
class Shaded:
    """A cell of a table with a ground the darker the larger its share."""

    said: str
    share: float


def text(value: object) -> str:
    """Any value as text of a page."""
    return html.escape(str(value))


def words(value: object) -> str:
    """A paragraph."""
    return f"<p>{text(value)}</p>"


def notice(value: object) -> str:
    """A paragraph that must not be overlooked."""
    return f'<p class="notice" role="note">{text(value)}</p>'


def section(title: str, *parts: str) -> str:
    """A part of the page under its own heading; nothing at all if it is empty."""
    content = "\n".join(part for part in parts if part)
    return f"<section>\n<h2>{text(title)}</h2>\n{content}\n</section>" if content else ""


def tiles(items: Iterable[Tile]) -> str:
    """The main numbers."""
    shown = "\n".join(_tile(item) for item in items)
    return f'<ul class="tiles">\n{shown}\n</ul>'


def _tile(tile: Tile) -> str:
    note = f'<span class="note">{text(tile.note)}</span>' if tile.note else ""
    return f'<li><strong>{text(tile.value)}</strong><span class="label">{text(tile.label)}</span>{note}</li>'


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[object]], *, prose: bool = False) -> str:
    """A table whose first column names its rows; the other columns are numbers, or prose."""
    top = "".join(f'<th scope="col">{text(cell)}</th>' for cell in head)
    body = "\n".join(_row(row) for row in rows)
    kind, wide = ' class="prose"' if prose else "", " wide" if len(head) > 4 else ""
    said = text(caption)  # above the part that scrolls, so that it is read whole on a phone
    return (
        f'<p class="caption">{said}</p>\n<div class="scroll{wide}" role="region" tabindex="0" aria-label="{said}">\n'
        f'<table{kind} aria-label="{said}">\n'
        f"<thead><tr>{top}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>"
    )


def _row(row: Sequence[object]) -> str:
    first, *rest = row
    return f'<tr><th scope="row">{text(first)}</th>{"".join(map(_cell, rest))}</tr>'


def _cell(cell: object) -> str:
    if isinstance(cell, Shaded):
        ground = f"color-mix(in srgb, var(--one) {50 * cell.share:.0f}%, transparent)"
        return f'<td style="background: {ground}">{text(cell.said)}</td>'
    return f"<td>{text(cell)}</td>"


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Names with what is said of each."""
    return '<dl class="facts">\n' + "\n".join(f"<dt>{text(a)}</dt><dd>{text(b)}</dd>" for a, b in pairs) + "\n</dl>"


def figure(title: str, drawing: str, keys: Iterable[Key] = (), note: str = "") -> str:
    """A drawing under its title, with its keys and a note."""
    shown = "".join(map(_key, keys))
    below = (f'<p class="keys">{shown}</p>' if shown else "") + (f'<p class="note">{text(note)}</p>' if note else "")
    return f"<figure>\n<figcaption><h3>{text(title)}</h3></figcaption>\n{drawing}\n{below}</figure>"


def _key(key: Key) -> str:
    return f'<span><i class="{key.shape}" style="--mark:{text(key.color)}"></i>{text(key.label)}</span>'


def picture(source: str, label: str, across: int, down: int) -> str:
    """A picture of so many pixels, and what it says to one who cannot see it."""
    return f'<img src="{text(source)}" alt="{text(label)}" width="{across}" height="{down}">'


def figures(*drawn: str, wide: bool = False) -> str:
    """Figures beside each other where there is room; wide ones want more of it."""
    shown = "\n".join(one for one in drawn if one)
    return f'<div class="figures{" sheets" if wide else ""}">\n{shown}\n</div>' if shown else ""


def more(summary: str, *parts: str) -> str:
    """What is folded away until it is asked for."""
    return f"<details>\n<summary>{text(summary)}</summary>\n{''.join(parts)}\n</details>"


def listing(content: str) -> str:
    """Text as it stands in a file."""
    return f'<pre tabindex="0">{text(content)}</pre>'


def page(title: str, *parts: str) -> bytes:
    """The whole page: it needs no other file, no network and no script."""
    body = "\n".join(part for part in parts if part)
    whole = (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
    return whole.encode("utf-8", "replace")
