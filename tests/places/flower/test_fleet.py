"""Fleets of real processes: up, let in, refused, killed, taken down, with nothing left running."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("flwr", reason="Flower is not installed")

from typer.testing import CliRunner

from fedgen.errors import DataError, PlanError, ServeError, StoreError
from fedgen.fleet_cli import fleet_app
from fedgen.places import device
from fedgen.places.flower import watch
from fedgen.places.flower.certificates import make_authority, make_node_key
from fedgen.places.flower.fleet import (
    Fleet,
    admit,
    make,
    nodes,
    refuse_taken,
    runs,
    split,
    standing,
    stop,
    submit,
)

LIMIT = 120  # seconds any command may take


def fedgen(*words: str) -> "subprocess.CompletedProcess[str]":
    """The command `fedgen fleet`, as from a terminal."""
    command = [sys.executable, "-m", "fedgen.cli", "fleet", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)


def told(*words: str) -> str:
    """What the same command says in this process, which spares the time of starting it; a refusal is raised."""
    ran = CliRunner().invoke(fleet_app, words)
    if ran.exception:
        raise ran.exception
    return ran.output


def running(folder: Path) -> list[int]:
    """Every process that has to do with a folder, by its marks or its command line."""
    home = str(folder.resolve())
    found = {*watch.marked(watch.WATCH, home, below=True), *watch.marked(watch.MARK, home, below=True)}
    shown = subprocess.run(
        ["ps", "ax", "-ww", "-o", "pid=,command="], capture_output=True, text=True, check=True
    ).stdout
    lines = (line.split(maxsplit=1) for line in shown.splitlines())
    return sorted(found | {int(pid) for pid, *words in lines if words and home in words[0] and int(pid) != os.getpid()})


def until(holds: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    """Wait until something holds."""
    limit = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < limit, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.1)


def pid_of(path: Path) -> int:
    return int(path.read_text())


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet of one node, up."""
    folder = tmp_path_factory.mktemp("fleets") / "my fleet"
    ran = fedgen("up", "--folder", str(folder), "--nodes", "1", "--detach")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "node-1" in ran.stdout
    assert f"now: fedgen fleet run PLAN --folder {folder}\n" in ran.stdout
    yield Fleet(folder)
    ran = fedgen("down", "--folder", str(folder))
    assert (ran.returncode, running(folder)) == (0, []), ran.stdout + ran.stderr


def test_the_node_is_online_and_plays_its_share(fleet: Fleet) -> None:
    (node,) = nodes(fleet)
    assert (node.name, node.online) == ("node-1", True)
    held = device.read(fleet.nodes_folder / "node-1")
    assert (held.name, held.consent.plan_data, held.consent.share) == ("node-1", True, "1/1")
    assert re.search(rf"node-1 +online .*{node.id}", told("status", "--folder", str(fleet.folder)))


def test_what_is_up_is_not_started_again(fleet: Fleet) -> None:
    before = pid_of(fleet.home / "superlink.pid")
    assert "is up at 127.0.0.1:" in told("up", "--folder", str(fleet.folder))
    assert pid_of(fleet.home / "superlink.pid") == before


def test_a_node_is_let_in_twice(fleet: Fleet) -> None:
    key = fleet.nodes_folder / "node-1" / "node.key.pub"
    assert admit(fleet, key) == admit(fleet, key) == nodes(fleet)[0].id


def test_a_node_joins_once_it_is_let_in(fleet: Fleet, tmp_path: Path) -> None:
    home, ca = tmp_path / "phone", str(fleet.ca)
    words = ("join", str(home), "--server", fleet.near)
    with pytest.raises(PlanError, match="name a copy of it by --ca"):
        told(*words)
    steps = told(*words, "--ca", ca, "--name", "phone")
    assert re.search(r"1\. edit .*node\.toml.*\n2\. send .*node\.key\.pub .*admit.*\n3\. then run: ", steps)
    assert device.read(home).name == "phone"
    with pytest.raises(DataError, match="wanted a folder of text"):
        told(*words)
    (home / "data").mkdir()
    (home / "data" / "note.txt").write_text("Some words of its own.")
    ran = fedgen(*words)
    assert "phone: 1 document" in ran.stdout
    assert (ran.returncode, "error supernode: the server refuses this node" in ran.stdout) == (1, True), ran.stdout
    assert admit(fleet, home / "node.key.pub")
    joined = subprocess.Popen([sys.executable, "-m", "fedgen.cli", "fleet", *words], stdout=subprocess.DEVNULL)
    try:
        until((home / "supernode.up").exists, "the node is up")
        assert {node.name: node.status for node in nodes(fleet)} == {"node-1": "online", "phone": "online"}
        with pytest.raises(ServeError, match="is up already; `fedgen fleet down"):
            told(*words)
    finally:
        joined.send_signal(signal.SIGTERM)
    assert joined.wait(LIMIT) == 0
    assert running(home) == []
    assert {node.name: node.status for node in nodes(fleet)} == {"node-1": "online", "phone": "offline"}


