"""Several runs on one page: what differs in their plans, what came of it, and their curves over each other."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, cycle
from pathlib import Path
from typing import Any

from fedgen.errors import StoreError
from fedgen.records import GLOBAL
from fedgen.report import figures, markup
from fedgen.report.digest import BACKBONE, PERSONAL, Digest, read
from fedgen.report.figures import ACCENTS, PAGE_COLORS, Chart, Line
from fedgen.report.markup import Key
from fedgen.report.wording import ABSENT, counted, number, percent, saving, size, span
from fedgen.run import Run
from fedgen.store import write_whole

UNSAID = {"name"}  # keys that may differ without anything being different
MEASURED = ("backbone.length", "data.", "partition.", "deal.", "evaluate.rows")  # what decides which text is scored
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
    ended = {name: run.pooled(run.kinds[-1]).per_term for name, run in zip(names, runs, strict=True) if run.kinds}
    if len(ended) < 2:
        return f"{counted(len(ended), 'run')} of {len(runs):,} came to an end and can be compared by held-out text."
    best = min(ended, key=lambda name: ended[name])
    return f"The lowest held-out perplexity is {number(ended[best])} a token, of {best}."


def _unlike(runs: Sequence[Digest]) -> str:
    """A warning where perplexities do not stand side by side."""
    texts = {
        tuple((key, str(value)) for key, value in run.settings.items() if key.startswith(MEASURED)) for run in runs
    }
    seeds = {run.plan.seed for run in runs} if len(texts) == 1 else set[int]()
    models = {run.facts.get("backbone_hash") for run in runs if run.facts}
    sizes = {run.pooled(BACKBONE).terms for run in runs if run.scores}
    reasons = [
        *(["their backbones differ"] if len(models) > 1 else []),
        *(["their plans choose the text differently"] if len(texts) > 1 else []),
        *(["their seeds differ, and with them the rows that are held out"] if len(seeds) > 1 else []),
        *(["they were scored on different numbers of tokens"] if len(sizes) > 1 and len(texts) == 1 else []),
    ]
    said = "Take care in comparing the perplexities of these runs: " + "; ".join(reasons) + "."
    return markup.notice(said) if reasons else ""


def _results(runs: Sequence[Digest], names: Sequence[str]) -> str:
    head = ["Run", "Rounds", "Clients", "Backbone", "Global", "Personal", "Mean fall", "Gained"]
    rows = [_result(run, name) for run, name in zip(runs, names, strict=True)]
    caption = (
        "Perplexity per token over all held-out text; the fall and the clients that gained are those of the last "
        "adapter against the backbone; bytes are of the rounds, as serialised, saved against full-model FedAvg"
    )
    return markup.table(caption, [*head, "Up", "Down", "Uplink saved", "Time of rounds"], rows)


def _result(run: Digest, name: str) -> list[str]:
    perplexities = [
        number(run.pooled(kind).per_term) if kind in run.kinds else ABSENT for kind in (BACKBONE, GLOBAL, PERSONAL)
    ]
    gained = run.gains(run.kinds[-1]) if len(run.kinds) > 1 else None
    gains = [percent(gained.mean), f"{gained.gained:,} of {gained.clients:,}"] if gained else [ABSENT, ABSENT]
    rounds = f"{len(run.journal):,}" + ("" if run.finished else f" of {run.plan.rounds:,}, unfinished")
    saved = ABSENT if run.saved is None else saving(run.saved)
    sent = [size(run.sum("up")), size(run.sum("down")), saved, span(run.sum("seconds"))]
    return [name, rounds, f"{run.clients:,}", *perplexities, *gains, *sent]


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
    perplexity = Chart("perplexity", "Validation perplexity by round, one line a run.", "round", "per token")
    yield _overlaid("Validation perplexity", perplexity, runs, names, lambda run: run.metric("perplexity"))
    sent = Chart(
        "sent", "Validation perplexity by bytes sent up, one line a run.", "bytes up", "per token", tick_across=size
    )
    yield _overlaid("Perplexity by bytes sent up", sent, runs, names, _by_bytes)
    loss = Chart("loss", "Training loss by round, one line a run.", "round", "nats a token")
    yield _overlaid("Training loss", loss, runs, names, lambda run: run.metric("loss"))


def _by_bytes(run: Digest) -> tuple[Sequence[float], Sequence[float]]:
    sent = dict(
        zip((line["round"] for line in run.journal), accumulate(line["up"] for line in run.journal), strict=True)
    )
    rounds, values = run.metric("perplexity")
    return [sent[turn] for turn in rounds], values


def _overlaid(title: str, chart: Chart, runs: Sequence[Digest], names: Sequence[str], curve: Curve) -> str:
    """One line a run; when the colours are used up they come again, dashed."""
    looks = [(color, at >= len(ACCENTS)) for at, color in zip(range(len(runs)), cycle(ACCENTS), strict=False)]
    svg = figures.lines(chart, [Line(*curve(run), *look) for run, look in zip(runs, looks, strict=True)])
    keys = [
        Key(name, PAGE_COLORS[color], "dash" if dashed else "line")
        for name, (color, dashed) in zip(names, looks, strict=True)
    ]
    return markup.figure(title, svg, keys) if svg else ""
