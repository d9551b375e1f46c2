"""Files are written whole or not at all, on disks that are really full."""

import contextlib
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedgen.errors import StoreError
from fedgen.store import read_bytes, save_folder, write_whole
from fedgen.store.files import standing


@contextlib.contextmanager
def tight(folder: Path) -> Iterator[None]:
    """A disk with room for 64 kB: a real small one where one may be mounted, else the system's limit on files."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_and_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deep" / "file"
    write_whole(path, b"one")
    assert read_bytes(path) == b"one"
    write_whole(path, b"two")
    assert read_bytes(path) == b"two"
    assert names(path.parent) == ["file"]


def test_a_file_that_is_not_there_or_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nowhere: cannot be read"):
        read_bytes(tmp_path / "nowhere")
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(StoreError, match=r"file/below: cannot be written .*; choose a folder that can be written"):
        write_whole(tmp_path / "file" / "below", b"x")
    with pytest.raises(StoreError, match=r"file: cannot be written"):
        save_folder(tmp_path / "file", {"a": b"x"})
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    with tight(tmp_path):
        path = tmp_path / "state"
        write_whole(path, b"old" * 1000)
        with pytest.raises(StoreError, match=r"state: cannot be written .*; make room or choose another folder"):
            write_whole(path, b"new" * 100_000)
        assert path.read_bytes() == b"old" * 1000
        assert names(tmp_path) == ["state"]


def test_a_full_disk_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    with tight(tmp_path):
        folder = tmp_path / "adapter"
        save_folder(folder, {"a": b"old", "b": b"old"})
        with pytest.raises(StoreError, match=r"adapter: cannot be written .*; make room"):
            save_folder(folder, {"a": b"new", "b": b"new" * 100_000})
        assert {name: (folder / name).read_bytes() for name in names(folder)} == {"a": b"old", "b": b"old"}
        with pytest.raises(StoreError, match="make room"):
            save_folder(tmp_path / "other", {"b": b"new" * 100_000})
        assert names(tmp_path) == ["adapter"]


def test_a_folder_is_replaced_as_one(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "adapter"
    save_folder(folder, {"a": b"1", "b": b"1"})
    save_folder(folder, {"a": b"2", "b": b"2", "c": b"2"})
    assert {name: (folder / name).read_bytes() for name in names(folder)} == {"a": b"2", "b": b"2", "c": b"2"}
    assert names(folder.parent) == ["adapter"]


def test_a_folder_with_something_else_in_it_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("all of it")
    with pytest.raises(StoreError, match=r"holds 'thesis.tex', which would be lost"):
        save_folder(tmp_path / "home", {"a": b"1"})
    assert names(tmp_path / "home") == ["thesis.tex"]


def test_a_writer_that_died_between_its_two_renames_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    save_folder(folder, {"a": b"1"})
    assert standing(folder) == folder
    folder.rename(tmp_path / ".adapter.old")  # what such a writer leaves
    (tmp_path / ".adapter.part").mkdir()
    assert (standing(folder) / "a").read_bytes() == b"1"
    save_folder(folder, {"a": b"2"})
    assert (standing(folder) / "a").read_bytes() == b"2"
    assert names(tmp_path) == ["adapter"]
