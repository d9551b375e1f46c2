"""Which figures a run gets, and what each says."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

from fedgen.report import figures, markup
from fedgen.report.digest import Digest
from fedgen.report.figures import FAINT, ONE, TWO, Chart, Line
from fedgen.report.markup import Key
from fedgen.report.wording import amount, counted, number, percent, scale, size

MOST_DOTS = 400  # more clients than this are shown by every so manieth of them


def course(run: Digest) -> list[str]:
    """What was learnt: by each client, and round by round; figures without a point are empty."""
    return [_falls(run), _validation(run), _loss(run)]


def price(run: Digest) -> list[str]:
    """What it took, round by round."""
    return [_by_bytes(run), _by_time(run), _bytes(run), _seconds(run), _speed(run)] if run.journal else []


def _loss(run: Digest) -> str:
    xs, ys = run.metric("loss")
    chart = Chart("loss", _said("Training loss", ys, run), "round", run.yardstick.loss, run.measure)
    return _figure("Training loss", figures.lines(chart, [Line(xs, ys)]), note="mean over the round's clients")


def _validation(run: Digest) -> str:
    yardstick = run.yardstick
    (xs, ys), title = run.metric(yardstick.key), f"Validation {yardstick.name}"
    chart = Chart(yardstick.key, _said(title, ys, run), "round", yardstick.unit, run.measure)
    whose = "each client's own cluster's adapter" if run.grouped else "the global adapter"
    note = f"{whose} on validation rows of {counted(min(run.plan.evaluate.clients, run.clients), 'client')}"
    return _figure(title, figures.lines(chart, [Line(xs, ys)]), note=note)


def _by_bytes(run: Digest) -> str:
    return _over(run, "bytes sent up", run.sent, "bytes up", size)


def _by_time(run: Digest) -> str:
    unit, seconds = scale(max(run.times.values(), default=0.0))
    across = {turn: time / seconds for turn, time in run.times.items()}
    return _over(run, "simulated time", across, f"simulated {unit}", "{:g}".format)


def _over(run: Digest, what: str, across: Mapping[int, float], unit: str, tick: Callable[[float], str]) -> str:
    """The measure over what it cost."""
    (xs, ys), yardstick = run.over(across), run.yardstick
    title, name = f"{yardstick.name.capitalize()} by {what}", f"{yardstick.key}-{what.replace(' ', '-')}"
    label = f"Validation {yardstick.name} by {what}, {_ends(ys, show=run.measure)}."
    chart = Chart(name, label, unit, yardstick.unit, run.measure, tick)
    return _figure(title, figures.lines(chart, [Line(xs, ys)]))


def _bytes(run: Digest) -> str:
    xs = [line["round"] for line in run.journal]
    up, down, full = run.running("up"), run.running("down"), list(accumulate(run.full_up))
    label = (
        f"Bytes sent so far by round: up {size(up[-1])}, down {size(down[-1])}, full-model FedAvg up {size(full[-1])}."
    )
    drawn = [Line(xs, full, FAINT, dashed=True), Line(xs, up, ONE, width=5), Line(xs, down, TWO)]
    keys = [Key("full model, up", "var(--faint)", "dash"), Key("up", "var(--one)", "band"), Key("down", "var(--two)")]
    svg = figures.lines(Chart("bytes", label, "round", "all so far, log scale", size, log=True), drawn)
    return _figure("Bytes on the wire", svg, keys)


def _seconds(run: Digest) -> str:
    xs, ys = [line["round"] for line in run.journal], [line["seconds"] for line in run.journal]
    chart = Chart("seconds", f"Seconds by round, {_ends(ys)}.", "round", "seconds", _plain)
    return _figure("Time of a round", figures.bars(chart, xs, ys))


def _speed(run: Digest) -> str:
    terms, timed = f"{run.yardstick.term}s", [line for line in run.journal if line["seconds"]]
    ys = [line["metrics"]["terms"] / line["seconds"] for line in timed]
    chart = Chart("speed", f"Training {terms} a second by round, {_ends(ys)}.", "round", f"{terms} a second", _plain)
    note = f"{terms} that the shared adapter was trained on"
    return _figure("Speed", figures.bars(chart, [line["round"] for line in timed], ys), note=note)


def _falls(run: Digest) -> str:
    if len(run.kinds) < 2:
        return ""
    names, (*_, before, last) = run.ranked(), run.kinds
    names = names[:: -(-len(names) // MOST_DOTS)]
    falls = {kind: [100 * run.fall(name, kind) for name in names] for kind in run.kinds[1:]}
    below = falls.get(before, [])
    titles = [
        f"{name}: " + ", ".join(f"{kind} {percent(run.fall(name, kind))}" for kind in run.kinds[1:]) for name in names
    ]
    title = f"Fall of {run.yardstick.name}"
    label = f"{title} for {counted(len(names), 'client')}, sorted: {last} {_ends(falls[last], '%')}."
    chart = Chart("falls", label, "clients, sorted", "% below the backbone", _plain)
    svg = figures.dots(chart, below, falls[last], titles)
    keys = [Key(last, "var(--one)", "dot"), *([Key(before, "var(--two)", "ring")] if below else [])]
    some = f"{len(names):,} of {len(run.scores):,} clients are drawn; " if len(names) < len(run.scores) else ""
    note = f"{some}point at a mark for its client; the table below has names and numbers"
    return _figure(f"{title} by client", svg, keys, note)


def _figure(title: str, svg: str, keys: Sequence[Key] = (), note: str = "") -> str:
    return markup.figure(title, svg, keys, note) if svg else ""


def _said(title: str, values: Sequence[float], run: Digest) -> str:
    return f"{title} by round, {_ends(values, show=run.measure)}."


def _ends(values: Sequence[float], unit: str = "", show: Callable[[float], str] = number) -> str:
    return f"from {show(values[0])}{unit} to {show(values[-1])}{unit}" if values else ""


def _plain(value: float) -> str:
    return amount(int(value)) if value == int(value) and abs(value) >= 1000 else f"{value:g}".replace("-", "−")
