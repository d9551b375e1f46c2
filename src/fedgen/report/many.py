"""Several runs on one page: what differs in their plans, what came of it, and their curves over each other."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from fedgen.errors import StoreError
from fedgen.evaluate import Yardstick
from fedgen.report import figures, markup
from fedgen.report.digest import BACKBONE, CLUSTER, KINDS, Digest, read
from fedgen.report.figures import ACCENTS, PAGE_COLORS, Chart, Line
from fedgen.report.markup import Key
from fedgen.report.wording import ABSENT, counted, percent, saving, scale, size, span
from fedgen.run import Run
from fedgen.store import write_whole

UNSAID = {"name", "deal.memory"}  # keys that may differ without anything being different
# What decides which text or pictures are scored, and in what their loss is taken.
CHOSEN = "backbone.length", "backbone.size", "data.", "partition.", "deal.", "evaluate.rows"
TAKEN = "backbone.weighting", "backbone.gamma", "backbone.drop", "backbone.looks"
Curve = Callable[[Digest], tuple[Sequence[float], Sequence[float]]]


def compare(runs: Sequence[Run], to: Path) -> Path:
    """Write a page that lays runs side by side; unfinished ones show what there is."""
    if not runs:
        raise StoreError("compare: wanted at least one run, came none; name the folders of runs (see `fedgen list`)")
    if to.suffix != ".html":
        raise StoreError(f"compare: wanted a page to write, a name ending in .html, came '{to}'")
    write_whole(to, page([read(run) for run in runs]))
    return to


def page(runs: Sequence[Digest]) -> bytes:
    """The comparison as a page."""
    names = _names(runs)
    title = f"{counted(len(runs), 'run')} side by side"
    return markup.page(
        f"{title}: fedgen-edge",
        f'<header>\n<p class="kicker">fedgen-edge comparison</p>\n<h1>{markup.text(title)}</h1>\n'
        f'<p class="lead">{markup.text(_lead(runs, names))}</p>\n{_unlike(runs)}\n</header>',
        markup.section("Results", _results(runs, names)),
        markup.section("What differs in the plans", _differences(runs, names)),
        markup.section("How they converged", markup.figures(*_curves(runs, names))),
    )


def _names(runs: Sequence[Digest]) -> list[str]:
    """Each run's folder; a number behind it where two folders are called the same."""
    often, seen = Counter(run.name for run in runs), Counter[str]()
    names = []
    for run in runs:
        seen[run.name] += 1
        names.append(f"{run.name} ({seen[run.name]})" if often[run.name] > 1 else run.name)
    return names


def _lead(runs: Sequence[Digest], names: Sequence[str]) -> str:
    yardstick, *others = _yardsticks(runs)
    if others:
        return "Runs of text and runs of pictures; only those of one kind can be compared."
    ended = {name: run for name, run in zip(names, runs, strict=True) if run.kinds}
    if len(ended) < 2:
        said = f"{counted(len(ended), 'run')} of {len(runs):,} came to an end and can be compared by held-out"
        return f"{said} {yardstick.material}."
    values = {name: yardstick.of(run.pooled(run.kinds[-1])) for name, run in ended.items()}
    best = min(values, key=lambda name: values[name])
    lowest = f"{ended[best].measure(values[best])} a {yardstick.term}"
    return f"The lowest held-out {yardstick.name} is {lowest}, of {best}."


def _yardsticks(runs: Sequence[Digest]) -> list[Yardstick]:
    """The measures of the runs, each once."""
    return list(dict.fromkeys(run.yardstick for run in runs))


def _unlike(runs: Sequence[Digest]) -> str:
    """A warning where measures do not stand side by side."""
    yardsticks = _yardsticks(runs)
    if len(yardsticks) > 1:
        kinds = " and others ".join(f"{yardstick.name} {yardstick.unit}" for yardstick in yardsticks)
        return markup.notice(f"The scores of these runs do not stand side by side: some are {kinds}.")
    alike = not _differ(runs, CHOSEN)
    seeds = {run.plan.seed for run in runs} if alike else set[int]()
    models = {run.facts.get("backbone_hash") for run in runs if run.facts}
    sizes = {run.pooled(BACKBONE).terms for run in runs if run.scores}
    reasons = [
        *(["their backbones differ"] if len(models) > 1 else []),
        *([] if alike else [f"their plans choose the {yardsticks[0].material} differently"]),
        *(["their plans take the loss differently"] if _differ(runs, TAKEN) else []),
        *(["their seeds differ, and with them the rows that are held out"] if len(seeds) > 1 else []),
        *([f"they were scored on different numbers of {yardsticks[0].term}s"] if len(sizes) > 1 and alike else []),
    ]
    said = f"Take care in comparing the {yardsticks[0].name} of these runs: " + "; ".join(reasons) + "."
    return markup.notice(said) if reasons else ""


def _differ(runs: Sequence[Digest], keys: tuple[str, ...]) -> bool:
    """Whether the runs' plans say unlike things under any of these keys."""
    said = [
        [(key, value) for key, value in run.settings.items() if key.startswith(keys) and key not in UNSAID]
        for run in runs
    ]
    return any(each != said[0] for each in said)


