"""Every module and every public name says in a sentence what it is."""

import ast
from collections.abc import Iterator, Mapping

Named = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(node: ast.Module | Named, path: str) -> Iterator[tuple[str, ast.Module | Named]]:
    """A module, its public classes and functions, and the public methods of those classes."""
    yield path, node
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, Named) and not child.name.startswith("_"):
                yield from public(child, f"{path}.{child.name}")


def silent(modules: Mapping[str, ast.Module]) -> list[str]:
    """Public names without a docstring."""
    found = (pair for name, tree in modules.items() for pair in public(tree, name))
    return [path for path, node in found if not (ast.get_docstring(node) or "").strip()]


def test_everything_public_says_what_it_is(modules: Mapping[str, ast.Module]) -> None:
    assert silent(modules) == []


def test_the_check_sees_silence() -> None:
    text = "class A:\n    '''A.'''\n    def go(self): ...\n    def _go(self): ...\ndef f():\n    ' '\ndef g():\n    'g'"
    assert silent({"m": ast.parse(text)}) == ["m", "m.A.go", "m.f"]
