"""Flower's grid as a post: a message a parcel, its words as a config record, each tree as one flat array of bytes."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedgen.places import fleet
from fedgen.places.roll import Arrived
from fedgen.places.wire import Parcel

if TYPE_CHECKING:
    from flwr.app import Message, RecordDict
    from flwr.serverapp import Grid

KINDS = {"train": "train", "check": "evaluate", "score": "evaluate", "encode": "query", "meet": "query"}
GONE = (3, 5, 8)  # Flower's codes for: the message was lost, its node is away, its process was killed


def play(grid: "Grid", folder: str, number: int) -> None:
    """Play the run of this folder over a grid, as Flower's run of this number: what its ServerApp does."""
    fleet.serve(Path(folder), GridPost(grid), str(number))


class GridPost:
    """A post over Flower, which throws a message away that nobody has fetched for 12 hours."""

    def __init__(self, grid: "Grid") -> None:
        self.grid = grid

    def nodes(self) -> set[int]:
        """Who is online."""
        return set(self.grid.get_node_ids())

    def send(self, node: int, parcel: Parcel, use: str, turn: int) -> str:
        """Send it on its way; no ticket if Flower does not take it."""
        from flwr.app import Message

        message = Message(packed(parcel), node, KINDS[use], group_id=str(turn))
        (ticket,) = self.grid.push_messages([message])
        return ticket or ""

    def arrived(self, tickets: Sequence[str]) -> list[Arrived]:
        """What has come back of these."""
        return [_read(message) for message in self.grid.pull_messages(list(tickets))]


def _read(message: "Message") -> Arrived:
    ticket = message.metadata.reply_to_message_id
    if not message.has_error():
        parcel = unpacked(message.content)
        return Arrived(ticket, parcel, "" if parcel else "the answer is none of fedgen's")
    code, reason = message.error.code, message.error.reason or f"Flower's code {message.error.code}"
    return Arrived(ticket, None, reason[:500], code in GONE)


def packed(parcel: Parcel) -> "RecordDict":
    """A parcel as Flower carries it."""
    from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

    found = RecordDict({"parcel": ConfigRecord({"words": parcel.words})})
    if parcel.trees:
        arrays = {f"{at:06}": Array("uint8", (len(raw),), "safetensors", raw) for at, raw in enumerate(parcel.trees)}
        found["trees"] = ArrayRecord(arrays)
    return found


def unpacked(content: "RecordDict") -> Parcel | None:
    """The parcel that came; None if it is another thing."""
    try:
        trees = [array.data for _, array in sorted(content["trees"].items())] if "trees" in content else []
        return Parcel(str(content["parcel"]["words"]), tuple(map(bytes, trees)))
    except (KeyError, AttributeError, TypeError):
        return None
