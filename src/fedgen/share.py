"""What of the adapter a client trains, and what of it travels: the client's end and the server's end of one rule."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from fedgen import factors, lora, seeds, tree
from fedgen.aggregate import Sends
from fedgen.client import Start
from fedgen.errors import PlanError, TreeError
from fedgen.records import Offer, Range, Tree


class Share(Protocol):
    """A rule for what is trained and what travels.

    The server makes complete what came, as an update of `like`, before it is folded. The mean then lands in its
    adapter; an aggregate that factors anew has done that itself.
    """

    @property
    def keep(self) -> bool:
        """Whether a part of what is trained stays with its client."""

    @property
    def prune(self) -> bool:
        """Whether clients give up ranks that they do not need."""

    @property
    def sends(self) -> Sends:
        """What the server has of a client, once it has made that complete."""

    def ranks(self, widest: int, rank: int) -> tuple[int, int]:
        """What the server's adapter takes at most, where the aggregate makes `widest`; and what training takes."""

    def meet(self, offered: Tree, own: Tree | None) -> Tree:
        """The adapter that a client has: what is offered, with what it kept."""

    def begin(self, offer: Offer) -> Start:
        """What training starts from."""

    def sent(self, trained: Tree, offer: Offer) -> Tree:
        """What travels of a trained adapter."""

    def like(self, now: Tree, turn: int, rank: int) -> Tree:
        """What the updates of this round are like, once they are complete."""

    def read(self, sent: Tree, like: Tree, turn: int) -> Tree:
        """What came, made complete."""

    def land(self, now: Tree, mean: Tree, turn: int) -> Tree:
        """The server's adapter once the mean of the updates has landed in it."""


def stacked(below: Sequence[tuple[float, Tree]], top: Tree, ends: tuple[str, ...] = ()) -> Start:
    """The sum of products, of which the last moves, but for its factors whose keys have these ends."""
    still = [(share, tree.zeros(adapter)) for share, adapter in below]
    moving = {key: torch.full_like(half, not key.endswith(ends)) for key, half in top.items()}
    return Start(lora.product_sum([*below, (1.0, top)]), lora.product_sum([*still, (1.0, moving)]))


@dataclass(frozen=True)
class Halves:
    """Both factors of each pair travel, or one `half` of it: A, B, or B and A in turns; none at all is local training.

    The rest is frozen, or with `keep` trained too and kept by the client as its own; so are the pairs of a share
    `last` of the adapted layers. With `prune`, a client gives up the last half of its ranks once that gets shorter in
    training, to which `training.press` leads (HetLoRA).
    """

    half: Literal["both", "a", "b", "turns", "none"] = "both"
    keep: bool = False
    last: Annotated[float, Range(0, 1)] = 0.0
    prune: bool = False

    def __post_init__(self) -> None:
        if self.half == "none" and not self.keep:
            raise PlanError("half: 'none' leaves nothing to train; let clients keep it (keep = true)")
        if self.keep and (self.half == "turns" or (self.half == "both" and not self.last)):
            came = f"half = '{self.half}' and last = {self.last}"
            raise PlanError(
                f"keep: wanted a part that never travels, came {came}; name a half, or a share of last layers"
            )

    @property
    def sends(self) -> Sends:
        """The whole, B under one A of all, or any other part."""
        if self.prune:
            return "narrowing" if self == Halves(prune=True) else "part"
        return "whole" if self == Halves() else "b" if self == Halves("b") else "part"

    def ranks(self, widest: int, rank: int) -> tuple[int, int]:
        """As the aggregate says."""
        return widest, widest

    def meet(self, offered: Tree, own: Tree | None) -> Tree:
        """What is offered of what travels, and the client's own of the rest."""
        stays = self._stays(offered, 1) if own and self.keep else set()
        return {key: own[key] if own and key in stays else value for key, value in offered.items()}

    def begin(self, offer: Offer) -> Start:
        """The client's adapter, of which what stays is still, unless it is kept."""
        stays = self._stays(offer.adapter, offer.round)
        if self.keep or not stays:
            return Start(offer.adapter)
        return Start(offer.adapter, {key: torch.full_like(x, key not in stays) for key, x in offer.adapter.items()})

    def sent(self, trained: Tree, offer: Offer) -> Tree:
        """What does not stay."""
        stays = self._stays(trained, offer.round)
        found = _pruned(trained, offer.adapter) if self.prune else trained
        return {key: value for key, value in found.items() if key not in stays}

    def like(self, now: Tree, turn: int, rank: int) -> Tree:
        """The server's adapter."""
        return now

    def read(self, sent: Tree, like: Tree, turn: int) -> Tree:
        """What stays is as the server has it."""
        return _complete(sent, like, self._stays(like, turn))

    def land(self, now: Tree, mean: Tree, turn: int) -> Tree:
        """What stays is left as it is, to the last bit."""
        return mean | {key: now[key] for key in self._stays(now, turn)}

    def _stays(self, like: Tree, turn: int) -> set[str]:
        if self.half == "both" and not self.last:
            return set()
        half = ("a", "b")[turn % 2] if self.half == "turns" else self.half
        rest = {"both": (), "a": (lora.B_END,), "b": (lora.A_END,), "none": ("",)}[half]
        return _last(like, self.last) | {key for key in like if key.endswith(rest)}


