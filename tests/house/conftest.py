"""The package as the house tests read it: source and syntax tree of every module."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def sources() -> dict[str, str]:
    """Every module's dotted name and source."""
    found = {}
    for file in sorted((ROOT / "src" / "fedgen").rglob("*.py")):
        parts = file.relative_to(ROOT / "src").with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = file.read_text("utf-8")
    return found


@pytest.fixture(scope="session")
def modules(sources: dict[str, str]) -> dict[str, ast.Module]:
    """Every module's dotted name and syntax tree."""
    return {name: ast.parse(text) for name, text in sources.items()}
