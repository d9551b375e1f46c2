"""`fedgen node`, the real process, and the thin app that Flower starts beside it."""

import importlib.util
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedgen import plan as plans
from fedgen.places import inprocess
from fedgen.places.inprocess import start_of
from fedgen.places.node import RUNS, SAID
from fedgen.places.wire import Errand, Parcel, offered, question, read_present, read_replies
from fedgen.plan import Plan
from fedgen.records import GLOBAL, Offer, Tree, Update

pytest.importorskip("flwr")
pytestmark = pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning")  # it is to outlive us

APP = Path(inprocess.__file__).parent / "flower" / "app" / "client_app.py"
MOST, LONG = 10**7, 120.0
NODE = 'name = "trial"\n[limits]\nthreads = 1\n[consent]\nplan_data = true\n'


@pytest.fixture(scope="module")
def proxy() -> ModuleType:
    """The thin app, loaded from its file as Flower does."""
    spec = importlib.util.spec_from_file_location("client_app", APP)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def settled(tiny_plan: dict[str, Any]) -> tuple[Plan, Tree]:
    plan = plans.read(tiny_plan, ["training.cohort=2", "personal.kind=keep"])
    backbone = plan.backbone.load()
    settled = inprocess.settle(plan, backbone)
    return settled, start_of(settled, settled.adapter.bank(backbone.network, settled.width))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A node's folder, with the word of one that was killed long ago, whose port is another's by now.

    The node that a test has started there ends with the tests.
    """
    folder = tmp_path_factory.mktemp("node")
    (folder / "node.toml").write_text(NODE)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        left(folder, silent.getsockname()[1], dead.pid)
        yield folder
        if said(folder)["pid"] != dead.pid:
            kill(folder)


def left(home: Path, port: int, pid: int) -> None:
    (home / SAID).write_text(json.dumps({"port": port, "secret": "00" * 32, "pid": pid}))


def said(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / SAID).read_text())
    return found


def kill(home: Path) -> int:
    """End the folder's node as a power cut would, and wait until it is gone."""
    pid: int = said(home)["pid"]
    os.kill(pid, signal.SIGKILL)
    wait(lambda: not alive(pid))
    return pid


def alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and not yet buried does not."""
    stated = Path(f"/proc/{pid}/stat")
    return stated.exists() and stated.read_text().rpartition(")")[2].split()[0] != "Z"


def wait(until: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not until():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


def ask(proxy: ModuleType, home: Path, parcel: Parcel) -> Parcel:
    words, trees = proxy.answer(home, parcel.words, list(parcel.trees))
    return Parcel(words, tuple(trees))


def errand(plan: Plan, **changes: Any) -> Errand:
    return replace(Errand("tiny-0a1b", plans.write(plan), "one"), **changes)


def lives(proxy: ModuleType, home: Path, plan: Plan, pid: int) -> None:
    """The same process answers as before."""
    assert read_present(ask(proxy, home, question(errand(plan)))).name == "trial"
    assert said(home)["pid"] == pid
    assert alive(pid)


@pytest.fixture
def pid(proxy: ModuleType, home: Path, settled: tuple[Plan, Tree]) -> int:
    """The process of the node, which is started if there is none."""
    ask(proxy, home, question(errand(settled[0])))
    found: int = said(home)["pid"]
    return found


def test_two_messages_that_find_no_node_start_one_and_both_are_answered(
    proxy: ModuleType, home: Path, settled: tuple[Plan, Tree]
) -> None:
    found: list[str] = []

    def meet() -> None:
        found.append(read_present(ask(proxy, home, question(errand(settled[0])))).name)

    callers = [threading.Thread(target=meet) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(LONG)
    assert found == ["trial", "trial"]
    log = (home / "node.log").read_text()
    assert log.count("is up, process") == 1
    assert f"is in use by process {said(home)['pid']}" in log  # which the other one has ended with


def test_a_node_answers_and_stays(proxy: ModuleType, home: Path, settled: tuple[Plan, Tree], pid: int) -> None:
    plan, start = settled
    offers = [Offer(1, name, GLOBAL, start) for name in ("ann", "bob")]
    one, other = (ask(proxy, home, offered(errand(plan), offers)) for _ in range(2))
    assert one == other
    assert all(isinstance(reply, Update) for reply in read_replies(one, offers, MOST))
    lives(proxy, home, plan, pid)
    assert (home / "node.log").read_text().count("loaded the backbone") == 1
    assert stat.S_IMODE((home / SAID).stat().st_mode) == 0o600
    assert sorted(path.name for path in (home / RUNS).iterdir()) == ["lock", "tiny-0a1b"]
    assert sorted(path.name for path in (home / RUNS / "tiny-0a1b" / "shelf").iterdir()) == [
        "ann.1.safetensors",
        "bob.1.safetensors",
    ]


def test_who_does_not_know_the_secret_is_refused(
    proxy: ModuleType, home: Path, settled: tuple[Plan, Tree], pid: int
) -> None:
    port, secret = said(home)["port"], bytes.fromhex(said(home)["secret"])
    assert len(secret) == 32
    for wrong in (bytes(32), secret[:-1]):
        with pytest.raises((AuthenticationError, EOFError, ConnectionError)):
            Client(("127.0.0.1", port), authkey=wrong).recv_bytes()
    with Client(("127.0.0.1", port)) as caller:  # one who does not even try
        for part in (b"{}", b"0"):
            caller.send_bytes(part)
        assert caller.recv_bytes().startswith(b"#CHALLENGE#")
        assert caller.recv_bytes() == b"#FAILURE#"
        with pytest.raises((EOFError, ConnectionError)):
            caller.recv_bytes()
    lives(proxy, home, settled[0], pid)


@contextmanager
def line(home: Path) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", said(home)["port"]), LONG) as found:
        yield found


def test_garbage_and_hang_ups_are_forgotten(
    proxy: ModuleType, home: Path, settled: tuple[Plan, Tree], pid: int
) -> None:
    for raw in (b"", b"\0", b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 4096, struct.pack("!i", -1) + b"\xff" * 8):
        with line(home) as caller:
            caller.sendall(raw)
    port, secret = said(home)["port"], bytes.fromhex(said(home)["secret"])
    odd: list[list[bytes]] = [
        [], [b"\xff\xfe"], [b"{}"], [b"{}", b"many"], [b"{}", b"2", b""], [b"{}", b"0"], [b"[" * 10**5, b"0"],
    ]  # fmt: skip
    for parts in odd:
        with Client(("127.0.0.1", port), authkey=secret) as known:
            for part in parts:
                known.send_bytes(part)
    lives(proxy, home, settled[0], pid)


def test_one_who_says_nothing_keeps_nobody_waiting(
    proxy: ModuleType, home: Path, settled: tuple[Plan, Tree], pid: int
) -> None:
    port, secret = said(home)["port"], bytes.fromhex(said(home)["secret"])
    with line(home), Client(("127.0.0.1", port), authkey=secret) as known:
        known.send_bytes(b"{}")  # and then no more
        lives(proxy, home, settled[0], pid)


def test_what_a_node_refuses_is_told(proxy: ModuleType, home: Path, settled: tuple[Plan, Tree], pid: int) -> None:
    plan, start = settled
    with pytest.raises(RuntimeError, match=r"run: wanted the name of a folder, came '\.\./\.\./etc'"):
        ask(proxy, home, question(errand(plan, run="../../etc")))
    with pytest.raises(RuntimeError, match="parcel: wanted offers, came something else"):
        ask(proxy, home, Parcel('{"errand": {"run": 3}}'))
    bad = offered(errand(plan), [Offer(1, "ann", GLOBAL, start)])
    with pytest.raises(RuntimeError, match="offer: wanted whole safetensors"):
        ask(proxy, home, replace(bad, trees=(b"nothing of the kind",)))
    lives(proxy, home, plan, pid)


def test_a_node_killed_in_a_turn_is_started_anew_and_gives_the_same_answer(
    proxy: ModuleType, home: Path, settled: tuple[Plan, Tree], pid: int
) -> None:
    plan, start = settled
    slow = replace(plan, training=replace(plan.training, steps=150))
    parcel = offered(errand(slow, run="slow"), [Offer(1, "ann", GLOBAL, start)])
    wanted = ask(proxy, home, parcel)
    found: list[Parcel] = []
    caller = threading.Thread(target=lambda: found.append(ask(proxy, home, parcel)))
    caller.start()
    time.sleep(0.2)  # into its turn
    assert caller.is_alive()
    kill(home)
    assert not found
    caller.join(LONG)
    assert found == [wanted]
    assert said(home)["pid"] != pid
    assert not list(home.rglob("*.part"))


def test_one_that_cannot_start_is_told_of_and_of_its_log(
    proxy: ModuleType, home: Path, pid: int, tmp_path: Path
) -> None:
    (tmp_path / "node.toml").write_text("name = 3\n")
    left(tmp_path, said(home)["port"], said(home)["pid"])  # where another node is, which knows another secret
    with pytest.raises(RuntimeError, match=r"the node did not come up; .*node.log says why"):
        proxy.answer(tmp_path, "{}", [])
    assert "name: wanted a text" in (tmp_path / "node.log").read_text()


# ---- how thin the app is

BARE, WHOLE = "import flwr.clientapp, flwr.app", f"import runpy; runpy.run_path({str(APP)!r})"


def seconds(code: str) -> float:
    """How long a fresh process takes for this."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, timeout=LONG)
    return time.perf_counter() - began


def test_the_app_costs_hardly_more_than_flower_itself() -> None:
    bare, whole = (min(seconds(code) for _ in range(3)) for code in (BARE, WHOLE))
    assert whole - bare < 0.5, f"{whole:.2f} s, Flower alone {bare:.2f} s"


def test_the_app_imports_nothing_heavy() -> None:
    code = f"{WHOLE}; import sys; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LONG)
    there = set(ran.stdout.split())
    assert "flwr.clientapp" in there
    assert not [name for name in ("torch", "transformers", "fedgen", "safetensors", "ray") if name in there]


def test_an_owner_who_has_changed_their_mind_is_heard_at_once(
    proxy: ModuleType, home: Path, settled: tuple[Plan, Tree], pid: int
) -> None:
    def name() -> str:
        return read_present(ask(proxy, home, question(errand(settled[0])))).name

    try:
        (home / "node.toml").write_text(NODE.replace("trial", "another"))
        assert name() == "another"
        (home / "node.toml").write_text("name = ")
        with pytest.raises(RuntimeError, match=r"^its node\.toml cannot be read; its node\.log says more$"):
            name()
    finally:
        (home / "node.toml").write_text(NODE)
    assert name() == "trial"
    assert said(home)["pid"] == pid
