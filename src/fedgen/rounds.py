"""The server's half of a round: group who is to be grouped, offer, fold what comes back, step, exchange."""

import dataclasses
import functools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedgen import factors, lora, tree
from fedgen.aggregate import ANEW, Aggregate, Fold
from fedgen.allot import Allot, Needed, mean_ranks, moved
from fedgen.cohort import Cohort
from fedgen.errors import ClientError, TreeError
from fedgen.groups import Rules, choice, exchanged, grouped, joined, members, merged, offers, parted
from fedgen.outer import Outer
from fedgen.records import GLOBAL, Ask, Failure, Offer, Reply, Report, State, Tree, Update
from fedgen.share import Halves, Share


@dataclass(frozen=True)
class Server:
    """What the server needs to play a round."""

    seed: int
    names: Sequence[str]
    sizes: Mapping[str, int]
    cohort: Cohort
    aggregate: Aggregate
    outer: Outer
    rules: Rules = field(default_factory=Rules)
    share: Share = field(default_factory=Halves)
    rank: int = 0  # what clients train at, where the plan sets no ranks of their own
    allot: Allot | None = None  # the rule for these, where it does


class _Tally:
    """What a round has seen so far."""

    def __init__(self, server: Server, state: State) -> None:
        self.server, self.state = server, state
        self.likes: dict[str, Tree] = {}
        self.folds: dict[str, Fold] = {}
        self.weights: dict[str, float] = {}
        self.updates: list[Update] = []  # kept only where a rule looks at single ones
        self.moved: dict[str, str] = {}
        self.losses: dict[str, list[float]] = {}
        self.ranks: dict[str, int] = {}  # of those who prune theirs
        self.layers: dict[str, dict[str, int]] = {}  # of those who have ranks of their own, layer by layer
        self.ordered: dict[str, Tree] = {}
        self.needs: dict[str, float] = {}
        self.failures: list[Failure] = []
        self.terms = self.up = self.down = 0

    def take(self, reply: Reply) -> None:
        """Count one reply, and fold it in if it is an update."""
        self.down += reply.down
        if isinstance(reply, Update):  # nobody counts for more than it said it holds
            rows = self.server.sizes.get(reply.client, reply.examples)
            reply = dataclasses.replace(reply, examples=min(reply.examples, rows))
            if why := self._broken(reply) or self._fold(reply):
                reply = Failure(reply.round, reply.client, reply.cluster, why, reply.down)
        if isinstance(reply, Failure):
            self.failures.append(reply)
            return
        self.weights[reply.cluster] = self.weights.get(reply.cluster, 0.0) + reply.examples
        if self.server.rules.hierarchy.split:
            self.updates.append(reply)
        self.moved[reply.client] = reply.cluster
        self.up += reply.up
        self.losses.setdefault(reply.cluster, []).append(reply.metrics["loss"])
        self.terms += int(reply.metrics["terms"])

    def _broken(self, update: Update) -> str:
        if update.cluster not in self.state.adapters:
            return f"the update is of cluster '{update.cluster}', which is none"
        if not tree.is_finite(update.adapter):
            return "the update holds numbers that are not finite"
        most = tree.LIMIT / max(sum(self.server.sizes.values()), 1)  # so that one cannot take the room of all
        huge = any(bool((value.abs() >= most).any()) for value in update.adapter.values())
        return f"the update holds numbers of {most:.3g} and more" if huge else ""

    def _fold(self, update: Update) -> str:
        """Fold an update in, or say why it does not fit."""
        cluster, turn, server = update.cluster, self.state.round + 1, self.server
        known = cluster in self.folds
        like = self.likes[cluster] if known else server.share.like(self.state.adapters[cluster], turn, server.rank)
        fold = self.folds[cluster] if known else server.aggregate.fold(like)
        try:
            whole = server.share.read(update.adapter, like, turn)
            own = {update.client: lora.rank(whole)} if server.share.prune else {}
            fold.add(dataclasses.replace(update, adapter=whole))
        except TreeError as error:
            return str(error)
        self.likes[cluster], self.folds[cluster] = like, fold
        self.ranks |= own
        if server.allot:
            self._weigh(update, whole)
        return ""

    def _weigh(self, update: Update, whole: Tree) -> None:
        """What rank an update has, and if that goes by need, how much it moved."""
        self.layers[update.client] = factors.ranks_of(whole)
        if isinstance(self.server.allot, Needed):
            if update.cluster not in self.ordered:
                self.ordered[update.cluster] = factors.ordered(self.state.adapters[update.cluster])
            self.needs[update.client] = moved(self.ordered[update.cluster], whole)

    def report(self, names: Sequence[str], seconds: float, clusters: Mapping[str, Any]) -> Report:
        """The round as it went; the order of arrival leaves no trace."""
        losses = [loss for own in self.losses.values() for loss in own]
        answered = float(len(losses))  # who is still at an earlier turn is neither an update nor a failure
        metrics = {"loss": math.fsum(losses) / answered, "terms": float(self.terms), "answered": answered}
        for fold in self.folds.values():  # of several clusters, the most that is told
            metrics |= {key: max(value, metrics.get(key, value)) for key, value in fold.told.items()}
        failures = tuple(sorted(self.failures, key=lambda failure: failure.client))
        counted = self.state.round + 1, tuple(names), failures, metrics, self.up, self.down, seconds, clusters
        return Report(*counted, ranks=mean_ranks(self.layers))


