"""The server's clusters: who is in which, formed by profiles or adapters, joined later, merged, split, and exchanging.

Every function takes a state and returns one; a flat run has no clusters, and all of them leave it as it is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Tensor

from fedgen import lora, seeds, tree
from fedgen.cluster import (
    ROUGH,
    Agglomerative,
    Clustering,
    KMeans,
    Losses,
    Nothing,
    centroids,
    enough,
    folded,
    named,
    nearest,
    points_of_gram,
    silhouette,
)
from fedgen.errors import ClientError, TreeError
from fedgen.exchange import Alone, Exchange, Mixed
from fedgen.kinship import halves, redundant
from fedgen.records import GLOBAL, Ask, Failure, Offer, Range, Reply, State, Tree, Update, Use


@dataclass(frozen=True)
class Hierarchy:
    """How clusters live: formed anew after `every` so many rounds (0: once), each of at least `least` clients.

    Smaller ones are folded into the nearest; by losses, clients go where they do best, and a cluster may get smaller.

    Two whose adapters are alike beyond `merge` become one; one whose members' steps agree less than `split` becomes
    two (0: never). Both are cosines of products.
    """

    every: Annotated[int, Range(0)] = 0
    least: Annotated[int, Range(1)] = 2
    merge: Annotated[float, Range(0, 1)] = 0.0
    split: Annotated[float, Range(-1, 1)] = 0.0


@dataclass(frozen=True)
class Rules:
    """What a server groups its clients by; `labels` are known groups, where the data has them."""

    cluster: Clustering = field(default_factory=Nothing)
    hierarchy: Hierarchy = field(default_factory=Hierarchy)
    exchange: Exchange = field(default_factory=Alone)
    labels: Mapping[str, str] = field(default_factory=dict)
    seed: int = 0


def offers(
    state: State, names: Iterable[str], turn: int, use: Use, beside: Mapping[str, Tree] | None = None
) -> Iterator[Offer]:
    """The same question to each client, with its own cluster's adapter, and others beside it."""
    for name in names:
        cluster = state.cluster(name)
        others = {other: adapter for other, adapter in (beside or {}).items() if other != cluster}
        adapter = {} if use == "encode" else state.adapters[cluster]
        yield Offer(turn, name, cluster, adapter, use, others, state.ranks.get(name, 0))


def choice(rules: Rules, state: State, use: Use) -> dict[str, Tree]:
    """What a client may take in place of its cluster's adapter: by loss any other, at the end the global one too."""
    by_loss = state.clusters if rules.cluster.evidence == "losses" else []
    names = [*by_loss, *([GLOBAL] if use == "score" and state.clusters else [])]
    return {name: state.adapters[name] for name in names}


# ---- forming


def grouped(rules: Rules, state: State, names: Sequence[str], ask: Ask) -> tuple[State, dict[str, Any]]:
    """The state with its clients grouped, in the rounds in which that is due, and what there is to tell of it."""
    turn, every = state.round + 1, rules.hierarchy.every
    again = every and (turn - 1) % every == 0 and rules.cluster.evidence in ("profiles", "adapters")
    if rules.cluster.evidence == "none" or not (turn == 1 or again):
        return state, {}
    if rules.cluster.evidence == "labels":
        return _opened(state, _labelled(rules, names)), {}
    if rules.cluster.evidence == "names":
        return _opened(state, {name: f"cluster-{name}" for name in names}), {}
    draw = seeds.generator(rules.seed, turn, "", "cluster")
    told: dict[str, Any] = {}
    silent: list[str] = []
    small = 0
    if rules.cluster.evidence == "losses":
        known, labels = list(names), rules.cluster.group(torch.ones(len(names), 1), draw)
    else:
        known, points, profiles, silent = _evidence(rules, state, names, ask)
        found = rules.cluster.group(points, draw)
        labels = folded(found, points, rules.hierarchy.least)
        small = len(found.unique()) - len(labels.unique())
        state = replace(state, profiles=profiles)
        told = {"silhouette": silhouette(points, labels)}
    where = named(labels, known, state.where, state.adapters)
    events: list[dict[str, Any]] = [{"event": "formed", "from": state.clusters, "into": sorted(set(where.values()))}]
    if moved := sum(state.where.get(name, where[name]) != where[name] for name in where):
        events.append({"event": "moved", "clients": moved})
    if small:
        events.append({"event": "folded", "clusters": small, "least": rules.hierarchy.least})
    return _opened(state, where), told | {"events": events + _left_out(silent)}


