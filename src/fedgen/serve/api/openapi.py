"""What the server says of itself: the parts of its OpenAPI document that FastAPI cannot know, and a page to read it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fedgen.report import markup
from fedgen.serve.api.answers import Error
from fedgen.serve.api.reading import adapter
from fedgen.serve.api.routes import ROUTES, Route

SCHEMAS = "#/components/schemas/"
BEARER = {"type": "http", "scheme": "bearer", "description": "A key, as `fedgen key` makes them."}
JSON = "application/json"
BEYOND = 1e9  # a bound that nobody comes near is not told
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

EXAMPLE = """curl 127.0.0.1:8000/v1/completions \\
  -H "Authorization: Bearer KEY" \\
  -H "Content-Type: application/json" \\
  -d '{"model": "global",
       "prompt": "The harbour"}'"""
ABOUT = (
    "Texts and pictures are asked for as OpenAI's clients ask, under any adapter that the server has. "
    "What is refused is answered with a status and one line that says why."
)
KEY = (
    "A key is sent with each request as Authorization: Bearer KEY. Put this server's address in place of the one here:"
)
LINKS = {"./": "The page", "metrics": "Metrics for Prometheus", "openapi.json": "This document as JSON"}


def page(document: Mapping[str, Any]) -> bytes:
    """The document as a page that needs nothing from elsewhere."""
    info, known = document["info"], document["components"]["schemas"]
    title = f"{info['title']} {info['version']}"
    links = " · ".join(f'<a href="{where}">{markup.text(said)}</a>' for where, said in LINKS.items())
    paths = [
        _section(method, path, said, known)
        for path, methods in document["paths"].items()
        for method, said in methods.items()
    ]
    nested = sorted({name for shape in known.values() for name in _named(shape.get("properties", {}))})
    shapes = [f'<h3 id="{name}">{markup.text(name)}</h3>\n{_shape(known[name])}' for name in nested]
    top = f'<p class="kicker">{markup.text(title)}</p>\n<h1>What this server answers</h1>'
    return markup.page(
        f"{title}: what this server answers", top, markup.words(ABOUT), f"<p>{links}</p>", markup.words(KEY),
        markup.listing(EXAMPLE), *paths, markup.section("Shapes", *shapes),
    )  # fmt: skip


def _section(method: str, path: str, said: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    asked = said.get("requestBody", {}).get("content", {}).get(JSON, {}).get("schema")
    told = said["responses"]["200"]["content"].get(JSON, {}).get("schema")
    parts = [
        f'<section id="{markup.text(path)}">',
        f"<h2>{method.upper()} {markup.text(path).replace('/', '<wbr>/')}</h2>",  # a long one is broken between names
        markup.words(said.get("description") or said.get("summary", "")),
        _fields(_meant(asked, known)) if asked else "",
        markup.more("What it answers", _shape(_meant(told, known))) if told else "",
        f'<p class="note">Statuses: {", ".join(said["responses"])}</p>\n</section>',
    ]
    return "\n".join(part for part in parts if part)


def _meant(schema: Mapping[str, Any], known: Mapping[str, Any]) -> Mapping[str, Any]:
    """The shape that is referred to, or a list's items."""
    found: Mapping[str, Any] = known.get(_name(schema) or _name(schema.get("items", {})), {})
    return found


def _shape(shape: Mapping[str, Any]) -> str:
    return markup.words(shape.get("description", "")) + _fields(shape)


def _fields(shape: Mapping[str, Any]) -> str:
    """The fields of a shape, each with its kind and its meaning; of an answer all are there."""
    asked = shape.get("additionalProperties") is False
    needed = shape.get("required", ()) if asked else ()
    rows = [
        f"<dt>{markup.text(name)}</dt><dd>{_kind(field)}{', needed' if name in needed else ''}"
        f"{_noted(field.get('description', ''))}</dd>"
        for name, field in shape.get("properties", {}).items()
    ]
    return '<dl class="facts">\n' + "\n".join(rows) + "\n</dl>"


def _noted(said: str) -> str:
    return f'<br><span class="note">{markup.text(said)}</span>' if said else ""


def _name(schema: Mapping[str, Any]) -> str:
    return str(schema.get("$ref", "")).removeprefix(SCHEMAS)


def _named(part: Any) -> Iterator[str]:
    """The names of all shapes that a part of the document refers to."""
    if isinstance(part, Mapping):
        if "$ref" in part:
            yield _name(part)
        part = list(part.values())
    for each in part if isinstance(part, list) else ():
        yield from _named(each)


def _kind(field: Mapping[str, Any]) -> str:
    """A field's type in a few words, with the way to a shape's own."""
    if "anyOf" in field:
        return " or ".join(kind for one in field["anyOf"] if (kind := _kind(one)) != "null")
    if field.get("type") == "array":
        return f"list of {_kind(field.get('items', {}))}"
    if name := _name(field):
        return f'<a href="#{name}">{markup.text(name)}</a>'
    if "enum" in field or "const" in field:
        return " or ".join(markup.text(json.dumps(one)) for one in field.get("enum", [field.get("const")]))
    return _number(field) or str(field.get("type", "anything"))


def _number(field: Mapping[str, Any]) -> str:
    """A number's type and bounds; nothing for what has none."""
    least, most = (
        None if bound is None or abs(bound) > BEYOND else f"{bound:.10g}"
        for bound in (field.get("minimum"), field.get("maximum"))
    )
    if least is None and most is None:
        return ""
    if least == most:
        return str(least)
    ends = f"{least} to {most}" if least and most else f"at least {least}" if least else f"at most {most}"
    return f"{field['type']}, {ends}"