def _pruned(trained: Tree, offered: Tree) -> Tree:
    """The first half of the ranks, if the last half is shorter than it was offered; else all."""
    last = lora.rank(trained) // 2
    if not last:
        return trained
    before, after = (_length(factors.split(adapter, last)[1]) for adapter in (offered, trained))
    return factors.head(trained, lora.rank(trained) - last) if after < before else trained


def _length(adapter: Tree) -> float:
    """The length of all A, times that of all B."""
    a = {key: half for key, half in adapter.items() if key.endswith(lora.A_END)}
    return tree.norm(a) * tree.norm({key: half for key, half in adapter.items() if key not in a})


def _complete(sent: Tree, like: Tree, stays: Set[str]) -> Tree:
    """What came and, of what stays, the server's; nothing may be missing, and nothing too much."""
    if odd := sent.keys() ^ (like.keys() - stays):
        wish = f"the {len(like) - len(stays)} factors that travel"
        raise TreeError(f"update: wanted {wish}, came {len(sent)}; '{min(odd)}' is missing or too much")
    return like | sent


def _all_a(like: Tree) -> set[str]:
    return {key for key in like if key.endswith(lora.A_END)}


def _last(like: Tree, share: float) -> set[str]:
    """The keys of the last adapted layers."""
    own = lora.last([pair.path for pair in lora.pairs(like)], share) if share else []
    return {lora.PREFIX + path + end for path in own for end in (lora.A_END, lora.B_END)}


@dataclass(frozen=True)
class Increment:
    """Each round clients train a fresh pair of their own rank, beside the server's adapter, which is frozen.

    Its A is drawn anew from a public seed, with orthonormal rows. If only B is trained and travels, the mean is exact
    in whatever way B's are summed, and the server adds it up to rank `widest`; else `aggregate.stack` does. Of the
    server's adapter a client `carries` the nearest of this rank (0: all of it).
    """

    half: Literal["both", "b"] = "both"
    widest: Annotated[int, Range(1)] = 32
    carries: Annotated[int, Range(0)] = 0
    seed: Annotated[int, Range(0)] = 0
    keep: ClassVar[bool] = False
    prune: ClassVar[bool] = False

    @property
    def sends(self) -> Sends:
        """B's are averaged, and whole increments stacked."""
        return "part" if self.half == "b" else "increment"

    def ranks(self, widest: int, rank: int) -> tuple[int, int]:
        """As wide as it may become here, and the increment on top."""
        served = max(self.widest, rank) if self.half == "b" else widest
        return served, served + rank

    def meet(self, offered: Tree, own: Tree | None) -> Tree:
        """What is offered."""
        return offered

    def begin(self, offer: Offer) -> Start:
        """The sum of both, of which the increment moves."""
        top = self._fresh(offer.adapter, offer.round, offer.rank)
        return stacked([(1.0, offer.adapter)], top, ends=() if self.half == "both" else (lora.A_END,))

    def sent(self, trained: Tree, offer: Offer) -> Tree:
        """The increment, or its B."""
        _, top = factors.split(trained, offer.rank)
        return {key: value for key, value in top.items() if self.half == "both" or key.endswith(lora.B_END)}

    def like(self, now: Tree, turn: int, rank: int) -> Tree:
        """A fresh increment, or what it is stacked on."""
        return self._fresh(now, turn, rank) if self.half == "b" else now

    def read(self, sent: Tree, like: Tree, turn: int) -> Tree:
        """With the A that everyone drew."""
        return _complete(sent, like, _all_a(like)) if self.half == "b" else sent

    def land(self, now: Tree, mean: Tree, turn: int) -> Tree:
        """Added, and factored anew where that would be wider than it may."""
        rank = lora.rank(mean)
        exact = mean | {key: x for key, x in self._fresh(now, turn, rank).items() if key.endswith(lora.A_END)}
        whole = lora.product_sum([(1.0, now), (1.0, exact)])
        return lora.best(whole, min(lora.rank(whole), max(self.widest, rank)))

    def _fresh(self, like: Tree, turn: int, rank: int) -> Tree:
        return factors.orthonormal(like, rank, seeds.generator(self.seed, turn, "", "increment"))


