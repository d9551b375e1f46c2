"""What the server says of itself: the parts of its OpenAPI document that FastAPI cannot know, and a page to read it."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fedgen.report import markup
from fedgen.serve.api.answers import Error
from fedgen.serve.api.reading import adapter
from fedgen.serve.api.routes import ROUTES, Route

SCHEMAS = "#/components/schemas/"
BEARER = {"type": "http", "scheme": "bearer", "description": "A key, as `fedgen key` makes them."}
JSON = "application/json"
NAMED = {"id": "A model's id.", "name": "An adapter's name."}


def schemas() -> tuple[dict[Any, Any], dict[str, Any]]:
    """By shape and direction, how a path refers to it; and all shapes by name."""
    from pydantic import TypeAdapter

    asked = [(route.ask, "validation") for route in ROUTES if route.ask is not None]
    told = [(answer, "serialization") for answer in (Error, *(route.answer for route in ROUTES))]
    shapes: list[Any] = [(shape, mode, adapter(shape)) for shape, mode in dict.fromkeys([*asked, *told])]
    found, defined = TypeAdapter.json_schemas(shapes, ref_template=SCHEMAS + "{model}")
    return found, defined["$defs"]


def about(route: Route, refs: Mapping[Any, Any], *, optional: bool) -> dict[str, Any]:
    """A path's part of the document, beside what FastAPI writes."""
    keys: Sequence[Mapping[str, Sequence[str]]] = [] if route.askers == "anyone" else [{"bearer": []}]
    free: Sequence[Mapping[str, Sequence[str]]] = [{}] if route.askers == "key" and optional else []
    extra: dict[str, Any] = {"security": [*free, *keys]}
    extra["parameters"] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}, "description": said}
        for name, said in NAMED.items()
        if f"{{{name}}}" in route.path
    ]
    if route.ask is not None:
        content = {JSON: {"schema": refs[route.ask, "validation"]}}
        extra["requestBody"] = {"required": True, "content": content}
    return extra


def responses(route: Route, refs: Mapping[Any, Any]) -> dict[int | str, dict[str, Any]]:
    """Every answer of a path by its status."""
    fine: dict[str, Any] = {JSON: {"schema": refs[route.answer, "serialization"]}}
    if route.streams:
        fine["text/event-stream"] = {"schema": {"type": "string"}}
    wrong = {JSON: {"schema": refs[Error, "serialization"]}}
    found: dict[int | str, dict[str, Any]] = {
        status: {"description": HTTPStatus(status).phrase, "content": wrong} for status in route.statuses
    }
    return {200: {"description": "OK", "content": fine}, **found}


# ---- to be read


def page(document: Mapping[str, Any]) -> bytes:
    """The document as a page that needs nothing from elsewhere."""
    known = document["components"]["schemas"]
    parts = [
        _section(f"{method.upper()} {path}", said, known)
        for path, methods in document["paths"].items()
        for method, said in methods.items()
    ]
    return markup.page(f"{document['info']['title']} {document['info']['version']}", *parts)


def _section(title: str, said: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    asked = said.get("requestBody", {}).get("content", {}).get(JSON, {}).get("schema")
    told = said["responses"]["200"]["content"].get(JSON, {}).get("schema")
    statuses = ", ".join(said["responses"])
    parts = [markup.words(said.get("description") or said.get("summary", ""))]
    parts += [_fields("It takes", asked, known)] if asked else []
    parts += [markup.more("What it answers", _fields("It answers", told, known))] if told else []
    return markup.section(title, *parts, markup.words(f"Statuses: {statuses}"))


def _fields(caption: str, schema: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    found = known.get(_name(schema) or _name(schema.get("items", {})), {})
    rows = [
        (name, _kind(field), "yes" if name in found.get("required", ()) else "", field.get("description", ""))
        for name, field in found.get("properties", {}).items()
    ]
    head = ["Field", "Kind", "Needed", "Meaning"]
    return markup.table(f"{caption}: {found.get('description', '')}", head, rows, prose=True)


def _name(schema: Mapping[str, Any]) -> str:
    return str(schema.get("$ref", "")).removeprefix(SCHEMAS)


def _kind(field: Mapping[str, Any]) -> str:
    """A field's type in a few words."""
    if "anyOf" in field:
        return " or ".join(kind for one in field["anyOf"] if (kind := _kind(one)) != "null")
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}))}"
    if "const" in field:
        return repr(field["const"])
    if "enum" in field:
        return " or ".join(map(repr, field["enum"]))
    least, most = field.get("minimum"), field.get("maximum")
    bounds = f" {least:g} to {most:g}" if least is not None and most is not None else ""
    return (_name(field) or str(field.get("type", "anything"))) + bounds