def test_a_device_refuses_a_server_of_another_fleet(fleet: Fleet, tmp_path: Path) -> None:
    home, other = tmp_path / "phone", make_authority(tmp_path / "other")
    words = ("join", str(home), "--server", fleet.near)
    with pytest.raises(ServeError, match=r"its certificate is not of .*; copy the ca\.crt of this very server"):
        told(*words, "--ca", str(other))
    assert not home.exists(), "an authority is kept once it was seen to be the server's"
    told(*words, "--ca", str(fleet.ca))
    with pytest.raises(ServeError, match="its certificate is not of"):
        told(*words, "--ca", str(other))


def test_a_port_in_use_is_one_clear_error(fleet: Fleet, tmp_path: Path) -> None:
    port = fleet.near.rpartition(":")[2]
    for words in (("up", "--detach"), ("server",)):
        with pytest.raises(
            ServeError, match=rf"127\.0\.0\.1:{port}: cannot be listened on .*; stop what listens there"
        ):
            told(*words, "--folder", str(tmp_path / words[0]), "--port", port)
        assert running(tmp_path / words[0]) == []


def test_a_superlink_that_is_killed_comes_back_with_its_nodes(fleet: Fleet) -> None:
    before = pid_of(fleet.home / "superlink.pid")
    os.kill(before, signal.SIGKILL)
    until(lambda: pid_of(fleet.home / "superlink.pid") != before, "another SuperLink")
    until((fleet.home / "superlink.up").exists, "the SuperLink is up")
    assert nodes(fleet)[0].online
    assert "superlink ended: killed by signal 9; started again in 1 s" in (fleet.home / "watch.log").read_text()


def app_that_fails(folder: Path) -> Path:
    """A Flower app whose server raises."""
    folder.mkdir()
    (folder / "LICENSE").write_text("None.")
    (folder / "pyproject.toml").write_text(
        '[project]\nname = "failing"\nversion = "1.0.0"\ndescription = "fails"\nlicense = { file = "LICENSE" }\n'
        'dependencies = ["flwr>=1.41.0"]\n[tool.flwr.app]\npublisher = "me"\nfab-format-version = 1\n'
        'flwr-version-target = "1.41.0"\n[tool.flwr.app.components]\nserverapp = "failing:server"\n'
        'clientapp = "failing:client"\n[tool.flwr.app.config]\n'
    )
    (folder / "failing.py").write_text(
        "from flwr.clientapp import ClientApp\nfrom flwr.serverapp import ServerApp\n"
        "server = ServerApp()\nclient = ClientApp()\n"
        '@server.main()\ndef main(grid, context):\n    raise RuntimeError("on purpose")\n'
    )
    return folder


def test_a_run_that_fails_is_known_to_have_failed(fleet: Fleet, tmp_path: Path) -> None:
    run = submit(fleet, app_that_fails(tmp_path / "app"))
    until(lambda: standing(fleet, run).startswith("finished"), "the run ends")
    assert standing(fleet, run).startswith("finished:failed")
    assert runs(fleet)[run].startswith("finished:failed")
    stop(fleet, run)  # of one that has ended is no error
    with pytest.raises(ServeError, match=r"run 12: the SuperLink at .* knows of none"):
        standing(fleet, "12")


