"""The figures of experiments/edge.py."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

RULE, INK = "#e2e2dd", "#596170"
COLOURS = ("#0067a8", "#c8500a", "#5a7d2b", "#8a3ca0", "#596170", "#b08a00")
WISH, ALLOWED = 0.0005, 0.01  # of full-model FedAvg's uplink, and of the measure

Arm = Mapping[str, Any]


def over(arm: Arm, other: Arm, key: str = "measure") -> list[float]:
    """A figure over that of another arm, less one, seed by seed."""
    seeds = [seed for seed in arm["runs"] if seed in other["runs"]]
    return [arm["runs"][seed][key] / other["runs"][seed][key] - 1 for seed in seeds]


def of(arm: Arm, key: str) -> list[float]:
    """A figure, seed by seed."""
    return [run[key] for run in arm["runs"].values()]


def pipelines(path: Path, worlds: Mapping[str, Any]) -> None:
    """A panel a world: quality against bytes, a point a way to compress, and a line from the least to the most."""
    figure = Figure(figsize=(12.5, 5), layout="constrained", dpi=160)
    for axes, (world, found) in zip(figure.subplots(1, len(worlds), squeeze=False)[0], worlds.items(), strict=True):
        plain = found["arms"]["plain"]
        for name, arm in found["arms"].items():
            x, ys = mean(of(arm, "of_full")), over(arm, plain)
            colour = COLOURS[1] if name == "thin" else COLOURS[0]
            axes.plot([x, x], [min(ys), max(ys)], color=colour, linewidth=1.2)
            axes.plot(x, mean(ys), "o", color=colour, markersize=7 if name == "thin" else 5)
            low = name in {"thin", "4 bits, both ways"}
            axes.annotate(
                name, (x, mean(ys)), (6, -11 if low else 4), textcoords="offset points", fontsize=8, color=INK
            )
        axes.axvline(WISH, color=COLOURS[2], linestyle="--", linewidth=1)
        axes.axhline(ALLOWED, color=COLOURS[2], linestyle="--", linewidth=1)
        axes.set(xscale="log", title=f"{world}: {found['measure']} against bytes up")
        axes.set_xlim(right=mean(of(plain, "of_full")) * 1.8)
        axes.set_xlabel("bytes of a turn, as a share of full-model FedAvg's")
        axes.set_ylabel("worse than uncompressed adapters")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, at: f"{share:.2%}"))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        _bare(axes)
    figure.savefig(path)


def recovered(arms: Mapping[str, Arm], name: str) -> list[float]:
    """The share of the gap between the narrowest and the widest that an arm makes up for, seed by seed."""
    low, high, own = (arms[key]["runs"] for key in ("all 2", "all 32", name))
    seeds = [seed for seed in own if seed in low and seed in high]
    return [
        (low[seed]["measure"] - own[seed]["measure"]) / (low[seed]["measure"] - high[seed]["measure"]) for seed in seeds
    ]


def ranks(path: Path, worlds: Mapping[str, Any]) -> None:
    """How much of the gap each rule recovers, and by round its cross term and the breadth of its adapter."""
    arms = worlds["ranks"]["arms"]
    mixed = [name for name in arms if name not in ("all 2", "all 32")]
    figure = Figure(figsize=(12.5, 4), layout="constrained", dpi=160)
    bars, cross, breadth = figure.subplots(1, 3)
    for at, name in enumerate(mixed):
        values = recovered(arms, name)
        bars.bar(at, mean(values), color=COLOURS[at], width=0.6)
        bars.plot([at, at], [min(values), max(values)], color="black", linewidth=1)
    bars.axhline(0.85, color=INK, linestyle="--", linewidth=1)
    bars.set_xticks(range(len(mixed)), mixed, fontsize=8)
    bars.yaxis.set_major_formatter(PercentFormatter(1))
    bars.set_title("recovered of the gap from all 2 to all 32", fontsize=9)
    for at, name in enumerate([*mixed, "all 32"]):
        _told(cross, arms[name], "cross", name, COLOURS[at])
        _told(breadth, arms[name], "breadth", name, COLOURS[at])
    cross.set_title("cross term: error of averaging A and B apart", fontsize=9)
    cross.yaxis.set_major_formatter(PercentFormatter(1))
    breadth.set_title("effective rank of the shared adapter", fontsize=9)
    breadth.legend(frameon=False, fontsize=8)
    for axes in (bars, cross, breadth):
        _bare(axes)
    for axes in (cross, breadth):
        axes.set_xlabel("round")
    figure.savefig(path)


def _told(axes: Axes, arm: Arm, key: str, name: str, colour: str) -> None:
    runs = [run["told"][key] for run in arm["runs"].values() if key in run["told"]]
    if runs:
        columns: list[Sequence[float]] = list(zip(*runs, strict=True))
        axes.plot(range(1, len(columns) + 1), [mean(column) for column in columns], color=colour, label=name)


def times(path: Path, worlds: Mapping[str, Any]) -> None:
    """Quality against simulated hours and against bytes up, a line a seed."""
    found = worlds["time"]
    figure = Figure(figsize=(11, 4), layout="constrained", dpi=160)
    hours, sent = figure.subplots(1, 2)
    for colour, (name, arm) in zip(COLOURS, found["arms"].items(), strict=False):
        for at, run in enumerate(arm["runs"].values()):
            label = "" if at else name
            hours.plot([clock / 3600 for clock in run["told"]["clock"]], course(found, run), color=colour, label=label)
            sent.plot([each / 1e6 for each in run["sent"]], course(found, run), color=colour, label=label)
    for axes, said in ((hours, "simulated hours"), (sent, "MB sent up")):
        axes.set_xlabel(said)
        axes.set_ylabel(f"validation {found['measure']}")
        _bare(axes)
    hours.legend(frameon=False, fontsize=9)
    figure.savefig(path)


def course(found: Mapping[str, Any], run: Mapping[str, Any]) -> Sequence[float]:
    """The measure on validation rows, round by round."""
    measures: Sequence[float] = run["told"][found["key"]]
    return measures


def _bare(axes: Axes) -> None:
    axes.grid(axis="y", color=RULE)
    axes.spines[["top", "right"]].set_visible(False)


DRAWN: dict[str, Callable[[Path, Mapping[str, Any]], None]] = {"bytes": pipelines, "ranks": ranks, "time": times}
