"""A run is a folder: the resolved plan, a journal, a checkpoint, the clients' shelf, adapters and scores.

`go` plays the rounds of a plan at any place and finishes the run; what it needs of a place is a `Place`.
"""

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

from fedgen import lora, plan, roster, seeds, tree
from fedgen.allot import by_kind, fitted
from fedgen.cohort import Uniform
from fedgen.devices import Hardware, Load
from fedgen.errors import StoreError
from fedgen.evaluate import Score, Yardstick, total, yardstick_of
from fedgen.groups import Rules, choice, offers
from fedgen.journal import Journal, line_of, load_checkpoint, save_checkpoint
from fedgen.plan import Plan
from fedgen.records import GLOBAL, Ask, Failure, Report, State, Tree, Update
from fedgen.rounds import Server, play
from fedgen.store import Card, Shelf, load_bundle, save_bundle, save_change, write_whole
from fedgen.turns import CLUSTER, read_scores

PLAN, FACTS, SCORES = "plan.toml", "facts.json", "scores.json"
JOURNAL, CHECKPOINT = "journal.jsonl", "checkpoint.safetensors"
ADAPTERS, SHELF = "adapters", "shelf"
KEPT = "@round-"  # between a cluster and the round that its adapter is of


class Clock(Protocol):
    """Simulated time; as a shelf, it can go back to the last finished round: `flush`, save the checkpoint, `settle`."""

    def stamped(self, report: Report) -> Report:
        """The report of the round that has just been played, with its times."""

    def flush(self, folder: Path, turn: int) -> None:
        """Bring the time after this round and what is in flight to the disk."""

    def settle(self, folder: Path, turn: int) -> None:
        """Forget how all other rounds ended."""

    def rewind(self, folder: Path, turn: int) -> None:
        """Go back to the end of this round."""


@dataclass(frozen=True)
class Place:
    """What a place gives a run: clients to ask, the adapter all start from, and facts about machine and model.

    `hardware` is what is known of the clients' devices, and `load` what a turn asks of one.
    """

    sizes: Mapping[str, int]
    ask: Ask
    start: Tree
    shelf: Shelf
    facts: Mapping[str, Any]
    labels: Mapping[str, str] = field(default_factory=dict)
    hardware: Mapping[str, Hardware] = field(default_factory=dict)
    load: Load | None = None
    clock: Clock | None = None


@dataclass(frozen=True)
class Run:
    """A run folder, to be read."""

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if not (self.folder / PLAN).is_file():
            raise StoreError(f"run '{self.folder}': holds no {PLAN}; wanted the folder of a run (see `fedgen list`)")

    @property
    def plan(self) -> Plan:
        """The resolved plan."""
        return plan.read(self.folder / PLAN)

    @property
    def facts(self) -> dict[str, Any]:
        """What was measured once: sizes, machine, versions."""
        return self._json(FACTS)

    @property
    def journal(self) -> list[dict[str, Any]]:
        """A line a finished round."""
        return Journal(self.folder / JOURNAL).lines()

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.folder / SCORES).exists()

    @property
    def outcome(self) -> dict[str, Any]:
        """How the run ended: time, memory, bytes and failures of the last question."""
        return self._json(SCORES)

    @property
    def clusters(self) -> dict[str, Any]:
        """Who is in which cluster, and how good the clusters are; nothing of a flat run."""
        return self._json(roster.CLUSTERS)

    @property
    def yardstick(self) -> Yardstick:
        """The measure that its scores are read in."""
        return yardstick_of(self.facts)

    @property
    def scores(self) -> dict[str, dict[str, Score]]:
        """Each client's held-out scores by adapter: backbone, global, personal."""
        clients = self.outcome.get("clients", {})
        return {name: {key: Score(**value) for key, value in found.items()} for name, found in clients.items()}

    def adapters(self) -> list[str]:
        """The names that `adapter` takes."""
        bundles = [path.name for path in (self.folder / ADAPTERS).glob("[!.]*") if path.is_dir()]
        return [*sorted(bundles, key=_by_round), *(f"client/{name}" for name in self.shelf().clients())]

    def shelf(self) -> Shelf:
        """The clients' own adapters."""
        return Shelf(self.folder / SHELF)

    def adapter(self, name: str) -> tuple[Tree, Card]:
        """An adapter by name: `global`, one kept on the way as `global@round-N`, a client's own as `client/NAME`."""
        own = self.shelf().get(name.removeprefix("client/")) if name.startswith("client/") else None
        if own is not None:
            client = name.removeprefix("client/")
            _, parent = self.adapter(self.clusters.get("uses", {}).get(client, GLOBAL))
            rank = lora.rank(own) if parent.rank else 0  # a full model's own part is a full model
            kin = dataclasses.replace(parent, client=client, parent=parent.hash, rank=rank)
            return own, dataclasses.replace(kin, hash="", metrics={})
        if not (self.folder / ADAPTERS / name).is_dir() or not name:
            names = self.adapters()
            near = get_close_matches(name, names, 8, 0.0)
            shown = ", ".join(each for each in names if each in near) + (
                f", ... ({len(names)} in all)" if len(names) > len(near) else ""
            )
            if name.startswith("client/") and "fleet" in self.facts.get("where", ""):
                shown += "; a client's own is on its device, where `fedgen fleet export` takes it out"
            none = f"none before its end: go on with `fedgen resume {self.folder}`"
            raise StoreError(f"run '{self.folder}': has no adapter '{name}'; it has {shown or none}")
        return load_bundle(self.folder / ADAPTERS / name, backbone_hash=self.facts.get("backbone_hash", ""))

    def _json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
        return found


