"""How Flower's processes are started: their commands, their surroundings, and the watch that keeps them alive."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from fedgen.errors import PlanError, ServeError
from fedgen.places.flower import watch
from fedgen.places.flower.quiet import INSTALL, flower, quiet
from fedgen.plan import toml_of
from fedgen.store import write_whole

Jobs = Sequence[Mapping[str, Any]]


def _path() -> str:
    """Where programs are looked for: Flower starts its own by name, and they lie beside this Python."""
    beside = (str(Path(sys.executable).parent), sysconfig.get_path("scripts"), os.environ.get("PATH", ""))
    return os.pathsep.join(dict.fromkeys(beside))


def script(name: str) -> str:
    """One of Flower's programs."""
    flower()
    found = shutil.which(name, path=_path())
    if found is None:
        raise PlanError(f"{name}: is not where Python's programs are; {INSTALL}")
    return found


def environment(home: Path) -> dict[str, str]:
    """What a process of Flower is started in: quiet, with what it keeps in the folder, and its programs at hand."""
    found = dict(os.environ)
    quiet(found)
    return found | {"FLWR_HOME": str(home / "flwr"), "PATH": _path(), "PYTHONUNBUFFERED": "1"}


def superlink(home: Path, host: str, port: int, near: str, *, insecure: bool) -> Jobs:
    """The server's two processes. The one that starts apps is kept apart: it may die while the SuperLink lives."""
    ca, pem, key = (str(home / name) for name in ("ca.crt", "server.pem", "server.key"))
    shown = ["--ssl-ca-certfile", ca, "--ssl-certfile", pem, "--ssl-keyfile", key, "--enable-supernode-auth"]
    listens = ["--host", host, "--port", str(port), "--database", str(home / "superlink.db")]
    asks = ["--runtime-api-address", near, "--parent-pid", "{parent}"]
    own = ["--isolation", "process", "--disable-runtime-dependency-installation"]
    return [
        {
            "name": "superlink",
            "command": [script("flower-superlink"), *listens, *own, *(["--insecure"] if insecure else shown)],
            "up": r"Uvicorn running on (\S+)",
        },
        {
            "name": "superexec",
            "command": [script("flower-superexec"), *asks, *_trusts(home, insecure)],
            "up": "Starting Flower (SuperExec)",
        },
    ]


def supernode(home: Path, server: str, *, insecure: bool) -> Jobs:
    """A node's one process; what it starts for a message finds the node's folder in its configuration."""
    keys = [] if insecure else ["--auth-supernode-private-key", str(home / "node.key")]
    told = ["--superlink", server, "--port", "{port}", "--node-config", f"home={toml_of(str(home))}"]
    command = [script("flower-supernode"), *told, *_trusts(home, insecure), *keys]
    return [{"name": "supernode", "command": command, "up": r"SuperNode ID: (\d+)"}]


def _trusts(home: Path, insecure: bool) -> list[str]:
    return ["--insecure"] if insecure else ["--root-certificates", str(home / "ca.crt")]


def _watch(home: Path, jobs: Jobs) -> list[str]:
    write_whole(home / watch.JOBS, json.dumps(jobs, indent=1).encode())
    return [sys.executable, "-P", str(Path(watch.__file__)), str(home)]


def start(home: Path, jobs: Jobs, *, bound: bool) -> "subprocess.Popen[bytes]":
    """Watch a folder's jobs from a process of its own, which ends with this one if it is bound to it."""
    for job in jobs:  # a sign that a killed watch has left is none
        (home / f"{job['name']}.up").unlink(missing_ok=True)
    command = _watch(home, jobs) + ([str(os.getpid())] if bound else [])
    with (home / watch.SAID).open("wb") as said:
        return subprocess.Popen(
            command, env=environment(home) | {watch.WATCH: str(home)}, stdin=subprocess.DEVNULL,
            stdout=said, stderr=said, start_new_session=True,
        )  # fmt: skip


def become(home: Path, jobs: Jobs) -> NoReturn:
    """Watch a folder's jobs in place of this process, which is heavier."""
    command = _watch(home, jobs)
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(command[0], command, environment(home) | {watch.WATCH: str(home)})


def said(home: Path) -> str:
    """The last that a folder's watch has said."""
    lines = (home / watch.SAID).read_text("utf-8", "replace").splitlines() if (home / watch.SAID).exists() else []
    return lines[-1].removeprefix("error ") if lines else "it said nothing"


def refuse_watched(home: Path, what: str) -> None:
    """Refuse a folder whose processes run already."""
    if watch.watched(home):
        raise ServeError(f"{what} '{home}': is up already; `fedgen fleet down --folder {home}` takes it down")


def take_down(home: Path) -> int:
    """End all that was started for a folder and those in it, the nodes first so that they can sign off."""
    return watch.sweep(str(home / "nodes"), below=True) + watch.sweep(str(home), below=True)