def play(server: Server, state: State, ask: Ask) -> tuple[State, Report]:
    """Play one round: the state after it, and what there is to tell of it."""
    began, now, rules = time.perf_counter(), state.round + 1, server.rules
    sums = {"up": 0, "down": 0}
    state, told = grouped(rules, state, server.names, functools.partial(_counted, ask, sums))
    names = server.cohort.pick(server.names, server.sizes, run=server.seed, turn=now)
    if not told:  # else everyone has just been asked
        state, late = joined(rules, state, names, functools.partial(_counted, ask, sums))
        told = {"events": late} if late else {}
    tally = _Tally(server, state)
    for reply in ask(offers(state, names, now, "train", choice(rules, state, "train"))):
        tally.take(reply)
    if not tally.losses:
        first = tally.failures[0].reason if tally.failures else "nobody answered"
        raise ClientError(f"round {now}: none of {len(names)} clients sent an update; the first said: {first}")
    stepped = _stepped(server, state, tally)
    if stepped.clusters:
        stepped, seen = _together(server, stepped, state, tally)
        told = told | sums | seen | {"events": [*told.get("events", []), *seen["events"]]}
    return stepped, tally.report(names, time.perf_counter() - began, told)


def _counted(ask: Ask, sums: dict[str, int], asked: Iterable[Offer]) -> Iterator[Reply]:
    """The replies, their bytes added to the sums."""
    for reply in ask(asked):
        sums["up"] += reply.up if isinstance(reply, Update) else 0
        sums["down"] += reply.down
        yield reply


def _stepped(server: Server, state: State, tally: _Tally) -> State:
    """Each adapter that was trained after its outer step, and the clients where they went."""
    adapters, memory = dict(state.adapters), dict(state.memory)
    for cluster, fold in tally.folds.items():
        past, now = state.memory.get(cluster, {}), state.adapters[cluster]
        stepped, memory[cluster] = server.outer.step(tally.likes[cluster], fold.close(), past)
        anew = isinstance(server.aggregate, ANEW)  # whose fold knows where it lands
        adapters[cluster] = stepped if anew else server.share.land(now, stepped, state.round + 1)
    moved = {name: cluster for name, cluster in tally.moved.items() if cluster != GLOBAL}
    where = {**state.where, **moved} if moved else state.where
    ranks, needs = {**state.ranks, **tally.ranks}, {**state.needs, **tally.needs}
    return State(state.round + 1, adapters, memory, where, state.profiles, ranks, needs)


def _together(server: Server, state: State, before: State, tally: _Tally) -> tuple[State, dict[str, Any]]:
    """The clusters after they have learnt from each other, and the global adapter of all of them."""
    moved = sum(before.where.get(name, cluster) != cluster for name, cluster in state.where.items())
    moves = [{"event": "moved", "clients": moved}] if moved else []
    state, swapped = exchanged(server.rules, state, before, server.sizes)
    state, joins = merged(server.rules, state, server.sizes)
    state, parts = parted(server.rules, state, before, tally.updates)
    weights = members(state, server.sizes)
    if GLOBAL in tally.folds:
        weights[GLOBAL] = tally.weights[GLOBAL]
    state = dataclasses.replace(state, adapters={**state.adapters, GLOBAL: _whole(server, state, weights)})
    held = dict.fromkeys(state.clusters, 0)
    for cluster in state.where.values():
        held[cluster] += 1
    losses = {cluster: math.fsum(own) / len(own) for cluster, own in sorted(tally.losses.items())}
    return state, {"members": held, "loss": losses, **swapped, "events": [*moves, *joins, *parts]}


def _whole(server: Server, state: State, weights: Mapping[str, float]) -> Tree:
    """The adapters of all clusters as one, by the run's own rule; of one cluster, that itself."""
    if len(weights) == 1:
        return state.adapters[next(iter(weights))]
    fold = server.aggregate.fold(state.adapters[GLOBAL])
    for cluster, weight in weights.items():
        fold.add(Update(state.round, cluster, GLOBAL, state.adapters[cluster], round(weight)))
    return fold.close()