def _by_round(name: str) -> tuple[str, int]:
    cluster, _, turn = name.partition(KEPT)
    return cluster, int(turn) if turn.isdecimal() else 0


@dataclass(frozen=True)
class Began:
    """The first thing a run tells: what is to be played, and from which round on."""

    folder: Path
    plan: Plan
    facts: Mapping[str, Any]
    round: int


@dataclass(frozen=True)
class Finished:
    """The last thing a run tells: everything is in its folder."""

    folder: Path


Tell = Callable[[object], None]


def go(folder: Path, settled: Plan, place: Place, tell: Tell) -> Run:
    """Play the rounds that are still to play, measure everyone, and save what came of it."""
    for path in folder.glob(".*.part"):  # what a killed process was writing
        path.unlink()
    _settle_facts(folder, place.facts)
    journal = Journal(folder / JOURNAL)
    state = load_checkpoint(folder / CHECKPOINT) or State(0, {GLOBAL: place.start})
    journal.rewind(state.round)
    place.shelf.rewind(state.round)
    if place.clock:
        place.clock.rewind(folder, state.round)
    names = sorted(place.sizes)
    tell(Began(folder, settled, place.facts, state.round))
    adapter, known = settled.adapter, (place.hardware, place.load)
    fit, ask = settled.fit(settled.allot.ranks(names, adapter.rank, adapter.ranks, *known)), place.ask
    parts = settled.cohort, settled.aggregate, settled.outer, rules_of(settled, place), settled.share
    server = Server(settled.seed, names, place.sizes, *parts, adapter.rank, settled.allot if settled.mixed else None)
    while state.round < settled.rounds:
        place = dataclasses.replace(place, ask=fitted(ask, fit, state.needs))
        state, report = play(server, state, place.ask)
        report = dataclasses.replace(report, ranks=by_kind(report.ranks, place.hardware))
        report = place.clock.stamped(report) if place.clock else report
        report = _checked(report, state, server, settled, place)
        if settled.evaluate.keep and state.round % settled.evaluate.keep == 0:
            _keep(folder, state, place, report)  # before the round counts, so that a resumed run has it too
        place.shelf.flush()
        if place.clock:
            place.clock.flush(folder, state.round)
        journal.append(line_of(report))
        save_checkpoint(folder / CHECKPOINT, state)
        place.shelf.settle(state.round)
        if place.clock:
            place.clock.settle(folder, state.round)
        tell(report)
    _finish(folder, state, server, dataclasses.replace(place, ask=fitted(ask, fit)))
    return Run(folder)


def rules_of(settled: Plan, place: Place) -> Rules:
    """What the server groups this place's clients by."""
    return Rules(settled.cluster, settled.hierarchy, settled.exchange, place.labels, settled.seed)


