"""The same question with each client's own rank, and with no more of an adapter than it can hold."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from fedgen import factors
from fedgen.allot.budget import Wish, spread
from fedgen.records import Ask, Offer, Reply, Tree


class Cuts:
    """Adapters cut to ranks, each put in order once, however many clients are offered it while a question lasts."""

    def __init__(self, order: Callable[[Tree], Tree]) -> None:
        self.order = order
        self.kept: dict[int, tuple[Tree, Tree]] = {}  # by identity; what is kept cannot become another's
        self.made: dict[tuple[int, tuple[int, ...]], Tree] = {}

    def ordered(self, tree: Tree) -> Tree:
        """The adapter with the ranks first that stay when it is cut."""
        if id(tree) not in self.kept:
            self.kept[id(tree)] = tree, self.order(tree)
        return self.kept[id(tree)][1]

    def cut(self, tree: Tree, ranks: Mapping[str, int] | int) -> Tree:
        """The adapter at this rank at most, or at a rank for each layer; that itself if it has no more."""
        own = factors.ranks_of(tree)
        most = dict.fromkeys(own, ranks) if isinstance(ranks, int) else ranks
        wanted = {path: min(rank, most[path]) for path, rank in own.items()}
        if wanted == own:
            return tree
        at = id(tree), tuple(wanted.values())
        if at not in self.made:
            self.made[at] = factors.heads(self.ordered(tree), wanted)
        return self.made[at]


@dataclass(frozen=True)
class Fit:
    """How offers fit clients: the `ranks` that these train at, and whether adapters are cut to a client's `own`.

    If not, they are cut to `most` (0: never). `order` puts the ranks first that stay. With a `mean`, what is offered to
    train on is spread over layers and clients instead. A client that has pruned its own ranks keeps to that.
    """

    ranks: Mapping[str, int]
    own: bool = False
    most: int = 0
    order: Callable[[Tree], Tree] = factors.ordered
    mean: float = 0.0

    def offered(self, offer: Offer, cuts: Cuts) -> Offer:
        """An offer as its client can take it."""
        rank = offer.rank or self.ranks[offer.client]
        most = rank if self.own else self.most
        return _cut(offer, cuts, most, rank) if most else replace(offer, rank=rank)

    def spread(self, offers: Sequence[Offer], cuts: Cuts, needs: Mapping[str, float]) -> list[Offer]:
        """Offers to train on, each with ranks by layer."""
        shares = _shares(needs)
        ranks = [self.ranks[offer.client] for offer in offers]
        wishes = [
            Wish(cuts.ordered(offer.adapter), rank, shares.get(offer.client, 1.0))
            for offer, rank in zip(offers, ranks, strict=True)
        ]
        found = zip(offers, spread(wishes, self.mean), strict=True)
        return [_cut(offer, cuts, layers, max(layers.values())) for offer, layers in found]


def _shares(needs: Mapping[str, float]) -> dict[str, float]:
    """Each need as a multiple of their mean, which is the same whatever order they came in."""
    usual = math.fsum(needs.values()) / len(needs) if needs else 0.0
    return {name: need / usual for name, need in needs.items() if usual}


def _cut(offer: Offer, cuts: Cuts, ranks: Mapping[str, int] | int, rank: int) -> Offer:
    """The offer with all its adapters cut; an offer to encode has none."""
    if not offer.adapter:
        return replace(offer, rank=rank)
    beside = {name: cuts.cut(tree, ranks) for name, tree in offer.beside.items()}
    return replace(offer, adapter=cuts.cut(offer.adapter, ranks), beside=beside, rank=rank)


def fitted(ask: Ask, fit: Fit, needs: Mapping[str, float] | None = None) -> Ask:
    """The same clients, each offered what fits it; `needs` are what clients' last updates moved, as far as known."""

    def asked(offers: Iterable[Offer]) -> Iterator[Reply]:
        cuts = Cuts(fit.order)
        if not fit.mean:
            return ask(fit.offered(offer, cuts) for offer in offers)
        some = list(offers)
        if all(offer.use == "train" and factors.has_learnt(offer.adapter) for offer in some):
            return ask(fit.spread(some, cuts, needs or {}))
        return ask(fit.offered(offer, cuts) for offer in some)

    return asked
