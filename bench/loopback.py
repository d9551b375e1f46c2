"""A real fleet on this machine, the suite's tiny federation on it, and what is hit, waited for and seen of them."""

import hashlib
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fedgen import plan as plans
from fedgen.journal import Journal
from fedgen.places.fleet import LIVE, LOG, NAME
from fedgen.places.flower.fleet import Fleet, nodes
from fedgen.places.flower.watch import MARK, WATCH, marked
from fedgen.run import JOURNAL, SHELF
from fedgen.store import write_whole

ROOT = Path(__file__).parents[1]
FEDGEN = [sys.executable, "-m", "fedgen"]
NODES = ("node-1", "node-2", "node-3")
LONG = 300.0  # seconds in which whatever is waited for has happened
TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Folders:
    """What the suite's own recipes ask for folders: pytest's factory, here below one folder."""

    folder: Path

    def mktemp(self, name: str) -> Path:
        """A new folder."""
        (self.folder / name).mkdir(parents=True)
        return self.folder / name


def tiny(folder: Path) -> dict[str, Any]:
    """A plan of the suite's tiny backbone and six clients, two a node, with turns long enough to be hit."""
    recipe, made = runpy.run_path(str(ROOT / "tests" / "conftest.py")), Folders(folder)
    if not folder.exists():
        for name in ("tiny_backbone", "tiny_text"):
            recipe[name].__wrapped__(made)
    backbone, text = folder / "backbone" / "tiny", folder / "text"
    return {
        "name": "faults",
        "rounds": 4,
        "backbone": {"source": str(backbone), "length": 32, "device": "cpu"},
        "data": {"kind": "folder", "path": str(text)},
        "cohort": {"fraction": 1.0},
        "training": {"steps": 150, "batch": 2},
        "personal": {"kind": "keep", "steps": 40},
        "evaluate": {"every": 0, "rows": 4},
        "fleet": {"nodes": 3, "patience": 150.0, "deadline": 120.0},
    }


def until(found: Callable[[], Any], what: str, seconds: float = LONG) -> Any:
    """What comes of asking again and again, once it is true."""
    end = time.monotonic() + seconds
    while not (value := found()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.02)
    return value


