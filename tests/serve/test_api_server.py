"""A server's end: it takes nothing more, says so, lets rows at work finish, and tells those who wait."""

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from fedgen import Run
from fedgen.errors import ServeError
from fedgen.serve.api import Door, Server, listening
from fedgen.serve.house import House, Limits, open_house
from fedgen.serve.keys import Keys


@pytest.fixture
def house(text_run: Run) -> House:
    return open_house([text_run.folder], limits=Limits(texts=2, slots=4, prefix_bytes=0))


@pytest.fixture
def server(house: House, secrets_of: dict[str, str]) -> Iterator[Server]:
    made = Server(house, Door(Keys.read(Path(secrets_of["file"])), open=True), listening("127.0.0.1", 0), patience=20)
    made.start()
    yield made
    made.stop()


def test_rows_at_work_finish_and_those_that_wait_are_told(server: Server, house: House) -> None:
    body = {"model": "global", "prompt": "the", "max_tokens": 100, "temperature": 0, "stop": "never said"}
    with httpx.Client(base_url=server.url, timeout=30) as steady, httpx.Client(base_url=server.url) as late:
        assert steady.get("/ready").status_code == late.get("/ready").status_code == 200
        told: dict[str, httpx.Response] = {}

        def ask(name: str, rows: int) -> None:
            told[name] = httpx.post(f"{server.url}/v1/completions", json=body | {"prompt": ["the"] * rows}, timeout=30)

        asking = [threading.Thread(target=ask, args=one) for one in (("first", 2), ("second", 2))]
        for thread, waiting in zip(asking, (0, 2), strict=True):
            thread.start()
            while house.stands["stories"].engine.running < 2 or house.stands["stories"].engine.waiting < waiting:
                time.sleep(0.001)
        ending = threading.Thread(target=server.stop)
        ending.start()
        while house.ready:
            time.sleep(0.001)
        ready = steady.get("/ready")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "not_ready")
        assert late.post("/v1/completions", json=body).status_code == 503
        assert steady.get("/health").status_code == 200
        for thread in (*asking, ending):
            thread.join()
    assert [choice["finish_reason"] for choice in told["first"].json()["choices"]] == ["length", "length"]
    assert told["first"].json()["usage"]["completion_tokens"] == 200
    assert (told["second"].status_code, told["second"].json()["error"]["code"]) == (503, "not_ready")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")


def test_a_stream_at_work_comes_to_its_end(server: Server, house: House) -> None:
    body = {"model": "global", "prompt": "the", "max_tokens": 80, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=30) as answer:
        lines = answer.iter_lines()
        first = next(lines)
        ending = threading.Thread(target=server.stop)
        ending.start()
        rest = [line for line in lines if line]
    ending.join()
    assert json.loads(first.removeprefix("data: "))["choices"]
    assert rest[-1] == "data: [DONE]"


@pytest.mark.skipif(sys.platform != "linux", reason="the socket's own limit is Linux's alone")
def test_what_nobody_reads_is_cut_off_by_the_socket() -> None:
    with listening("127.0.0.1", 0) as made:
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000


def test_a_port_that_is_taken_is_told(server: Server, house: House) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(ServeError, match=f"127.0.0.1:{port}: cannot be listened on .*choose another --port"):
        listening("127.0.0.1", port)


def test_a_server_on_the_newer_loopback_is_called_by_it(house: House) -> None:
    made = Server(house, Door(Keys({}), open=True, hosts=("[::1]",)), listening("::1", 0))
    made.start()
    try:
        assert made.url.startswith("http://[::1]:")
        assert httpx.get(f"{made.url}/health").status_code == 200
    finally:
        made.stop()


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client", "pydantic"])
def test_a_python_without_the_extra_is_told(house: House, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    wish = r"wanted the extra 'serve'.*pip install fedgen-edge\[serve\]"
    with listening("127.0.0.1", 0) as at, pytest.raises(ServeError, match=wish):
        Server(house, Door(Keys({})), at)
