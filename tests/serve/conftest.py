"""A real server for the tests of this folder: uvicorn on a free port, over one tiny run of text and one of pictures."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

import fedgen
from fedgen import Run
from fedgen.serve.api import LOOPBACK, Door, Server, listening
from fedgen.serve.house import House, Limits, open_house
from fedgen.serve.keys import Keys, add_key

SMALL = Limits(texts=8, pictures=4, places=64, slots=16, prefix_bytes=1 << 20)


@pytest.fixture(scope="session")
def text_run(tiny_plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny run with two clusters, a version kept of each round, and a personal adapter a client."""
    more = {"encode": {"kind": "ngrams", "width": 64}, "cluster": {"kind": "kmeans", "count": 2}}
    kept = {"evaluate": tiny_plan["evaluate"] | {"keep": 1}}
    return fedgen.run(tiny_plan | more | kept, tmp_path_factory.mktemp("served") / "stories")


@pytest.fixture(scope="session")
def image_run(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny run over scanned digits, asked for in words."""
    plan: dict[str, Any] = {
        "rounds": 1,
        "backbone": {"kind": "diffusion", "source": str(pipelines["pixart"]), "device": "cpu"},
        "data": {"kind": "digits"},
        "partition": {"kind": "even", "clients": 4},
        "cohort": {"count": 2},
        "training": {"steps": 2, "batch": 2, "lr": 0.1},
        "personal": {"steps": 2},
        "evaluate": {"rows": 1},
    }
    return fedgen.run(plan, tmp_path_factory.mktemp("served") / "digits")


@pytest.fixture(scope="session")
def secrets_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The secrets of four keys by their names: two clients', a stranger's, and an admin's who owns everybody's."""
    path = tmp_path_factory.mktemp("keys") / "keys.toml"
    users = {"ann": ("ann",), "bob": ("bob",), "stranger": (), "admin": ("*",)}
    found = {name: add_key(path, name, users=own, admin=name == "admin") for name, own in users.items()}
    return found | {"file": str(path)}


@pytest.fixture(scope="session")
def house(text_run: Run, image_run: Run) -> House:
    """Both runs, loaded; ann, bob and the first who held digits have handed their personal adapters over."""
    digits = next(name for name in image_run.adapters() if name.startswith("client/"))
    handed = ["ann", "bob", digits.removeprefix("client/")]
    return open_house([text_run.folder, image_run.folder], handed=handed, limits=SMALL)


@pytest.fixture(scope="session")
def server(house: House, text_run: Run, secrets_of: dict[str, str]) -> Iterator[SimpleNamespace]:
    """A server that asks for keys: its `url`, `keys` by name, `house`, and the folder `within` which bundles lie."""
    within = text_run.folder / "adapters"
    door = Door(Keys.read(Path(secrets_of["file"])), hosts=LOOPBACK, within=within)
    made = Server(house, door, listening("127.0.0.1", 0))
    made.start()
    while not house.ready:
        time.sleep(0.01)
    yield SimpleNamespace(url=made.url, keys=secrets_of, house=house, within=within)
    made.stop()


@pytest.fixture
def ask(server: SimpleNamespace) -> Iterator[Any]:
    """Ask the server as somebody: `ask("GET", "/v1/models", who="ann")`."""
    with httpx.Client(base_url=server.url, timeout=30) as client:

        def asked(method: str, path: str, *, who: str = "ann", **more: Any) -> httpx.Response:
            heads = {"Authorization": f"Bearer {server.keys[who]}"} if who else {}
            return client.request(method, path, headers=heads | more.pop("headers", {}), **more)

        yield asked
