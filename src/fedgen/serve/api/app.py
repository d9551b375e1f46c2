"""The FastAPI application over a house: every path of the table, the page, and errors in one shape."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import ExitStack
from importlib.metadata import version
from typing import Any

from fedgen.errors import ServeError
from fedgen.report import markup
from fedgen.serve import page
from fedgen.serve.api import hearing, openapi
from fedgen.serve.api.answers import packed
from fedgen.serve.api.errors import Refusal, RefusedError, refusal
from fedgen.serve.api.guard import GUEST, Door
from fedgen.serve.api.hearing import LeftError, Stream
from fedgen.serve.api.metrics import Metrics
from fedgen.serve.api.reading import body, parsed
from fedgen.serve.api.routes import ROUTES, Route
from fedgen.serve.api.service import Call, Service
from fedgen.serve.house import House
from fedgen.serve.keys import Who

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SAFE = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
PAGE = {**SAFE, "Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
DOCS = {**SAFE, "Content-Security-Policy": f"{markup.POLICY}; base-uri 'none'; frame-ancestors 'none'"}
PRIVATE = {**SAFE, "Cache-Control": "no-store"}
JSON = "application/json"
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"
OTHER = "other"  # the endpoint of a path that is none
Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def app(house: House, door: Door) -> Any:
    """The application, as ASGI servers run it."""
    _want_extra()
    from fastapi import FastAPI
    from starlette.exceptions import HTTPException
    from starlette.middleware.cors import CORSMiddleware

    service = Service(house, door, Metrics(house))
    made = FastAPI(title="fedgen-edge", version=version("fedgen-edge"), docs_url=None, redoc_url=None)
    made.router.redirect_slashes = False
    refs, shapes = openapi.schemas()
    for route in ROUTES:
        made.add_api_route(
            route.path.replace("}", ":path}"), _endpoint(service, route), methods=[route.method],
            name=route.act.__name__, operation_id=route.act.__name__, description=route.act.__doc__,
            response_model=None, responses=openapi.responses(route, refs),
            openapi_extra=openapi.about(route, refs, optional=door.open),
        )  # fmt: skip
    _describe(made, shapes)
    _show(made, service)
    made.add_exception_handler(HTTPException, _missing(service))
    if door.origins:
        made.add_middleware(
            CORSMiddleware, allow_origins=list(door.origins), allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"], expose_headers=["retry-after"],
        )  # fmt: skip
    made.add_middleware(Gate, door=door)
    return made


def _want_extra() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import pydantic  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        wish = "wanted the extra 'serve', came a Python without it; pip install fedgen-edge[serve]"
        raise ServeError(f"serve: {wish} ({error})") from error


def _endpoint(service: Service, route: Route) -> Any:
    from fastapi import Request
    from starlette.requests import ClientDisconnect
    from starlette.responses import Response, StreamingResponse

    async def endpoint(request: Request) -> Response:
        try:
            who = _asker(service.door, route, request.headers)
            with ExitStack() as held:
                ask = None
                if route.ask is not None:
                    await service.admit()
                    held.callback(service.bodies.release)
                    ask = parsed(route.ask, await body(request.headers, request.stream()))
                answer = await route.act(Call(service, who, request.path_params, request.receive, held.close), ask)
        except (LeftError, ClientDisconnect):
            return Response(status_code=499)  # which nobody reads
        except Exception as error:  # noqa: BLE001  every error has the same shape
            refused: Response = _refuse(service, route.path, refusal(error))
            return refused
        service.metrics.request(route.path, 200)
        if isinstance(answer, Stream):
            return StreamingResponse(answer.parts, media_type="text/event-stream", headers=PRIVATE)
        return Response(packed(answer), media_type=JSON, headers=PRIVATE)

    return endpoint


def _asker(door: Door, route: Route, headers: Mapping[str, str]) -> Who:
    if route.askers == "anyone":
        return GUEST
    return door.admin(headers) if route.askers == "admin" else door.who(headers)


def _refuse(service: Service, path: str, why: Refusal) -> Any:
    from starlette.responses import Response

    service.metrics.request(path, why.status)
    return Response(packed(why.body), why.status, {**PRIVATE, **why.headers}, JSON)


def _missing(service: Service) -> Any:
    """What is answered where there is no such path, or not by this method."""

    async def missing(request: Any, error: Any) -> Any:
        said = f"{request.method} {request.url.path[:80]}: is no path of this server; see /docs"
        why = refusal(RefusedError(said, status=error.status_code))
        return _refuse(service, OTHER, Refusal(why.status, why.body, error.headers or {}))

    return missing


def _describe(made: Any, shapes: Mapping[str, Any]) -> None:
    """Have the document hold the shapes that its paths refer to, and see now that it can be made."""
    from fastapi.openapi.utils import get_openapi

    found = get_openapi(title=made.title, version=made.version, routes=made.routes)
    found["components"] = {"schemas": shapes, "securitySchemes": {"bearer": openapi.BEARER}}
    made.openapi = lambda: found


def _show(made: Any, service: Service) -> None:
    """The paths for people and monitors, which are no part of the document."""
    from fastapi import Request
    from starlette.exceptions import HTTPException
    from starlette.responses import HTMLResponse, Response

    files = page.files()

    async def front(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in files:
            raise HTTPException(404)
        kind, content = files[name]
        return Response(content, headers={**PAGE, "Content-Type": kind})

    async def docs(request: Request) -> Response:
        return HTMLResponse(openapi.page(made.openapi()), headers=DOCS)

    async def metrics(request: Request) -> Response:
        return Response(service.metrics.text(), headers={**SAFE, "Content-Type": PROMETHEUS})

    for path, act in {"/": front, "/page/{name}": front, "/docs": docs, "/metrics": metrics}.items():
        made.add_api_route(path, act, include_in_schema=False)


class Gate:
    """Lets nobody further who calls the server by a name that is not its own, and waits for no reader for ever."""

    def __init__(self, app: Any, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        stalled = False

        async def sent(message: MutableMapping[str, Any]) -> None:
            nonlocal stalled
            try:
                async with asyncio.timeout(hearing.STALLED):
                    await send(message)
            except TimeoutError:
                stalled = True
                raise

        try:
            if scope["type"] == "http":
                host = next((value for key, value in scope["headers"] if key == b"host"), b"")
                self._door.check_host(host.decode("latin-1"))
        except RefusedError as error:
            await _answer(send, refusal(error))
        else:
            try:
                await self._app(scope, receive, sent)
            except Exception:
                if not stalled:
                    raise


async def _answer(send: Send, why: Refusal) -> None:
    content = packed(why.body)
    said = {**PRIVATE, "Content-Type": JSON, "Content-Length": str(len(content))}
    heads = [(name.lower().encode(), value.encode()) for name, value in said.items()]
    await send({"type": "http.response.start", "status": why.status, "headers": heads})
    await send({"type": "http.response.body", "body": content})
