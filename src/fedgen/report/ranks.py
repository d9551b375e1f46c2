"""The ranks of a run: where they went, how many an adapter really has, and what averaging would have missed."""

from collections.abc import Sequence
from typing import Any

from fedgen import lora
from fedgen.report import figures, markup
from fedgen.report.digest import Digest
from fedgen.report.figures import Chart, Line
from fedgen.report.markup import Shaded
from fedgen.report.wording import ABSENT, counted, number, percent

OPEN = 12  # layers up to which the table stands open
MOST_ROUNDS = 10  # columns of the table of layers


def ranks(run: Digest) -> list[str]:
    """All that a page says of ranks; nothing where updates have one rank and their factors are averaged."""
    lines = [line for line in run.journal if line.get("ranks")]
    tables = [_devices(lines), _layers(lines)] if lines else []
    return [markup.figures(_breadth(run), _cross(run)), *tables]


def _breadth(run: Digest) -> str:
    note = "singular directions that carry the adapter's energy, evenly counted; the mean over its layers"
    return _figure(run, "breadth", "Effective rank", "ranks", note)


def _cross(run: Digest) -> str:
    note = "how far the mean of A times the mean of B would have been from the mean of the products, which was taken"
    return _figure(run, "cross", "What averaging factors would miss", "share of the mean's length", note)


def _figure(run: Digest, key: str, title: str, unit: str, note: str) -> str:
    xs, ys = run.metric(key)
    said = f"{title} by round, from {number(ys[0])} to {number(ys[-1])}." if ys else ""
    show = percent if key == "cross" else number
    svg = figures.lines(Chart(key, said, "round", unit, show), [Line(xs, ys)])
    return markup.figure(title, svg, note=note) if svg else ""


def mean(line: Any) -> float:
    """The mean rank of a round's updates, from its journal's line."""
    found = line["ranks"]["clients"].values()
    return float(sum(found) / len(found))


def _devices(lines: Sequence[Any]) -> str:
    """A row for each kind of device, and one for all."""
    kinds = sorted({kind for line in lines for kind in line["ranks"].get("devices", {})})
    rows = [[kind, *_cells([line["ranks"].get("devices", {}).get(kind) for line in lines])] for kind in kinds]
    caption = "The mean rank of updates, by the device they came from" if kinds else "The mean rank of updates"
    return markup.table(
        caption,
        ["Device", "First round", "Last round", "All rounds"],
        [*rows, ["all", *_cells(list(map(mean, lines)))]],
    )


def _cells(means: Sequence[float | None]) -> list[str]:
    known = [each for each in means if each is not None]
    ends = [ABSENT if each is None else number(each) for each in (means[0], means[-1])]
    return [*ends, number(sum(known) / len(known))]


def _layers(lines: Sequence[Any]) -> str:
    """Layers by rounds: the mean rank that a layer's updates had, the darker the wider."""
    step = -(-len(lines) // MOST_ROUNDS)
    shown = lines[::-step][::-1]  # the last round is always there
    most = max(max(line["ranks"]["layers"].values()) for line in lines)
    paths = lora.last(shown[-1]["ranks"]["layers"], 1.0)  # layer 10 comes after layer 9
    rows = [[path, *(_cell(line["ranks"]["layers"][path], most) for line in shown)] for path in paths]
    some = f", of {counted(len(lines), 'round')} one in {step:,}" if step > 1 else ""
    table = markup.table(
        f"The mean rank of updates by layer and round{some}", ["Layer", *(f"{line['round']:,}" for line in shown)], rows
    )
    return table if len(rows) <= OPEN else markup.more("Where rank went, layer by layer", table)


def _cell(value: float, most: float) -> Shaded:
    return Shaded(number(value), value / most)
