"""The figures of a study, each from its result file alone; one that the study has no runs for is left out.

F1, the picture of the system, is docs/picture.svg.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from fedgen.report.wording import size
from fedgen.reproduce import sweeps
from fedgen.reproduce.drawing import (
    FAINT,
    HIGH,
    INK,
    LOOKS,
    PALE,
    RULE,
    SERIES,
    Sheet,
    bytes_across,
    line,
    matplotlib,
    name_ends,
)
from fedgen.reproduce.reading import Result, Run, alike, gains, middle

ROUNDS = 500  # of which the upload is shown


@dataclass(frozen=True)
class Figure:
    """A figure of the page: its heading, what one sees there, and how it is made, if there are runs for it."""

    title: str
    caption: str
    sheet: Callable[[Result], Sheet | None]


# ---- F2: upload


def upload(result: Result) -> Sheet | None:
    """Bytes up over 500 rounds: one round's times 500, and all of a run's scaled to as many."""
    worlds = result.worlds()
    table = result.table(worlds[0]) if worlds else {}
    sending = {name: runs[0] for name, runs in table.items() if result.group(name) != "bounds" and runs[0]["rounds"]}
    if not sending:
        return None
    rows = sorted(
        ((result.title(name), name, *_uploads(run)) for name, run in sending.items()), key=lambda row: -row[2]
    )

    def paint(figure: Any) -> None:
        axes = figure.subplots()
        for at, (_, name, once, counted) in enumerate(rows):
            axes.barh(at, once, color=LOOKS.get(name, (FAINT, ""))[0], height=0.62)
            axes.plot(counted, at, "o", markerfacecolor="white", markeredgecolor=INK, markersize=5)
            axes.annotate(
                size(once), (max(once, counted), at), (7, 0), textcoords="offset points", va="center", fontsize=8.5
            )
        axes.set_yticks(range(len(rows)), [title for title, *_ in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(visible=False)
        axes.grid(axis="x", color=RULE)
        bytes_across(axes, f"sent up in {ROUNDS} rounds by all clients, log scale")
        axes.set_xlim(min(once for *_, once, _ in rows) / 2, 3 * max(once for *_, once, _ in rows))

    return Sheet(0.8 + 0.24 * len(rows), paint)


def _uploads(run: Run) -> tuple[float, float]:
    sent = [line["up"] for line in run["rounds"]]
    return sent[0] * ROUNDS, sum(sent) / len(sent) * ROUNDS


# ---- F3: quality against rounds and bytes


def progress(result: Result) -> Sheet | None:
    """The shared adapter on validation rows, against rounds and against bytes; a row a world."""
    found = {world: _courses(result, world) for world in result.worlds()}
    found = {world: courses for world, courses in found.items() if courses}
    if not found:
        return None

    def paint(figure: Any) -> None:
        grid = figure.subplots(len(found), 2, squeeze=False, sharey="row")
        for (left, right), (world, courses) in zip(grid, found.items(), strict=True):
            _against(left, right, result, courses)
            left.set_title(f"{world}: {result.unit}")
        grid[-1][0].set_xlabel("round")
        bytes_across(grid[-1][1], "sent up so far by all clients, log scale")

    return Sheet(HIGH * len(found), paint)


Course = Sequence[tuple[int, float, float]]


def _courses(result: Result, world: str) -> dict[str, Course]:
    """The mean of the seeds that all methods have."""
    table = {name: runs for name, runs in result.table(world).items() if result.group(name) != "bounds"}
    courses = {name: middle(runs) for name, runs in alike(table).items()}
    return {name: found for name, found in courses.items() if found}


def _against(left: Any, right: Any, result: Result, courses: Mapping[str, Course]) -> None:
    """One world's lines in both panels, named at their ends."""
    named: dict[tuple[float, ...], list[str]] = {}
    for name, found in courses.items():
        rounds, values, sent = zip(*found, strict=True)
        line(left, name, rounds, values)
        line(right, name, sent, values)
        if name in LOOKS:
            named.setdefault(values, []).append(name)
    if named:
        _frame(left, list(named))
    ends = [(values[-1], ", ".join(map(result.title, names)), LOOKS[names[-1]][0]) for values, names in named.items()]
    bytes_across(right, "")
    name_ends(right, ends)


def _frame(axes: Any, lines: Sequence[Sequence[float]]) -> None:
    """Show the named lines from their second point on; what lies higher leaves the picture."""
    low = min(min(values) for values in lines)
    high = max(max(values[1:] or values) for values in lines)
    edge = 0.06 * (high - low) or 0.01 * high
    axes.set_ylim(low - edge, high + edge)


# ---- F4: Fréchet distance


