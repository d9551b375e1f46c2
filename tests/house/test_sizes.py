"""Sizes, names and habits: what keeps a file readable in one sitting."""

import ast
import re
import statistics
from collections.abc import Iterator, Mapping

import pytest

Modules = Mapping[str, ast.Module]
Function = ast.FunctionDef | ast.AsyncFunctionDef

FILE, FUNCTION, MEDIAN, PARAMETERS = 400, 60, 10, 6
FORBIDDEN = {"util", "helper", "common", "core", "base", "manager", "handler"}


def functions(tree: ast.AST) -> Iterator[Function]:
    """Every function and method below a node."""
    yield from (node for node in ast.walk(tree) if isinstance(node, Function))


def length(function: Function) -> int:
    """How many lines it takes, from `def` to its end."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def positional(function: Function) -> list[str]:
    """The parameters that can be given by place, without self."""
    names = [arg.arg for arg in function.args.posonlyargs + function.args.args]
    return names[1:] if names[:1] in (["self"], ["cls"]) else names


def too_big(modules: Modules) -> list[str]:
    """Functions with too many lines or too many parameters."""
    wrong = []
    for module, tree in modules.items():
        for function in functions(tree):
            if length(function) > FUNCTION:
                wrong.append(f"{module}.{function.name}: {length(function)} lines, at most {FUNCTION}")
            if len(positional(function)) > PARAMETERS:
                wrong.append(f"{module}.{function.name}: {len(positional(function))} parameters, at most {PARAMETERS}")
    return wrong


def words(name: str) -> set[str]:
    """A name's words, in small letters and the singular."""
    return {word.lower().removesuffix("s") for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)}


def empty_names(modules: Modules) -> list[str]:
    """Modules, classes and functions whose names say nothing; one between double underscores is somebody else's."""
    named = [(module, module) for module in modules]
    for module, tree in modules.items():
        named += [(module, node.name) for node in ast.walk(tree) if isinstance(node, Function | ast.ClassDef)]
    return [f"{module}: '{name}'" for module, name in named if words(name) & FORBIDDEN and name[:2] != "__"]


def networks(modules: Modules) -> set[str]:
    """The names of all classes that come from nn.Module, however far down."""
    classes = [node for tree in modules.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found: set[str] = set()
    while True:
        more = {node.name for node in classes if any(is_network(ast.unparse(base), found) for base in node.bases)}
        if more <= found:
            return found
        found |= more


def is_network(base: str, known: set[str]) -> bool:
    """Whether a base class is one of torch's or a known one."""
    return base.startswith(("nn.", "torch.nn.")) or base.rpartition(".")[2] in known


def calls(tree: ast.AST, name: str) -> set[int]:
    """The lines on which a plain name is called."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    return {node.lineno for node in found if ast.unparse(node.func) == name}


def stray_supers(modules: Modules) -> list[str]:
    """super() outside an nn.Module."""
    allowed, wrong = networks(modules), []
    for module, tree in modules.items():
        inside = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name in allowed]
        lines = calls(tree, "super").difference(*(calls(node, "super") for node in inside))
        wrong += [f"{module}:{line}: super() outside an nn.Module" for line in sorted(lines)]
    return wrong


def guesses(modules: Modules) -> list[str]:
    """hasattr: asking an object what it is instead of knowing."""
    return [f"{module}:{line}: hasattr" for module, tree in modules.items() for line in sorted(calls(tree, "hasattr"))]


def passed_on(modules: Modules) -> list[str]:
    """Functions that take **anything and hand it on."""
    wrong = []
    for module, tree in modules.items():
        for function in functions(tree):
            stars = function.args.kwarg
            given = [word for node in ast.walk(function) if isinstance(node, ast.Call) for word in node.keywords]
            if stars and any(word.arg is None and ast.unparse(word.value) == stars.arg for word in given):
                wrong.append(f"{module}.{function.name}: **{stars.arg} is handed on")
    return wrong


RULES = [too_big, empty_names, stray_supers, guesses, passed_on]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds(rule, modules: Modules) -> None:
    assert rule(modules) == []


def test_files_are_short(sources: Mapping[str, str]) -> None:
    assert {name: lines for name, text in sources.items() if (lines := text.count("\n")) > FILE} == {}


def test_functions_are_short_at_the_median(modules: Modules) -> None:
    assert statistics.median(length(function) for tree in modules.values() for function in functions(tree)) < MEDIAN


BAD = [
    (too_big, "def f():\n" + "    pass\n" * 60),
    (too_big, "class A:\n    def f(self, a, b, c, d, e, f, g): ..."),
    (empty_names, "class PlanManager: ..."),
    (empty_names, "def _core_helpers(): ..."),
    (stray_supers, "class A(Exception):\n    def __init__(self):\n        super().__init__()"),
    (guesses, "hasattr(a, 'b')"),
    (passed_on, "def f(**more):\n    return g(**more)"),
]
GOOD = [
    (too_big, "class A:\n    def f(self, a, b, c, d, e, f, *, g): ..."),
    (empty_names, "def score_database(): ..."),
    (stray_supers, "class A(nn.Module): ...\nclass B(A):\n    def __init__(self):\n        super().__init__()"),
    (passed_on, "def f(table):\n    return g(**table)"),
]


@pytest.mark.parametrize(("rule", "snippet"), BAD)
def test_rule_sees_what_is_bad(rule, snippet: str) -> None:
    assert len(rule({"fedgen.sample": ast.parse(snippet)})) == 1


@pytest.mark.parametrize(("rule", "snippet"), GOOD)
def test_rule_lets_the_good_pass(rule, snippet: str) -> None:
    assert rule({"fedgen.sample": ast.parse(snippet)}) == []


def test_a_name_of_a_module_is_checked() -> None:
    assert empty_names({"fedgen.utils": ast.parse("")}) == ["fedgen.utils: 'fedgen.utils'"]
