"""What a run writes down: a line a round, and a checkpoint to go on from. Both are whole at every moment."""

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedgen import tree
from fedgen.errors import StoreError, TreeError
from fedgen.records import Report, State, Tree
from fedgen.store import write_whole


class Journal:
    """One JSON line a round, on disk before the round counts."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, line: Mapping[str, Any]) -> None:
        """Add a line and see it safely down."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[dict[str, Any]]:
        """All whole lines; a last one cut short by a crash does not count."""
        if not self.path.exists():
            return []
        raw = self.path.read_text("utf-8")
        return [json.loads(line) for line in raw[: raw.rfind("\n") + 1].splitlines()]

    def rewind(self, turn: int) -> None:
        """Forget the rounds after `turn`: they were under way when the run was stopped."""
        kept = [json.dumps(line, ensure_ascii=False) + "\n" for line in self.lines() if line["round"] <= turn]
        write_whole(self.path, "".join(kept).encode())


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
    write_whole(path, tree.pack(flat, {"state": json.dumps({"round": state.round, "where": dict(state.where)})}))


def load_checkpoint(path: Path) -> State | None:
    """The state of the last finished round; None if no round was finished."""
    if not path.exists():
        return None
    try:
        flat, notes = tree.unpack(path.read_bytes(), f"checkpoint '{path}'")
        parts: dict[str, dict[str, Tree]] = {"adapters": {}, "memory": {}}
        for name, value in flat.items():
            part, cluster, key = name.split("|", 2)
            parts[part].setdefault(cluster, {})[key] = value
        said = json.loads(notes["state"])
        return State(said["round"], parts["adapters"], parts["memory"], said["where"])
    except (TreeError, KeyError, ValueError) as error:
        raise StoreError(
            f"{error}; the checkpoint is damaged: put back a copy of it, or delete it to start the run's rounds anew"
        ) from error


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep a run folder for this process; the hold ends with the process, however it ends."""
    with (folder / "lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip()
            raise StoreError(f"run '{folder}': is in use by process {holder}; wait for it, or stop it") from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield
