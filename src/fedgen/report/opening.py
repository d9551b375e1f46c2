"""The head of a report: one sentence of what happened, the main numbers, and what must not be overlooked."""

from fedgen.records import GLOBAL
from fedgen.report import markup
from fedgen.report.digest import BACKBONE, CLUSTER, PERSONAL, Digest
from fedgen.report.markup import Tile
from fedgen.report.wording import amount, counted, listed, percent, saving, size, span

ENOUGH = 0.99  # of the uplink saved: below it, the report says why
SAID = {
    BACKBONE: "the bare backbone",
    GLOBAL: "the global adapter",
    CLUSTER: "the clusters' adapters",
    PERSONAL: "personal adapters",
}


def opening(run: Digest) -> str:
    """The head of the page."""
    kicker = f'<p class="kicker">fedgen-edge report · run {markup.text(run.name)} · {run.began:%d %B %Y}</p>'
    lead = f'<p class="lead">{markup.text(_what_happened(run))}</p>'
    parts = [
        kicker,
        f"<h1>{markup.text(run.plan.name)}</h1>",
        lead,
        _unfinished(run),
        markup.tiles(_tiles(run)),
        _unsaved(run),
    ]
    return "<header>\n" + "\n".join(part for part in parts if part) + "\n</header>"


def _what_happened(run: Digest) -> str:
    plan, rounds = run.plan, len(run.journal)
    asked = max((len(line["clients"]) for line in run.journal), default=0)
    large = f" of {amount(run.facts.get('parameters', 0))} parameters" if run.facts else ""
    who, each = counted(run.clients, "client"), ""
    if run.members:
        who, each = f"{who} in {counted(len(run.members), 'cluster')}", "one {} a cluster, each"
    if plan.adapter.of == "weights":
        what = f"{each.format('model') or 'a shared model'}{large}, every weight of it"
    else:
        what = f"{each.format('adapter') or 'a shared adapter'} of rank {plan.adapter.rank} for a frozen model{large}"
    told = f"{who} trained {what}, {asked:,} a round, in {counted(rounds, 'round')}."
    return f"{told} {_gained(run)}" if run.scores else told


def _gained(run: Digest) -> str:
    best = run.kinds[-1]
    if best == BACKBONE:
        return "No adapter was measured."
    gained = run.gains(best)
    subject = SAID[best][0].upper() + SAID[best][1:]
    return (
        f"{subject} {'lowered' if gained.mean >= 0 else 'raised'} the {run.yardstick.name} of "
        f"{run.yardstick.material} held out from training by "
        f"{percent(abs(gained.mean))} on average; {gained.gained:,} of {counted(gained.clients, 'client')} gained."
    )


def _unfinished(run: Digest) -> str:
    if run.finished:
        return ""
    done = f"{len(run.journal)} of {counted(run.plan.rounds, 'round')}"
    return markup.notice(
        f"This run is not finished: {done} so far, and scores on held-out {run.yardstick.material} come at its end. "
        "To go on, give its folder to fedgen resume."
    )


def _tiles(run: Digest) -> list[Tile]:
    times = (
        f"in rounds, and {span(run.outcome['seconds'])} for personal adapters and scores"
        if run.finished
        else "in rounds so far"
    )
    asked = [len(line["clients"]) for line in run.journal]
    return [
        *_gain_tiles(run),
        *_saving_tile(run),
        Tile(f"{run.clients:,}", "clients", f"{sum(asked):,} turns asked for, {sum(run.answered):,} answered"),
        Tile(f"{len(run.journal):,}", "rounds", f"of {run.plan.rounds:,} planned"),
        Tile(span(run.sum("seconds")), "time", times),
        *_simulated(run),
    ]


def _simulated(run: Digest) -> list[Tile]:
    if not run.times:
        return []
    whole = max(run.times.values())
    return [Tile(span(whole), "simulated time", f"{span(whole / len(run.times))} a round on the clients' devices")]


def _gain_tiles(run: Digest) -> list[Tile]:
    if run.kinds[-1:] in ([], [BACKBONE]):
        return []
    best, yardstick = run.kinds[-1], run.yardstick
    gained = run.gains(best)
    before, after = run.measures(map(run.pooled, (BACKBONE, best)))
    way = "lower" if gained.mean >= 0 else "higher"
    note = f"mean over clients; all {yardstick.material} together: {before} → {after} a {yardstick.term}"
    counts = f"{gained.gained:,} of {gained.clients:,}"
    lower = f"a lower {yardstick.name} than {SAID[BACKBONE]}'s on their own held-out {yardstick.material}"
    return [
        Tile(percent(abs(gained.mean)), f"{way} {yardstick.name} with {SAID[best]}", note),
        Tile(counts, "clients gained", lower),
    ]


def _saving_tile(run: Digest) -> list[Tile]:
    if run.saved is None:
        return []
    note = "counted as serialised; the full model as its weights' bytes, no header"
    return [Tile(saving(run.saved), "uplink saved against full-model FedAvg", note)]


def _unsaved(run: Digest) -> str:
    if run.saved is None or run.saved >= ENOUGH:
        return ""
    adapter, full = run.plan.adapter, run.facts["full_bytes"]
    message = run.sum("up") / (sum(run.full_up) / full)
    return markup.notice(
        f"The uplink saved is {saving(run.saved)}, under 99%. An update of rank {adapter.rank} on "
        f"{listed(adapter.targets)} takes {size(message)}, and the whole model only {size(full)}, because "
        f"with {amount(run.facts['parameters'])} parameters it is small. The same adapter saves more on a larger "
        "model; on this one, lower adapter.rank or name fewer adapter.targets."
    )
