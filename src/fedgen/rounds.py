"""One round: the client's half (`turns`) and the server's (`play`). Places differ only in the `ask` between them."""

import dataclasses
import functools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fedgen import seeds, tree
from fedgen.aggregate import Aggregate, Fold
from fedgen.backbones import Backbone
from fedgen.bank import Bank
from fedgen.client import Job, Trained, Training, train
from fedgen.cohort import Cohort
from fedgen.data.deal import count, take
from fedgen.encode import Encoder, Profile, Silent
from fedgen.errors import ClientError, FedgenError
from fedgen.evaluate import Score, score
from fedgen.groups import Rules, choice, exchanged, grouped, joined, members, merged, offers, parted
from fedgen.outer import Outer
from fedgen.personal import Personal, Start
from fedgen.records import GLOBAL, Ask, Client, Failure, Offer, Reply, Report, Rows, State, Tree, Update
from fedgen.store import Shelf

SHARED, OWN = "shared", "own"
CLUSTER = "cluster"  # whose adapter a score is of: that of the client's own cluster
DIVERGED = "training ended in numbers that are not finite (loss {:.3g}); lower lr"


@dataclass(frozen=True)
class Site:
    """What a machine needs to play the turns of its clients; `rows` bounds each held-out measurement, 0 is all."""

    seed: int
    backbone: Backbone
    bank: Bank
    clients: Mapping[str, Client]
    training: Training
    personal: Personal
    shelf: Shelf
    rows: int = 0
    encoder: Encoder = field(default_factory=Silent)
    profile: Profile = field(default_factory=Profile)


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


def turn(site: Site, offer: Offer) -> Reply:
    """One client's half of a round."""
    return turns(site, [offer])[0]


def turns(site: Site, offers: Sequence[Offer]) -> list[Reply]:
    """The client's half of a round for several clients at once, each as if alone."""
    known = _taken(site, [offer for offer in offers if offer.client in site.clients])
    shared = _train(site, [(offer, Start(offer.adapter)) for offer in known if offer.use == "train"], SHARED)
    own = _train(site, [(offer, start) for offer in known if (start := _own_start(site, offer))], OWN)
    for offer in known:
        if offer.client in own and tree.is_finite(own[offer.client].adapter):
            site.shelf.put(offer.client, offer.round, own[offer.client].adapter)
    scores = _score(site, [offer for offer in known if offer.use in ("check", "score")])
    took = {offer.client: offer for offer in known}
    replies: list[Reply] = []
    for asked in offers:
        offer, client = took.get(asked.client, asked), site.clients.get(asked.client)
        where = offer.round, offer.client, offer.cluster
        done = own.get(offer.client) if offer.use == "score" else shared.get(offer.client)
        if client is None:
            replies.append(Failure(*where, reason="no such client here"))
        elif done and not tree.is_finite(done.adapter):
            replies.append(Failure(*where, reason=DIVERGED.format(done.loss)))
        elif offer.use == "encode":
            replies.append(_encoded(site, offer, client))
        elif offer.use == "train" and done:
            metrics = {"loss": done.loss, "steps": done.steps, "terms": done.terms}
            replies.append(Update(*where, done.adapter, count(client.train), metrics))
        else:
            replies.append(Update(*where, {}, count(client.train), _metrics(scores[client.name])))
    return replies


def _taken(site: Site, known: Sequence[Offer]) -> list[Offer]:
    """Each offer with the adapter that its client takes: that which knows its validation rows best, its own if even."""
    candidates = {offer.client: {offer.cluster: offer.adapter, **offer.beside} for offer in known if offer.beside}
    if not candidates:
        return list(known)
    tasks = [(name, cluster, adapter) for name, found in candidates.items() for cluster, adapter in found.items()]
    rows = {name: head(site.clients[name].valid, site.rows) for name in candidates}
    lines = [(site.bank.layout.vector(adapter), rows[name]) for name, _, adapter in tasks]
    losses: dict[str, dict[str, float]] = {}
    for (name, cluster, _), found in zip(tasks, score(site.backbone, site.bank, lines), strict=True):
        losses.setdefault(name, {})[cluster] = found.loss
    taken = []
    for offer in known:
        own = losses.get(offer.client, {offer.cluster: 0.0})
        best = min(own, key=own.__getitem__)  # the first of equals, which is its own cluster's
        others = {**offer.beside, offer.cluster: offer.adapter} if best != offer.cluster else offer.beside
        adapter = others[best] if best != offer.cluster else offer.adapter
        taken.append(dataclasses.replace(offer, cluster=best, adapter=adapter, beside=others))
    return taken


