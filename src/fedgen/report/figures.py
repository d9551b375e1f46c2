"""Figures as SVG that follows the page: colours are the page's own variables, letters are its fonts."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

from fedgen.errors import FedgenError
from fedgen.report.wording import number

# Drawn in colours that nobody would choose, which are then exchanged for the page's.
PAGE_COLORS = {
    "#010101": "currentColor",
    "#010102": "var(--faint)",
    "#010103": "var(--rule)",
    "#010104": "var(--one)",
    "#010105": "var(--two)",
    "#010106": "var(--three)",
    "#010107": "var(--four)",
    "#010108": "var(--five)",
    "#010109": "var(--six)",
}
INK, FAINT, RULE, ONE, TWO, *OTHERS = PAGE_COLORS
ACCENTS = (ONE, TWO, *OTHERS)
SIZE = (4.4, 2.9)  # inches: at a phone's width one unit of it is about one pixel
SETTINGS = {
    "font.size": 11.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "fedgen",
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "axes.titlecolor": FAINT,
    "axes.titlesize": 11.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "ytick.left": False,
    "ytick.minor.left": False,
    "lines.linewidth": 2,
    "lines.markersize": 4.5,
}


@dataclass(frozen=True)
class Chart:
    """What a figure shows: its name in the page, what it says to one who cannot see it, its two axes."""

    name: str
    label: str
    across: str
    up: str
    tick: Callable[[float], str] = number
    tick_across: Callable[[float], str] | None = None
    log: bool = False
    rows: Sequence[str] = ()  # what stands at 0, 1, 2, ... from the top, in place of numbers
    high: float = SIZE[1]


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    xs: Sequence[float]
    ys: Sequence[float]
    color: str = ONE
    dashed: bool = False
    width: float = 2
    pale: bool = False


@dataclass(frozen=True)
class Cloud:
    """Dots of one colour, each with the title that shows when one points at it."""

    xs: Sequence[float]
    ys: Sequence[float]
    titles: Sequence[str]
    color: str = ONE
    ring: bool = False
    pale: bool = False


@dataclass(frozen=True)
class Band:
    """A strip along its middle, as wide at each point as it says; a cord if it says nothing."""

    xs: Sequence[float]
    middles: Sequence[float]
    widths: Sequence[float]
    title: str
    color: str = ONE
    pale: bool = False


def lines(chart: Chart, drawn: Sequence[Line]) -> str:
    """Lines over rounds, or over anything else; nothing if there is no point."""

    def paint(axes: Any) -> None:
        for line in drawn:
            mark = "o" if len(line.xs) <= 30 and not line.dashed and not line.pale else ""
            looks = {"color": line.color, "marker": mark, "linewidth": line.width, "alpha": _alpha(line.pale)}
            axes.plot(line.xs, line.ys, "--" if line.dashed else "-", **looks)

    return _draw(chart, paint) if any(line.xs for line in drawn) else ""


def bars(chart: Chart, xs: Sequence[float], heights: Sequence[float]) -> str:
    """A bar a round; nothing if there is no round."""

    def paint(axes: Any) -> None:
        axes.bar(xs, heights, width=0.7 if len(xs) < 60 else 1.0, color=ONE)
        axes.set_xlim(min(xs) - 0.75, max(xs) + 0.75)

    return _draw(chart, paint) if xs else ""


def dots(chart: Chart, below: Sequence[float], above: Sequence[float], titles: Sequence[str]) -> str:
    """Two values for each of many, tied by a line and named where one points; rings, if there are any, and dots."""
    places = range(1, len(above) + 1)
    wide = 5.5 if len(above) <= 64 else 3.5

    def paint(axes: Any) -> None:
        axes.axhline(0, color=INK, linewidth=1)
        if below:
            axes.vlines(places, below, above, color=RULE, linewidth=1.5)
            ring = {"markerfacecolor": "none", "markeredgewidth": 1.4}
            axes.plot(places, below, "o", color=TWO, markersize=wide, gid="rings", **ring)
        axes.plot(places, above, "o", color=ONE, markersize=wide, gid="dots")
        axes.set_xticks([])

    named = {"rings": titles, "dots": titles} if below else {"dots": titles}
    return _draw(chart, paint, named) if above else ""


def scatter(chart: Chart, clouds: Sequence[Cloud]) -> str:
    """Clouds of dots on a plane whose two directions have one scale and no names; nothing if there is no dot."""
    count = sum(len(cloud.xs) for cloud in clouds)
    wide = 5.5 if count <= 100 else 4 if count <= 500 else 2.8

    def paint(axes: Any) -> None:
        for at, cloud in enumerate(clouds):
            inside = "none" if cloud.ring else cloud.color
            looks = {"color": cloud.color, "markerfacecolor": inside, "markersize": wide, "alpha": _alpha(cloud.pale)}
            axes.plot(cloud.xs, cloud.ys, "o", gid=f"cloud{at}", **looks)
        axes.spines.bottom.set_visible(False)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xticks([])
        axes.set_yticks([])

    return _draw(chart, paint, {f"cloud{at}": cloud.titles for at, cloud in enumerate(clouds)}) if count else ""


def flow(chart: Chart, bands: Sequence[Band]) -> str:
    """Bands that run from left to right in rows, and cords that tie them; nothing if there is none."""

    def paint(axes: Any) -> None:
        for at, band in enumerate(bands):
            if band.widths:
                low, high = (
                    [m + side * w for m, w in zip(band.middles, band.widths, strict=True)] for side in (-0.5, 0.5)
                )
                looks = {"facecolor": band.color, "linewidth": 0, "alpha": _alpha(band.pale)}
                axes.fill_between(band.xs, low, high, gid=f"band{at}", **looks)
            else:
                axes.plot(band.xs, band.middles, color=band.color, linewidth=3, gid=f"band{at}")
        ends = [x for band in bands for x in band.xs]
        axes.set_xlim(min(ends) - 0.25, max(ends) + 0.25)
        axes.set_ylim(max(band.middles[0] for band in bands) + 0.6, -0.6)
        axes.grid(visible=False)
        if not chart.rows:
            axes.set_yticks([])

    return _draw(chart, paint, {f"band{at}": [band.title] for at, band in enumerate(bands)}) if bands else ""


def _alpha(pale: bool) -> float | None:
    return 0.4 if pale else None


def _draw(chart: Chart, paint: Callable[[Any], None], titles: dict[str, Sequence[str]] | None = None) -> str:
    library = _matplotlib()
    raw = io.BytesIO()
    with library.style.context(["default", SETTINGS]):
        drawing = library.figure.Figure(figsize=(SIZE[0], chart.high), layout="constrained")
        axes = drawing.add_subplot()
        paint(axes)
        _dress(axes, chart, library.ticker)
        drawing.savefig(raw, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _themed(raw.getvalue(), chart, titles or {})


def _dress(axes: Any, chart: Chart, ticker: Any) -> None:
    """Axes in the page's manner: the upright one is named above it, so that nothing is read sideways."""
    axes.set_title(chart.up, loc="left", pad=10)
    axes.set_xlabel(chart.across)
    if chart.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(ticker.LogLocator(numticks=6))
        axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    elif not chart.rows and len(axes.get_yticks()):
        axes.yaxis.set_major_locator(ticker.MaxNLocator(5))
    axes.yaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: chart.tick(value)))
    if chart.rows:
        axes.set_yticks(range(len(chart.rows)), chart.rows)
    if chart.tick_across:
        show = chart.tick_across
        axes.xaxis.set_major_locator(ticker.MaxNLocator(4))
        axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: show(value)))
    elif len(axes.get_xticks()):
        axes.xaxis.set_major_locator(ticker.MaxNLocator(6, integer=True, min_n_ticks=1))


