"""A hostile node, in the place of `fedgen node`: all that it is asked it does, but in one round it sends another thing.

python bench/liar.py HOME LIE ROUND
"""

import json
import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Listener
from pathlib import Path

import torch

from fedgen import tree
from fedgen.places import device, wire
from fedgen.places.desk import Desk
from fedgen.places.node import RUNS, SAID
from fedgen.places.wire import Parcel
from fedgen.records import Tree
from fedgen.store import write_whole

MANY = 25_000_000  # zeros of four bytes each: 100 MB


def spoilt(parcel: Parcel, spoil: Callable[[Tree], Tree]) -> Parcel:
    """The same answer with other trees."""
    return replace(parcel, trees=tuple(tree.pack(spoil(tree.unpack(raw)[0])) for raw in parcel.trees))


def nan(parcel: Parcel) -> Parcel:
    """One number of each adapter is none."""

    def spoil(found: Tree) -> Tree:
        first = min(found)
        found[first].view(-1)[0] = torch.nan
        return found

    return spoilt(parcel, spoil)


def shape(parcel: Parcel) -> Parcel:
    """A row more in each factor."""
    return spoilt(parcel, lambda found: {key: torch.cat([value, value[:1]]) for key, value in found.items()})


def stale(parcel: Parcel) -> Parcel:
    """The answer says that it is of the round before."""
    said = json.loads(parcel.words)
    replies = [reply | {"round": reply["round"] - 1} for reply in said["replies"]]
    return replace(parcel, words=json.dumps({"replies": replies}))


def flood(parcel: Parcel) -> Parcel:
    """100 MB of zeros, under the name of every client."""
    said = json.loads(parcel.words)
    words = json.dumps({"replies": [reply | {"tree": 0} for reply in said["replies"]]})
    return Parcel(words, (tree.pack({"zeros": torch.zeros(MANY)}),))


LIES = {"nan": nan, "shape": shape, "stale": stale, "flood": flood}


def answer(desk: Desk, parcel: Parcel, lie: str, turn: int) -> Parcel:
    """An honest answer, but for the one."""
    found = desk.answer(parcel)
    _, offers = wire.read_offers(parcel)
    lies = offers and offers[0].use == "train" and offers[0].round == turn
    return LIES[lie](found) if lies else found


def serve(home: Path, lie: str, turn: int) -> None:
    """Speak a node's protocol until killed."""
    desk, secret = Desk(device.read(home), home / RUNS), secrets.token_bytes(32)
    with Listener(("127.0.0.1", 0), authkey=secret) as listener:
        said = {"port": listener.address[1], "secret": secret.hex(), "pid": os.getpid()}
        write_whole(home / SAID, json.dumps(said).encode(), mode=0o600)
        while True:
            with listener.accept() as caller:
                words = caller.recv_bytes().decode()
                trees = tuple(caller.recv_bytes() for _ in range(int(caller.recv_bytes())))
                found = answer(desk, Parcel(words, trees), lie, turn)
                for part in (b"done", found.words.encode(), str(len(found.trees)).encode(), *found.trees):
                    caller.send_bytes(part)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
