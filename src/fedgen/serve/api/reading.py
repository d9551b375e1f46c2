"""From the bytes of a request to what was asked, or to one line that says what is wrong with it."""

import asyncio
import dataclasses
import json
import re
from collections.abc import AsyncIterator, Mapping
from functools import cache
from itertools import islice
from typing import Any, TypeVar

from fedgen.serve.api.asks import NOT_DONE
from fedgen.serve.api.errors import RefusedError

T = TypeVar("T")
LIMIT = 8 << 20  # bytes of a body
ARRIVAL = 60.0  # seconds for a body to come
WRONGS = 1000  # more things than so many are not told apart
SHOWN = 60  # characters of what came
TAG = re.compile(r"[A-Z\[]|^(constrained-)?(str|bool|int|float)$")  # what pydantic puts between names


async def body(headers: Mapping[str, str], parts: AsyncIterator[bytes]) -> bytes:
    """The whole body; one that is too long is refused before it is read, or as soon as it is."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise RefusedError("body: wanted Content-Type: application/json", status=415)
    said = headers.get("content-length", "0")
    if not said.isdecimal() or int(said) > LIMIT:
        raise _too_long()
    found = bytearray()
    try:
        async with asyncio.timeout(ARRIVAL):
            async for part in parts:
                found += part
                if len(found) > LIMIT:
                    raise _too_long()
    except TimeoutError:
        raise RefusedError(f"body: did not come within {ARRIVAL:.0f} s; send it again", status=408) from None
    return bytes(found)


def _too_long() -> RefusedError:
    return RefusedError(
        f"body: wanted at most {LIMIT >> 20} MiB; ask for less at once", status=413, code="body_too_large"
    )


@cache
def adapter(shape: Any) -> Any:
    """What pydantic makes of a shape."""
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def parsed(shape: type[T], raw: bytes) -> T:
    """What was asked."""
    from pydantic import ValidationError

    try:
        kind: Any = shape
        found: T = adapter(kind).validate_json(raw)
    except ValidationError as error:
        if error.error_count() > WRONGS:
            raise RefusedError(f"body: more than {WRONGS} things in it are wrong; see /docs") from None
        raise _refused(shape, max(error.errors(include_url=False, include_context=False), key=_likely)) from None
    return found


def _likely(wrong: Mapping[str, Any]) -> tuple[int, bool]:
    """Where several shapes might be meant, it is the one that was met furthest, or in its kind at least."""
    return len(wrong["loc"]), not wrong["type"].endswith("_type")


def _refused(shape: type[Any], wrong: Mapping[str, Any]) -> RefusedError:
    """One thing that is wrong."""
    where = [part for part in wrong["loc"] if isinstance(part, int) or not TAG.search(part)]
    if not where:
        return RefusedError(f"body: {wrong['msg'][:200]}")
    param = ".".join(map(str, where))[:SHOWN]
    fields = {field.name: field.metadata.get("description", "") for field in dataclasses.fields(shape)}
    if wrong["type"] == "unexpected_keyword_argument":
        known = f"; wanted one of {', '.join(fields)}" if len(where) == 1 else ""
        return RefusedError(f"{param}: is not known here{known}", code="unknown_parameter", param=param)
    if fields.get(str(where[0])) == NOT_DONE:
        return RefusedError(f"{param}: is not done here; leave it away", code="unsupported_parameter", param=param)
    came = "" if wrong["type"] == "missing" else f", came {_shown(wrong['input'])}"
    return RefusedError(f"{param}: {_small(wrong['msg'])}{came}", param=param)


def _shown(value: object) -> str:
    text = "".join(islice(json.JSONEncoder(default=str).iterencode(value), SHOWN + 1))  # not all of a long list
    return text if len(text) <= SHOWN else text[:SHOWN] + " ..."


def _small(text: str) -> str:
    return text[:1].lower() + text[1:]
