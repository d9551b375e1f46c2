"""What clients' devices carry: each its own rank."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from fedgen import factors, lora
from fedgen.records import Ask, Offer, Reply


def fitted(ask: Ask, names: Sequence[str], rank: int, ranks: Sequence[int], *, cut: bool) -> Ask:
    """The same clients, each told its rank: those given are dealt out in turn by name, or all have the same one.

    A client that has pruned its own keeps to that. With `cut`, no more is offered than the first so many ranks.
    """
    own = {name: ranks[at % len(ranks)] for at, name in enumerate(sorted(names))} if ranks else {}

    def fit(offer: Offer) -> Offer:
        least = offer.rank or own.get(offer.client, rank)
        narrow = cut and offer.adapter and lora.rank(offer.adapter) > least
        return replace(offer, adapter=factors.head(offer.adapter, least) if narrow else offer.adapter, rank=least)

    def asked(offers: Iterable[Offer]) -> Iterator[Reply]:
        return ask(fit(offer) for offer in offers)

    return asked
