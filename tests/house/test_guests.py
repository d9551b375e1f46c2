"""Flower and Ray are guests of one room: nothing else knows them, and nothing there is imported before it is needed."""

import ast
from collections.abc import Iterator, Mapping

GUESTS = {"flwr", "ray", "cryptography"}
ROOM = "fedgen.places.flower"
APPS = {f"{ROOM}.app.client_app", f"{ROOM}.app.server_app"}  # which Flower imports, and nobody here


def guests(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Every import of a guest, and where it stands."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        yield from ((name, node) for name in names if name.split(".")[0] in GUESTS and isinstance(node, ast.stmt))


def late(tree: ast.AST) -> set[ast.AST]:
    """All that is inside a function, or for the type checker alone."""
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) or (
            isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        ):
            inside |= set(ast.walk(node))
    return inside


def strays(modules: Mapping[str, ast.Module]) -> list[str]:
    """Imports of a guest outside its room, or too early."""
    found = []
    for name, tree in modules.items():
        inside = late(tree)
        for guest, node in guests(tree):
            if not name.startswith(ROOM):
                found.append(f"{name}:{node.lineno}: {guest} outside {ROOM}")
            elif node not in inside and name not in APPS:
                found.append(f"{name}:{node.lineno}: {guest} before it is needed")
    return found


def test_flower_and_ray_stay_in_their_room(modules: Mapping[str, ast.Module]) -> None:
    assert strays(modules) == []
    assert any(list(guests(tree)) for name, tree in modules.items() if name.startswith(ROOM))


def test_the_check_sees_strays() -> None:
    assert len(strays({"fedgen.run": ast.parse("def go():\n    import flwr.app")})) == 1
    assert len(strays({f"{ROOM}.grid": ast.parse("from ray import init")})) == 1
    assert strays({f"{ROOM}.grid": ast.parse("def go():\n    import flwr")}) == []
