"""The figures of experiments/clusters.py and experiments/hybrids.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

STYLES = {
    "local": ("#596170", "v"), "global": ("#c8500a", "s"), "clusters": ("#0067a8", "o"), "exchange": ("#5a7d2b", "^"),
    "oracle": ("#8a3ca0", "D"),
}  # fmt: skip
CALLED = {
    "local": "local only", "global": "one global adapter", "clusters": "clusters", "exchange": "clusters that exchange",
    "oracle": "true groups",
}  # fmt: skip
WHOSE = {"fall": "all clients", "worst_tenth": "worst tenth", "smallest_quarter": "smallest quarter of groups"}
RULE = "#e2e2dd"


def arms(path: Path, worlds: Mapping[str, Any]) -> None:
    """A row a world: validation by round, and the falls of all, of the worst tenth and of the smallest clusters."""
    figure = Figure(figsize=(12.5, 3.5 * len(worlds)), layout="constrained", dpi=160)
    grid = figure.subplots(len(worlds), 4, squeeze=False)
    for line, (world, found) in zip(grid, worlds.items(), strict=True):
        curves(line[0], found["arms"])
        line[0].set_ylabel(f"{world}: {found['measure']}")
        for axes, (key, title) in zip(line[1:], WHOSE.items(), strict=True):
            bars(axes, found["arms"], key)
            axes.set_title(f"fall: {title}", fontsize=9)
    known = {name: line for line, name in zip(*grid[0][0].get_legend_handles_labels(), strict=True)}
    figure.legend(known.values(), known, loc="outside upper center", ncols=5, frameon=False, fontsize=9)
    figure.savefig(path)


def curves(axes: Axes, found: Mapping[str, Mapping[str, Any]]) -> None:
    """The mean of the seeds round by round, and a band from the least to the most."""
    for arm, (colour, _) in STYLES.items():
        runs = [run["curve"] for run in found[arm].values() if "shared" in run]
        if runs:
            rounds = range(1, len(runs[0]) + 1)
            columns: list[Sequence[float]] = list(zip(*runs, strict=True))
            dashed = "--" if arm == "oracle" else "-"
            axes.plot(rounds, [mean(column) for column in columns], dashed, color=colour, label=CALLED[arm])
            axes.fill_between(
                rounds, *([pick(column) for column in columns] for pick in (min, max)), color=colour, alpha=0.15
            )
    axes.plot([], [], color=STYLES["local"][0], marker=STYLES["local"][1], linestyle="none", label=CALLED["local"])
    axes.set_title("validation, shared adapters", fontsize=9)
    axes.set_xlabel("round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", color=RULE)
    axes.spines[["top", "right"]].set_visible(False)


def bars(axes: Axes, found: Mapping[str, Mapping[str, Any]], key: str) -> None:
    """A pair of bars an arm, without and with the personal step; a dot a seed."""
    for at, (arm, (colour, mark)) in enumerate(STYLES.items()):
        for side, part in ((-0.2, "shared"), (0.2, "personal")):
            values = [run[part][key] for run in found[arm].values() if part in run]
            if values:
                full = part == "personal"
                axes.bar(at + side, mean(values), 0.36, color=colour if full else "none", edgecolor=colour)
                axes.plot([at + side] * len(values), values, mark, color="#20242b", markersize=3, linestyle="none")
    axes.set_xticks(range(len(STYLES)), list(STYLES), fontsize=8)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.axhline(0, color="#596170", linewidth=0.8)
    axes.set_xlabel("left: shared   right: and a personal step", fontsize=8)
    axes.grid(axis="y", color=RULE)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def weights_map(path: Path, found: Mapping[str, Any]) -> None:
    """For each hybrid, how often it is judged right by the two weights: of the style, and of the letter."""
    figure = Figure(figsize=(6.2, 2.9 * len(found)), layout="constrained", dpi=160)
    grid = figure.subplots(len(found), 2, squeeze=False)
    for line, (wanted, one) in zip(grid, found.items(), strict=True):
        first, second = (sorted({row[at] for row in one["grid"]}) for at in (0, 1))
        parents = [name.removesuffix(" alone") for name in one["judged"] if name.endswith(" alone")]
        for axes, at, what in ((line[0], 2, f"judged {wanted}"), (line[1], 3, "letter right")):
            table = np.zeros((len(first), len(second)))
            for row in one["grid"]:
                table[first.index(row[0]), second.index(row[1])] = row[at]
            axes.imshow(table, vmin=0, vmax=1, cmap="Blues", origin="lower")
            for y, x in np.ndindex(table.shape):
                colour = "white" if table[y, x] > 0.6 else "#20242b"
                axes.text(x, y, f"{table[y, x]:.0%}", ha="center", va="center", fontsize=7, color=colour)
            axes.set_title(what, fontsize=9)
            axes.set_yticks(range(len(first)), [f"{weight:g}" for weight in first], fontsize=8)
            axes.set_xticks(range(len(second)), [f"{weight:g}" for weight in second], fontsize=8)
            axes.set_ylabel(f"weight of {parents[0]}", fontsize=8)
            axes.set_xlabel(f"weight of {parents[1]}", fontsize=8)
    figure.savefig(path)