def _settle_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write down what holds for the whole run, or see that it still holds."""
    if not (folder / FACTS).exists():
        write_whole(folder / FACTS, _dump(facts))
    before = Run(folder).facts
    for name in ("backbone_hash", "clients", "dropped", "rows"):
        if before[name] != facts[name]:
            changed = f"wanted {name} as at its start ({before[name]}), came {facts[name]}"
            raise StoreError(f"run '{folder}': {changed}; put the backbone and the data back, or start a new run")


def _checked(report: Report, state: State, server: Server, settled: Plan, place: Place) -> Report:
    """The report with the shared adapters' measure on the validation rows of the same few clients each time."""
    every = settled.evaluate.every
    if not every or (state.round % every and state.round < settled.rounds):
        return report
    panel, beside = panel_of(settled, server.names), choice(server.rules, state, "check")
    replies = list(place.ask(offers(state, panel, state.round, "check", beside)))
    updates = [reply for reply in replies if isinstance(reply, Update)]
    found = [(reply.cluster, score) for reply in updates for score in read_scores(reply).values()]
    scores = [score for _, score in found]
    if not scores:
        return report
    seen = _measured(scores, place) | {
        "check_up": float(sum(reply.up for reply in replies if isinstance(reply, Update))),
        "check_down": float(sum(reply.down for reply in replies)),
    }
    clusters = dict(report.clusters)
    if clusters:
        by_cluster = {name: [score for cluster, score in found if cluster == name] for name in state.clusters}
        measures = {name: _measured(own, place) for name, own in by_cluster.items() if own}
        clusters["measure"] = {name: value for name, own in measures.items() for value in own.values()}
    return dataclasses.replace(report, metrics=dict(report.metrics) | seen, clusters=clusters)


def _measured(scores: Sequence[Score], place: Place) -> dict[str, float]:
    """Scores as the one metric of the journal and the cards; none without scores."""
    yardstick = yardstick_of(place.facts)
    return {yardstick.key: yardstick.of(total(scores))} if scores else {}


def _keep(folder: Path, state: State, place: Place, report: Report) -> None:
    """Save the shared adapters as they stand after this round."""
    key = yardstick_of(place.facts).key
    seen = {key: report.metrics[key]} if key in report.metrics else {}
    for cluster in state.adapters:
        _save(folder, f"{cluster}{KEPT}{state.round}", state, place, seen)


def panel_of(settled: Plan, names: Sequence[str]) -> list[str]:
    """The clients whose validation rows are looked at in every round."""
    draw = seeds.generator(settled.seed, -1, "", "panel")
    return sorted(
        Uniform(count=min(settled.evaluate.clients, len(names))).pick(names, {}, run=draw.initial_seed(), turn=-1)
    )


def _finish(folder: Path, state: State, server: Server, place: Place) -> None:
    """Ask everyone for scores, once the rounds are over; personal adapters stay on the clients' shelf."""
    began, beside = time.perf_counter(), choice(server.rules, state, "score")
    replies = list(place.ask(offers(state, server.names, state.round + 1, "score", beside)))
    place.shelf.flush()
    scores = {reply.client: read_scores(reply) for reply in replies if isinstance(reply, Update)}
    for cluster in state.adapters:
        inside = [found[key] for name, found in scores.items() if (key := _key_of(cluster, name, state)) in found]
        _save(folder, cluster, state, place, _measured(inside, place))
    if state.clusters:
        uses = {reply.client: reply.cluster for reply in replies if reply.client in scores}
        roster.write(folder, state, place.labels, uses)
    outcome = {
        "clients": {name: {key: vars(score) for key, score in found.items()} for name, found in sorted(scores.items())},
        "failures": [dataclasses.asdict(reply) for reply in replies if isinstance(reply, Failure)],
        "up": sum(reply.up for reply in replies if isinstance(reply, Update)),
        "down": sum(reply.down for reply in replies),
        "seconds": time.perf_counter() - began,
        "peak_memory": peak_memory(),
    }
    write_whole(folder / SCORES, _dump(outcome))
    place.shelf.settle(state.round + 1)  # not before: a run killed here asks anew, of what clients had then


def _key_of(cluster: str, client: str, state: State) -> str:
    """Under which name a client's score of this adapter stands, if it has one."""
    return GLOBAL if cluster == GLOBAL else CLUSTER if state.where.get(client) == cluster else ""


def peak_memory() -> int:
    """The most bytes this process has held; Linux's own counter, as getrusage there counts its parent's too."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text("utf-8").splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _save(folder: Path, name: str, state: State, place: Place, metrics: Mapping[str, float]) -> None:
    cluster, _, _ = name.partition(KEPT)
    adapter = state.adapters[cluster]
    card = Card(
        kind=place.facts["kind"],
        backbone=place.facts["backbone"],
        backbone_hash=place.facts["backbone_hash"],
        run=folder.name,
        round=state.round,
        cluster=cluster,
        parent=tree.digest(place.start),
        targets=tuple(place.facts["targets"]),
        fan_in_fan_out=place.facts["fan_in_fan_out"],
        metrics=metrics,
    )
    if place.facts["of"] == "weights":
        save_change(folder / ADAPTERS / name, adapter, card)
    else:
        save_bundle(folder / ADAPTERS / name, adapter, card, component=place.facts.get("component", ""))


def _dump(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