@dataclass(frozen=True)
class Top:
    """The last ranks of the server's adapter are trained and travel; those below are frozen (`aggregate.residual`)."""

    keep: ClassVar[bool] = False
    prune: ClassVar[bool] = False
    sends: ClassVar[Sends] = "top"

    def ranks(self, widest: int, rank: int) -> tuple[int, int]:
        """As the aggregate says."""
        return widest, widest

    def meet(self, offered: Tree, own: Tree | None) -> Tree:
        """What is offered."""
        return offered

    def begin(self, offer: Offer) -> Start:
        """The server's adapter, of which the top moves."""
        low, top = factors.split(offer.adapter, offer.rank)
        return stacked([(1.0, low)], top) if low else Start(top)

    def sent(self, trained: Tree, offer: Offer) -> Tree:
        """The top."""
        return factors.split(trained, offer.rank)[1]

    def like(self, now: Tree, turn: int, rank: int) -> Tree:
        """The server's adapter, whose top it is."""
        return now

    def read(self, sent: Tree, like: Tree, turn: int) -> Tree:
        """As it came."""
        return sent

    def land(self, now: Tree, mean: Tree, turn: int) -> Tree:
        """The aggregate knows what lies below."""
        return mean


@dataclass(frozen=True)
class Square:
    """A and the columns that B lies in are drawn once, from a public seed; a square factor between them travels."""

    seed: Annotated[int, Range(0)] = 0
    keep: ClassVar[bool] = False
    prune: ClassVar[bool] = False
    sends: ClassVar[Sends] = "part"

    def ranks(self, widest: int, rank: int) -> tuple[int, int]:
        """As the aggregate says."""
        return widest, widest

    def meet(self, offered: Tree, own: Tree | None) -> Tree:
        """What is offered."""
        return offered

    def begin(self, offer: Offer) -> Start:
        """The server's adapter, inside its frame."""
        return Start(offer.adapter, frame=self.like(offer.adapter, 0, offer.rank))

    def sent(self, trained: Tree, offer: Offer) -> Tree:
        """frame^T B."""
        frame = lora.pairs(self.like(trained, 0, offer.rank))
        both = zip(frame, lora.pairs(trained), strict=True)
        return {_key(own): _square(own, pair) for own, pair in both}

    def like(self, now: Tree, turn: int, rank: int) -> Tree:
        """The frame."""
        return factors.frame(now, rank, seeds.generator(self.seed, -1, "", "frame"))

    def read(self, sent: Tree, like: Tree, turn: int) -> Tree:
        """The frame's A, and its B times the square."""
        _complete(sent, like, _all_a(like))
        return like | {_key(own): _filled(own, sent[_key(own)]) for own in lora.pairs(like)}

    def land(self, now: Tree, mean: Tree, turn: int) -> Tree:
        """In the frame already."""
        return mean


def _key(pair: lora.Pair) -> str:
    return lora.PREFIX + pair.path + lora.B_END


def _square(frame: lora.Pair, pair: lora.Pair) -> Tensor:
    """frame^T B for each group of the layer, one below the other."""
    (columns, _), (b, _) = lora.product_of(frame), lora.product_of(pair)
    return (columns.mT @ b).flatten(0, 1).to(pair.b.dtype)


def _filled(frame: lora.Pair, square: Tensor) -> Tensor:
    """The frame's B times the square of each group of its layer."""
    b, a = lora.product_of(frame)
    if square.shape != (len(b) * b.shape[2], b.shape[2]):
        wish = f"a square factor of shape {(len(b) * b.shape[2], b.shape[2])}"
        raise TreeError(f"update: '{frame.path}' wanted {wish}, came {tuple(square.shape)}")
    return lora.pair_of((b @ square.double().view(len(b), b.shape[2], -1), a), frame).b


SHARES: dict[str, type[Share]] = {"halves": Halves, "increment": Increment, "top": Top, "square": Square}
