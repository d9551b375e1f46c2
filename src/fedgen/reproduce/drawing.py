"""How the figures look: colours that all can tell apart, names at the ends of lines, pictures of 1280 pixels."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedgen.errors import FedgenError
from fedgen.report.wording import size

INK, FAINT, RULE, PALE = "#20242b", "#596170", "#e2e2dd", "#c4c8cc"
WIDE, HIGH, DOTS = 8.0, 3.1, 160  # inches of a figure and of a row of its panels, and dots an inch
SETTINGS = {
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": FAINT,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "legend.frameon": False,
}
# The methods that most is said of; a dash tells those apart whose colours some see as one.
LOOKS = {
    "fedavg-full": (INK, "-"),
    "central": (INK, ":"),
    "fedit": ("#6ea9d6", "--"),
    "fedgen-edge": ("#0067a8", "-"),
    "stack": ("#c8500a", "-"),
    "residual": ("#767a00", "-"),
    "seeded": ("#c99200", "--"),
    "flora": ("#5a7d2b", "-"),
    "exact": ("#3aa6b9", "--"),
    "fedsa": ("#8a3ca0", "-"),
    "ditto": ("#d1457c", "--"),
    "ffa": ("#7b5b3a", ":"),
    "local": (FAINT, ":"),
}
SERIES = ("#0067a8", "#c8500a", "#5a7d2b", "#8a3ca0", "#c99200", "#3aa6b9", INK)  # for what is no method
LADDER = ("#93bfdf", "#74abd3", "#5597c7", "#2f7db3", "#0067a8", "#004b7c", "#002c4b")  # for what is more and more


@dataclass(frozen=True)
class Sheet:
    """A figure that is ready to be drawn, so many inches high."""

    high: float
    paint: Callable[[Any], None]


def png(sheet: Sheet) -> bytes:
    """The figure as a picture; the same bytes from the same library."""
    library, raw = matplotlib(), io.BytesIO()
    with library.style.context(["default", SETTINGS]):
        figure = library.figure.Figure(figsize=(WIDE, sheet.high), layout="constrained", dpi=DOTS)
        sheet.paint(figure)
        figure.savefig(raw, format="png", metadata={"Software": None})
    return raw.getvalue()


def matplotlib() -> Any:
    """The library, imported when the first figure is drawn."""
    try:
        import matplotlib.figure
        import matplotlib.style
        import matplotlib.ticker
    except ImportError as error:
        raise FedgenError(
            "reproduce: figures want matplotlib, which is not installed; `pip install fedgen-edge[report]`"
        ) from error
    return matplotlib


def line(axes: Any, method: str, xs: Sequence[float], ys: Sequence[float], *, mark: str = "") -> None:
    """A method's line in its colour, and in pale grey behind the others if it has none."""
    colour, dash = LOOKS.get(method, (PALE, "-"))
    known = method in LOOKS
    axes.plot(xs, ys, dash, color=colour, marker=mark, linewidth=1.8 if known else 1, zorder=3 if known else 1)


def name_ends(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Names (height, text, colour) to the right of where their lines end, pushed apart where they would touch."""
    high = axes.figure.get_figheight() / max(1, axes.get_subplotspec().get_gridspec().nrows)
    gap, turned = 0.17 / (0.7 * high), axes.transAxes.inverted()
    places = sorted((turned.transform(axes.transData.transform((1, y)))[1], text, colour) for y, text, colour in ends)
    found = apart([min(max(place, 0.0), 1.0) for place, _, _ in places], gap)
    for height, (_, text, colour) in zip(found, places, strict=True):
        axes.text(1.02, height, text, transform=axes.transAxes, va="center", color=colour, fontsize=8.5)


def apart(places: Sequence[float], gap: float) -> list[float]:
    """Places in rising order, moved as little as it takes to lie this far apart, below 1."""
    found = list(places)
    for _ in range(200):
        for at in range(len(found) - 1):
            short = max(0.0, gap - (found[at + 1] - found[at]))
            found[at], found[at + 1] = found[at] - short / 2, found[at + 1] + short / 2
        found[-1:] = [min(1.0, place) for place in found[-1:]]
    return found


def bytes_across(axes: Any, label: str) -> None:
    """Bytes from left to right, on a logarithmic scale."""
    ticker = matplotlib().ticker
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: size(value)))
    axes.xaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_xlabel(label)


def powers_across(axes: Any, values: Sequence[float], label: str) -> None:
    """Values that double, each named."""
    ticker = matplotlib().ticker
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(values), [f"{value:g}" for value in values])
    axes.xaxis.set_minor_locator(ticker.NullLocator())
    axes.set_xlabel(label)
