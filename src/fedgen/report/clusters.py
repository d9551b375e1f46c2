"""The clusters of a run: who is in which, how they came about, what they give each other, and what they are worth."""

from collections import Counter
from collections.abc import Sequence

from fedgen.exchange import Neighbours, Toward
from fedgen.records import GLOBAL
from fedgen.report import cluster_charts, markup
from fedgen.report.digest import Digest
from fedgen.report.markup import Shaded
from fedgen.report.wording import ABSENT, called, counted, happened, listed, number, percent

OPEN = 12  # clusters up to which a table stands open
EVIDENCE = {
    "profiles": ", by the likeness of their encoded prompts; it has seen no prompt",
    "adapters": ", by the likeness of what they had learnt by themselves",
    "losses": ", each to the adapter that knew its validation rows best",
    "labels": ", by known labels that no server could know",
}
AGREEMENT = {
    "silhouette": (
        "Silhouette",
        "how much closer clients lie to their own cluster than to the next; 1 far, 0 no closer",
    ),
    "ari": ("ARI, known labels", "how well clusters and labels agree; 1 the same groups, 0 as by chance"),
    "nmi": ("NMI, known labels", "how much a client's cluster says of its label; 1 all of it, 0 nothing"),
}


def clusters(run: Digest) -> list[str]:
    """All that a page says of clusters; nothing for a flat run."""
    if not run.members:
        return []
    drawn = markup.figures(*cluster_charts.course(run))
    return [markup.words(_told(run)), _quality(run), drawn, _worth(run), _exchange(run), _events(run)]


def _told(run: Digest) -> str:
    sizes, outside = run.members.values(), run.clients - sum(run.members.values())
    spread = f"{min(sizes):,} to {max(sizes):,}" if min(sizes) < max(sizes) else f"{min(sizes):,}"
    rest = f" {counted(outside, 'client is', 'clients are')} in none and offered the global adapter." if outside else ""
    return (
        f"The server put {counted(run.clients - outside, 'client')} into {counted(len(sizes), 'cluster')} of {spread}"
        f"{EVIDENCE.get(run.plan.cluster.evidence, '')}.{rest} The members of a cluster train its adapter; the global "
        "adapter is the weighted mean of all."
    )


def _quality(run: Digest) -> str:
    found, uses = run.clusters.get("quality", {}), run.clusters.get("uses", {})
    pairs = [(name, f"{number(found[key])}: {note}") for key, (name, note) in AGREEMENT.items() if key in found]
    if gates := [uses[client] for client in run.clusters.get("where", {}) if client in uses]:
        away = gates.count(GLOBAL)
        taken = f"{len(gates) - away:,} of {counted(len(gates), 'client')} took a cluster's adapter"
        pairs.append(("Gate", f"{taken}, {away:,} the global one: each what knew its validation rows better"))
    return markup.facts(pairs) if pairs else ""


# ---- tables


def table_of(run: Digest) -> tuple[list[str], list[list[str]]]:
    """What each cluster is and what its members' scores come to, with the names of the columns."""
    inside: dict[str, list[str]] = {name: [] for name in run.members}
    for client in run.clusters["where"] | run.scores:
        inside.setdefault(run.clusters["where"].get(client, GLOBAL), []).append(client)
    labelled, kinds = ["Labels"] if _labels(run) else [], [kind.capitalize() for kind in run.kinds]
    head = ["Cluster", "Members", *labelled, *kinds, "Took global"]
    return head, [_row(run, cluster, clients) for cluster, clients in inside.items()]


def _row(run: Digest, cluster: str, clients: Sequence[str]) -> list[str]:
    scored = [client for client in clients if client in run.scores]
    scores = run.measures(run.pooled_over(scored, kind) for kind in run.kinds) if scored else [ABSENT] * len(run.kinds)
    labels = _labels(run)
    often = Counter(labels[client] for client in clients if client in labels).most_common()
    said = [listed([f"{label} {count:,}" for label, count in often], 3) or ABSENT] if labels else []
    uses = run.clusters.get("uses", {})
    away = sum(uses.get(client) == GLOBAL for client in clients)
    gate = f"{away:,}" if uses and cluster != GLOBAL else ABSENT
    return [called(cluster), f"{run.members.get(cluster, len(clients)):,}", *said, *scores, gate]


def _labels(run: Digest) -> dict[str, str]:
    """The known groups, of the clients that have one."""
    return {client: label for client, label in run.clusters.get("labels", {}).items() if label}


def _worth(run: Digest) -> str:
    if not run.scores or not run.clusters:
        return ""
    head, rows = table_of(run)
    caption = (
        f"{run.yardstick.name.capitalize()} {run.yardstick.unit} on the held-out {run.yardstick.material} of each "
        "cluster's members under each adapter; lower is better. Took global: how many found the global adapter better "
        "on their validation rows"
    )
    return _folded("Every cluster in a table", markup.table(caption, head, rows), len(rows))


def _exchange(run: Digest) -> str:
    """The shares of the last round in which clusters gave each other anything."""
    turns = [turn for turn, line in run.grouped.items() if "exchange" in line]
    if not turns:
        return ""
    found = run.grouped[turns[-1]]["exchange"]
    names, weights = found["names"], found["weights"]
    given = [share for at, row in enumerate(weights) for other, share in enumerate(row) if at != other]
    most = max(given, default=0) or 1
    rows = []
    for at, (name, row) in enumerate(zip(names, weights, strict=True)):
        cells: list[object] = [Shaded(percent(share), share / most) for share in row]
        cells[at] = percent(row[at])
        rows.append([name, *cells, percent(found["error"].get(name, 0))])
    rule, made = run.plan.exchange, "is made of these shares of the old ones"
    if isinstance(rule, Neighbours | Toward) and rule.of == "steps":
        made = "is its own, and on top these shares of the others' steps of the round"
    caption = (
        f"What clusters gave each other in round {turns[-1]:,}: the new adapter of a row {made}, shaded by how much. "
        "Lost: the share of its energy that did not fit its rank"
    )
    return _folded("Exchange between clusters", markup.table(caption, ["", *names, "Lost"], rows), len(rows))


def _folded(summary: str, table: str, rows: int) -> str:
    return table if rows <= OPEN else markup.more(summary, table)


def _events(run: Digest) -> str:
    rows = [(f"{turn:,}", happened(event)) for turn, line in run.grouped.items() for event in line.get("events", [])]
    table = markup.table(
        "When clusters were formed, merged and split, and clients moved", ["Round", "What"], rows, prose=True
    )
    return markup.more("What happened to the clusters", table) if rows else ""
