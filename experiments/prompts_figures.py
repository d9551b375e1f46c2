"""The figures of experiments/prompts.py and experiments/privacy.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

STYLES = {
    "n-grams": ("#0067a8", "o"), "text backbone": ("#c8500a", "s"), "image backbone": ("#5a7d2b", "^"),
    "text backbone, input": ("#8a3ca0", "D"),
}  # fmt: skip
RULE = "#e2e2dd"


def course(axes: Axes, name: str, rows: Mapping[str, Sequence[float]]) -> None:
    """A line through the means, and a bar from the least to the most of the seeds."""
    colour, mark = STYLES[name]
    middle = [mean(values) for values in rows.values()]
    spread = [
        [at - min(values) for at, values in zip(middle, rows.values(), strict=True)],
        [max(values) - at for at, values in zip(middle, rows.values(), strict=True)],
    ]
    axes.errorbar(range(len(rows)), middle, spread, color=colour, marker=mark, markersize=4.5, capsize=2, label=name)
    axes.set_xticks(range(len(rows)), list(rows), rotation=40, ha="right", fontsize=8)


def dressed(figure: Figure, panels: Sequence[Axes], wish: str) -> None:
    """Shares from 0 to 1, the titles that are there, one legend for all."""
    for axes in panels:
        axes.set_ylim(-0.05, 1.05)
        axes.grid(axis="y", color=RULE)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(wish)
    known = {name: line for axes in panels for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(known.values(), known, loc="outside upper center", ncols=4, frameon=False, fontsize=9)


def grouping(path: Path, result: Mapping[str, Any]) -> None:
    """The likeness of found groups and categories, a panel a world."""
    figure = Figure(figsize=(2.9 * len(result["worlds"]), 3.6), layout="constrained", dpi=160)
    panels = figure.subplots(1, len(result["worlds"]), sharey=True)
    for axes, (world, found) in zip(panels, result["worlds"].items(), strict=True):
        axes.set_title(f"{world}: {found['clients']} clients, {len(found['categories'])} kinds", fontsize=10)
        for name, rows in found["encoders"].items():
            course(axes, name, {said: row["ari"] for said, row in rows.items()})
    dressed(figure, panels, "adjusted Rand index")
    figure.savefig(path)


def recovery(path: Path, result: Mapping[str, Any]) -> None:
    """What a server finds in profiles and in prompts sent in full, and what profiles are still good for."""
    figure = Figure(figsize=(12.5, 3.8), layout="constrained", dpi=160)
    alone, many, good, full = panels = figure.subplots(1, 4, sharey=True)
    alone.set_title("profile of one prompt:\nhow often it is found", fontsize=10)
    many.set_title("profile of twelve prompts:\nshare of them found", fontsize=10)
    good.set_title("the same profiles:\nadjusted Rand index of groups", fontsize=10)
    full.set_title("prompt sent in full:\nhow often it is found", fontsize=10)
    for kind, rows in result["profiles"]["PartiPrompts"]["encoders"].items():
        course(alone, kind, {said: row["one"] for said, row in rows.items()})
        better = {said: max(row["nearest"], row["solved"], key=mean) for said, row in rows.items()}
        course(many, kind, better)
        course(good, kind, {said: row["ari"] for said, row in rows.items()})
    for kind, found in result["in_full"].items():
        course(full, kind, found["prompts"])
    dressed(figure, list(panels), "share")
    figure.savefig(path)
