"""The two figures of experiments/cifar.py: curves of the distance, and a sheet of samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from torch import Tensor

STYLES = {"adapters": ("#0067a8", "o"), "full model": ("#c8500a", "s")}
FAINT, RULE = "#596170", "#e2e2dd"


def curves(path: Path, result: Mapping[str, Any]) -> None:
    """The distance against rounds, and against megabytes sent up."""
    figure = Figure(figsize=(9, 3.6), layout="constrained", dpi=160)
    rounds, sent = figure.subplots(1, 2, sharey=True)
    for name, (colour, mark) in STYLES.items():
        found, up = result[name]["frechet"], [size / 1e6 for size in result[name]["bytes_up"]]
        rounds.plot(range(len(found)), found, color=colour, marker=mark, markersize=4.5, label=name)
        sent.plot(up[1:], found[1:], color=colour, marker=mark, markersize=4.5)  # no logarithm of round 0's nothing
    for axes, label in ((rounds, "round"), (sent, "megabytes sent up so far (log scale)")):
        axes.axhline(result["adapters"]["frechet"][0], color=FAINT, linestyle=":", label="backbone alone")
        axes.axhline(result["frechet_of_real"], color=FAINT, linewidth=1, label="as many real pictures")
        axes.set_xlabel(label)
        axes.grid(axis="y", color=RULE)
        axes.spines[["top", "right"]].set_visible(False)
    rounds.xaxis.set_major_locator(MaxNLocator(integer=True))
    sent.set_xscale("log")
    sent.xaxis.set_major_formatter("{x:g}")
    sent.xaxis.set_minor_formatter(NullFormatter())
    rounds.set_ylim(0, 1.08 * max(max(result[name]["frechet"]) for name in STYLES))
    rounds.set_ylabel(f"{result['distance']}\n(lower is better)", fontsize=9)
    figure.legend(*rounds.get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    figure.savefig(path)


def samples(path: Path, rows: Mapping[str, Tensor], classes: Sequence[str]) -> None:
    """A row a source, a column a class."""
    figure = Figure(figsize=(1.1 * len(classes) + 0.4, 1.1 * len(rows) + 0.3), layout="constrained", dpi=160)
    grid = figure.subplots(len(rows), len(classes))
    for line, (name, pictures) in zip(grid, rows.items(), strict=True):
        line[0].set_ylabel(name)
        for axes, picture in zip(line, pictures, strict=False):
            axes.imshow(picture.permute(1, 2, 0).numpy())
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
    for axes, name in zip(grid[0], classes, strict=True):
        axes.set_title(name, fontsize=10)
    figure.savefig(path)
