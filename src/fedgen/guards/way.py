"""The guards of a run as both ends of its wire hold them: what becomes of an offer, and of a change, on the way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch

from fedgen import lora, seeds, tree
from fedgen.bank import Layout
from fedgen.errors import TreeError
from fedgen.guards.compress import Compress
from fedgen.guards.guard import Guard
from fedgen.records import GLOBAL, Offer, Reply, Tree, Update
from fedgen.share import Halves, Share
from fedgen.store import Shelf
from fedgen.weights import Span

RANKS = "ranks"  # beside the bytes of a whole adapter: its rank, or that of each layer


@dataclass(frozen=True)
class Guards:
    """The `way` out of a client; what travels on it is the change of what the share sends, and nothing else.

    A change is from what would have been sent had training moved nothing, which both ends work out from the offer: the
    client from what it was offered, the server from its own exact adapter. So what an offer loses on its way down never
    gets into the server's adapter.
    """

    way: tuple[Guard, ...] = ()
    share: Share = field(default_factory=Halves)
    seed: int = 0

    @property
    def compress(self) -> Compress | None:
        """The guard that makes bytes of a change; it is the last one."""
        return self.way[-1] if self.way and isinstance(self.way[-1], Compress) else None

    def sizes(self, adapter: Tree, rank: int) -> tuple[int, int]:
        """Bytes of an update of such an adapter and of an offer of it, if all of its numbers are normal ones."""
        draw = seeds.generator(self.seed, -1, "", "size")
        offer = Offer(1, "", GLOBAL, _normal(adapter, draw), rank=rank)
        base = self._unmoved(offer)
        sent = self._out(_normal(base, draw), draw)[0] if self.way and base else base
        return len(tree.pack(sent)), len(tree.pack(self.offering()(offer).adapter))

    # ---- the server's end

    def offering(self) -> Callable[[Offer], Offer]:
        """How the offers of one ask go out: each distinct adapter in one encoding."""
        down = self._down
        if down is None:
            return lambda offer: offer
        known: dict[int, tuple[Tree, Tree]] = {}  # with the tree itself, whose id is its own while it is kept

        def packed(found: Tree) -> Tree:
            if id(found) not in known:
                known[id(found)] = found, down.out(found, torch.Generator()) | {RANKS: _ranks(found)}
            return known[id(found)][1]

        return lambda offer: _over(offer, packed)

    def opened(self, reply: Reply, offer: Offer) -> Reply:
        """What came as a whole update of the exact offer; what cannot be read is its failure."""
        if not self.way or not isinstance(reply, Update) or offer.use != "train":
            return reply
        own = replace(offer, adapter={offer.cluster: offer.adapter, **offer.beside}[reply.cluster])
        try:
            return replace(reply, adapter=self._opened(reply.adapter, self._unmoved(own)))
        except TreeError as error:
            return replace(offer.failed(f"update: {error}"), down=reply.down)

    def _opened(self, came: Tree, base: Tree) -> Tree:
        if not base:
            return came
        return tree.add(base, self._back(came, base))

    # ---- the client's end

    def met(self, offers: Sequence[Offer], layout: Layout | Span) -> list[Offer]:
        """The offers as the client can use them."""
        down = self._down
        if down is None:
            return list(offers)
        known: dict[int, Tree] = {}

        def plain(found: Tree) -> Tree:
            if id(found) not in known:
                bare = {key: value for key, value in found.items() if key != RANKS}
                known[id(found)] = down.back(bare, _like(layout, found))
            return known[id(found)]

        return [_over(offer, plain) for offer in offers]

    def sent(self, trained: Tree, offer: Offer, shelf: Shelf) -> Tree:
        """What leaves of a trained part; what compressing it lost is kept on the shelf until the next turn."""
        base = self._unmoved(offer)
        if not self.way or not base:
            return trained
        change = tree.add(trained, base, -1.0)
        draw = seeds.generator(self.seed, offer.round, offer.client, "guards")
        if not (self.compress and self.compress.feedback):
            return self._out(change, draw)[0]
        drawer = shelf.drawer("residual")
        owed = drawer.get(offer.client, before=offer.round) or {}
        fits = {key: owed[key] for key, value in change.items() if key in owed and owed[key].shape == value.shape}
        out, whole = self._out(change | {key: change[key] + rest for key, rest in fits.items()}, draw)
        drawer.put(offer.client, offer.round, owed | tree.add(whole, self.compress.back(out, base), -1.0))
        return out

    # ---- both

    @property
    def _down(self) -> Compress | None:
        return self.compress.downward() if self.compress and self.compress.down < 32 else None

    def _unmoved(self, offer: Offer) -> Tree:
        """What would be sent had training moved nothing."""
        return self.share.sent(self.share.begin(offer).adapter, offer)

    def _out(self, change: Tree, draw: torch.Generator) -> tuple[Tree, Tree]:
        """What leaves, and what the last guard made it of."""
        before = change
        for guard in self.way:
            before, change = change, guard.out(change, draw)
        return change, before

    def _back(self, came: Tree, like: Tree) -> Tree:
        for guard in reversed(self.way):
            came = guard.back(came, like)
        return came


def _normal(like: Tree, draw: torch.Generator) -> Tree:
    return {key: torch.randn(like[key].shape, generator=draw) for key in sorted(like)}  # in whatever order keys came


def _over(offer: Offer, act: Callable[[Tree], Tree]) -> Offer:
    """The offer with this done to every adapter in it."""
    beside = {name: act(other) for name, other in offer.beside.items()}
    return replace(offer, adapter=act(offer.adapter) if offer.adapter else {}, beside=beside)


def _ranks(adapter: Tree) -> torch.Tensor:
    """The rank of each layer, keys in order, or the one of all; a full model has none."""
    found = [adapter[key].shape[0] for key in sorted(adapter) if key.endswith(lora.A_END)] or [0]
    return torch.tensor(found if len(set(found)) > 1 else found[:1], dtype=torch.int16)


def _like(layout: Layout | Span, found: Tree) -> Tree:
    """The keys and shapes of an adapter of these ranks, and no numbers."""
    ranks = found[RANKS].tolist() if RANKS in found else []
    line = torch.zeros(layout.width, device="meta")
    if len(ranks) == 1:
        return layout.tree(line, ranks[0])
    keys = sorted(layout.tree(line, layout.rank))
    layers = [key.removesuffix(lora.A_END) for key in keys if key.endswith(lora.A_END)]
    if len(ranks) != len(layers) or not ranks:
        raise TreeError(f"offer: wanted one rank, or one for each layer, came {len(ranks)}")
    whole = {rank: layout.tree(line, rank) for rank in set(ranks)}
    own = zip(layers, ranks, strict=True)
    return {layer + end: whole[rank][layer + end] for layer, rank in own for end in (lora.A_END, lora.B_END)}
