"""One round: the client's half (`turns`) and the server's (`play`). Places differ only in the `ask` between them."""

import functools
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fedgen import seeds, tree
from fedgen.aggregate import Aggregate, Fold
from fedgen.backbones import Backbone
from fedgen.bank import Bank
from fedgen.client import Job, Trained, Training, train
from fedgen.cohort import Cohort
from fedgen.data.deal import count, take
from fedgen.errors import ClientError
from fedgen.evaluate import Score, score
from fedgen.outer import Outer
from fedgen.personal import Personal
from fedgen.records import Ask, Client, Failure, Offer, Reply, Report, Rows, State, Tree, Update
from fedgen.store import Shelf

SHARED, OWN = "shared", "own"
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


@dataclass(frozen=True)
class Server:
    """What the server needs to play a round."""

    seed: int
    names: Sequence[str]
    sizes: Mapping[str, int]
    cohort: Cohort
    aggregate: Aggregate
    outer: Outer


def turn(site: Site, offer: Offer) -> Reply:
    """One client's half of a round."""
    return turns(site, [offer])[0]


def turns(site: Site, offers: Sequence[Offer]) -> list[Reply]:
    """The client's half of a round for several clients at once, each as if alone."""
    known = [offer for offer in offers if offer.client in site.clients]
    shared = _train(site, [(offer, offer.adapter) for offer in known if offer.use == "train"], SHARED)
    own = _train(site, [(offer, start) for offer in known if (start := _own_start(site, offer))], OWN)
    for offer in known:
        if offer.client in own and tree.is_finite(own[offer.client].adapter):
            site.shelf.put(offer.client, offer.round, own[offer.client].adapter)
    scores = _score(site, [offer for offer in known if offer.use != "train"])
    replies: list[Reply] = []
    for offer in offers:
        where, client = (offer.round, offer.client, offer.cluster), site.clients.get(offer.client)
        done = own.get(offer.client) if offer.use == "score" else shared.get(offer.client)
        if client is None:
            replies.append(Failure(*where, reason="no such client here"))
        elif done and not tree.is_finite(done.adapter):
            replies.append(Failure(*where, reason=DIVERGED.format(done.loss)))
        elif offer.use == "train" and done:
            metrics = {"loss": done.loss, "steps": done.steps, "terms": done.terms}
            replies.append(Update(*where, done.adapter, count(client.train), metrics))
        else:
            replies.append(Update(*where, {}, count(client.train), _metrics(scores[client.name])))
    return replies


def _own_start(site: Site, offer: Offer) -> Tree | None:
    """What the client's own adapter trains from in this turn; None if it does not train."""
    own = site.shelf.get(offer.client)
    due = {"train": site.personal.each_round, "check": False, "score": own is None or not site.personal.each_round}
    return site.personal.begin(own, offer.adapter) if due[offer.use] else None


def _train(site: Site, starts: Sequence[tuple[Offer, Tree]], what: str) -> dict[str, Trained]:
    if not starts:
        return {}
    jobs = [
        Job(offer.client, start, site.clients[offer.client].train, functools.partial(_draw, site, offer, what))
        for offer, start in starts
    ]
    training = site.training if what == SHARED else site.personal.training(site.training)
    return {done.name: done for done in train(training, site.backbone, site.bank, jobs)}


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
        lines = {"backbone": nothing, offer.cluster: line}
        if own := site.shelf.get(client.name):
            lines["personal"] = site.bank.layout.vector(own)
        tasks += [(client.name, name, own_line, head(client.test, site.rows)) for name, own_line in lines.items()]
    found: dict[str, dict[str, Score]] = {}
    results = score(site.backbone, site.bank, [(line, rows) for _, _, line, rows in tasks]) if tasks else []
    for (holder, name, _, _), result in zip(tasks, results, strict=True):
        found.setdefault(holder, {})[name] = result
    return found


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
        self.losses: list[float] = []
        self.failures: list[Failure] = []
        self.terms = self.up = self.down = 0

    def take(self, reply: Reply) -> None:
        """Count one reply, and fold it in if it is an update."""
        self.down += reply.down
        if isinstance(reply, Update) and not tree.is_finite(reply.adapter):
            why = "the update holds numbers that are not finite"
            reply = Failure(reply.round, reply.client, reply.cluster, why, reply.down)
        if isinstance(reply, Failure):
            self.failures.append(reply)
            return
        if reply.cluster not in self.folds:
            self.folds[reply.cluster] = self.server.aggregate.fold(self.state.adapters[reply.cluster])
        self.folds[reply.cluster].add(reply)
        self.up += reply.up
        self.losses.append(reply.metrics["loss"])
        self.terms += int(reply.metrics["terms"])

    def report(self, names: Sequence[str], seconds: float) -> Report:
        """The round as it went; the order of arrival leaves no trace."""
        metrics = {"loss": math.fsum(self.losses) / len(self.losses), "terms": float(self.terms)}
        failures = tuple(sorted(self.failures, key=lambda failure: failure.client))
        return Report(self.state.round + 1, tuple(names), failures, metrics, self.up, self.down, seconds)


def play(server: Server, state: State, ask: Ask) -> tuple[State, Report]:
    """The server's half of a round: offer, fold what comes back, step."""
    began, now = time.perf_counter(), state.round + 1
    names = server.cohort.pick(server.names, server.sizes, run=server.seed, turn=now)
    tally = _Tally(server, state)
    for reply in ask(offers(state, names, now, "train")):
        tally.take(reply)
    if not tally.losses:
        first = tally.failures[0].reason if tally.failures else "nobody answered"
        raise ClientError(f"round {now}: none of {len(names)} clients sent an update; the first said: {first}")
    adapters, memory = dict(state.adapters), dict(state.memory)
    for cluster, fold in tally.folds.items():
        past = state.memory.get(cluster, {})
        adapters[cluster], memory[cluster] = server.outer.step(state.adapters[cluster], fold.close(), past)
    report = tally.report(names, time.perf_counter() - began)
    return State(now, adapters, memory, state.where), report


def offers(state: State, names: Iterable[str], turn: int, use: Literal["train", "check", "score"]) -> Iterator[Offer]:
    """The same question to each client, with its own cluster's adapter."""
    for name in names:
        cluster = state.cluster(name)
        yield Offer(turn, name, cluster, state.adapters[cluster], use)