def refuse(rules: Rules, names: Sequence[str]) -> None:
    """Refuse before the first round what could not be grouped in it."""
    if rules.cluster.evidence == "labels":
        _labelled(rules, names)
    elif isinstance(rules.cluster, KMeans | Agglomerative | Losses):
        enough("count", rules.cluster.count, len(names))


def _labelled(rules: Rules, names: Sequence[str]) -> dict[str, str]:
    """The cluster of each client by its known label."""
    if unknown := [name for name in names if not rules.labels.get(name)]:
        wish = "wanted a known label to group by, came none; choose another cluster.kind"
        raise ClientError(f"client '{unknown[0]}': {wish}")
    return {name: f"cluster-{rules.labels[name]}" for name in names}


def _evidence(
    rules: Rules, state: State, names: Sequence[str], ask: Ask
) -> tuple[list[str], Tensor, dict[str, Tensor], list[str]]:
    """Who answered, as points of length 1, their profiles, and why others are left out.

    A point is the largest taste of a client, or how alike its adapter's product is to each other's.
    """
    turn, by_profile = state.round + 1, rules.cluster.evidence == "profiles"
    question = offers(state, names, turn, "encode") if by_profile else offers(_flat(state), names, turn, "train")
    replies = sorted(ask(question), key=lambda reply: reply.client)
    profiles: dict[str, Tensor] = {}
    steps: dict[str, Tree] = {}
    if by_profile:
        profiles, silent = _profiles(replies)
    else:
        steps, silent = _steps(state, replies)
    if not profiles and not steps:
        first = silent[0] if silent else "nobody answered"
        raise ClientError(f"round {turn}: none of {len(names)} clients could be grouped; the first said: {first}")
    points = _points(profiles) if by_profile else points_of_gram(lora.cosines(list(steps.values())))
    return [*profiles, *steps], points, profiles, silent


def _points(profiles: Mapping[str, Tensor]) -> Tensor:
    """The largest taste of each client."""
    return torch.stack([profile[0] for profile in profiles.values()])


def _steps(state: State, replies: Sequence[Reply]) -> tuple[dict[str, Tree], list[str]]:
    """The adapters that can be compared, and why others cannot."""
    sent = {reply.client: reply.adapter for reply in replies if isinstance(reply, Update)}
    flaws: dict[str, str] = {}
    for name, adapter in sent.items():
        try:
            tree.check(adapter, state.adapters[GLOBAL], f"adapter of client '{name}'")
        except TreeError as error:
            flaws[name] = str(error)
        else:
            if not tree.is_finite(adapter):
                flaws[name] = f"adapter of client '{name}': wanted finite numbers, came others"
    kept = {name: adapter for name, adapter in sent.items() if name not in flaws}
    return kept, [*_reasons(replies), *flaws.values()]


def _flat(state: State) -> State:
    """All clients under the global adapter, from which their steps can be compared."""
    return replace(state, where={})


def _reasons(replies: Iterable[Reply]) -> list[str]:
    return [reply.reason for reply in replies if isinstance(reply, Failure)]


