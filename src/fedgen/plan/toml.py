"""A plan as TOML: read strictly, refused with a reason, written back with every key said."""

import dataclasses
import json
import math
import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from fedgen.errors import FedgenError, PlanError
from fedgen.plan.agree import agree
from fedgen.plan.parts import SECTIONS, TABLES, Plan, kind_of


def read(source: Plan | Path | str | Mapping[str, Any], settings: Sequence[str] = ()) -> Plan:
    """A plan from a file, a dict or another plan, with `section.key=value` settings laid over it."""
    if isinstance(source, Plan):  # made in Python, where nothing has looked at it yet
        source = tomllib.loads(write(source))
    keys = source if isinstance(source, Mapping) else load(Path(source))
    keys = {key: dict(value) if isinstance(value, Mapping) else value for key, value in keys.items()}
    for setting in sorted(settings, key=lambda setting: ".kind" not in setting.partition("=")[0]):  # kinds come first
        _lay(keys, setting)
    plan = _plan(keys)
    agree(plan)
    return plan


def load(path: Path, what: str = "plan") -> dict[str, Any]:
    """The keys of a TOML file."""
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise PlanError(f"{what} '{path}': cannot be read ({error.strerror}); wanted a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{what} '{path}': is not TOML: {error}") from error


def _lay(keys: dict[str, Any], setting: str) -> None:
    name, equals, raw = setting.partition("=")
    section, dot, key = name.strip().rpartition(".")
    if not equals or not key:
        raise PlanError(f"--set {setting}: wanted section.key=value, such as training.epochs=2")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    place = keys.setdefault(section, {}) if dot else keys
    if not isinstance(place, dict):
        raise PlanError(f"--set {setting}: '{section}' is a value, not a section")
    if key == "kind" and isinstance(value, str) and value in TABLES.get(section, {}):
        known = {spot.name for spot in dataclasses.fields(TABLES[section][value])}
        keys[section] = place = {name: old for name, old in place.items() if name in known}  # the old kind's others go
    place[key] = value


def _plan(keys: Mapping[str, Any]) -> Plan:
    hints = typing.get_type_hints(Plan, include_extras=True)
    known = [name for name in hints if name not in TABLES and name not in SECTIONS]
    parts: dict[str, Any] = {}
    for key, value in keys.items():
        if key not in hints:
            raise PlanError(f"plan: '{key}' is not one of {', '.join(hints)}")
        if key in known:
            parts[key] = value_of(key, value, hints[key])
        elif not isinstance(value, dict):
            raise PlanError(f"plan: '{key}' is a section, came {value!r}; write [{key}] and its keys below it")
        else:
            parts[key] = _section(key, value)
    return Plan(**parts)


def _section(section: str, keys: Mapping[str, Any]) -> Any:
    keys = dict(keys)
    if section in SECTIONS:
        return part_of(section, SECTIONS[section], keys)
    table = TABLES[section]
    default = type(getattr(Plan(), section))
    kind = keys.pop("kind", next(name for name, part in table.items() if part is default))
    if not isinstance(kind, str) or kind not in table:
        raise PlanError(f"{section}.kind: {kind!r} is not one of {', '.join(table)}")
    return part_of(section, table[kind], keys)


def part_of(section: str, part: type[Any], keys: Mapping[str, Any]) -> Any:
    """The part with its keys as a section says them."""
    said = typing.get_type_hints(part, include_extras=True)
    hints = {spot.name: said[spot.name] for spot in dataclasses.fields(part)}
    for key in keys:
        if key not in hints:
            wanted = ", ".join(hints) or "no keys but kind"
            raise PlanError(f"{section}.{key}: no such key; {part.__name__} has {wanted}")
    for spot in dataclasses.fields(part):
        needed = spot.default is dataclasses.MISSING and spot.default_factory is dataclasses.MISSING
        if needed and spot.name not in keys:
            raise PlanError(f"{section}.{spot.name}: is missing; {part.__name__} wants {wish_of(hints[spot.name])}")
    values = {key: value_of(f"{section}.{key}", value, hints[key]) for key, value in keys.items()}
    try:
        return part(**values)
    except FedgenError as error:  # keys that are right alone and wrong together
        raise PlanError(f"{section}: {error}") from error


def value_of(where: str, value: Any, hint: Any) -> Any:
    """The value as the hint wants it, or one clear line."""
    base, *marks = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    if typing.get_origin(base) is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in typing.get_args(base)):
            raise PlanError(f"{where}: {value!r} is not one of {', '.join(map(str, typing.get_args(base)))}")
        return value
    if typing.get_origin(base) is tuple and isinstance(value, list | tuple):
        item = typing.get_args(base)[0]
        value = [float(each) if item is float and type(each) is int else each for each in value]
        each_right = all(type(each) is item and _is_writable(each) for each in value)
        if each_right and all(value in mark for mark in marks):
            return tuple(value)
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not base or not _is_writable(value) or not all(value in mark for mark in marks):
        raise PlanError(f"{where}: wanted {wish_of(hint)}, came {value!r}")
    return value


def _is_writable(value: Any) -> bool:
    """Whether a plan's file can say it and mean something: no NaN, no infinity, no half of a character."""
    if isinstance(value, float):
        return math.isfinite(value)
    return not (isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value))


def wish_of(hint: Any) -> str:
    """What a key takes, in words."""
    base, *marks = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    lists = {str: "a list of texts", int: "a list of whole numbers", float: "a list of numbers"}
    named = lists[typing.get_args(base)[0]] if typing.get_origin(base) is tuple else names.get(base) or str(base)
    return " ".join([named, *map(str, marks)])


def write(plan: Plan) -> str:
    """The plan as TOML, every key said."""
    top = [f"{key} = {toml_of(getattr(plan, key))}" for key in ("name", "seed", "rounds", "place", "guards")]
    return "\n".join([*top, *(_written(section, plan) for section in [*TABLES, *SECTIONS])]) + "\n"


def _written(section: str, plan: Plan) -> str:
    part: Any = getattr(plan, section)
    kind = [f'kind = "{kind_of(section, part)}"'] if section in TABLES else []
    keys = [f"{spot.name} = {toml_of(getattr(part, spot.name))}" for spot in dataclasses.fields(part)]
    return "\n".join(["", f"[{section}]", *kind, *keys])


def toml_of(value: object) -> str:
    """A value as a plan's file says it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml_of, value))}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
