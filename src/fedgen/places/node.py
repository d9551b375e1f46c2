"""`fedgen node`: one process a device, which keeps the backbone warm and answers Flower's short-lived ClientApp.

It listens on this machine alone, to whoever knows the secret in its `node.json`.
"""

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path

import torch

from fedgen.errors import FedgenError
from fedgen.journal import hold
from fedgen.places import device
from fedgen.places.desk import Desk
from fedgen.places.wire import Parcel
from fedgen.store import write_whole

SAID, RUNS = "node.json", "runs"


def serve(home: Path) -> None:
    """Answer until killed; a second node of the same folder is refused."""
    with hold(home / RUNS):
        mine = device.read(home)
        if mine.limits.threads:
            torch.set_num_threads(mine.limits.threads)
        desk = Desk(mine, home / RUNS, note)
        with _listening(home) as listener:
            note(f"node '{mine.name}' is up, process {os.getpid()}")
            while True:
                _meet(listener, desk)


def note(line: str) -> None:
    """A line of the node's log."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), line, flush=True)


@contextmanager
def _listening(home: Path) -> Iterator[Listener]:
    """A listener on a free port, said in a file that its owner alone can read."""
    secret = secrets.token_bytes(32)
    with Listener(("127.0.0.1", 0), authkey=secret) as listener:
        said = {"port": listener.address[1], "secret": secret.hex(), "pid": os.getpid()}
        write_whole(home / SAID, json.dumps(said).encode(), mode=0o600)
        try:
            yield listener
        finally:
            (home / SAID).unlink(missing_ok=True)


def _meet(listener: Listener, desk: Desk) -> None:
    """Take one caller's question and answer it; whoever does not know the secret, or hangs up, is forgotten."""
    try:
        with listener.accept() as caller:
            _answer(caller, desk)
    except (EOFError, OSError, AuthenticationError) as error:
        note(f"a caller was lost: {error!r}")


def _answer(caller: Connection, desk: Desk) -> None:
    words = caller.recv_bytes().decode()
    trees = [caller.recv_bytes() for _ in range(int(caller.recv_bytes()))]
    began = time.perf_counter()
    try:
        found = desk.answer(Parcel(words, tuple(trees)))
    except FedgenError as error:
        note(f"refused: {error}")
        caller.send_bytes(b"failed")
        caller.send_bytes(str(error).encode())
        return
    note(
        f"answered {Parcel(words, tuple(trees)).size:,} bytes by {found.size:,} in {time.perf_counter() - began:.2f} s"
    )
    for part in (b"done", found.words.encode(), str(len(found.trees)).encode(), *found.trees):
        caller.send_bytes(part)
