"""The shelf keeps each client's own part: in memory while there is room, then on disk."""

import hashlib
import re
import shutil
import tempfile
import weakref
from pathlib import Path
from urllib.parse import unquote_to_bytes

from fedgen.errors import StoreError, TreeError
from fedgen.records import Tree
from fedgen.store.files import read_bytes, write_whole
from fedgen.tree import pack, unpack


class Shelf:
    """Each client's own part, by round: in memory up to `limit` bytes, then on disk.

    A newer version never destroys an older one before `settle`, so a run killed in a round can go back to the last
    finished one: `flush`, write the checkpoint, `settle`; and on resuming `rewind`.
    """

    def __init__(self, folder: Path | None = None, limit: int = 2**30) -> None:
        self._folder = folder or Path(tempfile.mkdtemp(prefix="fedgen-shelf-"))
        if folder is None:
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._limit = limit
        self._bytes = 0
        self._warm: dict[tuple[str, int], Tree] = {}  # the longest unused first
        self._dirty: set[tuple[str, int]] = set()
        self._rounds: dict[str, set[int]] = {}
        self._full: dict[str, str] = {}  # what a file name stands for, where it is known
        self._drawers: dict[str, Shelf] = {}
        self._find()

    def put(self, client: str, turn: int, tree: Tree) -> None:
        """Keep this as the client's part after this round."""
        name = _escape(client)
        self._full[name] = client
        self._rounds.setdefault(name, set()).add(turn)
        self._dirty.add((name, turn))
        self._warm_up((name, turn), _copy(tree))

    def get(self, client: str, before: int | None = None) -> Tree | None:
        """The client's newest part, or the newest of an earlier round than that; its keys in alphabetical order."""
        name = _escape(client)
        known = [at for at in self._rounds.get(name, ()) if before is None or at < before]
        if not known:
            return None
        key = name, max(known)
        tree = self._warm[key] if key in self._warm else self._read(key)[0]
        self._warm_up(key, tree)
        return _copy(tree)

    def drawer(self, name: str) -> "Shelf":
        """A shelf below this one, for another thing of each client; flushed, rewound and settled with it.

        It keeps as much again in memory.
        """
        if name not in self._drawers:
            self._drawers[name] = Shelf(self._folder / name, self._limit)
        return self._drawers[name]

    def clients(self) -> list[str]:
        """All clients with a part of their own, in alphabetical order."""
        return sorted(self._client(name) for name in self._rounds)

    def round_of(self, client: str) -> int | None:
        """The round of the client's newest part."""
        return max(self._rounds.get(_escape(client), ()), default=None)

    def flush(self) -> None:
        """Bring everything to the disk, to stay."""
        for key in sorted(self._dirty):
            self._write(key)
        for drawer in self._drawers.values():
            drawer.flush()

    def rewind(self, turn: int) -> None:
        """Forget every version newer than this round, and what a killed writer left unfinished."""
        for path in self._folder.glob(".*.part"):
            path.unlink(missing_ok=True)
        self._drop([(name, at) for name, rounds in self._rounds.items() for at in rounds if at > turn])
        for drawer in self._drawers.values():
            drawer.rewind(turn)

    def settle(self, turn: int) -> None:
        """Forget every version that a rewind to this round, or to a later one, cannot ask for."""
        for name, rounds in list(self._rounds.items()):
            newest = max((at for at in rounds if at <= turn), default=turn)
            self._drop([(name, at) for at in rounds if at < newest])
        for drawer in self._drawers.values():
            drawer.settle(turn)

    def _find(self) -> None:
        """Take stock of what an earlier process has left."""
        if self._folder.exists() and not self._folder.is_dir():
            raise StoreError(f"{self._folder}: wanted a folder for the clients' own parts, came a file")
        for path in self._folder.iterdir() if self._folder.exists() else ():
            if found := re.fullmatch(r"([^.]+)\.(-?\d+)\.safetensors", path.name):
                self._rounds.setdefault(found[1], set()).add(int(found[2]))
            elif path.is_dir():
                self._drawers[path.name] = Shelf(path, self._limit)

    def _warm_up(self, key: tuple[str, int], tree: Tree) -> None:
        """Keep the tree in memory as the one used last, and let the longest unused ones go if it is too much."""
        self._cool_down(key)
        self._warm[key] = tree
        self._bytes += _weight(tree)
        while self._bytes > self._limit:
            last = next(iter(self._warm))
            if last in self._dirty:
                self._write(last)
            self._cool_down(last)

    def _cool_down(self, key: tuple[str, int]) -> None:
        self._bytes -= _weight(self._warm.pop(key, {}))

    def _drop(self, keys: list[tuple[str, int]]) -> None:
        for name, at in keys:
            self._cool_down((name, at))
            self._dirty.discard((name, at))
            self._path((name, at)).unlink(missing_ok=True)
            self._rounds[name].discard(at)
            if not self._rounds[name]:
                del self._rounds[name]

    def _path(self, key: tuple[str, int]) -> Path:
        return self._folder / f"{key[0]}.{key[1]}.safetensors"

    def _client(self, name: str) -> str:
        """The client that a file name stands for; a digest does not say, but its file does."""
        if name not in self._full:
            told = self._read((name, max(self._rounds[name])))[1].get("client", "") if "%%" in name else name
            self._full[name] = unquote_to_bytes(told).decode("utf-8", "surrogatepass")
        return self._full[name]

    def _write(self, key: tuple[str, int]) -> None:
        write_whole(self._path(key), pack(self._warm[key], {"client": _quote(self._full[key[0]])}))
        self._dirty.discard(key)

    def _read(self, key: tuple[str, int]) -> tuple[Tree, dict[str, str]]:
        path = self._path(key)
        try:
            return unpack(read_bytes(path), str(path))
        except TreeError as error:
            raise StoreError(f"{error}; remove the file to start this client's own part anew") from error


def _copy(tree: Tree) -> Tree:
    return {key: tree[key].detach().cpu().clone() for key in sorted(tree)}


def _weight(tree: Tree) -> int:
    return sum(value.numel() * value.element_size() for value in tree.values())


def _quote(client: str) -> str:
    """Any text in a-z 0-9 _ - and bytes as %xx, never the same for two, not even where capitals do not count."""
    safe = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_-")
    raw = client.encode("utf-8", "surrogatepass")
    return "".join(chr(byte) if byte in safe else f"%{byte:02x}" for byte in raw)


def _escape(client: str) -> str:
    """The client's file name; one that would be too long ends in a digest, and `%%` marks it."""
    name = _quote(client) or "%%"
    return name if len(name) <= 200 else f"{name[:100]}%%{hashlib.sha256(name.encode()).hexdigest()}"
