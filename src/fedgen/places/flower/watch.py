"""Keeps Flower's processes alive: a program of the standard library alone, so that it costs a device next to nothing.

`python watch.py HOME [PARENT]` starts the jobs of HOME/watch.json and starts again what dies, after a pause that grows.
A job that never came up, or has not come up again for `PATIENCE` seconds, ends it with exit 1 and the reason. SIGTERM,
Ctrl-C, or the end of the process PARENT take everything down that was started for HOME, however it was started.
"""

import contextlib
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from io import FileIO
from logging import INFO, Formatter, LogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType

WATCH, MARK = "FEDGEN_WATCH", "FEDGEN_FLEET"  # in the environment of a watch, and of all that it started: the folder
JOBS, LOCK, SAID = "watch.json", "watch.lock", "watch.log"
PATIENCE = 100.0  # seconds; Flower lets a node in again 60 s after the last heartbeat of one that was killed
LONGEST = 8.0  # seconds, the longest pause
GRACE = 8.0  # seconds between asking a process to end and killing it
LOG_BYTES = 8 << 20
COLOURS, ACCESS = re.compile(r"\x1b\[[0-9;]*m"), re.compile(r"uvicorn\.access.* 2\d\d$")
REASONS = (  # what Flower says when it gives up, and what that means to people
    ("[code: 2004]", "the server refuses this node: its key is not admitted, was taken out, or still counts as online"),
    ("Exit Code: 606", "the server has another version of Flower; install the same on both"),
    ("address already in use", "the port is in use: stop what listens there, or choose another with --port"),
    ("certificate verify failed", "the server's certificate is not of this ca.crt, has expired, or names another host"),
    ("No module named 'cryptography'", 'cryptography is missing: pip install "fedgen-edge[fleet]"'),
)


class GivenUpError(Exception):
    """A job that does not come up."""


def marked(mark: str, home: str, *, below: bool = False) -> list[int]:
    """The processes with this mark of a folder, and with `below` of the folders in it; never the one that asks."""
    found = []
    for pid, environ in _environments():
        of = environ.get(mark, "")
        if pid != os.getpid() and (of == home or (below and of.startswith(home + os.sep))):
            found.append(pid)
    return found


def _environments() -> Iterator[tuple[int, Mapping[str, str]]]:
    """Every process of ours with the environment it was started in; a pid that was reused has another."""
    if not Path("/proc/self/environ").exists():
        yield from _told_by_ps()
        return
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has ended, or is not ours
            pairs = (entry.partition("=") for entry in os.fsdecode(path.read_bytes()).split("\0"))
            yield int(path.parent.name), {name: value for name, _, value in pairs}


def _told_by_ps() -> Iterator[tuple[int, Mapping[str, str]]]:
    ran = subprocess.run(["ps", "axeww", "-o", "pid=,command="], capture_output=True, text=True, check=False)
    for line in ran.stdout.splitlines():
        pid, _, said = line.strip().partition(" ")
        yield int(pid), dict(re.findall(rf" ({WATCH}|{MARK})=(.*?)(?= \w+=|$)", said))


def sweep(home: str, *, below: bool = False) -> int:
    """End all processes of a folder: the watches, which end what they started, and then what is left; how many."""
    return _end(WATCH, home, 3 * GRACE, below=below) + _end(MARK, home, GRACE, below=below)


def _end(mark: str, home: str, grace: float, *, below: bool) -> int:
    """End processes by one signal each, for a second one keeps Flower from signing off; then by force."""
    began, seen = time.monotonic(), set[int]()
    while found := marked(mark, home, below=below):
        late = time.monotonic() - began > grace
        for pid in found if late else set(found) - seen:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        seen |= set(found)
        time.sleep(0.1)
    return len(seen)


def reason(lines: Iterable[str]) -> str:
    """What the last lines of a log come to, in one line."""
    kept = [line for line in lines if line]
    for said, meant in REASONS:
        if any(said in line for line in kept):
            return meant
    quiet = ("INFO", "For more information")
    telling = [line for line in kept if not line.startswith(quiet) and " INFO " not in line]
    return (telling or kept or ["it said nothing"])[-1]