def _matplotlib() -> Any:
    try:
        import matplotlib.figure
        import matplotlib.style
        import matplotlib.ticker
    except ImportError as error:
        raise FedgenError(
            "report: wanted matplotlib, which is not installed; `pip install fedgen-edge[report]`"
        ) from error
    return matplotlib


def _themed(raw: bytes, chart: Chart, titles: dict[str, Sequence[str]]) -> str:
    """The drawing as part of a page: no prolog, no names of its own, the page's colours, and every id said once."""
    root = ET.fromstring(raw)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {key.rpartition("}")[2]: _value(chart, value) for key, value in element.attrib.items()}
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in ("metadata", "style")]:
            parent.remove(child)
        if "id" in parent.attrib:
            parent.set("id", f"{chart.name}-{parent.get('id')}")
    for group, names in titles.items():
        _name(root, f"{chart.name}-{group}", names)
    root.attrib = {"viewBox": root.get("viewBox", ""), "role": "img", "aria-label": chart.label}
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    return ET.tostring(root, encoding="unicode")


def _value(chart: Chart, value: str) -> str:
    """An attribute: references follow the ids, colours and fonts are the page's."""
    value = re.sub(r"^#(?=[A-Za-z])|(?<=url\()#", f"#{chart.name}-", value)
    value = re.sub(r"font: ([\d.]+px)[^;]*", r"font-size: \1", value)
    return re.sub(r"#0101\d\d", lambda found: PAGE_COLORS[found[0]], value)


def _name(root: ET.Element, group: str, names: Sequence[str]) -> None:
    """Give each mark of a group the title that shows when one points at it."""
    part = next(part for part in root.iter("g") if part.get("id") == group)
    marks = list(part.iter("use")) or list(part.iter("path"))
    for mark, name in zip(marks, names, strict=True):
        ET.SubElement(mark, "title").text = name
