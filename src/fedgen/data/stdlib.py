"""Python's own standard library and its documentation topics: a corpus that every user already has.

A module or package is one owner of text. The modules in `FEDERATED` belong to the federation's clients; every other one
is public, and the embedded backbone was pre-trained on those alone.
"""

import sysconfig
from collections.abc import Iterator
from pathlib import Path

FEDERATED = (
    "argparse ast asyncio concurrent configparser ctypes dataclasses difflib doctest email enum ftplib functools http "
    "imaplib inspect ipaddress json locale logging mailbox multiprocessing optparse os pdb pickle pickletools platform "
    "pydoc random shutil smtplib socket ssl statistics subprocess tarfile tempfile threading tkinter traceback turtle "
    "typing unittest urllib xml xmlrpc zipfile"
).split()

NOT_TEXT = {"encodings", "stringprep", "pydoc_data", "this", "antigravity"}  # tables of codes; topics are read as text
NOT_SOURCE = {"test", "tests", "idle_test", "site-packages", "__pycache__", "_vendor", "_bundled"}


def modules() -> Iterator[tuple[str, list[Path]]]:
    """Every top-level module or package of the standard library with its source files, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for entry in sorted(root.iterdir()):
        if entry.suffix == ".py" and not entry.stem.startswith("_sysconfigdata"):
            yield entry.stem, [entry]
        elif (entry / "__init__.py").exists() and entry.name not in NOT_SOURCE:
            files = sorted(entry.rglob("*.py"))
            yield entry.name, [file for file in files if not NOT_SOURCE & set(file.relative_to(root).parts)]


def public() -> Iterator[tuple[str, str]]:
    """Owner and text of everything that belongs to nobody: the corpus of the embedded backbone."""
    from pydoc_data.topics import topics

    for name, files in modules():
        if name not in FEDERATED and name not in NOT_TEXT:
            yield from ((name, file.read_text("utf-8", "replace")) for file in files)
    yield from (("topics", text) for _, text in sorted(topics.items()))


def federated() -> Iterator[tuple[str, str]]:
    """Owner and text of the federation's modules, one pair a file."""
    for name, files in modules():
        if name in FEDERATED:
            yield from ((name, file.read_text("utf-8", "replace")) for file in files)
