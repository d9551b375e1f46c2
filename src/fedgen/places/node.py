"""`fedgen node`: one process a device, which keeps the backbone warm and answers Flower's short-lived ClientApp.

It listens on this machine alone, to whoever knows the secret in its `node.json`.
"""

import json
import os
import secrets
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener, answer_challenge, deliver_challenge
from pathlib import Path
from queue import SimpleQueue

import torch

from fedgen.errors import FedgenError
from fedgen.journal import hold
from fedgen.places import device
from fedgen.places.desk import Desk
from fedgen.places.probe import measured
from fedgen.places.wire import Parcel
from fedgen.store import write_whole

SAID, RUNS = "node.json", "runs"
NAP = 1.0  # seconds until callers are listened for again, where that has failed

Answer = tuple[bytes, ...]  # as it crosses: "done", words, how many trees, the trees; or "failed" and why
Question = tuple[Parcel, SimpleQueue[Answer]]


def serve(home: Path) -> None:
    """Answer until killed; a second node of the same folder is refused."""
    with hold(home / RUNS):
        desk, read = _desk(home), _moment(home)
        asked = SimpleQueue[Question]()
        with _listening(home, asked):
            note(f"node '{desk.device.name}' is up, process {os.getpid()}")
            while True:
                parcel, back = asked.get()
                try:
                    if read != _moment(home):  # its owner has changed their mind
                        desk, read = _desk(home), _moment(home)
                        note(f"{device.NODE} was read anew")
                except FedgenError as error:
                    note(str(error))
                    back.put((b"failed", b"its node.toml cannot be read; its node.log says more"))
                    continue
                back.put(_answer(desk, parcel))


def _moment(home: Path) -> int:
    path = home / device.NODE
    return path.stat().st_mtime_ns if path.exists() else 0


def _desk(home: Path) -> Desk:
    mine = device.read(home)
    if mine.limits.threads:
        torch.set_num_threads(mine.limits.threads)
    hardware = measured(mine)
    said = f"{hardware.memory / 2**20:,.0f} MB and {hardware.speed / 1e9:.3g} GFLOP/s to train with"
    note(f"{said}: a {hardware.kind}{'' if mine.kind else ' or near to one'}")
    return Desk(mine, home / RUNS, note, hardware)


def note(line: str) -> None:
    """A line of the node's log."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), line, flush=True)


@contextmanager
def _listening(home: Path, asked: SimpleQueue[Question]) -> Iterator[None]:
    """A listener on a free port, said in a file that its owner alone can read."""
    secret = secrets.token_bytes(32)
    with Listener(("127.0.0.1", 0)) as listener:
        said = {"port": listener.address[1], "secret": secret.hex(), "pid": os.getpid()}
        write_whole(home / SAID, json.dumps(said).encode(), mode=0o600)
        threading.Thread(target=_listen, args=(listener, secret, asked), daemon=True).start()
        try:
            yield
        finally:
            (home / SAID).unlink(missing_ok=True)


def _listen(listener: Listener, secret: bytes, asked: SimpleQueue[Question]) -> None:
    """Meet each caller apart, so that one who says nothing keeps no other waiting."""
    while True:
        try:
            caller = listener.accept()
        except OSError as error:  # such as too many at once
            note(f"a caller was lost: {error!r}")
            time.sleep(NAP)
            continue
        threading.Thread(target=_meet, args=(caller, secret, asked), daemon=True).start()


def _meet(caller: Connection, secret: bytes, asked: SimpleQueue[Question]) -> None:
    """Take one caller's question and its answer back; whoever does not know the secret, or hangs up, is forgotten."""
    try:
        with caller:
            deliver_challenge(caller, secret)
            answer_challenge(caller, secret)
            words = caller.recv_bytes().decode()
            trees = tuple(caller.recv_bytes() for _ in range(int(caller.recv_bytes())))
            back = SimpleQueue[Answer]()
            asked.put((Parcel(words, trees), back))
            for part in back.get():
                caller.send_bytes(part)
    except (EOFError, OSError, ValueError, AuthenticationError) as error:
        note(f"a caller was lost: {error!r}")


def _answer(desk: Desk, parcel: Parcel) -> Answer:
    began = time.perf_counter()
    try:
        found = desk.answer(parcel)
    except FedgenError as error:
        note(f"refused: {error}")
        return b"failed", str(error).encode()
    except Exception as error:  # noqa: BLE001  the node outlives it
        note("".join(traceback.format_exception(error)).rstrip())
        return b"failed", type(error).__name__.encode()
    spent = time.perf_counter() - began
    note(f"{_about(parcel)}: answered {parcel.size:,} bytes by {found.size:,} in {spent:.2f} s")
    return b"done", found.words.encode(), str(len(found.trees)).encode(), *found.trees


def _about(parcel: Parcel) -> str:
    """What a parcel that was answered has asked."""
    said = json.loads(parcel.words)
    run, offers = said["errand"]["run"], said.get("offers")
    if not offers:
        return f"run {run}, who is here"
    names = ", ".join(sorted(offer["client"] for offer in offers))
    return f"run {run}, round {offers[0]['round']}, {offers[0]['use']} of {names}"