def distance(result: Result) -> Sheet | None:
    """The distance of drawn pictures to real ones, against rounds and against bytes."""
    drawn = [run for run in result.runs if run.get("frechet")]
    if not drawn:
        return None
    best = {run["method"]: run for run in reversed(drawn)}

    def paint(figure: Any) -> None:
        left, right = figure.subplots(1, 2, sharey=True)
        ends = []
        for name, run in best.items():
            seen, sent = run["frechet"], [0, *accumulate(row["up"] for row in run["rounds"])]
            values = seen["distance"]
            line(left, name, seen["rounds"], values, mark="o")
            later = [(sent[turn], value) for turn, value in zip(seen["rounds"], values, strict=True) if turn]
            line(right, name, *zip(*later, strict=True), mark="o")
            ends.append((values[-1], result.title(name), LOOKS.get(name, (PALE, ""))[0]))
        some = drawn[0]["frechet"]
        for axes in (left, right):
            axes.axhline(some["real"], color=FAINT, linewidth=1, linestyle=":")
        left.annotate(
            "as many real pictures", (0, some["real"]), (2, 3), textcoords="offset points", color=FAINT, fontsize=8.5
        )
        left.set_ylim(bottom=0)
        left.set_title(some["features"])
        left.set_xlabel("round")
        bytes_across(right, "sent up so far by all clients, log scale")
        name_ends(right, ends)

    return Sheet(HIGH, paint)


# ---- F5: who gains from the personal epoch


def personal(result: Result) -> Sheet | None:
    """Each client's gain from one personal epoch: sorted, and how many have how much; a colour a world."""
    tables = {world: result.table(world).get("fedgen-edge") for world in result.worlds()}
    found = {world: own for world, runs in tables.items() if runs and (own := gains(runs[0]))}
    if not found:
        return None

    def paint(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        share = matplotlib().ticker.PercentFormatter(1, decimals=None)
        for (world, falls), colour in zip(found.items(), SERIES, strict=False):
            gained = sum(fall > 0 for fall in falls) / len(falls)
            left.plot(
                range(1, len(falls) + 1), falls, color=colour, label=f"{world}: {gained:.0%} of {len(falls)} gain"
            )
            right.hist(falls, bins=20, histtype="step", color=colour, linewidth=1.6)
        left.axhline(0, color=INK, linewidth=0.8)
        left.set_title(f"fall of {result.unit} by the personal step")
        left.yaxis.set_major_formatter(share)
        left.set_xlabel("clients, sorted")
        left.legend(fontsize=8.5, loc="best")
        right.axvline(0, color=INK, linewidth=0.8)
        right.xaxis.set_major_formatter(share)
        right.xaxis.set_major_locator(matplotlib().ticker.MaxNLocator(5))
        right.set_title("clients")
        right.set_xlabel(f"fall of {result.unit}")

    return Sheet(HIGH, paint)


FIGURES: dict[str, Figure] = {
    "upload": Figure(
        "Upload",
        f"Bars are the bytes of the first round, as serialised, times {ROUNDS}; rings are all bytes counted over the "
        f"run, scaled to {ROUNDS} rounds.",
        upload,
    ),
    "progress": Figure(
        "Round by round",
        "The shared adapter on validation rows, mean of the seeds that all have. Grey: the methods not named. Two "
        "names at one line share their adapter and differ in the personal step alone.",
        progress,
    ),
    "frechet": Figure(
        "Pictures that are drawn",
        "Lower is better; every method and round draws from the same noise. It is no FID: the features are another "
        "network's.",
        distance,
    ),
    "personal": Figure(
        "What the personal step brings",
        "fedgen-edge: each client's held-out measure before and after its personal step, first seed.",
        personal,
    ),
    "rank": Figure(
        "Rank",
        "Held-out rows, own adapters; all at the rate that was chosen for the plan's own rank. Runs shared the machine "
        "with others, so their seconds are rough.",
        sweeps.ranks,
    ),
    "local-steps": Figure(
        "Local steps",
        "Drift is the mean distance of a client's update from the mean update, in lengths of the mean's step; spread "
        "is one less the mean cosine of two clients' steps. Both on products B·A, over the last half of the rounds.",
        sweeps.local_steps,
    ),
    "participation": Figure(
        "Participation",
        "Held-out rows, own adapters; the rounds are as many. Runs shared the machine, so their seconds are rough.",
        sweeps.participation,
    ),
    "worlds": Figure("Heterogeneity", "Held-out rows, own adapters, mean of the seeds.", sweeps.worlds),
    "apart": Figure("Averaging A and B apart", "One seed; the rank sweep's updates.", sweeps.apart),
}
