"""What Flower starts on a device for every message: hand it to the warm `fedgen node` there, and its answer back.

Nothing but Flower and the standard library is imported, so that a message costs no more than Flower does.
"""

import json
import os
import subprocess
import sys
import time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

PATIENCE, NAP, TRIES = 300.0, 0.1, 3  # seconds for a node to come up, seconds between two looks, nodes lost in one turn
LAST = 2.0  # seconds for another one to come up, where the one that was started has ended
LONG = 8 << 20  # bytes of a log

app = ClientApp()


def carry(message: Message, context: Context) -> Message:
    """The node's answer to a message."""
    words = str(message.content["parcel"]["words"])
    trees = [array.data for _, array in sorted(message.content["trees"].items())] if "trees" in message.content else []
    words, trees = answer(Path(str(context.node_config["home"])), words, trees)
    found = RecordDict({"parcel": ConfigRecord({"words": words})})
    if trees:
        arrays = {f"{at:06}": Array("uint8", (len(raw),), "safetensors", raw) for at, raw in enumerate(trees)}
        found["trees"] = ArrayRecord(arrays)
    return Message(found, reply_to=message)


for kind in (app.train, app.evaluate, app.query):
    kind()(carry)


def answer(home: Path, words: str, trees: list[bytes]) -> tuple[str, list[bytes]]:
    """The node's answer, from another one if it dies over it."""
    for _ in range(TRIES):
        try:
            with reached(home) as node:
                return asked(node, words, trees)
        except (EOFError, ConnectionError):
            continue
    raise RuntimeError(f"the node's process ended {TRIES} times over this message; its node.log says why")


def asked(node: Connection, words: str, trees: list[bytes]) -> tuple[str, list[bytes]]:
    """One question and its answer: the words, how many trees, the trees."""
    for part in (words.encode(), str(len(trees)).encode(), *trees):
        node.send_bytes(part)
    if node.recv_bytes() != b"done":
        raise RuntimeError(node.recv_bytes().decode())
    words = node.recv_bytes().decode()
    return words, [node.recv_bytes() for _ in range(int(node.recv_bytes()))]


def reached(home: Path) -> Connection:
    """A line to the node, which is started if it is not there."""
    until = time.monotonic() + PATIENCE
    started = None
    while time.monotonic() < until:
        try:
            said = json.loads((home / "node.json").read_text("utf-8"))
            os.kill(said["pid"], 0)  # one that was killed leaves its word behind, and its port to anyone
            return Client(("127.0.0.1", said["port"]), authkey=bytes.fromhex(said["secret"]))
        except (OSError, ValueError, EOFError, AuthenticationError):
            pass
        if started is None:
            started = start(home)
        elif started.poll() is not None:  # it cannot start, or another one was faster
            until = min(until, time.monotonic() + LAST)
        time.sleep(NAP)
    raise RuntimeError("the node did not come up; its node.log says why")


def start(home: Path) -> "subprocess.Popen[bytes]":
    """A node of its own session, which outlives this message; a log that has grown long makes way for a new one."""
    path = home / "node.log"
    try:
        if path.exists() and path.stat().st_size > LONG:
            path.replace(home / "node.log.1")
        with path.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "fedgen", "node", str(home)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
    except OSError as error:  # whose path is nothing to tell a server
        raise RuntimeError(f"the node cannot be started ({error.strerror})") from None