def _results(runs: Sequence[Digest], names: Sequence[str]) -> str:
    kinds = [kind for kind in KINDS if kind != CLUSTER or any(kind in run.kinds for run in runs)]
    head = ["Run", "Rounds", "Clients", *(kind.capitalize() for kind in kinds), "Mean fall", "Gained"]
    timed = any(run.times for run in runs)
    rows = [
        [*_result(run, name, kinds), *([_simulated(run)] if timed else [])]
        for run, name in zip(runs, names, strict=True)
    ]
    measures = " and ".join(
        f"{yardstick.name} {yardstick.unit} over all held-out {yardstick.material}" for yardstick in _yardsticks(runs)
    )
    caption = (
        f"{measures.capitalize()}; the fall and the clients that gained are those of the last "
        "adapter against the backbone; bytes are of the rounds, as serialised, saved against full-model FedAvg"
    )
    clock = ["Simulated time"] if timed else []
    return markup.table(caption, [*head, "Up", "Down", "Uplink saved", "Time of rounds", *clock], rows)


def _result(run: Digest, name: str, kinds: Sequence[str]) -> list[str]:
    pooled = dict(zip(run.kinds, run.measures(map(run.pooled, run.kinds)), strict=True))
    measures = [pooled.get(kind, ABSENT) for kind in kinds]
    gained = run.gains(run.kinds[-1]) if len(run.kinds) > 1 else None
    gains = [percent(gained.mean), f"{gained.gained:,} of {gained.clients:,}"] if gained else [ABSENT, ABSENT]
    rounds = f"{len(run.journal):,}" + ("" if run.finished else f" of {run.plan.rounds:,}, unfinished")
    saved = ABSENT if run.saved is None else saving(run.saved)
    sent = [size(run.sum("up")), size(run.sum("down")), saved, span(run.sum("seconds"))]
    return [name, rounds, f"{run.clients:,}", *measures, *gains, *sent]


def _simulated(run: Digest) -> str:
    return span(max(run.times.values())) if run.times else ABSENT


def _differences(runs: Sequence[Digest], names: Sequence[str]) -> str:
    """One row a run, one column a key of the plan that is not the same in all."""
    found = [run.settings for run in runs]
    keys = dict.fromkeys(key for settings in found for key in settings)
    odd = [key for key in keys if key not in UNSAID and len({str(settings.get(key)) for settings in found}) > 1]
    if not odd:
        return markup.words("Nothing: all the plans are the same.")
    rows = [[name, *(_said(settings.get(key)) for key in odd)] for name, settings in zip(names, found, strict=True)]
    return markup.table("Keys of the resolved plans that are not the same in all", ["Run", *odd], rows)


def _said(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or ABSENT
    return ABSENT if value is None or value == "" else str(value)


def _curves(runs: Sequence[Digest], names: Sequence[str]) -> Iterator[str]:
    for yardstick in _yardsticks(runs):
        alike = {name: run for name, run in zip(names, runs, strict=True) if run.yardstick == yardstick}
        yield from _curves_of(yardstick, alike)


def _curves_of(yardstick: Yardstick, runs: Mapping[str, Digest]) -> Iterator[str]:
    """The curves of runs of one kind."""
    key, name, unit = yardstick.key, yardstick.name, yardstick.unit
    show = next(iter(runs.values())).measure
    seen = Chart(key, f"Validation {name} by round, one line a run.", "round", unit, show)
    yield _overlaid(f"Validation {name}", seen, runs, lambda run: run.metric(key))
    label = f"Validation {name} by bytes sent up, one line a run."
    sent = Chart(f"{key}-sent", label, "bytes up", unit, show, tick_across=size)
    yield _overlaid(f"{name.capitalize()} by bytes sent up", sent, runs, lambda run: run.over(run.sent))
    said, seconds = scale(max((time for run in runs.values() for time in run.times.values()), default=0.0))
    label = f"Validation {name} by simulated time, one line a run."
    timed = Chart(f"{key}-timed", label, f"simulated {said}", unit, show, tick_across="{:g}".format)
    yield _overlaid(f"{name.capitalize()} by simulated time", timed, runs, lambda run: _by_time(run, seconds))
    loss = Chart(f"{key}-loss", "Training loss by round, one line a run.", "round", yardstick.loss, show)
    yield _overlaid("Training loss", loss, runs, lambda run: run.metric("loss"))


def _by_time(run: Digest, unit: float) -> tuple[Sequence[float], Sequence[float]]:
    return run.over({turn: time / unit for turn, time in run.times.items()})


def _overlaid(title: str, chart: Chart, runs: Mapping[str, Digest], curve: Curve) -> str:
    """One line for each run that has it; when the colours are used up they come again, dashed."""
    looks = [(color, at >= len(ACCENTS)) for at, color in zip(range(len(runs)), cycle(ACCENTS), strict=False)]
    drawn = {name: Line(*curve(run), *look) for (name, run), look in zip(runs.items(), looks, strict=True)}
    svg = figures.lines(chart, list(drawn.values()))
    keys = [
        Key(name, PAGE_COLORS[line.color], "dash" if line.dashed else "line") for name, line in drawn.items() if line.xs
    ]
    return markup.figure(title, svg, keys) if svg else ""
