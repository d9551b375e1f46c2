"""What a run writes down: a line a round, and a checkpoint to go on from. Both are whole at every moment."""

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from fedgen import tree
from fedgen.errors import StoreError, TreeError
from fedgen.records import Report, State, Tree
from fedgen.store import read_bytes, write_whole

LOCK = "lock"
REMEDY = "put back a copy of it, or delete it to play the run's rounds anew"


class Journal:
    """One JSON line a round, on disk before the round counts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line and see it safely down."""
        try:
            with self.path.open("ab") as file:
                file.write(_raw(line))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written ({error.strerror}); make room, then resume") from error

    def lines(self) -> list[dict[str, Any]]:
        """All whole lines; a last one cut short by a crash does not count."""
        raw = read_bytes(self.path) if self.path.exists() else b""
        return [self._line(number, line) for number, line in enumerate(raw.split(b"\n")[:-1], 1)]

    def _line(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(line)
        except ValueError as error:
            wanted = "wanted a round as JSON, came a damaged line; put back a copy of the journal"
            raise StoreError(f"{self.path}, line {number}: {wanted}") from error
        return found

    def rewind(self, turn: int) -> None:
        """Forget the rounds after `turn`: they were under way when the run was stopped."""
        write_whole(self.path, b"".join(_raw(line) for line in self.lines() if line["round"] <= turn))


def _raw(line: Mapping[str, Any]) -> bytes:
    return (json.dumps(line, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def line_of(report: Report) -> dict[str, Any]:
    """A round's report as its line."""
    return dataclasses.asdict(report)


def save_checkpoint(path: Path, state: State) -> None:
    """The server's state as one safetensors file, written whole."""
    parts = {"adapters": state.adapters, "memory": state.memory}
    flat = {
        f"{part}|{cluster}|{key}": value
        for part, clusters in parts.items()
        for cluster, adapter in clusters.items()
        for key, value in adapter.items()
    }
    flat |= {f"profiles|{client}|": profile for client, profile in state.profiles.items()}
    said = {"round": state.round, "where": dict(state.where), "ranks": dict(state.ranks), "needs": dict(state.needs)}
    write_whole(path, tree.pack(flat, {"state": json.dumps(said)}))


def load_checkpoint(path: Path) -> State | None:
    """The state of the last finished round; None if no round was finished."""
    if not path.exists():
        return None
    try:
        flat, notes = tree.unpack(read_bytes(path), f"checkpoint '{path}'")
    except TreeError as error:
        raise StoreError(f"{error}; {REMEDY}") from error
    try:
        return _state(flat, notes)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"checkpoint '{path}': wanted a run's state, came another safetensors file; {REMEDY}"
        ) from error


def _state(flat: Tree, notes: Mapping[str, str]) -> State:
    parts: dict[str, dict[str, Tree]] = {"adapters": {}, "memory": {}, "profiles": {}}
    for name, value in flat.items():
        where, key = name.rsplit("|", 1)
        part, cluster = where.split("|", 1)
        parts[part].setdefault(cluster, {})[key] = value
    if not parts["adapters"]:
        raise ValueError("no adapters")
    said = json.loads(notes["state"])
    profiles = {client: found[""] for client, found in parts["profiles"].items()}
    turn, where = said["round"], said["where"]
    own = said.get("ranks", {}), said.get("needs", {})
    return State(turn, parts["adapters"], parts["memory"], where, profiles, *own)


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make or take a run folder for this process alone; the hold ends with the process, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("a+b", buffering=0)
    except OSError as error:
        raise StoreError(f"run '{folder}': cannot be written ({error.strerror}); choose another folder") from error
    with lock:
        _take(lock, folder)
        yield


def held(folder: Path) -> bool:
    """Whether a process holds a run folder now."""
    with (folder / LOCK).open("a+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _take(lock: FileIO, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.truncate(0)
        lock.write(str(os.getpid()).encode())
    except BlockingIOError as error:
        lock.seek(0)
        holder = lock.read().decode()
        raise StoreError(f"run '{folder}': is in use by process {holder}; wait for it, or stop it") from error
    except OSError as error:
        raise StoreError(
            f"run '{folder}': cannot be locked ({error.strerror}); make room or choose another folder"
        ) from error
