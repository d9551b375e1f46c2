"""The front door: every exported name is there and documented, and opening it loads nothing heavy that is optional."""

import importlib
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import fedgen

OPTIONAL = {"flwr", "ray", "fastapi", "matplotlib", "datasets", "peft", "typer"}


def loaded(statement: str, cwd: Path) -> set[str]:
    """Which optional packages a statement loads in a fresh interpreter."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return OPTIONAL & set(ran.stdout.split())


def undocumented(names: Iterable[str], text: str) -> list[str]:
    """Names that the text never mentions as code: `fedgen.name` or `name`."""
    return [name for name in names if not re.search(rf"(fedgen\.|import .*|`){name}\b", text)]


def exported() -> list[str]:
    """The names that the front door offers."""
    return list(getattr(fedgen, "__all__", []))


def test_exports_resolve_once_each() -> None:
    assert [name for name in exported() if getattr(fedgen, name, None) is None] == []
    assert len(set(exported())) == len(exported())


def test_exports_are_documented(root: Path) -> None:
    if not (root / "README.md").exists():
        pytest.skip("README.md is not written yet")
    pages = [*root.glob("*.md"), *root.glob("docs/**/*.md")]
    assert undocumented(exported(), "\n".join(page.read_text("utf-8") for page in pages)) == []


def test_the_front_door_loads_nothing_optional(root: Path) -> None:
    assert loaded("import fedgen", root) == set()


def test_every_module_loads(root: Path, sources: dict[str, str]) -> None:
    for name in sources:
        if not name.endswith("__main__"):
            importlib.import_module(name)


def test_the_check_sees_an_optional_package(root: Path) -> None:
    assert loaded("import typer", root) == {"typer"}


def test_the_check_sees_an_undocumented_name() -> None:
    assert undocumented(["run", "read", "load"], "call `read(path)`, then fedgen.run(plan); loading") == ["load"]
