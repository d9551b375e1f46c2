"""Bundles on disk as the server reads them: from below a folder alone, and with no path of the machine in its words."""

import os
from functools import partial
from pathlib import Path

from fedgen.errors import ServeError, StoreError
from fedgen.records import Tree
from fedgen.serve.pool.adapter import Adapter
from fedgen.store import Card, load_bundle


def load(folder: str, within: Path) -> Adapter:
    """The bundle at a path below a folder; what is elsewhere is told as what is missing, and never looked at."""
    root = within.resolve()
    return bundle(Path(os.path.normpath(root / folder)), folder, root)


def bundle(folder: Path, shown: str, root: Path | None = None) -> Adapter:
    """The adapter in a folder, which errors call `shown`; whenever it is read, it must lie below the root, if any."""
    _, card = _loaded(folder, shown, root)
    return Adapter(card, partial(_content, folder, shown, root))


def _content(folder: Path, shown: str, root: Path | None) -> Tree:
    return _loaded(folder, shown, root)[0]


def _loaded(folder: Path, shown: str, root: Path | None) -> tuple[Tree, Card]:
    if root and not _is_inside(folder, root):
        raise ServeError(f"adapter '{shown[:200]}': no bundle is there; wanted a path below the folder for adapters")
    try:
        return load_bundle(folder)
    except StoreError as error:
        raise ServeError(str(error).replace(str(folder), shown)) from error


def _is_inside(path: Path, root: Path) -> bool:
    """Whether a folder and all its files lie below the root, wherever links lead; one elsewhere is not touched."""
    if path == root or not path.is_relative_to(root):
        return False
    try:
        return path.is_dir() and all(spot.resolve().is_relative_to(root) for spot in (path, *path.iterdir()))
    except (OSError, ValueError):  # a name that no file can have
        return False