def _profiles(replies: Sequence[Reply], width: int = 0) -> tuple[dict[str, Tensor], list[str]]:
    """The profiles that are some, of the wanted width or that of most, and why the others are not."""
    sent = {reply.client: reply.profile for reply in replies if isinstance(reply, Update)}
    flaws = {name: _flaw(profile) for name, profile in sent.items()}
    sound = {name: profile for name, profile in sent.items() if profile is not None and not flaws[name]}
    widths = [profile.shape[1] for profile in sound.values()]
    width = width or max(widths, key=widths.count, default=0)
    for name, profile in sound.items():
        if profile.shape[1] != width:
            flaws[name] = f"wanted width {width} as of the others, came {profile.shape[1]}; all must encode alike"
    silent = [f"profile of client '{name}': {flaw}" for name, flaw in flaws.items() if flaw]
    return {name: profile for name, profile in sound.items() if not flaws[name]}, _reasons(replies) + silent


def _flaw(profile: Tensor | None) -> str:
    """Why it is no profile, if it is none."""
    if profile is None or profile.dim() != 2 or not profile.numel():
        return f"wanted vectors [tastes, width], came {'none' if profile is None else list(profile.shape)}"
    lengths = profile.double().norm(dim=1)
    if not lengths.isfinite().all():
        return "wanted finite vectors, came numbers that are not"
    off = float((lengths - 1).abs().max())
    return f"wanted vectors of length 1, came one that is off by {off:.2g}" if off > ROUGH else ""


def _opened(state: State, where: Mapping[str, str]) -> State:
    """The state with these clusters; a new one starts where most of its members were."""
    adapters = dict(state.adapters)
    for cluster in sorted(set(where.values()) - set(adapters)):
        origins = [state.cluster(name) for name in sorted(where) if where[name] == cluster]
        adapters[cluster] = adapters[max(sorted(set(origins)), key=origins.count)]
    return replace(state, adapters=adapters, where=dict(where))


def joined(rules: Rules, state: State, names: Sequence[str], ask: Ask) -> tuple[State, list[dict[str, Any]]]:
    """The state with those of these clients placed that came late: in the cluster whose centroid is nearest."""
    late = [name for name in names if name not in state.where]
    if rules.cluster.evidence != "profiles" or not late:
        return state, []
    replies = sorted(ask(offers(state, late, state.round + 1, "encode")), key=lambda reply: reply.client)
    clusters, centres = middles(state)
    profiles, silent = _profiles(replies, centres.shape[1])
    events = _left_out(silent)
    if not profiles:
        return state, events
    at = nearest(_points(profiles), centres).tolist()
    where = {name: clusters[place] for name, place in zip(profiles, at, strict=True)}
    return replace(state, where={**state.where, **where}, profiles={**state.profiles, **profiles}), events


def _left_out(silent: Sequence[str]) -> list[dict[str, Any]]:
    return [{"event": "left out", "clients": len(silent), "reason": silent[0]}] if silent else []


def middles(state: State) -> tuple[list[str], Tensor]:
    """The clusters that have members with profiles, and their centroids."""
    known = sorted(name for name in state.profiles if name in state.where)
    clusters = sorted({state.where[name] for name in known})
    labels = torch.tensor([clusters.index(state.where[name]) for name in known])
    return clusters, centroids(labels, torch.stack([state.profiles[name][0] for name in known]))


# ---- living


def members(state: State, sizes: Mapping[str, int]) -> dict[str, float]:
    """How many examples the members of each cluster hold; a cluster without members is left out."""
    found: dict[str, float] = {}
    for name, cluster in state.where.items():
        found[cluster] = found.get(cluster, 0.0) + sizes.get(name, 0)
    return dict(sorted(found.items()))


def exchanged(rules: Rules, state: State, before: State, sizes: Mapping[str, int]) -> tuple[State, dict[str, Any]]:
    """The state after its clusters have learnt from each other, in a round that began with the state before."""
    weights = members(state, sizes)
    if isinstance(rules.exchange, Alone) or len(weights) < 2:
        return state, {}
    adapters = {name: state.adapters[name] for name in weights}
    began = {name: before.adapters[name] for name in weights}
    mixed = rules.exchange.mix(adapters, _likeness(state, list(weights)), weights, state.round, began)
    return replace(state, adapters={**state.adapters, **mixed.adapters}), {"exchange": _told(list(weights), mixed)}


