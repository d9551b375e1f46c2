"""The page of a run with clusters: planes, trees, tables and words that say what the run's files say."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedgen import Run, report
from fedgen import plan as plans
from fedgen.evaluate import total
from fedgen.records import Report
from fedgen.report.digest import read
from fedgen.report.wording import number
from fedgen.run import FACTS, JOURNAL, PLAN, SCORES, Began
from fedgen.screen import Screen, clusters_table, outcome_table, runs_table

KINDS = ("backbone", "global", "cluster", "personal")
TWO = {"ann": "cluster-1", "bob": "cluster-1", "cleo": "cluster-1", "dan": "cluster-2", "eve": "cluster-2"}
LABELS = {"ann": "sea", "bob": "sea", "cleo": "hill", "dan": "<hill>", "eve": "<hill>", "finn": ""}
EVENTS: dict[int, list[dict[str, Any]]] = {
    1: [{"event": "formed", "from": [], "into": ["cluster-1", "cluster-2", "cluster-3"]}],
    3: [{"event": "merged", "from": ["cluster-2", "cluster-3"], "into": ["cluster-2"]}],
    4: [
        {"event": "split", "from": ["cluster-1"], "into": ["cluster-1", "cluster-4"]},
        {"event": "moved", "clients": 2},
    ],
    6: [{"event": "moved", "clients": 1}],
}
MEMBERS = [
    {"cluster-1": 2, "cluster-2": 2, "cluster-3": 1},
    {"cluster-1": 2, "cluster-2": 2, "cluster-3": 1},
    {"cluster-1": 3, "cluster-2": 2},
    {"cluster-1": 2, "cluster-2": 2, "cluster-4": 1},
    {"cluster-1": 2, "cluster-2": 2, "cluster-4": 1},
    {"cluster-1": 3, "cluster-2": 2, "cluster-4": 0},
]
EXCHANGE = {
    "names": ["cluster-1", "cluster-2", "cluster-4"],
    "weights": [[0.9, 0.08, 0.02], [0.1, 0.9, 0.0], [0.0, 0.0, 1.0]],
    "error": {"cluster-1": 0.0123, "cluster-2": 0.0, "cluster-4": 0.0},
}


def lines_of(run: Run, told: Mapping[int, Mapping[str, Any]]) -> str:
    """The run's last line, once for each round, with what is told of clusters."""
    last = run.journal[-1]
    return "".join(json.dumps({**last, "round": turn, "clusters": said}) + "\n" for turn, said in told.items())


def scored(run: Run, where: Mapping[str, str]) -> dict[str, Any]:
    """The run's outcome with these clients, whose loss under their cluster's adapter lies below the global one's."""
    known = list(run.outcome["clients"].values())
    clients = {}
    for at, client in enumerate(where):
        found = known[at % len(known)]
        cluster = found["global"] | {"loss": found["global"]["loss"] * (0.99 - 0.001 * at)}
        clients[client] = found | {"cluster": cluster}
    return {**run.outcome, "clients": clients}


@pytest.fixture
def lay(tiny_run: Run, tmp_path: Path) -> Callable[..., Run]:
    """Makes a copy of the run that all share into one with clusters."""

    def lay(told: Mapping[int, Mapping[str, Any]], clusters: Mapping[str, Any], clients: int = 6) -> Run:
        run = Run(Path(shutil.copytree(tiny_run.folder, tmp_path / "grouped")))
        everyone = dict.fromkeys(tiny_run.scores) | clusters["where"]
        (run.folder / FACTS).write_text(json.dumps(run.facts | {"clients": clients}), "utf-8")
        (run.folder / SCORES).write_text(json.dumps(scored(run, everyone)), "utf-8")
        (run.folder / JOURNAL).write_text(lines_of(run, told), "utf-8")
        (run.folder / "clusters.json").write_text(json.dumps(clusters), "utf-8")
        return run

    return lay


@pytest.fixture
def grouped(lay: Callable[..., Run]) -> Run:
    """Two clusters and an emptied one, six rounds, one client in no cluster, and one whose gate chose otherwise."""
    told = {
        turn: {
            "members": members,
            "loss": dict.fromkeys(members, 3.0 - 0.1 * turn),
            "measure": {"cluster-1": 300.0 - turn, "cluster-2": 310.0 - turn},
            "events": EVENTS.get(turn, []),
            **({"exchange": EXCHANGE} if turn == 5 else {}),
        }
        for turn, members in enumerate(MEMBERS, 1)
    }
    return lay(told, {
        "where": TWO,
        "uses": TWO | {"bob": "global", "finn": "global"},
        "labels": LABELS,
        "points": {name: [float(at), float(at % 3)] for at, name in enumerate(LABELS)},
        "kept": 0.625,
        "quality": {"silhouette": 0.534, "ari": 0.91},
    })  # fmt: skip