def _encoded(site: Site, offer: Offer, client: Client) -> Reply:
    """The client's profile; the same noise however often it is asked, so that asking again tells nothing more."""
    draw = seeds.generator(site.seed, -1, client.name, "profile")
    try:
        profile = site.profile.of(client.asks, site.encoder, site.backbone, draw)
    except FedgenError as error:
        return Failure(offer.round, client.name, offer.cluster, f"no profile: {error}")
    return Update(offer.round, client.name, offer.cluster, {}, count(client.train), {}, profile=profile)


def _own_start(site: Site, offer: Offer) -> Start | None:
    """What the client's own adapter trains from in this turn; None if it does not train."""
    own = site.shelf.get(offer.client)
    each_round = site.personal.each_round
    due = (offer.use == "train" and each_round) or (offer.use == "score" and (own is None or not each_round))
    fresh = functools.partial(site.bank.fresh, _draw(site, offer, OWN, "start"))
    return site.personal.begin(own, offer, fresh) if due else None


def _train(site: Site, starts: Sequence[tuple[Offer, Start]], what: str) -> dict[str, Trained]:
    if not starts:
        return {}
    jobs = [_job(site, offer, start, what) for offer, start in starts]
    training = site.training if what == SHARED else site.personal.training(site.training)
    return {done.name: done for done in train(training, site.backbone, site.bank, jobs)}


def _job(site: Site, offer: Offer, start: Start, what: str) -> Job:
    rows, draw = site.clients[offer.client].train, functools.partial(_draw, site, offer, what)
    return Job(offer.client, start.adapter, rows, draw, start.free)


def _draw(site: Site, offer: Offer, what: str, use: str) -> torch.Generator:
    return seeds.generator(site.seed, offer.round, offer.client, f"{what} {use}")


def _score(site: Site, offers: Sequence[Offer]) -> dict[str, dict[str, Score]]:
    """Each client's held-out scores: of the offered adapter, and at the end of the bare backbone and its own too."""
    nothing = torch.zeros(site.bank.layout.width)
    tasks: list[tuple[str, str, torch.Tensor, Rows]] = []
    for offer in offers:
        client, line = site.clients[offer.client], site.bank.layout.vector(offer.adapter)
        if offer.use == "check":
            tasks.append((client.name, offer.cluster, line, head(client.valid, site.rows)))
            continue
        lines = {"backbone": nothing} | _shared_lines(site, offer, line)
        if own := site.shelf.get(client.name):
            lines["personal"] = site.bank.layout.vector(own)
        tasks += [(client.name, name, own_line, head(client.test, site.rows)) for name, own_line in lines.items()]
    found: dict[str, dict[str, Score]] = {}
    results = score(site.backbone, site.bank, [(line, rows) for _, _, line, rows in tasks]) if tasks else []
    for (holder, name, _, _), result in zip(tasks, results, strict=True):
        found.setdefault(holder, {})[name] = result
    return found


def _shared_lines(site: Site, offer: Offer, line: torch.Tensor) -> dict[str, torch.Tensor]:
    """What is scored of the shared adapters: the global one, and in a cluster that which is or was the client's."""
    if offer.cluster != GLOBAL:
        beside = {GLOBAL: site.bank.layout.vector(offer.beside[GLOBAL])} if GLOBAL in offer.beside else {}
        return {**beside, CLUSTER: line}
    clusters = [name for name in offer.beside if name != GLOBAL]  # its own comes last: it was put there when refused
    return {GLOBAL: line} | ({CLUSTER: site.bank.layout.vector(offer.beside[clusters[-1]])} if clusters else {})