@pytest.mark.slow
def test_a_fleet_goes_up_again_as_it_was_and_in_the_foreground(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    assert fedgen("up", "--folder", str(folder), "--nodes", "2", "--detach").returncode == 0
    held = {path: path.read_bytes() for path in folder.glob("nodes/*/node.*")}
    known = sorted((node.id, node.name) for node in nodes(Fleet(folder)))
    assert [fedgen("down", "--folder", str(folder)).returncode for _ in range(2)] == [0, 0]
    assert running(folder) == []
    command = [sys.executable, "-m", "fedgen.cli", "fleet", "up", "--folder", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if "Ctrl-C takes it down" in line:
                break
        assert sorted((node.id, node.name) for node in nodes(Fleet(folder)) if node.online) == known
        process.send_signal(signal.SIGINT)
    assert (process.returncode, running(folder)) == (0, [])
    assert {path: path.read_bytes() for path in folder.glob("nodes/*/node.*")} == held


@pytest.mark.slow
def test_a_foreground_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    command = [sys.executable, "-m", "fedgen.cli", "fleet", "up", "--folder", str(folder), "--nodes", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            if "Ctrl-C takes it down" in line:
                break
        process.kill()
    until(lambda: running(folder) == [], "all has ended")


@pytest.mark.slow
def test_down_ends_what_a_killed_watch_has_left_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    assert fedgen("up", "--folder", str(folder), "--nodes", "1", "--detach", "--insecure").returncode == 0
    reads = subprocess.Popen(["tail", "-f", str(folder / "superlink.log")], stdout=subprocess.DEVNULL)
    try:
        for pid in watch.marked(watch.WATCH, str(folder), below=True):
            os.kill(pid, signal.SIGKILL)
        assert len(running(folder)) > 2
        assert fedgen("down", "--folder", str(folder)).returncode == 0
        assert (running(folder), reads.poll()) == ([reads.pid], None)
    finally:
        reads.kill()
        reads.wait()


# ---- without processes


def test_a_fleet_is_read_strictly(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"has no fleet\.toml; make a fleet"):
        _ = Fleet(tmp_path).address
    make(tmp_path / "fleet", "0.0.0.0:8000", insecure=False)
    found = Fleet(tmp_path / "fleet")
    assert (found.address, found.near, found.insecure) == ("0.0.0.0:8000", "127.0.0.1:8000", False)
    for text, wish in (
        ("address = ", "is not TOML"),
        ('address = "a:1"\ninsecure = 1', "insecure: wanted bool, came 1"),
        ('address = "a:1"', "'insecure' is missing"),
        ('address = "a:1"\ninsecure = true\nport = 1', "'port' is not one of address, insecure"),
        ('address = "a"\ninsecure = true', "wanted HOST:PORT such as"),
    ):
        (tmp_path / "fleet" / "fleet.toml").write_text(text)
        with pytest.raises(PlanError, match=wish):
            _ = Fleet(tmp_path / "fleet").settings


def test_another_folder_does_not_become_a_fleet(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(PlanError, match=r"holds other files \(first 'thesis\.txt'\)"):
        make(tmp_path, "127.0.0.1:8000", insecure=False)


@pytest.mark.parametrize("address", ["", "host", "host:", ":8000", "host:0", "host:65536", "host:x", "https://host:1"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(PlanError, match=r"wanted HOST:PORT such as 10\.0\.0\.5:8000, came"):
        split(address)


def test_addresses() -> None:
    assert split("[::1]:80") == ("::1", 80)
    assert split("my.host:8000") == ("my.host", 8000)


def test_nobody_is_let_into_a_fleet_where_anyone_is(tmp_path: Path) -> None:
    found = make(tmp_path / "fleet", "127.0.0.1:8000", insecure=True)
    with pytest.raises(PlanError, match="is insecure, so anyone is in"):
        admit(found, make_node_key(tmp_path, "ann"))


def test_no_superlink_is_one_clear_error(tmp_path: Path) -> None:
    port = refuse_taken("127.0.0.1", 0)
    found = make(tmp_path / "fleet", f"127.0.0.1:{port}", insecure=True)
    with pytest.raises(ServeError, match=rf"127\.0\.0\.1:{port}: no SuperLink answers \(Connection refused\)"):
        nodes(found)


def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServeError, match=f"{port}: cannot be listened on"):
            refuse_taken("127.0.0.1", port)


def test_only_marked_processes_are_ended(tmp_path: Path) -> None:
    home, below = str(tmp_path / "fleet"), str(tmp_path / "fleet" / "nodes" / "a")
    marks = [home, below, home + "-other", ""]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)", home], env=os.environ | {watch.MARK: mark}
        )
        for mark in marks
    ]
    try:
        until(lambda: len(watch.marked(watch.MARK, home, below=True)) == 2, "both are seen")
        assert watch.marked(watch.MARK, home) == [started[0].pid]
        assert [process.poll() for process in started] == [None] * 4
        assert watch.sweep(home, below=True) == 2
        assert [process.wait(30) for process in started[:2]] == [-signal.SIGTERM] * 2
        assert [process.poll() for process in started[2:]] == [None] * 2
    finally:
        for process in started:
            process.kill()
            process.wait()


LAST_WORDS = [
    (["INFO : a", "[code: 2004] Failed to activate SuperNode.", "For more information, visit: x"], "refuses this node"),
    (["ERROR: [Errno 98] error while attempting to bind: address already in use"], "the port is in use"),
    (["INFO: a", "Traceback", "ValueError: b", "INFO: c"], "ValueError: b"),
    ([], "it said nothing"),
]


@pytest.mark.parametrize(("lines", "said"), LAST_WORDS)
def test_last_words_are_told_in_one_line(lines: list[str], said: str) -> None:
    assert said in watch.reason(lines)
