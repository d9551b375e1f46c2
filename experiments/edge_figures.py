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
BESIDE = {  # where a name stands beside its point, if not above it to the right
    "thin": (-8, -3),
    "25%, signs, feedback": (-8, 6),
    "signs, feedback": (6, 8),
    "25%, 4 bits, feedback": (6, -14),
    "4 bits": (-8, -3),
    "10%, 4 bits": (-8, -3),
    "A drawn, B in 4 bits": (8, -8),
}
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
            right, up = BESIDE.get(name, (6, 4))
            side = "left" if right > 0 else "right"
            axes.annotate(name, (x, mean(ys)), (right, up), textcoords="offset points", ha=side, fontsize=8, color=INK)
        axes.axvline(WISH, color=COLOURS[2], linestyle="--", linewidth=1)
        axes.axhline(ALLOWED, color=COLOURS[2], linestyle="--", linewidth=1)
        axes.set(xscale="log", title=f"{world}: {found['measure']} against bytes up")
        axes.set_xlim(1e-4, mean(of(plain, "of_full")) * 1.8)
        axes.set_yscale("symlog", linthresh=0.01, linscale=2)
        axes.set_yticks([0, 0.002, 0.004, 0.006, 0.008, 0.01, 0.03, 0.1])
        axes.set_ylim(-0.001, 0.12)
        axes.set_xlabel("bytes of a turn, as a share of full-model FedAvg's")
        axes.set_ylabel("worse than uncompressed adapters")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, at: f"{share:.2%}"))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=1))
        _bare(axes)
    figure.savefig(path)


def recovered(arms: Mapping[str, Arm], name: str, ends: str = "") -> list[float]:
    """The share of the gap between everyone at rank 2 and at rank 32 that an arm makes up for, seed by seed."""
    low, high, own = (arms[key]["runs"] for key in (f"all 2{ends}", f"all 32{ends}", name))
    seeds = [seed for seed in own if seed in low and seed in high]
    gaps = {seed: low[seed]["measure"] - high[seed]["measure"] for seed in seeds}
    return [(low[seed]["measure"] - own[seed]["measure"]) / gaps[seed] for seed in seeds]


def ranks(path: Path, worlds: Mapping[str, Any]) -> None:
    """What each rule ends at, and by round its cross term and the breadth of its adapter."""
    found = worlds["ranks"]
    arms = found["arms"]
    figure = Figure(figsize=(12.5, 4), layout="constrained", dpi=160)
    bars, cross, breadth = figure.subplots(1, 3)
    for at, name in enumerate(arms):
        values = of(arms[name], "measure")
        bars.barh(at, mean(values), color=COLOURS[4] if name.startswith("all ") else COLOURS[0], height=0.6)
        bars.plot([min(values), max(values)], [at, at], color="black", linewidth=1)
    bars.set_yticks(range(len(arms)), arms, fontsize=8)
    bars.invert_yaxis()
    lows = [min(of(arm, "measure")) for arm in arms.values()]
    bars.set_xlim(left=min(lows) - 2)
    bars.set_title(f"held-out {found['measure']} (the axis does not begin at 0)", fontsize=9)
    for colour, name in zip(COLOURS, ("all 2", "all 32", "stack", "changes", "exact"), strict=False):
        _told(cross, arms[name], "cross", name, colour)
        _told(breadth, arms[name], "breadth", name, colour)
    cross.set_title("cross term: error of averaging A and B apart", fontsize=9)
    cross.yaxis.set_major_formatter(PercentFormatter(1))
    breadth.set_title("effective rank of the shared adapter", fontsize=9)
    breadth.legend(frameon=False, fontsize=8)
    for axes in (bars, cross, breadth):
        _bare(axes)
    bars.grid(visible=False)
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


def time_to(found: Mapping[str, Any], seed: str, run: Mapping[str, Any]) -> float:
    """Simulated seconds until a run is as good as the least good way of its seed ever is."""
    ways = [arm["runs"][seed] for arm in found["arms"].values() if seed in arm["runs"]]
    goal = max(min(course(found, way)) for way in ways)
    at = next(at for at, measure in enumerate(course(found, run)) if measure <= goal)
    seconds: float = run["told"]["clock"][at]
    return seconds


def _bare(axes: Axes) -> None:
    axes.grid(axis="y", color=RULE)
    axes.spines[["top", "right"]].set_visible(False)


DRAWN: dict[str, Callable[[Path, Mapping[str, Any]], None]] = {"bytes": pipelines, "ranks": ranks, "time": times}