@pytest.fixture
def forty(lay: Callable[..., Run]) -> Run:
    """Forty clusters of 1 to 40 members, the last one the largest."""
    where = {f"c{at}-{each}": f"cluster-{at}" for at in range(1, 41) for each in range(at)}
    members = {f"cluster-{at}": at for at in range(1, 41)}
    weights = [[0.9 if row == column else 0.1 / 39 for column in range(40)] for row in range(40)]
    exchange = {"names": list(members), "weights": weights, "error": {}}
    told = {
        turn: {"members": members, "loss": dict.fromkeys(members, 3.0 / turn), "exchange": exchange, "events": []}
        for turn in (1, 2)
    }
    points = {client: [float(at % 17), float(at % 23)] for at, client in enumerate(where)}
    clusters = {"where": where, "uses": where, "labels": {}, "points": points, "kept": 0.5, "quality": {}}
    return lay(told, clusters, clients=len(where) + 6)


class Page(HTMLParser):
    """A page as a reader's browser takes it apart."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.ids: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.cell = False
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for key, value in attrs if key == "id"]
        self.cell = tag in ("td", "th")
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif self.cell:
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.cell = False

    def handle_data(self, data: str) -> None:
        if self.cell:
            self.tables[-1][-1][-1] += data

    def table(self, column: str) -> list[list[str]]:
        """The table that has a column of this name."""
        return next(table for table in self.tables if column in table[0])

    def part(self, title: str) -> str:
        """The figure of this title."""
        found: list[str] = re.findall(r"<figure>.*?</figure>", self.source, re.DOTALL)
        return next(part for part in found if title in part)


def page(run: Run) -> Page:
    """The run's page, well made: ids said once and found, colours the page's own, nothing from elsewhere."""
    found = Page(report.write(run).read_text("utf-8"))
    assert len(found.ids) == len(set(found.ids)) > 0
    wanted = re.findall(r'href="#(.*?)"|url\(#(.*?)\)', found.source)
    assert {one or other for one, other in wanted} <= set(found.ids)
    svgs = re.findall(r"<svg.*?</svg>", found.source, re.DOTALL)
    assert not [colour for svg in svgs for colour in re.findall(r"#[0-9a-f]{6}\b", svg)]
    assert not re.search(r"https?:|@import|<script", found.source)
    levels = [int(level) for level in re.findall(r"<h(\d)", found.source)]
    assert all(after <= before + 1 for before, after in pairwise(levels))
    return found


def titles(part: str) -> list[str]:
    return re.findall(r"<title>(.*?)</title>", part)


def test_a_flat_run_has_no_such_part(tiny_run: Run) -> None:
    assert "Clusters" not in report.write(tiny_run).read_text("utf-8")
    assert clusters_table(tiny_run) is None


def test_clients_lie_on_a_plane_with_their_cluster_and_label(grouped: Run) -> None:
    part = page(grouped).part("Clients by what they ask for")
    assert sorted(titles(part)) == [
        "ann, cluster-1, sea", "bob, cluster-1, sea", "cleo, cluster-1, hill",
        "dan, cluster-2, &lt;hill&gt;", "eve, cluster-2, &lt;hill&gt;", "finn, in no cluster",
    ]  # fmt: skip
    assert "the plane keeps 62.5% of the variance" in part
    assert re.findall(r'<i class="(\w+)" style="--mark:var\(--(\w+)\)"></i>([\w -]+)<', part) == [
        ("dot", "one", "cluster-1"), ("dot", "two", "cluster-2"), ("ring", "faint", "in no cluster"),
    ]  # fmt: skip


def test_the_tree_shows_who_was_who(grouped: Run) -> None:
    part = page(grouped).part("Clusters round by round")
    assert titles(part) == [
        "cluster-1: 2 to 3 members, rounds 1 to 6",
        "cluster-2: 2 to 2 members, rounds 1 to 6",
        "cluster-3: 1 to 1 members, rounds 1 to 2",
        "cluster-4: 1 to 0 members, rounds 4 to 6",
        "cluster-2, cluster-3 merged into cluster-2",
        "cluster-1 split into cluster-1, cluster-4",
    ]
    assert re.findall(r"<text[^>]*>(cluster-\d+)</text>", part) == [f"cluster-{at}" for at in range(1, 5)]
    assert "3 clusters at first, 3 in the end" in part
    assert page(grouped).table("What")[1:] == [
        ["1", "cluster-1, cluster-2, cluster-3 formed"],
        ["3", "cluster-2, cluster-3 merged into cluster-2"],
        ["4", "cluster-1 split into cluster-1, cluster-4"],
        ["4", "2 clients moved to another cluster"],
        ["6", "1 client moved to another cluster"],
    ]


def test_a_cluster_that_comes_back_has_two_bands(lay: Callable[..., Run]) -> None:
    told = {turn: {"members": {"a": 3} | ({"b": 2} if turn != 2 else {})} for turn in (1, 2, 3)}
    part = page(lay(told, {"where": {"ann": "a", "bob": "b"}})).part("Clusters round by round")
    assert titles(part) == [
        "a: 3 to 3 members, rounds 1 to 3",
        "b: 2 to 2 members, rounds 1 to 1",
        "b: 2 to 2 members, rounds 3 to 3",
    ]


def test_each_cluster_has_its_curves(grouped: Run) -> None:
    found = page(grouped)
    for title, count in (("Validation perplexity by cluster", 2), ("Training loss by cluster", 4)):
        part = found.part(title)
        drawn = set(re.findall(r"fill: none; stroke: (var\(--\w+\)|currentColor)", part))
        assert {"var(--one)", "var(--two)"} <= drawn
        assert ("var(--four)" in drawn) == (count == 4)
    assert found.source.count("<svg") == 11


def test_the_exchange_is_that_of_the_last_round_that_had_one(grouped: Run) -> None:
    found = page(grouped)
    assert "What clusters gave each other in round 5" in found.source
    assert found.table("Lost") == [
        ["", "cluster-1", "cluster-2", "cluster-4", "Lost"],
        ["cluster-1", "90.0%", "8.0%", "2.0%", "1.2%"],
        ["cluster-2", "10.0%", "90.0%", "0.0%", "0.0%"],
        ["cluster-4", "0.0%", "0.0%", "100.0%", "0.0%"],
    ]
    shades = re.findall(r'color-mix\(in srgb, var\(--one\) (\d+)%, transparent\)">([\d.]+)%', found.source)
    assert shades == [("40", "8.0"), ("10", "2.0"), ("50", "10.0"), ("0", "0.0"), ("0", "0.0"), ("0", "0.0")]


def test_every_cluster_has_a_row_with_the_scores_of_its_members(grouped: Run) -> None:
    found = page(grouped).table("Took global")
    assert found[0] == ["Cluster", "Members", "Labels", *(kind.capitalize() for kind in KINDS), "Took global"]
    scores = grouped.scores

    def pooled(*clients: str) -> list[str]:
        return [number(total(scores[client][kind] for client in clients).per_term) for kind in KINDS]

    assert found[1:] == [
        ["cluster-1", "3", "sea 2, hill 1", *pooled("ann", "bob", "cleo"), "1"],
        ["cluster-2", "2", "<hill> 2", *pooled("dan", "eve"), "0"],
        ["cluster-4", "0", "–", "–", "–", "–", "–", "0"],
        ["in no cluster", "1", "–", *pooled("finn"), "–"],
    ]
    table = clusters_table(grouped)
    assert table is not None
    said = printed(table)
    assert all(cell in said for row in found[1:] for cell in row)
    assert "silhouette 0.53, ari 0.91" in said


def test_how_good_they_are_is_said_in_words(grouped: Run) -> None:
    found = page(grouped).source
    assert "The server put 5 clients into 3 clusters of 0 to 3. 1 client is in none and offered" in found
    assert "<dt>Silhouette</dt><dd>0.53: how much closer" in found
    assert "<dt>ARI, known labels</dt><dd>0.91: how well" in found
    assert "NMI" not in found
    assert "4 of 5 clients took a cluster&#x27;s adapter, 1 the global one" in found
    assert "6 clients in 3 clusters trained one adapter a cluster, each of rank 4" in found


def test_by_what_clients_were_grouped_is_said(grouped: Run) -> None:
    settled = plans.read(grouped.plan, ["cluster.kind=kmeans", "encode.kind=ngrams"])
    (grouped.folder / PLAN).write_text(plans.write(settled), "utf-8")
    assert (
        "of 0 to 3, by the likeness of their encoded prompts; it has seen no prompt. 1 client" in page(grouped).source
    )


def test_a_run_under_way_shows_its_rounds(grouped: Run) -> None:
    (grouped.folder / SCORES).unlink()
    (grouped.folder / "clusters.json").unlink()
    found = page(grouped)
    assert "Clusters round by round" in found.source
    assert "Validation perplexity by cluster" in found.source
    assert "Clients by what they ask for" not in found.source
    assert not [table for table in found.tables if "Took global" in table[0]]
    assert clusters_table(grouped) is None


def test_without_profiles_labels_and_gates(lay: Callable[..., Run]) -> None:
    told = {1: {"members": {"cluster-1": 5}, "loss": {"cluster-1": 3.0}, "events": []}}
    found = page(
        lay(told, {"where": dict.fromkeys(TWO, "cluster-1"), "uses": {}, "labels": {}, "points": {}, "kept": 0})
    )
    assert found.table("Took global")[0][:3] == ["Cluster", "Members", "Backbone"]
    assert "Clients by what they ask for" not in found.source
    assert "<dt>Gate" not in found.source
    assert "Validation perplexity by cluster" not in found.source


def test_forty_clusters_are_legible(forty: Run) -> None:
    found = page(forty)
    part = found.part("Clients by what they ask for")
    assert len(titles(part)) == 820
    assert re.findall(r"</i>([\w -]+)<", part) == [*(f"cluster-{at}" for at in range(36, 41)), "35 others"]
    tree = found.part("Clusters round by round")
    assert len(titles(tree)) == 40
    assert not re.findall(r"<text[^>]*>cluster-\d+</text>", tree)
    assert re.findall(r'<i class="band"[^>]*></i>([\w -]+)<', tree)[-2:] == ["cluster-40", "35 others"]
    assert "<summary>Every cluster in a table</summary>" in found.source
    assert "<summary>Exchange between clusters</summary>" in found.source
    assert [row[0] for row in found.table("Took global")[1:4]] == ["cluster-1", "cluster-2", "cluster-3"]
    assert len(found.table("Lost")) == 41


def test_names_of_clusters_are_text(lay: Callable[..., Run]) -> None:
    told = {1: {"members": {"cluster-<u>": 5}, "loss": {"cluster-<u>": 3.0}}}
    where = dict.fromkeys(TWO, "cluster-<u>")
    found = page(lay(told, {"where": where, "uses": where, "points": {"ann": [0.0, 1.0]}, "kept": 1.0}))
    assert "<u>" not in found.source
    assert found.table("Took global")[1][0] == "cluster-<u>"


# --- the same everywhere that adapters are listed


def printed(table: object) -> str:
    out = StringIO()
    Console(file=out, width=200).print(table)
    return out.getvalue()


def test_the_clusters_adapters_come_between_global_and_personal(grouped: Run, tiny_run: Run, tmp_path: Path) -> None:
    assert read(grouped).kinds == list(KINDS)
    found = page(grouped)
    assert found.table("Backbone")[0] == ["", *(kind.capitalize() for kind in KINDS)]
    assert found.table("Client")[0][2:6] == [kind.capitalize() for kind in KINDS]
    beside = Page(report.compare([grouped, tiny_run], tmp_path / "both.html").read_text("utf-8")).table("Gained")
    assert beside[0][3:8] == [*(kind.capitalize() for kind in KINDS), "Mean fall"]
    pooled = [number(total(own[kind] for own in grouped.scores.values()).per_term) for kind in KINDS]
    assert beside[1][3:7] == pooled
    assert beside[2][5] == "–"
    assert "cluster" not in printed(runs_table([tiny_run]))
    assert re.search(r"global +cluster +personal", printed(runs_table([grouped, tiny_run])))
    assert pooled[2] in printed(outcome_table(grouped))


def test_clients_are_drawn_beside_the_adapter_before_the_last(grouped: Run) -> None:
    part = page(grouped).part("Fall of perplexity by client")
    assert re.findall(r'<i class="(\w+)"[^>]*></i>(\w+)<', part) == [("dot", "personal"), ("ring", "cluster")]


def test_the_terminal_tells_what_befell_the_clusters(grouped: Run) -> None:
    out, metrics = StringIO(), {"loss": 2.0, "terms": 6.0}
    with Screen(Console(file=out, width=160)) as screen:
        screen.tell(Began(grouped.folder, grouped.plan, grouped.facts, 0))
        screen.tell(Report(4, ("a",), (), metrics, 1, 1, 0.5, {"members": MEMBERS[3], "events": EVENTS[4]}))
        screen.tell(Report(5, ("a",), (), metrics, 1, 1, 0.5))
    fourth, split, moved, fifth = out.getvalue().splitlines()[-4:]
    assert "3 clusters" in fourth
    assert (split, moved) == ("  cluster-1 split into cluster-1, cluster-4", "  2 clients moved to another cluster")
    assert "cluster" not in fifth
