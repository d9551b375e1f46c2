"""The figures of a run's clusters: a plane of clients, a tree over rounds, and curves."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

from fedgen.records import GLOBAL
from fedgen.report import figures, markup
from fedgen.report.digest import Digest, by_number
from fedgen.report.figures import ACCENTS, FAINT, PAGE_COLORS, SIZE, Band, Chart, Cloud, Line
from fedgen.report.markup import Key, Shape
from fedgen.report.wording import called, counted, happened, percent

COLOURED = len(ACCENTS) - 1  # of more clusters than colours: the last colour is a grey too
HALF = 0.25  # of a round on each side: as long a band lies still before it runs on
NAMED, TALLEST = 12, 7.0  # rows of a tree that still have names beside them, and the inches that it may take


def course(run: Digest) -> list[str]:
    """Where clients lie, how clusters came about, and how each learnt; figures without a point are empty."""
    colors = colors_of(run)
    return [_plane(run, colors), _tree(run, colors), _curves(run, colors, "measure"), _curves(run, colors, "loss")]


def colors_of(run: Digest) -> dict[str, str]:
    """Each cluster that ever was, with its colour; of many, the largest have their own and the others are grey."""
    most = Counter(run.members)
    for line in run.grouped.values():
        most |= Counter(line["members"])
    names = sorted(run.members | most, key=by_number)
    ranked = sorted(names, key=lambda name: (run.members.get(name, -1), most[name]), reverse=True)
    most_of = len(ACCENTS) if len(names) <= len(ACCENTS) else COLOURED
    largest = [name for name in names if name in ranked[:most_of]]
    return dict.fromkeys(names, FAINT) | dict(zip(largest, ACCENTS, strict=False))


def _plane(run: Digest, colors: Mapping[str, str]) -> str:
    points, where, labels = (run.clusters.get(key, {}) for key in ("points", "where", "labels"))
    inside: dict[str, list[str]] = {}
    for client in points:
        inside.setdefault(where.get(client, GLOBAL), []).append(client)
    clouds = []
    for cluster, color in _grey_first({GLOBAL: FAINT, **colors}):
        clients = inside.get(cluster, [])
        titles = [", ".join(filter(None, (name, called(cluster), labels.get(name)))) for name in clients]
        xs, ys = ([points[name][axis] for name in clients] for axis in range(2))
        ring = cluster == GLOBAL
        clouds.append(Cloud(xs, ys, titles, color, ring=ring, pale=color == FAINT and not ring))
    kept = f"{percent(run.clusters.get('kept', 0))} of the variance"
    label = f"The profiles of {counted(len(points), 'client')} in two dimensions, which keep {kept}, by cluster."
    svg = figures.scatter(Chart("profiles", label, "", ""), clouds)
    some = f"{len(points):,} of {run.clients:,} clients are drawn; " if len(points) < run.clients else ""
    note = f"{some}alike profiles lie close together; the plane keeps {kept}; point at a dot for its client"
    seen = {cluster: colors[cluster] for cluster in colors if cluster in inside}
    outside = [Key(called(GLOBAL), PAGE_COLORS[FAINT], "ring")] if GLOBAL in inside else []
    return markup.figure("Clients by what they ask for", svg, [*_keys(seen, "dot"), *outside], note) if svg else ""


@dataclass(frozen=True)
class Flow:
    """The members of each cluster round by round, laid out in a row a cluster."""

    lines: Mapping[int, Mapping[str, Any]]
    colors: Mapping[str, str]

    @property
    def most(self) -> int:
        """Members of the largest cluster there ever was."""
        return max(int(count) for line in self.lines.values() for count in line["members"].values())

    def row(self, name: str) -> int:
        """How far down a cluster runs."""
        return list(self.colors).index(name)

    def wide(self, turn: int, name: str) -> float:
        """How wide a cluster's band is: an emptied one is a thread."""
        return float(0.06 + 0.74 * self.lines[turn]["members"][name] / max(self.most, 1))

    def lanes(self, name: str) -> Iterator[Band]:
        """A cluster's band for each unbroken row of rounds in which it was."""
        turns = [turn for turn, line in self.lines.items() if name in line["members"]]
        breaks = [at for at, (before, after) in enumerate(pairwise(turns), 1) if after > before + 1]
        for begin, end in pairwise([0, *breaks, len(turns)]):
            yield self._lane(name, turns[begin:end])

    def _lane(self, name: str, turns: Sequence[int]) -> Band:
        first, last = (self.lines[turn]["members"][name] for turn in (turns[0], turns[-1]))
        title = f"{name}: {first:,} to {last:,} members, rounds {turns[0]:,} to {turns[-1]:,}"
        xs = [turn + side for turn in turns for side in (-HALF, HALF)]
        widths = [self.wide(turn, name) for turn in turns for _ in range(2)]
        color = self.colors[name]
        return Band(xs, [self.row(name)] * len(xs), widths, title, color, pale=color == FAINT)

    def cords(self) -> Iterator[Band]:
        """From the clusters that were to those that came of them."""
        for (before, past), (turn, line) in pairwise(self.lines.items()):
            for event in line.get("events", []):
                for old, new in product(event.get("from", []), event.get("into", [])):
                    if old != new and old in past["members"] and new in line["members"]:
                        color = self.colors[old if event["event"] == "merged" else new]
                        xs, middles = [before + HALF, turn - HALF], [self.row(old), self.row(new)]
                        yield Band(xs, middles, [], happened(event), color)


