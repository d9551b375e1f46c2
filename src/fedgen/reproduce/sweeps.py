"""The figures of what was swept: rank, local steps, participation, worlds, and what averaging factors apart costs."""

from collections.abc import Callable, Sequence
from statistics import mean
from typing import Any

from fedgen.report.wording import size
from fedgen.reproduce.drawing import FAINT, HIGH, LADDER, LOOKS, Sheet, line, matplotlib, name_ends, powers_across
from fedgen.reproduce.reading import Result, Run, alike, bare, late, own


def ranks(result: Result) -> Sheet | None:
    """What a rank brings, and what it takes."""
    panels = [(result.unit, own), ("bytes of a message", _message), ("seconds of a run", _seconds)]
    return _swept(result, ("adapter.rank",), "rank", panels, logs=(1,))


def local_steps(result: Result) -> Sheet | None:
    """What longer local training brings, and how far the clients drift apart by it."""
    panels = [(result.unit, own), ("drift of a client", _drift), ("spread of directions", _spread)]
    return _swept(result, ("training.steps", "training.epochs"), "local steps a round", panels)


def participation(result: Result) -> Sheet | None:
    """What more clients a round bring, and what they send."""
    panels = [(result.unit, own), ("bytes sent up in all", _all_up), ("seconds of a run", _seconds)]
    return _swept(result, ("cohort.count", "cohort.fraction"), "clients a round", panels, logs=(1,))


Value = Callable[[Run], float | None]


def _swept(
    result: Result, keys: Sequence[str], across: str, panels: Sequence[tuple[str, Value]], *, logs: Sequence[int] = ()
) -> Sheet | None:
    """A panel a quantity, a line a method over the values that were swept."""
    found = result.sweep(*keys)
    if not found:
        return None
    values = sorted({value for own in found.values() for value in own})

    def paint(figure: Any) -> None:
        grid = figure.subplots(1, len(panels))
        for at, (axes, (title, of)) in enumerate(zip(grid, panels, strict=True)):
            ends = []
            for name, runs in found.items():
                points = [(x, y) for x, own in runs.items() if (y := _mean(own, of)) is not None]
                if points:
                    line(axes, name, *zip(*points, strict=True), mark="o")
                    ends.append((points[-1][1], result.title(name), LOOKS.get(name, (FAINT, ""))[0]))
            powers_across(axes, values, across)
            if at in logs:
                axes.set_yscale("log")
                axes.yaxis.set_major_formatter(matplotlib().ticker.FuncFormatter(lambda value, _: size(value)))
                axes.yaxis.set_minor_formatter(matplotlib().ticker.NullFormatter())
            axes.set_title(title)
            if at == len(panels) - 1:
                name_ends(axes, ends)

    return Sheet(HIGH - 0.2, paint)


def _mean(runs: Sequence[Run], of: Value) -> float | None:
    found = [value for run in runs if (value := of(run)) is not None]
    return mean(found) if found else None


def _message(run: Run) -> float | None:
    return run["message"] or None


def _seconds(run: Run) -> float:
    return float(run["seconds"])


def _drift(run: Run) -> float | None:
    return late(run.get("drift", []))


def _spread(run: Run) -> float | None:
    return late(run.get("spread", []))


def _all_up(run: Run) -> float:
    return float(sum(line["up"] for line in run["rounds"]))


# ---- F9: heterogeneity


def worlds(result: Result) -> Sheet | None:
    """How far each method falls below the backbone in each world."""
    names = result.worlds()
    tables = {world: alike(result.table(world)) for world in names}
    methods = [name for name in result.content["methods"] if all(name in table for table in tables.values())]
    if len(names) < 2 or not methods:
        return None

    def paint(figure: Any) -> None:
        axes, ends = figure.subplots(), []
        for name in methods:
            falls = [mean(1 - own(run) / bare(run) for run in tables[world][name]) for world in names]
            line(axes, name, range(len(names)), falls, mark="o")
            if name in LOOKS:
                ends.append((falls[-1], result.title(name), LOOKS[name][0]))
        axes.set_xticks(range(len(names)), names)
        axes.set_xlim(-0.2, len(names) - 0.8)
        axes.yaxis.set_major_formatter(matplotlib().ticker.PercentFormatter(1, decimals=None))
        axes.set_title(f"fall of {result.unit} below the bare backbone, own adapters; higher is better")
        name_ends(axes, ends)

    return Sheet(HIGH + 0.6, paint)


# ---- F10: averaging A and B apart


def apart(result: Result) -> Sheet | None:
    """How far the product of averaged factors is from the average of products, by round, for each rank."""
    swept = result.sweep("adapter.rank")
    name = next((name for name in ("fedit", "fedgen-edge") if name in swept), "")
    found = {rank: runs[0]["apart"] for rank, runs in swept.get(name, {}).items() if runs[0].get("apart")}
    if not found:
        return None

    def paint(figure: Any) -> None:
        axes, ends = figure.subplots(), []
        for (rank, errors), colour in zip(found.items(), LADDER, strict=False):
            axes.plot(range(1, len(errors) + 1), errors, color=colour)
            ends.append((errors[-1], f"rank {rank}", colour))
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(matplotlib().ticker.PercentFormatter(1, decimals=None))
        axes.set_title(f"{result.title(name)}: distance from the mean product, as a share of its length")
        axes.set_xlabel("round")
        name_ends(axes, ends)

    return Sheet(HIGH, paint)
