"""The page of one run, in the order in which a newcomer reads: what happened, gains, cost, how we know."""

from pathlib import Path
from typing import Any

from fedgen.report import account, charts, markup
from fedgen.report.digest import BACKBONE, Digest, per_byte, per_word, read
from fedgen.report.opening import opening
from fedgen.report.wording import ABSENT, counted, number, percent
from fedgen.run import Run
from fedgen.store import write_whole

PAGE = "report.html"
MOST_CLIENTS = 1000  # rows of the table of clients


def write(run: Run) -> Path:
    """Write a run's `report.html` into its folder, finished or not."""
    found = read(run)
    path = run.folder / PAGE
    write_whole(path, page(found))
    return path


def page(run: Digest) -> bytes:
    """The report as a page."""
    gained = "What the adapters gained" if run.scores else "How the training went"
    return markup.page(
        f"{run.plan.name}: fedgen-edge report",
        opening(run),
        markup.section(gained, _scores(run), _unscored(run), markup.figures(*charts.course(run)), _clients(run)),
        markup.section("What it took", *account.wire(run), markup.figures(*charts.price(run)), _rounds(run)),
        markup.section("Failures and dropped clients", *account.failures(run)),
        markup.section("How it was measured", markup.facts(account.measured(run)), account.resolved(run)),
    )


def _scores(run: Digest) -> str:
    if not run.scores:
        return ""
    pooled = {kind: run.pooled(kind) for kind in run.kinds}
    gained = [run.gains(kind) for kind in run.kinds[1:]]
    rows = [
        ("Perplexity per token", *(number(score.per_term) for score in pooled.values())),
        ("Perplexity per word", *(number(per_word(score)) for score in pooled.values())),
        ("Bits per byte", *(number(per_byte(score), 3) for score in pooled.values())),
        ("Mean fall per client", ABSENT, *(percent(gain.mean) for gain in gained)),
        ("Spread of the falls", ABSENT, *(percent(gain.spread) for gain in gained)),
        ("Fall, worst tenth", ABSENT, *(percent(gain.worst_decile) for gain in gained)),
        ("Clients that gained", ABSENT, *(f"{gain.gained:,} of {gain.clients:,}" for gain in gained)),
    ]
    caption = (
        f"On {pooled[BACKBONE].terms:,} held-out tokens of {counted(len(run.scores), 'client')}. The first three rows "
        "pool all text. A fall is each client's own, per token, against the backbone: its mean over clients, its "
        "standard deviation, and the mean of the tenth that gained least."
    )
    return markup.table(caption, ["", *(kind.capitalize() for kind in run.kinds)], rows)


def _unscored(run: Digest) -> str:
    missing = run.clients - len(run.scores) if run.finished else 0
    said = f"Left out here: {counted(missing, 'client')} that could not be scored under every adapter."
    return markup.notice(said) if missing else ""


def _clients(run: Digest) -> str:
    if len(run.kinds) < 2:
        return ""
    shown = run.ranked()[:MOST_CLIENTS]
    rows = [_client(run, name) for name in shown]
    head = [
        "Client",
        "Tokens",
        *(kind.capitalize() for kind in run.kinds),
        *(f"Fall, {kind}" for kind in run.kinds[1:]),
    ]
    some = f", the {len(shown):,} that gained least of {len(run.scores):,}" if len(shown) < len(run.scores) else ""
    caption = f"Perplexity per token on each client's held-out text, from the least to the most gained{some}"
    return markup.more("Every client in a table", markup.table(caption, head, rows))


def _client(run: Digest, name: str) -> list[str]:
    found = run.scores[name]
    perplexities = [number(found[kind].per_term) for kind in run.kinds]
    return [
        name,
        f"{found[BACKBONE].terms:,}",
        *perplexities,
        *(percent(run.fall(name, kind)) for kind in run.kinds[1:]),
    ]


def _rounds(run: Digest) -> str:
    if not run.journal:
        return markup.words("No round is finished yet.")
    head = [
        "Round",
        "Asked",
        "Failed",
        "Loss",
        "Validation perplexity",
        "Bytes up",
        "Bytes down",
        "Seconds",
        "Tokens a second",
    ]
    table = markup.table("What the journal says of each round", head, [_round(line) for line in run.journal])
    return markup.more("Every round in a table", table)


def _round(line: Any) -> list[str]:
    metrics, seconds = line["metrics"], line["seconds"]
    perplexity = number(metrics["perplexity"]) if "perplexity" in metrics else ABSENT
    speed = f"{metrics['terms'] / seconds:,.0f}" if seconds else ABSENT
    counts = [f"{line['round']:,}", f"{len(line['clients']):,}", f"{len(line['failures']):,}"]
    return [
        *counts,
        f"{metrics['loss']:.4f}",
        perplexity,
        f"{line['up']:,}",
        f"{line['down']:,}",
        f"{seconds:.1f}",
        speed,
    ]