@dataclass
class Job:
    """One process that is kept alive."""

    home: Path
    name: str
    command: list[str]  # "{port}" in it becomes a free port, "{parent}" the process that watches
    up: str  # the pattern of the line that says it is up, and maybe as what
    process: subprocess.Popen[str] | None = None
    pause: float = 1.0
    due: float = 0.0
    since: float = field(default_factory=time.monotonic)  # when it was last known to be up, or began to be tried
    started: float = 0.0
    ready: bool = False
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=60))
    pump: threading.Thread | None = None

    @property
    def environ(self) -> dict[str, str]:
        """What the process is started in: marked as the folder's, and not as a watch."""
        return {name: value for name, value in os.environ.items() if name != WATCH} | {MARK: str(self.home)}

    @property
    def known(self) -> Path:
        """Is there once the job has been up, and says as what."""
        return self.home / f"{self.name}.id"

    @property
    def sign(self) -> Path:
        """Is there while the job is up."""
        return self.home / f"{self.name}.up"

    def keep(self) -> None:
        """Start it if it is due, and see whether it lives."""
        now = time.monotonic()
        if self.process is None:
            if now >= self.due:
                self._start()
        elif self.process.poll() is not None:
            self._ended(self.process.returncode)
        elif self.ready:
            self.since = now

    def _start(self) -> None:
        self.sign.unlink(missing_ok=True)
        self.tail.clear()
        self.ready, self.started = False, time.monotonic()
        told = {"{port}": str(_free_port()), "{parent}": str(os.getpid())}
        command = [told.get(part, part) for part in self.command]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, text=True, errors="replace", env=self.environ,
        )  # fmt: skip
        (self.home / f"{self.name}.pid").write_text(f"{self.process.pid}\n")
        self.pump = threading.Thread(target=self._listen, args=(self.process,), daemon=True)
        self.pump.start()

    def _listen(self, process: "subprocess.Popen[str]") -> None:
        """Write its words to its log, and hear when it is up."""
        log = RotatingFileHandler(self.home / f"{self.name}.log", maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")
        log.setFormatter(Formatter("%(asctime)s %(message)s"))
        for raw in process.stdout or ():
            line = COLOURS.sub("", raw).rstrip()
            if ACCESS.search(line):
                continue  # a line for every request of every node, day and night
            self.tail.append(line)
            log.emit(LogRecord(self.name, INFO, "", 0, line, (), None))
            if not self.ready and self.process is process and (hit := re.search(self.up, line)):
                self._is_up(hit[hit.lastindex or 0])
        log.close()

    def _is_up(self, what: str) -> None:
        for path in (self.known, self.sign):
            path.write_text(f"{what}\n")
        self.ready = True
        say(f"{self.name} is up ({what})")

    def _ended(self, code: int) -> None:
        if self.pump:
            self.pump.join(timeout=1.0)
        self.sign.unlink(missing_ok=True)
        why = f"killed by signal {-code}" if code < 0 else reason(self.tail)
        now, been = time.monotonic(), self.known.exists()
        if not been or now - self.since > PATIENCE:
            raise GivenUpError(f"{self.name}: {why}; its log is {self.home / self.name}.log")
        self.pause = 1.0 if self.ready else min(2 * self.pause, LONGEST)
        self.process, self.due = None, now + self.pause
        say(f"{self.name} ended: {why}; started again in {self.pause:.0f} s")

    def stop(self) -> None:
        """End it and what it started in its group."""
        if self.process is None:
            return
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(GRACE)
                break
        self.sign.unlink(missing_ok=True)


def _free_port() -> int:
    import socket

    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


def say(text: str) -> None:
    """Tell whoever started this, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def held(home: Path) -> FileIO | None:
    """The hold on a folder, for as long as it is open; None if another process has it."""
    lock = (home / LOCK).open("a+b", buffering=0)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        return None
    return lock


def watched(home: Path) -> bool:
    """Whether a program of this kind keeps the folder's processes."""
    if not (home / LOCK).exists():
        return False
    if lock := held(home):
        lock.close()
        return False
    return True


def watch(home: Path, parent: int = 0) -> int:
    """Keep the jobs of a folder alive until told to stop; the exit code."""
    lock = held(home)
    if lock is None:
        print(f"error {home}: is up already; `fedgen fleet down --folder {home}` takes it down", flush=True)
        return 1
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    with lock:
        _end(MARK, str(home), GRACE, below=False)  # what a watch that was killed has left
        jobs = [Job(home, **job) for job in json.loads((home / JOBS).read_text("utf-8"))]
        try:
            while not stopping.is_set() and (not parent or os.getppid() == parent):
                for job in jobs:
                    job.keep()
                stopping.wait(0.1)
        except GivenUpError as error:
            print(f"error {error}", flush=True)
            return 1
        finally:
            for job in reversed(jobs):
                job.stop()
            _end(MARK, str(home), GRACE, below=False)
    return 0


if __name__ == "__main__":
    sys.exit(watch(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