def _metrics(scores: Mapping[str, Score]) -> dict[str, float]:
    """Scores as the flat numbers of an update."""
    return {f"{name}.{key}": value for name, found in scores.items() for key, value in vars(found).items()}


def head(rows: Rows, most: int) -> Rows:
    """The first so many rows, or all."""
    return take(rows, torch.arange(min(most, count(rows)))) if most else rows


def read_scores(update: Update) -> dict[str, Score]:
    """The scores that an update's metrics carry, by adapter."""
    found: dict[str, dict[str, float]] = {}
    for key, value in update.metrics.items():
        name, _, part = key.rpartition(".")
        found.setdefault(name, {})[part] = value
    return {
        name: Score(parts["loss"], int(parts["terms"]), int(parts["words"]), int(parts["bytes"]))
        for name, parts in found.items()
    }


class _Tally:
    """What a round has seen so far."""

    def __init__(self, server: Server, state: State) -> None:
        self.server, self.state = server, state
        self.folds: dict[str, Fold] = {}
        self.weights: dict[str, float] = {}
        self.updates: list[Update] = []  # kept only where a rule looks at single ones
        self.moved: dict[str, str] = {}
        self.losses: dict[str, list[float]] = {}
        self.failures: list[Failure] = []
        self.terms = self.up = self.down = 0

    def take(self, reply: Reply) -> None:
        """Count one reply, and fold it in if it is an update."""
        self.down += reply.down
        if isinstance(reply, Update) and (why := self._broken(reply)):
            reply = Failure(reply.round, reply.client, reply.cluster, why, reply.down)
        if isinstance(reply, Failure):
            self.failures.append(reply)
            return
        if reply.cluster not in self.folds:
            self.folds[reply.cluster] = self.server.aggregate.fold(self.state.adapters[reply.cluster])
        self.folds[reply.cluster].add(reply)
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
        return "" if tree.is_finite(update.adapter) else "the update holds numbers that are not finite"

    def report(self, names: Sequence[str], seconds: float, clusters: Mapping[str, Any]) -> Report:
        """The round as it went; the order of arrival leaves no trace."""
        losses = [loss for own in self.losses.values() for loss in own]
        metrics = {"loss": math.fsum(losses) / len(losses), "terms": float(self.terms)}
        failures = tuple(sorted(self.failures, key=lambda failure: failure.client))
        return Report(self.state.round + 1, tuple(names), failures, metrics, self.up, self.down, seconds, clusters)


def play(server: Server, state: State, ask: Ask) -> tuple[State, Report]:
    """The server's half of a round: group who is to be grouped, offer, fold what comes back, step, exchange."""
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
        past = state.memory.get(cluster, {})
        adapters[cluster], memory[cluster] = server.outer.step(state.adapters[cluster], fold.close(), past)
    moved = {name: cluster for name, cluster in tally.moved.items() if cluster != GLOBAL}
    where = {**state.where, **moved} if moved else state.where
    return dataclasses.replace(state, round=state.round + 1, adapters=adapters, memory=memory, where=where)


def _together(server: Server, state: State, before: State, tally: _Tally) -> tuple[State, dict[str, Any]]:
    """The clusters after they have learnt from each other, and the global adapter of all of them."""
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
    return state, {"members": held, "loss": losses, **swapped, "events": [*joins, *parts]}


def _whole(server: Server, state: State, weights: Mapping[str, float]) -> Tree:
    """The adapters of all clusters as one, by the run's own rule; of one cluster, that itself."""
    if len(weights) == 1:
        return state.adapters[next(iter(weights))]
    fold = server.aggregate.fold(state.adapters[GLOBAL])
    for cluster, weight in weights.items():
        fold.add(Update(state.round, cluster, GLOBAL, state.adapters[cluster], round(weight)))
    return fold.close()