def _likeness(state: State, names: Sequence[str]) -> Tensor:
    """How alike clusters are: their centroids where there are profiles, else their adapters' products."""
    if state.profiles:
        clusters, centres = middles(state)
        if clusters == names:
            return (centres @ centres.T).double()
    return lora.cosines([state.adapters[name] for name in names])


def _told(names: Sequence[str], mixed: Mixed) -> dict[str, Any]:
    return {"names": list(names), "weights": mixed.weights.tolist(), "error": dict(mixed.error)}


def merged(rules: Rules, state: State, sizes: Mapping[str, int]) -> tuple[State, list[dict[str, Any]]]:
    """The state with alike clusters made one: the larger keeps its name and takes the other's members."""
    weights = members(state, sizes)
    if not rules.hierarchy.merge or len(weights) < 2:
        return state, []
    names, events = list(weights), []
    alike = lora.cosines([state.adapters[name] for name in names])
    for pair in redundant(alike, names, rules.hierarchy.merge):
        stays, goes = sorted(pair, key=lambda name: (-weights[name], name))
        whole = weights[stays] + weights[goes]
        parts = [(weights[name] / whole, state.adapters[name]) for name in (stays, goes)]
        adapter, _ = lora.compact(parts, lora.rank(state.adapters[stays]))
        where = {name: stays if cluster == goes else cluster for name, cluster in state.where.items()}
        memory = {name: kept for name, kept in state.memory.items() if name not in pair}
        state = replace(state, adapters={**state.adapters, stays: adapter}, where=where, memory=memory)
        events.append({"event": "merged", "from": sorted(pair), "into": [stays]})
    return state, events


def parted(rules: Rules, state: State, before: State, updates: Sequence[Update]) -> tuple[State, list[dict[str, Any]]]:
    """The state with each cluster halved whose members' steps disagree; the others go by their profiles, or stay."""
    events = []
    for cluster in sorted({update.cluster for update in updates} - {GLOBAL}) if rules.hierarchy.split else []:
        own = sorted((u for u in updates if u.cluster == cluster), key=lambda update: update.client)
        steps = [lora.product_sum([(1.0, u.adapter), (-1.0, before.adapters[cluster])]) for u in own]
        sides = halves(lora.cosines(steps), rules.hierarchy.split, rules.hierarchy.least)
        if sides is None:
            continue
        new = _free(state)
        gone = {u.client for u, side in zip(own, sides.tolist(), strict=True) if side}
        gone |= _near(state, cluster, {u.client for u in own}, gone)
        where = {name: new if name in gone else place for name, place in state.where.items()}
        state = replace(state, adapters={**state.adapters, new: state.adapters[cluster]}, where=where)
        events.append({"event": "split", "from": [cluster], "into": [cluster, new]})
    return state, events


def _free(state: State) -> str:
    """A name that no cluster has had."""
    return next(name for at in range(1, len(state.adapters) + 2) if (name := f"cluster-{at}") not in state.adapters)


def _near(state: State, cluster: str, asked: set[str], gone: set[str]) -> set[str]:
    """Of a cluster's members that took no step, those whose profile is nearer to those that go."""
    rest = [n for n, place in state.where.items() if place == cluster and n not in asked and n in state.profiles]
    known = [name for name in sorted(asked) if name in state.profiles]
    if not rest or not known:
        return set()
    side = torch.tensor([int(name in gone) for name in known])
    centres = centroids(side, torch.stack([state.profiles[name][0] for name in known]))
    at = nearest(torch.stack([state.profiles[name][0] for name in rest]), centres).tolist()
    return {name for name, place in zip(rest, at, strict=True) if place}
