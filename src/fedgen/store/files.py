"""Files and folders that are written whole or not at all."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from fedgen.errors import StoreError


def read_bytes(path: Path) -> bytes:
    """A file's content."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror}); is the path right?") from error


def write_whole(path: Path, raw: bytes, mode: int = 0o666) -> None:
    """Write a file so that at any moment its old or its new content is there, and the new one survives a power cut.

    A new file is open to whom `mode` says, less what the user's own mask forbids, from its first moment.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_through(part, raw, mode)
        part.replace(path)
        _sync(path.parent)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def save_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files so that the old folder stands until the new one is complete; read it by `standing`."""
    part, old = folder.with_name(f".{folder.name}.part"), _old(folder)
    try:
        _refuse_to_lose(folder, files)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name, raw in files.items():
            _write_through(part / name, raw)
        _sync(part)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        part.rename(folder)
        _sync(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise _cannot_write(folder, error) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def standing(folder: Path) -> Path:
    """The folder, or the one before it if a writer died between its two renames."""
    return _old(folder) if not folder.exists() and _old(folder).is_dir() else folder


def _refuse_to_lose(folder: Path, files: Mapping[str, bytes]) -> None:
    odd = [entry.name for entry in folder.iterdir() if entry.name not in files] if folder.exists() else []
    if odd:
        raise StoreError(f"{folder}: holds '{min(odd)}', which would be lost; take it out or choose another folder")


def _write_through(path: Path, raw: bytes, mode: int = 0o666) -> None:
    with os.fdopen(os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, mode), "wb") as file:
        file.write(raw)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _cannot_write(path: Path, error: OSError) -> StoreError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    remedy = "make room or choose another folder" if full else "choose a folder that can be written"
    return StoreError(f"{path}: cannot be written ({error.strerror}); {remedy}; what was there is as it was")
