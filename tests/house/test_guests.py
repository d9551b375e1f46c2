"""Optional packages are guests of one room each: nothing else knows them, and there they come when they are needed."""

import ast
from collections.abc import Iterator, Mapping

import pytest

FLOWER, SERVER = "fedgen.places.flower", "fedgen.serve.api"
ROOMS = dict.fromkeys(("flwr", "ray", "cryptography"), FLOWER)
ROOMS |= dict.fromkeys(("fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn"), SERVER)
APPS = {f"{FLOWER}.app.client_app", f"{FLOWER}.app.server_app"}  # which Flower imports, and nobody here


def guests(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Every import of a guest, and where it stands."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        yield from ((name, node) for name in names if name.split(".")[0] in ROOMS and isinstance(node, ast.stmt))


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
            room = ROOMS[guest.split(".")[0]]
            if not name.startswith(room):
                found.append(f"{name}:{node.lineno}: {guest} outside {room}")
            elif node not in inside and name not in APPS:
                found.append(f"{name}:{node.lineno}: {guest} before it is needed")
    return found


@pytest.mark.parametrize("room", [FLOWER, SERVER])
def test_guests_stay_in_their_room(room: str, modules: Mapping[str, ast.Module]) -> None:
    assert strays(modules) == []
    assert any(list(guests(tree)) for name, tree in modules.items() if name.startswith(room))


def test_the_check_sees_strays() -> None:
    assert len(strays({"fedgen.run": ast.parse("def go():\n    import flwr.app")})) == 1
    assert len(strays({f"{FLOWER}.grid": ast.parse("def go():\n    import fastapi")})) == 1
    assert len(strays({f"{FLOWER}.grid": ast.parse("from ray import init")})) == 1
    assert len(strays({f"{SERVER}.app": ast.parse("from pydantic import BaseModel")})) == 1
    assert strays({f"{FLOWER}.grid": ast.parse("def go():\n    import flwr")}) == []
    assert strays({f"{SERVER}.app": ast.parse("def go():\n    from starlette.requests import Request")}) == []