@dataclass
class Loopback:
    """A fleet of three nodes in `home`, and the one run on it."""

    home: Path
    run: Path
    plan: Mapping[str, Any]
    player: subprocess.Popen[str] | None = None
    asides: list[subprocess.Popen[str]] = field(default_factory=list)

    # ---- what a user does

    def fedgen(self, *words: str, wanted: int | None = 0) -> str:
        """A command of fedgen to its end, and what it said; `wanted` is its exit code, None any."""
        ran = subprocess.run([*FEDGEN, *words], capture_output=True, text=True, check=False, env=_quiet())
        if wanted is not None and ran.returncode != wanted:
            raise RuntimeError(f"fedgen {' '.join(words)}: exit {ran.returncode}\n{ran.stdout}{ran.stderr}")
        return ran.stdout + ran.stderr

    def up(self) -> None:
        """Start the fleet, or start it again."""
        self.fedgen("fleet", "up", "--folder", str(self.home), "--nodes", str(len(NODES)), "--detach")

    def begin(self, *settings: str) -> None:
        """Begin the run and leave its terminal open."""
        wanted = plans.read(self.plan, [*settings, "place=fleet", f"fleet.folder={self.home}"])
        path = self.run.with_suffix(".toml")
        write_whole(path, plans.write(wanted).encode())
        self.player = self._open("run", str(path), "--to", str(self.run))

    def resume(self) -> int:
        """Go on with the run, again until it is under way; how often that had to be tried."""
        if self.player:
            self.player.wait(LONG)
        for tries in range(1, 100):
            if self._resumed():
                return tries
            time.sleep(1.0)
        raise TimeoutError(f"{self.run}: could not be gone on with")

    def _resumed(self) -> bool:
        before, self.player = self._stamp(), self._open("resume", str(self.run))
        player = self.player
        until(lambda: player.poll() is not None or self._stamp() != before, "the run to go on")
        return player.poll() in (None, 0)

    def aside(self, *words: str) -> subprocess.Popen[str]:
        """Another command of fedgen beside the run, such as a node that is a process of its own."""
        self.asides.append(self._open(*words))
        return self.asides[-1]

    def finish(self) -> str:
        """Wait for the run's end; its last words."""
        if not self.player or self.player.wait(LONG) != 0:
            raise RuntimeError(f"the run has not come to its end: {self.words()}")
        return self.words()

    def words(self) -> str:
        """What the run's terminal shows at its foot."""
        lines = [line for line in self.run.with_suffix(".log").read_text("utf-8").splitlines() if line.strip()]
        return lines[-1] if lines else ""

    def _open(self, *words: str) -> subprocess.Popen[str]:
        log: IO[str]
        with self.run.with_suffix(".log").open("a", encoding="utf-8") as log:
            return subprocess.Popen(
                [*FEDGEN, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True, env=_quiet()
            )

    # ---- what can be seen from beside

    def rounds(self) -> int:
        """How many rounds are finished."""
        return len(Journal(self.run / JOURNAL).lines())

    def live(self) -> dict[str, Any]:
        """How the ask stands that is under way."""
        with suppress(FileNotFoundError):
            found: dict[str, Any] = json.loads((self.run / LIVE).read_text("utf-8"))
            return found["standing"]  # type: ignore[no-any-return]
        return {}

    def _stamp(self) -> float:
        """When the server of the run last said that it is there."""
        with suppress(FileNotFoundError):
            return float(json.loads((self.run / LIVE).read_text("utf-8"))["time"])
        return 0.0

    def training(self, turn: int) -> None:
        """Wait until a round's offers are out."""

        def out() -> bool:
            live = self.live()
            return live.get("round") == turn and live["use"] == "train"

        until(out, f"round {turn}")

    def node(self, name: str) -> Path:
        """A node's folder."""
        return self.home / "nodes" / name

    def pid(self, name: str) -> int:
        """The process of `fedgen node`, 0 if there is none."""
        with suppress(FileNotFoundError):
            pid = int(json.loads((self.node(name) / "node.json").read_text("utf-8"))["pid"])
            return pid if _alive(pid) else 0
        return 0

    def superlink(self) -> int:
        """The process of the SuperLink."""
        return int((self.home / "superlink.pid").read_text())

    def watch(self, home: Path) -> int:
        """The watch of a folder."""
        return marked(WATCH, str(home))[0]

    def server(self) -> int:
        """The process that plays the rounds."""
        return int((self.run / "lock").read_text())

    def busy(self, name: str, turn: int) -> int:
        """Wait until a node computes its turn of this round; its process."""
        until(lambda: self.rounds() >= turn - 1, f"round {turn - 1} to end")
        pid = until(lambda: self.pid(name), f"{name} to be up")
        self.training(turn)
        began = _spent(pid)
        until(lambda: _spent(pid) > began + 0.4, f"{name} to be at work")
        return int(pid)

    def online(self) -> bool:
        """Whether the SuperLink is there, and all nodes have signed in at it."""
        with suppress(Exception):
            return [node.online for node in nodes(Fleet(self.home))].count(True) == len(NODES)
        return False

    def noticed(self) -> list[str]:
        """What the run has noticed about the fleet."""
        log = self.run / LOG
        return [line.split(" ", 2)[2] for line in log.read_text("utf-8").splitlines()] if log.exists() else []

    # ---- what is left of it

    def parts(self, names: Sequence[str] = NODES) -> dict[str, str]:
        """The clients' own parts on these nodes, as hashes by file name."""
        name = (self.run / NAME).read_text("utf-8")
        return hashes(path for home in names for path in (self.node(home) / "runs" / name / SHELF).glob("[!.]*"))

    def marked(self) -> list[int]:
        """All processes of the fleet."""
        below = {pid for mark in (MARK, WATCH) for pid in marked(mark, str(self.home), below=True)}
        return sorted(below)

    def close(self) -> list[int]:
        """End everything; what is still there all the same."""
        for process in [self.player, *self.asides]:
            if process and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        for pid in self.marked():
            send(pid, signal.SIGCONT)  # one that was halted
        self.fedgen("fleet", "down", "--folder", str(self.home))
        return self.marked()


@dataclass
class Hit:
    """What was done to a fleet, when, and what was there at that moment."""

    fleet: Loopback
    what: str
    at: float = field(default_factory=time.monotonic)
    seen: list[str] = field(default_factory=list)
    whole: float | None = None  # seconds until what was hit was there again
    on: float | None = None  # seconds until the next round had ended
    late: bool = False  # whether clients that were not heard took their turns all the same
    kept: bool | None = None  # whether the clients' own parts of the last finished round came through a restart
    names: Sequence[str] = NODES  # the nodes that were hit
    rounds: int = 0
    parts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rounds = self.fleet.rounds()
        self.parts = newest(self.fleet.parts(self.names), self.rounds)

    def spent(self) -> float:
        """Seconds since it was hit."""
        return round(time.monotonic() - self.at, 1)

    def back(self, there: Callable[[], Any], what: str) -> None:
        """Wait until the fleet is whole again, and look after the clients' own parts."""
        until(there, what)
        self.whole = self.spent()
        now, many = self.fleet.parts(self.names), 2 * len(self.names)
        gone = {name for name in self.parts.keys() - now.keys() if not outlived(name, now)}
        changed = {name for name, found in self.parts.items() if now.get(name, found) != found}
        self.kept = len(self.parts) == many and not gone | changed

    def next(self) -> None:
        """Wait until a round ends that had not ended when it was hit."""
        until(lambda: self.fleet.rounds() > self.rounds or self.ended(), "the next round to end")
        self.on = self.spent()

    def ended(self) -> bool:
        """Whether nobody plays the run any more."""
        return self.fleet.player is not None and self.fleet.player.poll() is not None


@contextmanager
def loopback(folder: Path, plan: Mapping[str, Any]) -> Iterator[Loopback]:
    """A fleet that is up, and is taken down whatever happens."""
    folder.mkdir(parents=True)
    fleet = Loopback(Path(os.path.realpath(folder / "fleet")), folder / "run", plan)
    try:
        fleet.up()
        yield fleet
    finally:
        left = fleet.close()
    if left:
        raise RuntimeError(f"processes {left} are left running")


def send(pid: int, number: int) -> None:
    """A signal to a process that may have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def hashes(files: Iterable[Path]) -> dict[str, str]:
    """The content of files by their names."""
    found = {}
    for path in files:
        with suppress(FileNotFoundError):  # it was settled a moment ago
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def newest(parts: Mapping[str, str], most: int = 10**9) -> dict[str, str]:
    """Each client's newest own part, up to a round."""
    found: dict[str, tuple[int, str]] = {}
    for name in parts:
        client, turn, _ = name.rsplit(".", 2)
        if int(turn) <= most and int(turn) > found.get(client, (-1, ""))[0]:
            found[client] = int(turn), name
    return {name: parts[name] for _, name in found.values()}


def outlived(name: str, parts: Iterable[str]) -> bool:
    """Whether there is a newer version of a client's own part."""
    client, turn, _ = name.rsplit(".", 2)
    return any(other.startswith(f"{client}.") and int(other.rsplit(".", 2)[1]) > int(turn) for other in parts)


def _quiet() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}  # three nodes share what cores there are


def _alive(pid: int) -> bool:
    try:
        return re.search(r"^State:\s+[^ZX]", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE) is not None
    except OSError:
        return False


def _spent(pid: int) -> float:
    """Seconds of a processor that a process has used."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK
    return 0.0
