"""A client's half of a round: it takes an offer, trains or measures on its own rows, and replies.

Places differ only in the `ask` that carries offers here and replies back.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from fedgen import seeds, tree
from fedgen.backbones import Backbone
from fedgen.client import Job, Start, Trained, Training, train
from fedgen.data.deal import count, take
from fedgen.encode import Encoder, Profile, Silent
from fedgen.errors import FedgenError, TreeError
from fedgen.evaluate import Score, score
from fedgen.guards import Guards
from fedgen.personal import Personal
from fedgen.records import GLOBAL, Client, Failure, Offer, Reply, Rows, Tree, Update
from fedgen.share import Halves, Share
from fedgen.store import Shelf
from fedgen.weights import AnyBank

SHARED, OWN = "shared", "own"
CLUSTER = "cluster"  # whose adapter a score is of: that of the client's own cluster
DIVERGED = "training ended in numbers that are not finite (loss {:.3g}); lower lr"


@dataclass(frozen=True)
class Site:
    """What a machine needs to play the turns of its clients; `rows` bounds each held-out measurement, 0 is all."""

    seed: int
    backbone: Backbone
    bank: AnyBank
    clients: Mapping[str, Client]
    training: Training
    personal: Personal
    shelf: Shelf
    rows: int = 0
    encoder: Encoder = field(default_factory=Silent)
    profile: Profile = field(default_factory=Profile)
    share: Share = field(default_factory=Halves)
    guards: Guards = field(default_factory=Guards)


def turn(site: Site, offer: Offer) -> Reply:
    """One client's half of a round."""
    return turns(site, [offer])[0]


def turns(site: Site, offers: Sequence[Offer]) -> list[Reply]:
    """The client's half of a round for several clients at once, each as if alone."""
    here = [offer for offer in offers if offer.client in site.clients]
    known = _met(site, _taken(site, site.guards.met(here, site.bank.layout)))
    shared = _train(site, [(offer, site.share.begin(offer)) for offer in known if offer.use == "train"], SHARED)
    own = _train(site, [(offer, start) for offer in known if (start := _own_start(site, offer))], OWN)
    for offer in known:
        kept = own.get(offer.client) or (shared.get(offer.client) if site.share.keep else None)
        if kept and tree.is_finite(kept.adapter):
            site.shelf.put(offer.client, offer.round, kept.adapter)
        elif offer.use == "score" and site.share.keep:
            site.shelf.put(offer.client, offer.round, offer.adapter)
        elif offer.use == "score" and (was := _kept(site, offer)):
            site.shelf.put(offer.client, offer.round, site.personal.meet(was, offer))
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
            replies.append(_update(site, offer, client, done))
        else:
            replies.append(Update(*where, {}, count(client.train), _metrics(scores[client.name])))
    return replies


def _update(site: Site, offer: Offer, client: Client, done: Trained) -> Reply:
    """What leaves of what was trained."""
    metrics = {"loss": done.loss, "steps": done.steps, "terms": done.terms}
    try:
        sent = site.guards.sent(site.share.sent(done.anchor or done.adapter, offer), offer, site.shelf)
    except TreeError as error:  # a change too long for its guards
        return offer.failed(str(error))
    return Update(offer.round, offer.client, offer.cluster, sent, count(client.train), metrics)


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


def _met(site: Site, taken: Sequence[Offer]) -> list[Offer]:
    """Each offer with the adapter that its client has, now that it has this offer, and the rank that it trains at."""
    found = []
    for offer in taken:
        own = _kept(site, offer) if site.share.keep and offer.adapter else None
        rank = offer.rank or site.bank.layout.rank_of(offer.adapter) if offer.adapter else 0
        found.append(dataclasses.replace(offer, adapter=site.share.meet(offer.adapter, own), rank=rank))
    return found


def _encoded(site: Site, offer: Offer, client: Client) -> Reply:
    """The client's profile; the same noise however often it is asked, so that asking again tells nothing more."""
    draw = seeds.generator(site.seed, -1, client.name, "profile")
    try:
        profile = site.profile.of(client.asks, site.encoder, site.backbone, draw)
    except FedgenError as error:
        return Failure(offer.round, client.name, offer.cluster, f"no profile: {error}")
    return Update(offer.round, client.name, offer.cluster, {}, count(client.train), {}, profile=profile)


def _kept(site: Site, offer: Offer) -> Tree | None:
    """The client's own part as it was before this turn, however often the turn is taken."""
    return site.shelf.get(offer.client, before=offer.round + (offer.use == "check"))


def _own_start(site: Site, offer: Offer) -> Start | None:
    """What the client's own adapter trains from in this turn; None if it does not train."""
    own, each_round = _kept(site, offer), site.personal.each_round
    due = (offer.use == "train" and each_round) or (offer.use == "score" and (own is None or not each_round))
    if not due:
        return None
    return site.personal.begin(own, offer, functools.partial(site.bank.fresh, _draw(site, offer, OWN, "start")))


def _train(site: Site, starts: Sequence[tuple[Offer, Start]], what: str) -> dict[str, Trained]:
    if not starts:
        return {}
    jobs = [_job(site, offer, start, what) for offer, start in starts]
    training = site.training if what == SHARED else site.personal.training(site.training)
    return {done.name: done for done in train(training, site.backbone, site.bank, jobs)}


def _job(site: Site, offer: Offer, start: Start, what: str) -> Job:
    rows, draw = site.clients[offer.client].train, functools.partial(_draw, site, offer, what)
    return Job(offer.client, start, rows, draw, offer.rank)


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