def _tree(run: Digest, colors: Mapping[str, str]) -> str:
    if not run.grouped:
        return ""
    flow = Flow(run.grouped, colors)
    first, *_, last = [len(line["members"]) for line in (*flow.lines.values(), *flow.lines.values())]
    label = f"Members of each cluster by round: {counted(first, 'cluster')} at first, {last:,} in the end."
    named = list(colors) if len(colors) <= NAMED else []
    chart = Chart("tree", label, "round", "", rows=named, high=min(max(SIZE[1], 0.8 + 0.09 * len(colors)), TALLEST))
    svg = figures.flow(chart, [*(lane for name in colors for lane in flow.lanes(name)), *flow.cords()])
    note = f"a band is as wide as its cluster has members, at most {flow.most:,}; point at one for its numbers"
    return markup.figure("Clusters round by round", svg, [] if named else _keys(colors, "band"), note)


def _curves(run: Digest, colors: Mapping[str, str], key: str) -> str:
    yardstick = run.yardstick
    means = {"loss": ("Training loss", yardstick.loss), "measure": (f"Validation {yardstick.name}", yardstick.unit)}
    title, unit = means[key]
    lines = []
    for name, color in _grey_first(colors):
        known = {turn: line[key][name] for turn, line in run.grouped.items() if name in line.get(key, {})}
        lines.append(Line(list(known), list(known.values()), color, pale=color == FAINT))
    label = f"{title} of {counted(len(colors), 'cluster')} by round, one line a cluster."
    svg = figures.lines(Chart(f"clusters-{key}", label, "round", unit, run.measure), lines)
    return markup.figure(f"{title} by cluster", svg, _keys(colors, "line")) if svg else ""


def _grey_first(colors: Mapping[str, str]) -> list[tuple[str, str]]:
    """In the order in which they are drawn: what has a colour lies on top."""
    return sorted(colors.items(), key=lambda one: one[1] != FAINT)


def _keys(colors: Mapping[str, str], shape: Shape) -> list[Key]:
    own = [Key(name, PAGE_COLORS[color], shape) for name, color in colors.items() if color != FAINT]
    rest = len(colors) - len(own)
    return [*own, *([Key(f"{rest:,} others", PAGE_COLORS[FAINT], shape)] if rest else [])]
