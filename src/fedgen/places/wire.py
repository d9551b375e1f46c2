"""What crosses between a server and its clients' machines: a few words as JSON, and each adapter once, as safetensors.

Nothing that comes is believed: what is not whole, or not what was asked for, is a `Failure` with its reason.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

import torch
from torch import Tensor

from fedgen import tree
from fedgen.devices import Hardware, said_again
from fedgen.errors import ClientError, PlanError, TreeError
from fedgen.guards import PACKED
from fedgen.records import GLOBAL, Failure, Offer, Reply, Tree, Update, Use
from fedgen.turns import CLUSTER, read_scores

PROFILE = "profile"  # the one key of a profile's tree
TRAINED = ("loss", "terms")  # what a turn's metrics hold at least
SCORED = {"backbone", GLOBAL, CLUSTER, "personal"}  # whose scores may come at the end
COUNTED = 2**53  # up to here numbers can be added without a thought; no honest one comes near
WRONG = (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)  # what reading nonsense raises
TYPES = {
    **dict.fromkeys(("run", "plan", "session", "client", "cluster", "use"), str),
    **dict.fromkeys(("base", "done", "round", "rank"), int),
}


@dataclass(frozen=True)
class Parcel:
    """One message of several offers or replies."""

    words: str
    trees: tuple[bytes, ...] = ()

    @property
    def size(self) -> int:
        """How many bytes cross."""
        return len(self.words.encode()) + sum(map(len, self.trees))


@dataclass(frozen=True)
class Errand:
    """On whose behalf a parcel goes out: the run, its settled plan, and the server's `session`, which began at `base`.

    Clients' own parts that are newer than round `base` are of a session that was cut short; those from before `done`,
    the last finished round, will not be asked for again.
    """

    run: str
    plan: str
    session: str = ""
    base: int = 0
    done: int = 0


class _Trees:
    """Trees under way, each distinct one once."""

    def __init__(self) -> None:
        self.packed: dict[bytes, int] = {}
        self.known: dict[int, int] = {}

    def at(self, found: Tree) -> int:
        """Where this tree lies in the parcel; -1 for none."""
        if not found:
            return -1
        if id(found) not in self.known:
            self.known[id(found)] = self.packed.setdefault(tree.pack(found), len(self.packed))
        return self.known[id(found)]


# ---- the server's questions


def question(errand: Errand) -> Parcel:
    """Whom do you hold?"""
    return Parcel(json.dumps({"errand": asdict(errand)}))


def offered(errand: Errand, offers: Sequence[Offer]) -> Parcel:
    """Offers as they go out."""
    trees = _Trees()
    said = [
        {
            "round": offer.round,
            "client": offer.client,
            "cluster": offer.cluster,
            "use": offer.use,
            "rank": offer.rank,
            "adapter": trees.at(offer.adapter),
            "beside": {name: trees.at(other) for name, other in offer.beside.items()},
        }
        for offer in offers
    ]
    return Parcel(json.dumps({"errand": asdict(errand), "offers": said}), tuple(trees.packed))


def read_offers(parcel: Parcel) -> tuple[Errand, list[Offer] | None]:
    """What a server asks; None instead of offers if it asks who is here."""
    try:
        said = json.loads(parcel.words)
        errand = Errand(**_typed(said["errand"]))
        trees = [tree.unpack(raw, "offer")[0] for raw in parcel.trees]
        if "offers" not in said:
            return errand, None
        offers = [_offer(own, trees) for own in said["offers"]]
        if len({offer.client for offer in offers}) != len(offers):
            raise ValueError("a client twice")
        return errand, offers
    except WRONG as error:
        remedy = "do both ends run the same version?"
        raise ClientError(f"parcel: wanted offers, came something else ({plain(repr(error))}); {remedy}") from error


def _typed(said: Mapping[str, Any]) -> dict[str, Any]:
    """Fields, of which each is what it must be."""
    if odd := [key for key, value in said.items() if key in TYPES and type(value) is not TYPES[key]]:
        raise TypeError(f"{odd[0]}={said[odd[0]]!r}")
    return dict(said)


def _offer(said: Mapping[str, Any], trees: Sequence[Tree]) -> Offer:
    fields = _typed(said)
    if said["use"] not in get_args(Use):
        raise ValueError(f"use={said['use']!r}")
    fields["adapter"] = _tree(trees, said["adapter"])
    fields["beside"] = {name: _tree(trees, at) for name, at in said["beside"].items()}
    return Offer(**fields)


def _tree(trees: Sequence[Tree], at: int) -> Tree:
    if at < -1:
        raise IndexError(at)
    return {} if at == -1 else trees[at]


# ---- the clients' answers


def answered(replies: Sequence[Reply]) -> Parcel:
    """Replies as they come back: one tree each, at its own place."""
    said: list[dict[str, Any]] = []
    trees: list[bytes] = []
    for reply in replies:
        own: dict[str, Any] = {"round": reply.round, "client": reply.client, "cluster": reply.cluster}
        if isinstance(reply, Failure):
            said.append(own | {"reason": reply.reason})
            continue
        carried = {PROFILE: reply.profile} if reply.profile is not None else reply.adapter
        own |= {"examples": reply.examples, "metrics": dict(reply.metrics), "tree": len(trees) if carried else -1}
        trees += [tree.pack(carried)] if carried else []
        said.append(own)
    return Parcel(json.dumps({"replies": said}), tuple(trees))


def read_replies(parcel: Parcel, offers: Sequence[Offer], most: int, *, packed: bool = False) -> list[Reply]:
    """A reply for each offer, of which none may be larger than `most` bytes; what is wrong with it is its `Failure`.

    Updates may be `packed` into one line of bytes, which nothing here looks into.
    """
    try:
        said = json.loads(parcel.words)["replies"]
        found = {own["client"]: own for own in said}
        if len(found) != len(said):
            raise ValueError("a client twice")
    except WRONG as error:
        return [_failed(offer, f"the answer is none to what was asked ({error!r})") for offer in offers]
    return [_reply(offer, found.get(offer.client), parcel, most, packed=packed) for offer in offers]


def _reply(offer: Offer, said: object, parcel: Parcel, most: int, *, packed: bool) -> Reply:
    try:
        return _believed(offer, said, parcel, most, packed=packed)
    except (TreeError, ClientError) as error:
        return _failed(offer, str(error))
    except WRONG as error:
        return _failed(offer, f"the answer is none to what was asked ({error!r})")


def _believed(offer: Offer, said: Any, parcel: Parcel, most: int, *, packed: bool) -> Reply:
    """The reply, once all of it is what an honest client would send."""
    if said is None:
        raise ClientError("the answer is of other clients")
    if said["round"] != offer.round:
        raise ClientError(f"the answer is of round {said['round']}, wanted {offer.round}")
    if "reason" in said:
        return _failed(offer, str(said["reason"]))
    raw = parcel.trees[said["tree"]] if said["tree"] >= 0 else b""
    up = len(json.dumps(said).encode()) + len(raw)
    if up > most:
        raise ClientError(f"the answer has {up:,} bytes, wanted at most {most:,}")
    carried = _numbers(tree.unpack(raw, "update")[0], packed=packed) if raw else {}
    if said["cluster"] not in (offer.cluster, *offer.beside):
        raise ClientError(f"the answer is of cluster '{said['cluster']}', wanted '{offer.cluster}'")
    if type(said["examples"]) is not int or not 1 <= said["examples"] < COUNTED:
        raise ClientError(f"the answer is of {said['examples']} examples, wanted a number of them")
    update = Update(offer.round, offer.client, said["cluster"], {}, said["examples"], up=up)
    metrics = {str(key): _number(value) for key, value in said["metrics"].items()}
    if offer.use == "encode":
        return replace(update, profile=_profile(carried))
    if (offer.use == "train") != bool(carried) or not (set(TRAINED) <= set(metrics) or offer.use != "train"):
        raise ClientError(f"the answer is none to '{offer.use}'")
    update = replace(update, adapter=carried, metrics=metrics)
    if offer.use != "train":
        _check_scores(update, offer)
    return update


def _check_scores(update: Update, offer: Offer) -> None:
    """Refuse what is no score of what was asked for, or of no terms."""
    scores = read_scores(update)
    whole = scores.keys() == {update.cluster} if offer.use == "check" else {"backbone"} < scores.keys() <= SCORED
    if not whole or any(found.terms < 1 for found in scores.values()):
        raise ClientError(f"the answer scores {', '.join(sorted(scores)) or 'nothing'}, or on no terms")


def _numbers(found: Tree, *, packed: bool) -> Tree:
    """The tree in single precision, whatever it crossed in; or the one line of bytes that it may be packed into."""
    if packed and found.keys() == {PACKED} and found[PACKED].dtype == torch.uint8 and found[PACKED].dim() == 1:
        return found
    if odd := [key for key, value in found.items() if not value.is_floating_point()]:
        raise TreeError(f"update: '{odd[0]}' is of {found[odd[0]].dtype}, wanted numbers with a point")
    if not tree.is_finite(found):  # so that it does not stand in for one that can be counted
        raise TreeError("the update holds numbers that are not finite")
    return {key: value.float() for key, value in found.items()}


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -COUNTED < value < COUNTED:
        raise TypeError(f"{value!r} for a number")
    return value


def _profile(carried: Tree) -> Tensor:
    profile = carried[PROFILE]
    if profile.dim() != 2 or not profile.numel() or not bool(profile.isfinite().all()):
        raise TreeError(f"profile: wanted rows of numbers, came {tuple(profile.shape)}, or not all finite")
    if not bool(((profile.norm(dim=1) - 1).abs() < 1e-3).all()):
        raise TreeError("profile: wanted rows of length 1")
    return profile


def _failed(offer: Offer, reason: str) -> Failure:
    return offer.failed(plain(reason))


def plain(said: str) -> str:
    """Another machine's words as one line, not too long, that does nothing to a terminal."""
    return "".join(char if char.isprintable() else " " for char in said[:500])


