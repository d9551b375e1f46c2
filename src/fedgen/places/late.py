"""What comes late: a client's change from what it was offered, laid on an adapter that has moved on since."""

import math
from collections.abc import Mapping
from dataclasses import replace

from fedgen.places import wire
from fedgen.records import Failure, Offer, Reply, Tree, Update


def of(many: int, share: float) -> int:
    """A share of so many, of whole ones at least; what a float cannot say is no other one."""
    return math.ceil(round(share * many, 6))


def change(reply: Reply, offer: Offer) -> Reply:
    """An update as its change from what was offered."""
    if not isinstance(reply, Update):
        return reply
    shapes = {key: value.shape for key, value in offer.adapter.items()}
    if odd := [key for key, value in reply.adapter.items() if value.shape != shapes.get(key)]:
        failed = offer.failed(wire.plain(f"update: '{odd[0]}' is not like the one that was offered"))
        return replace(failed, down=reply.down)
    return replace(reply, adapter={key: value - offer.adapter[key] for key, value in reply.adapter.items()})


def laid(reply: Reply, now: Mapping[str, Tree], turn: int, staleness: float) -> Reply:
    """A change as an update of this round: smaller the later it is, and laid on its cluster's adapter of now."""
    if isinstance(reply, Failure) or reply.cluster not in now:
        reason = reply.reason if isinstance(reply, Failure) else f"late, and '{reply.cluster}' is no more"
        return Failure(turn, reply.client, reply.cluster, reason, reply.down)
    share, base = (1 + turn - reply.round) ** -staleness, now[reply.cluster]
    adapter = {key: base[key] + share * moved for key, moved in reply.adapter.items()}
    return replace(reply, round=turn, adapter=adapter)
