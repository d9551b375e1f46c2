"""The page of one run, in the order in which a newcomer reads: what happened, gains, cost, how we know."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedgen.report import account, charts, markup
from fedgen.report.clusters import clusters
from fedgen.report.devices import devices
from fedgen.report.digest import BACKBONE, Digest, per_byte, per_word, read
from fedgen.report.gallery import gallery
from fedgen.report.opening import opening
from fedgen.report.ranks import ranks
from fedgen.report.wording import ABSENT, counted, number, percent, span
from fedgen.run import Run
from fedgen.store import write_whole

PAGE = "report.html"
MOST_CLIENTS = 1000  # rows of the table of clients


def write(run: Run) -> Path:
    """Write a run's `report.html` into its folder, finished or not."""
    found = read(run)
    path = run.folder / PAGE
    write_whole(path, page(found, gallery(run.folder)))
    return path


def page(run: Digest, drawn: Sequence[str]) -> bytes:
    """The report as a page, with the pieces of what was drawn."""
    gained = "What the adapters gained" if run.scores else "How the training went"
    return markup.page(
        f"{run.plan.name}: fedgen-edge report",
        opening(run),
        markup.section(gained, _scores(run), _unscored(run), markup.figures(*charts.course(run)), _clients(run)),
        markup.section("Clusters", *clusters(run)),
        markup.section("Ranks", *ranks(run)),
        markup.section("What they draw", *drawn),
        markup.section("What it took", *account.wire(run), devices(run), _price(run), _rounds(run)),
        markup.section("Failures and dropped clients", *account.failures(run)),
        markup.section("How it was measured", markup.facts(account.measured(run)), account.resolved(run)),
    )


def _scores(run: Digest) -> str:
    if not run.scores:
        return ""
    pooled, yardstick = [run.pooled(kind) for kind in run.kinds], run.yardstick
    gained = [run.gains(kind) for kind in run.kinds[1:]]
    in_text = [
        ("Perplexity per word", *(number(per_word(score)) for score in pooled)),
        ("Bits per byte", *(number(per_byte(score), 3) for score in pooled)),
    ]
    rows = [
        (f"{yardstick.name.capitalize()} {yardstick.unit}", *run.measures(pooled)),
        *(in_text if pooled[0].bytes else []),
        ("Mean fall per client", ABSENT, *(percent(gain.mean) for gain in gained)),
        ("Spread of the falls", ABSENT, *(percent(gain.spread) for gain in gained)),
        ("Fall, worst tenth", ABSENT, *(percent(gain.worst_decile) for gain in gained)),
        ("Clients that gained", ABSENT, *(f"{gain.gained:,} of {gain.clients:,}" for gain in gained)),
    ]
    first = "first three rows pool" if pooled[0].bytes else "first row pools"
    caption = (
        f"On {pooled[0].terms:,} held-out {yardstick.term}s of {counted(len(run.scores), 'client')}. The {first} all "
        f"{yardstick.material}. A fall is each client's own, {yardstick.unit}, against the backbone: its mean over "
        "clients, its standard deviation, and the mean of the tenth that gained least."
    )
    return markup.table(caption, ["", *(kind.capitalize() for kind in run.kinds)], rows)


def _unscored(run: Digest) -> str:
    missing = run.clients - len(run.scores) if run.finished else 0
    said = f"Left out here: {counted(missing, 'client')} that could not be scored under every adapter."
    return markup.notice(said) if missing else ""


def _clients(run: Digest) -> str:
    if len(run.kinds) < 2:
        return ""
    shown, measure = run.ranked()[:MOST_CLIENTS], f"{run.yardstick.name.capitalize()} {run.yardstick.unit}"
    rows = [_client(run, name) for name in shown]
    head = [
        "Client",
        f"{run.yardstick.term.capitalize()}s",
        *(kind.capitalize() for kind in run.kinds),
        *(f"Fall, {kind}" for kind in run.kinds[1:]),
    ]
    some = f", the {len(shown):,} that gained least of {len(run.scores):,}" if len(shown) < len(run.scores) else ""
    held_out = f"each client's held-out {run.yardstick.material}"
    caption = f"{measure} on {held_out}, from the least to the most gained{some}"
    return markup.more("Every client in a table", markup.table(caption, head, rows))


def _client(run: Digest, name: str) -> list[str]:
    found = run.scores[name]
    return [
        name,
        f"{found[BACKBONE].terms:,}",
        *run.measures(found[kind] for kind in run.kinds),
        *(percent(run.fall(name, kind)) for kind in run.kinds[1:]),
    ]


def _price(run: Digest) -> str:
    return markup.figures(*charts.price(run))


def _rounds(run: Digest) -> str:
    if not run.journal:
        return markup.words("No round is finished yet.")
    head = [
        "Round",
        "Asked",
        "Failed",
        "Loss",
        f"Validation {run.yardstick.name}",
        "Bytes up",
        "Bytes down",
        "Seconds",
        f"{run.yardstick.term.capitalize()}s a second",
        *(["Simulated time", "Of which the round"] if run.times else []),
        *(["Rounds late"] if run.plan.fleet.buffer and run.times else []),
    ]
    table = markup.table("What the journal says of each round", head, [_round(run, line) for line in run.journal])
    return markup.more("Every round in a table", table)


def _round(run: Digest, line: Any) -> list[str]:
    metrics, seconds = line["metrics"], line["seconds"]
    seen = run.measure(metrics.get(run.yardstick.key, math.nan))
    speed = f"{metrics['terms'] / seconds:,.0f}" if seconds else ABSENT
    counts = [f"{line['round']:,}", f"{len(line['clients']):,}", f"{len(line['failures']):,}"]
    return [
        *counts,
        f"{metrics['loss']:.4f}",
        seen,
        f"{line['up']:,}",
        f"{line['down']:,}",
        f"{seconds:.1f}",
        speed,
        *(span(metrics[key]) for key in ("clock", "waited") if key in metrics),
        *([f"{metrics['late']:.2f}"] if "late" in metrics else []),
    ]
