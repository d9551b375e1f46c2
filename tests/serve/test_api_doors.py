"""Who is let in: keys and scopes, names of the host, sizes of bodies, and someone else's adapter that is not there."""

import asyncio
import contextlib
import http.client
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from fedgen.serve.api import LOOPBACK, Door, app, hearing, reading, service
from fedgen.serve.house import House
from fedgen.serve.keys import Keys

Ask = Callable[..., httpx.Response]
TEXT = {"prompt": "the quick", "max_tokens": 4, "temperature": 0}


def wrong(answer: httpx.Response, status: int, code: str | None) -> str:
    """See that an answer is an error of this kind, in OpenAI's shape; its message."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["code"] == code, error
    return str(error["message"])


def through(house: House, door: Door) -> Callable[[str, str, dict[str, str]], httpx.Response]:
    """Another door to the same house, for questions that need no engine and no network."""
    made = app(house, door)

    async def asked(method: str, path: str, heads: dict[str, str]) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://127.0.0.1") as client:
            return await client.request(method, path, headers=heads)

    return lambda method, path, heads: asyncio.run(asked(method, path, heads))


# ---- keys


def test_a_key_is_wanted_and_a_wrong_one_is_no_key(ask: Ask) -> None:
    assert "came none" in wrong(ask("GET", "/v1/models", who=""), 401, "invalid_api_key")
    for said in ("Bearer nonsense", "Bearer", "Basic YTpi", "Bearer \xff\xfe"):
        answer = ask("GET", "/v1/models", who="", headers={"Authorization": said.encode("latin-1")})
        wrong(answer, 401, "invalid_api_key")
        assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/health", "/ready", "/version", "/metrics", "/docs", "/openapi.json", "/"])
def test_what_tells_nothing_of_anyone_needs_no_key(ask: Ask, path: str) -> None:
    assert ask("GET", path, who="").status_code == 200


ADMIN = [
    ("POST", "/v1/load_lora_adapter", {"lora_name": "a", "lora_path": "global"}),
    ("POST", "/v1/unload_lora_adapter", {"lora_name": "a"}),
    ("GET", "/v1/lora_adapters", None),
    ("POST", "/v1/lora_adapters/user/ann/pin", None),
    ("POST", "/v1/lora_adapters/global/unpin", None),
    ("POST", "/v1/lora_adapters/global/rollback", None),
]


@pytest.mark.parametrize(("method", "path", "body"), ADMIN)
def test_what_an_admin_does_is_for_admins(ask: Ask, method: str, path: str, body: Any) -> None:
    wrong(ask(method, path, who="", json=body), 401, "invalid_api_key")
    wrong(ask(method, path, who="ann", json=body), 403, "not_admin")


def test_without_a_keys_file_everyone_has_what_belongs_to_nobody(house: House, secrets_of: dict[str, str]) -> None:
    open_to_all = through(house, Door(Keys.read(Path(secrets_of["file"])), open=True))
    for heads in ({}, {"Authorization": "Bearer EMPTY"}):
        found = open_to_all("GET", "/v1/models", heads).json()["data"]
        assert {one["owned_by"] for one in found} == {"fedgen"}
        wrong(open_to_all("GET", "/v1/lora_adapters", heads), 401, "invalid_api_key")
    mine = {"Authorization": f"Bearer {secrets_of['admin']}"}
    assert {"ann", "bob"} <= {one["owned_by"] for one in open_to_all("GET", "/v1/models", mine).json()["data"]}


# ---- someone else's adapter


WAYS: list[tuple[str, dict[str, Any]]] = [
    ("used", {"model": "{}"}),
    ("used with its run's name", {"model": "stories:{}"}),
    ("mixed in words", {"model": "global=0.5,{}=0.5"}),
    ("mixed", {"model": "global", "mix": [{"name": "{}", "scale": 0.5}]}),
    ("side by side", {"models": ["global", "{}"]}),
]


@pytest.mark.parametrize(("how", "body"), WAYS, ids=[how for how, _ in WAYS])
def test_someone_elses_adapter_is_answered_as_a_missing_one(ask: Ask, how: str, body: dict[str, Any]) -> None:
    def asked(name: str) -> httpx.Response:
        said = json.loads(json.dumps(body).replace("{}", name))
        return ask("POST", "/v1/completions", json=TEXT | said, who="ann")

    assert asked("user/ann").status_code == 200
    theirs, missing = asked("user/bob"), asked("user/bub")
    said = wrong(theirs, 404, "model_not_found")
    assert said.replace("user/bob", "user/bub") == wrong(missing, 404, "model_not_found")
    heads = [{key: one.headers[key] for key in one.headers if key != "date"} for one in (theirs, missing)]
    assert heads[0] == heads[1]


def test_someone_elses_adapter_is_in_no_list(ask: Ask) -> None:
    for who, owned in (("ann", {"fedgen", "ann"}), ("stranger", {"fedgen"})):
        found = ask("GET", "/v1/models", who=who).json()["data"]
        assert {one["owned_by"] for one in found} == owned
        assert "bob" not in json.dumps(found)
        told = ask("GET", "/v1/runs", who=who).json()
        assert {point["name"] for run in told for point in run["points"]} <= owned - {"fedgen"} | {""}
        assert "bob" not in json.dumps(told)
    wrong(ask("GET", "/v1/models/stories:user/bob", who="ann"), 404, "model_not_found")
    wrong(ask("GET", "/v1/models/stories:user%2Fbob", who="ann"), 404, "model_not_found")
    assert ask("GET", "/v1/models/stories:user%2Fann", who="ann").json()["fedgen"]["owner"] == "ann"


def test_a_fallback_tells_nothing_of_someone_elses_adapter(ask: Ask) -> None:
    body = TEXT | {"fallback": True}
    theirs, missing = (
        ask("POST", "/v1/completions", json=body | {"model": name}, who="ann").json()
        for name in ("user/bob", "user/bub")
    )
    assert theirs["fedgen"]["models"] == missing["fedgen"]["models"] == ["stories:global"]
    assert theirs["fedgen"]["fallback"].replace("bob", "bub") == missing["fedgen"]["fallback"] != ""
    own = ask("POST", "/v1/completions", json=body | {"model": "user/ann"}, who="ann").json()
    assert (own["fedgen"]["models"], own["fedgen"]["fallback"]) == (["stories:user/ann"], "")


def test_monitors_learn_no_names_of_persons(ask: Ask) -> None:
    ask("POST", "/v1/completions", json=TEXT | {"model": "user/ann"}, who="ann")
    told = ask("GET", "/metrics", who="").text
    assert "ann" not in told.replace("channel", "")
    assert 'fedgen_slots_used{run="stories"}' in told


# ---- hosts, bodies, paths


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:99", 200), ("LOCALHOST", 200), ("evil.example", 400), ("", 400)],
)
def test_the_server_is_called_by_its_own_names_alone(ask: Ask, host: str, status: int) -> None:
    answer = ask("GET", "/health", who="", headers={"Host": host})
    assert answer.status_code == status
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    if status == 400:
        wrong(answer, 400, "unknown_host")
        assert answer.headers["Cache-Control"] == "no-store"


def raw(server: SimpleNamespace, heads: dict[str, str], parts: list[bytes]) -> tuple[int, dict[str, Any], float]:
    """What is answered to a body that is sent piece by piece, and after how long."""
    wire = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=20)
    began = time.monotonic()
    wire.putrequest("POST", "/v1/completions")
    mine = {"Authorization": f"Bearer {server.keys['ann']}", "Content-Type": "application/json"}
    for name, value in (mine | heads).items():
        wire.putheader(name, value)
    wire.endheaders()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has heard enough
        for part in parts:
            wire.send(part)
    answer = wire.getresponse()
    told = answer.status, json.loads(answer.read()), time.monotonic() - began
    wire.close()
    return told


def test_a_long_body_is_refused_before_it_is_read(server: SimpleNamespace) -> None:
    status, told, seconds = raw(server, {"Content-Length": str(9 << 20)}, [])
    assert (status, told["error"]["code"]) == (413, "body_too_large")
    assert seconds < 5


def test_a_long_body_in_pieces_is_refused_as_soon_as_it_is_too_long(server: SimpleNamespace) -> None:
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    status, told, _ = raw(server, {"Transfer-Encoding": "chunked"}, [piece] * 140)  # and no end
    assert (status, told["error"]["code"]) == (413, "body_too_large")


def test_a_body_that_does_not_come_is_not_waited_for(server: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "ARRIVAL", 0.1)
    status, told, seconds = raw(server, {"Content-Length": "10"}, [b"{"])
    assert (status, told["error"]["message"]) == (408, "body: did not come within 0 s; send it again")
    assert seconds < 5


def test_only_so_many_bodies_are_held_at_once(
    house: House, secrets_of: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "BODIES", 1)
    monkeypatch.setattr(service, "WAIT", 0.05)
    made = app(house, Door(Keys.read(Path(secrets_of["file"])), open=True))
    heads = {"Content-Type": "application/json"}

    async def main() -> list[httpx.Response]:
        comes, begun = asyncio.Event(), asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            begun.set()
            await comes.wait()
            yield b"{"

        async with httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://127.0.0.1") as client:
            first = asyncio.create_task(client.post("/v1/completions", content=slow(), headers=heads))
            await begun.wait()
            second = await client.post("/v1/completions", content=b"{", headers=heads)
            comes.set()
            return [second, await first, await client.post("/v1/completions", content=b"{", headers=heads)]

    second, first, third = asyncio.run(main())
    wrong(second, 429, "queue_full")
    assert second.headers["Retry-After"] == "1"
    assert (first.status_code, third.status_code) == (400, 400)


def test_nobody_waits_for_a_reader_who_stops(
    house: House, secrets_of: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hearing, "STALLED", 0.05)
    made = app(house, Door(Keys.read(Path(secrets_of["file"])), open=True))
    sent: list[str] = []

    async def send(message: Mapping[str, Any]) -> None:
        sent.append(message["type"])
        await asyncio.Event().wait()

    async def receive() -> Mapping[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    scope = {"type": "http", "method": "GET", "path": "/health", "query_string": b"", "headers": []}
    asyncio.run(asyncio.wait_for(made(scope, receive, send), 5))
    assert sent == ["http.response.start"]


def test_a_body_is_json(ask: Ask) -> None:
    wrong(ask("POST", "/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"}), 415, None)
    for content in (b"", b"{", b"[" * 100_000, b'{"model": "\\ud800"}', b'{"model": NaN}', b"\xff", b"null", b"[]"):
        wrong(ask("POST", "/v1/completions", content=content, headers={"Content-Type": "application/json"}), 400, None)


def test_a_path_that_is_none_is_told_in_the_same_shape(ask: Ask) -> None:
    wrong(ask("GET", "/v2/models"), 404, None)
    answer = ask("GET", "/v1/completions")
    wrong(answer, 405, None)
    assert answer.headers["Allow"] == "POST"


@pytest.mark.parametrize(
    "name", ["../keys.py", "..%2f__init__.py", "__init__.py", "%2e%2e/api/app.py", "nothing.js", ""]
)
def test_the_page_is_its_own_files_alone(ask: Ask, name: str) -> None:
    assert ask("GET", f"/page/{name}", who="").status_code == 404


def test_the_page_may_load_from_here_alone(ask: Ask) -> None:
    page = ask("GET", "/", who="")
    assert page.headers["Content-Type"].startswith("text/html")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    style = ask("GET", "/page/index.html", who="")
    assert style.content == page.content
    assert page.headers["X-Content-Type-Options"] == "nosniff"


def test_the_document_is_shown_in_no_other_page(ask: Ask) -> None:
    policy = ask("GET", "/docs", who="").headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "script-src" not in policy


def test_other_sites_may_ask_only_where_that_is_said(ask: Ask, house: House, secrets_of: dict[str, str]) -> None:
    heads = {"Origin": "https://friend.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in ask("OPTIONS", "/v1/models", who="", headers=heads).headers
    door = Door(Keys.read(Path(secrets_of["file"])), hosts=LOOPBACK, origins=("https://friend.example",))
    friendly = through(house, door)
    assert friendly("OPTIONS", "/v1/models", heads).headers["access-control-allow-origin"] == "https://friend.example"
    other = friendly("OPTIONS", "/v1/models", heads | {"Origin": "https://foe.example"})
    assert "access-control-allow-origin" not in other.headers