# ---- who is here


@dataclass(frozen=True)
class Present:
    """What a machine says of itself: its clients' rows and labels, its backbone's content; or why it takes no part.

    And what device it is, where that is known.
    """

    name: str
    rows: Mapping[str, int]
    labels: Mapping[str, str]
    dropped: tuple[str, ...] = ()
    backbone: str = ""
    reason: str = ""
    hardware: Hardware | None = None


def introduced(present: Present) -> Parcel:
    """The answer to `question`."""
    return Parcel(json.dumps({"present": asdict(present)}))


def read_present(parcel: Parcel) -> Present:
    """Who is there."""
    try:
        said = json.loads(parcel.words)["present"]
        rows = {name: count for name, count in said["rows"].items() if type(count) is int and 1 <= count < COUNTED}
        labels = {name: str(label) for name, label in said["labels"].items()}
        dropped = tuple(map(str, said["dropped"]))
        if len(rows) != len(said["rows"]) or any(plain(word) != word for word in (*rows, *labels.values(), *dropped)):
            raise ValueError("a client without rows, or without a name that can be read")
        name, backbone, reason = (plain(str(said[key])) for key in ("name", "backbone", "reason"))
        hardware = said_again("hardware", said["hardware"]) if said.get("hardware") else None
        return Present(name, rows, labels, dropped, backbone, reason, hardware)
    except (*WRONG, PlanError) as error:
        why = plain(repr(error))
        raise ClientError(f"node: wanted to know whom it holds, came something else ({why})") from error
