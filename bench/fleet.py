"""A loopback fleet of three nodes, round after round: what a round takes beyond training, where it goes, and memory.

    python bench/fleet.py [--rounds 50] [--checked 10]

A round here is one message to each node and back; with validation it is two. What Flower does with a message is read
from the SuperNodes' own logs, what the work takes from the nodes' logs, and memory from the system, round by round.
"""

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from machine import keep

NODES, CLIENTS = 3, 6
PLAN = f"""
name = "bench"
seed = 1
place = "fleet"
[data]
limit = 20000
[partition]
kind = "even"
clients = {CLIENTS}
[adapter]
rank = 4
targets = ["down_proj"]
[cohort]
count = {CLIENTS}
[training]
steps = 1
batch = 1
[personal]
kind = "keep"
steps = 1
[evaluate]
clients = {CLIENTS}
rows = 1
"""
STAMP = re.compile(r"^(\d+-\d+-\d+ \d+:\d+:\d+,\d+) INFO :\s+(.*)")
STEPS = ("Receiving: ", "Received successfully", "Start `flwr-clientapp`", "Sending: ", "Sent successfully")
PARTS = ("fetch the message", "start flwr-clientapp", "work, and what flwr-clientapp does", "send the reply")


def fedgen(*words: str) -> None:
    """Run the command; it must succeed."""
    subprocess.run([sys.executable, "-m", "fedgen", *words], check=True, stdout=subprocess.DEVNULL)


class Watch(threading.Thread):
    """Sees when each round is done and how much memory each process holds then."""

    def __init__(self, fleet: Path, run: Path) -> None:
        super().__init__(daemon=True)
        self.fleet, self.run_folder, self.over = fleet, run, threading.Event()
        self.times: list[float] = []
        self.memory: list[dict[str, float]] = []

    def run(self) -> None:
        """Look until told that it is over."""
        while not self.over.wait(0.05):
            journal = self.run_folder / "journal.jsonl"
            done = journal.read_bytes().count(b"\n") if journal.exists() else 0
            if done > len(self.times):
                self.times.append(time.time())
                self.memory.append({name: resident(pid) for name, pid in self.processes().items()})

    def processes(self) -> dict[str, int]:
        """The processes that stay: of the server, and of the first node."""
        home = self.fleet / "nodes" / "node-1"
        own = json.loads((self.run_folder / "lock").read_text())  # the server holds its run's lock
        return {
            "SuperLink": pid_of(self.fleet / "superlink.pid"),
            "server of the run": int(own),
            "SuperNode": pid_of(home / "supernode.pid"),
            "fedgen node": int(json.loads((home / "node.json").read_text())["pid"]),
        }


def pid_of(path: Path) -> int:
    """The process that a file names."""
    return int(path.read_text().split()[0])


def resident(pid: int) -> float:
    """How many MB a process holds."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def messages(log: Path) -> list[list[float]]:
    """The moments of each message that a SuperNode took: one for each of STEPS."""
    found: list[list[float]] = []
    for line in log.read_text("utf-8", "replace").splitlines():
        if not (stamp := STAMP.match(line)):
            continue
        for at, step in enumerate(STEPS):
            if stamp[2].startswith(step):
                moment = datetime.strptime(stamp[1], "%Y-%m-%d %H:%M:%S,%f").timestamp()  # noqa: DTZ007  local, as logged
                found += [[]] if at == 0 or not found else []
                found[-1].append(moment)
    return [own for own in found if len(own) == len(STEPS)]


def work(log: Path) -> list[float]:
    """The seconds that each answer of a node took."""
    return [float(found) for found in re.findall(r"answered .* in ([\d.]+) s", log.read_text())]


def played(fleet: Path, folder: Path, name: str, settings: list[str]) -> tuple[list[float], Watch]:
    """The seconds of each round but the first, and the watch that saw them."""
    plan = folder / "plan.toml"
    plan.write_text(PLAN)
    run = folder / name
    watch = Watch(fleet, run)
    watch.start()
    sets = [
        word for setting in (*settings, f"fleet.folder={fleet}", f"fleet.nodes={NODES}") for word in ("--set", setting)
    ]
    fedgen("run", str(plan), "--to", str(run), *sets)
    watch.over.set()
    watch.join()
    return [after - before for before, after in itertools.pairwise(watch.times)], watch


def summary(rounds: list[float]) -> dict[str, float]:
    """The middle, the best and the worst."""
    return {"median": statistics.median(rounds), "least": min(rounds), "most": max(rounds)}


def measure(rounds: int, checked: int) -> dict[str, Any]:
    """Rounds without and with validation on one fleet."""
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where).resolve()
        fleet = folder / "fleet"
        began = time.perf_counter()
        fedgen("fleet", "up", "--folder", str(fleet), "--nodes", str(NODES), "--detach")
        up = time.perf_counter() - began
        try:
            plain, watch = played(fleet, folder, "plain", [f"rounds={rounds}", "evaluate.every=0"])
            home = fleet / "nodes" / "node-1"
            every = [messages(node / "supernode.log")[2:-1] for node in sorted((fleet / "nodes").iterdir())]
            works = work(home / "node.log")[2:]
            both, _ = played(fleet, folder, "both", [f"rounds={checked}"])
        finally:
            fedgen("fleet", "down", "--folder", str(fleet))
    steps = [[after - before for before, after in itertools.pairwise(own)] for node in every for own in node]
    parts = {name: statistics.median(step[at] for step in steps) for at, name in enumerate(PARTS)}
    middle = statistics.median(plain)
    parts["wait for the SuperNode's next look (every 3 s), and for the slowest of the nodes"] = middle - sum(
        parts.values()
    )
    grown = {name: watch.memory[-1][name] - watch.memory[len(watch.memory) // 10][name] for name in watch.memory[-1]}
    return {
        "nodes": NODES,
        "clients": CLIENTS,
        "seconds until all nodes are online": up,
        "rounds": len(plain) + 1,
        "seconds a round": summary(plain),
        "of which work at the nodes": statistics.median(works),
        "where a median round goes, seconds": parts,
        "rounds with validation": len(both) + 1,
        "seconds a round with validation": summary(both),
        "MB held after a tenth of the rounds": watch.memory[len(watch.memory) // 10],
        "MB held after the last": watch.memory[-1],
        "MB grown": grown,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--checked", type=int, default=10)
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # three nodes share these cores
    keep("fleet", {"seed": 1} | measure(asked.rounds, asked.checked))
