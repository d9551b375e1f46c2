"""Imports go only downward, within a floor only leftward, never in a circle, and never late."""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter

Modules = Mapping[str, ast.Module]

FLOORS = [
    "errors records",
    "seeds tree",
    "lora factors bank weights chart store",
    "backbones data encode client evaluate quality sheet",
    "cohort aggregate outer cluster kinship exchange share personal guards devices allot",
    "turns groups rounds journal plan methods roster run cost sample exhibit merging leaving",
    "places serve.keys serve.pool serve.engine serve.house serve.client serve",
    ". report screen reproduce serve.page serve.api serve_cli fleet_cli cli __main__",  # the dot is fedgen/__init__.py
]
PLACE = {room: (floor, step) for floor, rooms in enumerate(FLOORS) for step, room in enumerate(rooms.split())}


def room(module: str) -> str:
    """The room a module is in: the longest name in the table that it starts with."""
    name = module.removeprefix("fedgen").removeprefix(".") or "."
    while name not in PLACE and "." in name[1:]:
        name = name.rpartition(".")[0]
    return name


def imports(tree: ast.AST, modules: Modules) -> Iterator[tuple[str, int]]:
    """Every module of ours that is imported below a node, and the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else str(node.module) for name in whole]
        else:
            continue
        yield from ((name, node.lineno) for name in names if name.split(".")[0] == "fedgen")


def upward(modules: Modules) -> list[str]:
    """Imports that go up or to the right, and modules without a floor."""
    wrong = []
    for name, tree in modules.items():
        for other, line in imports(tree, modules):
            here, there = room(name), room(other)
            if here not in PLACE or there not in PLACE:
                wrong.append(f"{name}:{line}: '{here}' or '{there}' has no floor; add it to FLOORS")
            elif here != there and PLACE[there] > PLACE[here]:
                wrong.append(f"{name}:{line}: imports {other}, which lies above it or to its right")
    return wrong


def circle(modules: Modules) -> list[str]:
    """One circle of imports, if there is any."""
    graph = {name: {other for other, _ in imports(tree, modules)} for name, tree in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def late(modules: Modules) -> list[str]:
    """Our own modules imported inside functions, and modules found by a string."""
    wrong = []
    for name, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                wrong += [f"{name}:{line}: imports {other} late" for other, line in imports(node, modules)]
            if isinstance(node, ast.Call) and by_string(node):
                wrong.append(f"{name}:{node.lineno}: {ast.unparse(node)} imports by a string")
    return wrong


def by_string(call: ast.Call) -> bool:
    """Whether a call imports something that may be ours; a package of others, named in full, may come late."""
    if not ast.unparse(call.func).endswith(("import_module", "__import__")):
        return False
    name = call.args[0] if call.args else None
    return not (isinstance(name, ast.Constant) and str(name.value).split(".")[0] not in {"", "fedgen"})


def test_every_module_has_a_floor(modules: Modules) -> None:
    assert [name for name in modules if room(name) not in PLACE] == []


def test_imports_go_down_or_left(modules: Modules) -> None:
    assert upward(modules) == []


def test_no_import_goes_in_a_circle(modules: Modules) -> None:
    assert circle(modules) == []


def test_nothing_of_ours_is_imported_late(modules: Modules) -> None:
    assert late(modules) == []


def parse(**modules: str) -> Modules:
    """A small package for the tests below; two underscores stand for a dot."""
    named = {"fedgen." + name.replace("__", "."): ast.parse(text) for name, text in modules.items()}
    return {"fedgen": ast.parse(""), **named}


def test_the_check_sees_an_import_upward() -> None:
    assert "fedgen.tree:1: imports fedgen.run" in upward(parse(tree="from fedgen import run", run=""))[0]


def test_the_check_sees_an_import_to_the_right() -> None:
    assert len(upward(parse(lora="import fedgen.bank", bank=""))) == 1
    assert upward(parse(bank="import fedgen.lora", lora="")) == []


def test_the_check_sees_the_front_door_from_below() -> None:
    assert len(upward(parse(rounds="import fedgen"))) == 1
    assert upward(parse(cli="from fedgen import version")) == []


def test_the_check_sees_a_module_without_a_floor() -> None:
    assert "has no floor" in upward(parse(attic="import fedgen.tree", tree=""))[0]


def test_the_check_sees_a_circle_inside_a_package() -> None:
    modules = parse(data__deal="from fedgen.data import rows", data__rows="import fedgen.data.deal")
    assert set(circle(modules)) == {"fedgen.data.deal", "fedgen.data.rows"}


def test_the_check_sees_a_late_import() -> None:
    assert len(late(parse(run="def go():\n    from fedgen import tree", tree=""))) == 1
    assert len(late(parse(run="importlib.import_module('fedgen.' + name)\n__import__('fedgen.run')"))) == 2
    assert late(parse(run="importlib.import_module('datasets')\ndef go():\n    import flwr")) == []
