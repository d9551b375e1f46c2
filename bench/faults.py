"""What becomes of a run when something is killed, halted, cut off or hostile: real processes on a real loopback fleet.

    python bench/faults.py [NAME ...] [--out bench/results/faults.json]

Every scenario has a fleet of its own, with TLS and sign-in: three nodes, six clients, four rounds. Something is done to
it while a round is under way; the run must come to its end all the same, after `fedgen resume` where its server died.
The end is compared, bit for bit, with that of the same plan in one process: uninterrupted, or without those clients in
those rounds in which the fleet did without them. Each result is kept as soon as there is one.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from loopback import LONG, NODES, Hit, Loopback, hashes, loopback, newest, send, tiny, until
from machine import RESULTS, about
from replay import missing, replayed, same_shared, told, uninterrupted

from fedgen.places.flower import launch
from fedgen.places.flower.certificates import make_server
from fedgen.places.flower.fleet import Fleet, split
from fedgen.places.flower.watch import MARK
from fedgen.run import SHELF, Run

TURN = 2  # the round in which it happens
HALT = 30.0  # seconds that a node is halted, and more than the deadline of that run
DEADLINE = 20.0


# ---- what is killed, and comes back by itself


def node_killed(fleet: Loopback) -> Hit:
    """`fedgen node` is killed in its turn."""
    fleet.begin()
    pid = fleet.busy("node-1", TURN)
    hit = Hit(fleet, f"SIGKILL to `fedgen node` of node-1 while it computed in round {TURN}")
    send(pid, signal.SIGKILL)
    hit.back(lambda: fleet.pid("node-1") not in (0, pid), "another node")
    hit.next()
    fleet.finish()
    return hit


def supernode_away(fleet: Loopback) -> Hit:
    """A device signs off for a whole round, and joins again in the next."""
    fleet.begin()
    fleet.training(TURN)
    hit = Hit(
        fleet,
        f"SIGTERM to all of node-2 as round {TURN} began; `fedgen fleet join` once it had ended",
        names=("node-2",),
    )
    send(fleet.watch(fleet.node("node-2")), signal.SIGTERM)
    hit.next()
    back = time.monotonic()
    fleet.aside("fleet", "join", str(fleet.node("node-2")), "--server", Fleet(fleet.home).near)
    hit.back(fleet.online, "all nodes to be online")
    hit.seen.append(f"the node was back {time.monotonic() - back:.0f} s after it was started again")
    fleet.finish()
    return hit


def superlink_killed(fleet: Loopback, hit: Hit) -> Hit:
    """The SuperLink is killed; its watch starts another."""
    send(fleet.superlink(), signal.SIGKILL)
    return gone_on(fleet, hit)


def gone_on(fleet: Loopback, hit: Hit) -> Hit:
    """See that the run goes on by itself once all are online again, or resume it; to its end."""
    hit.back(fleet.online, "the SuperLink and all nodes to be online")
    hit.next()
    if hit.ended() and not Run(fleet.run).finished:
        resumed(fleet, hit)
        hit.next()
    else:
        hit.seen.append("the run went on by itself")
    fleet.finish()
    return hit


def resumed(fleet: Loopback, hit: Hit) -> None:
    """Resume a run whose server is gone."""
    assert fleet.player is not None
    if fleet.player.wait(LONG) > 0:  # else it was killed itself
        hit.seen.append(f"`fedgen run` ended: {fleet.words()}")
    hit.seen.append(f"`fedgen resume` went on, at try {fleet.resume()}")


def superlink_between(fleet: Loopback) -> Hit:
    """The SuperLink is killed as a round has just ended."""
    fleet.begin()
    until(lambda: fleet.rounds() >= TURN - 1, "a round to end")
    return superlink_killed(fleet, Hit(fleet, f"SIGKILL to the SuperLink as round {TURN - 1} had just ended"))


def superlink_within(fleet: Loopback) -> Hit:
    """The SuperLink is killed while nodes compute."""
    fleet.begin()
    fleet.busy("node-1", TURN)
    return superlink_killed(fleet, Hit(fleet, f"SIGKILL to the SuperLink while nodes computed in round {TURN}"))


def server_killed(fleet: Loopback) -> Hit:
    """The process that plays the rounds is killed."""
    fleet.begin()
    fleet.busy("node-1", TURN)
    hit = Hit(fleet, f"SIGKILL to the server's process (`flwr-serverapp`) in round {TURN}")
    send(fleet.server(), signal.SIGKILL)
    resumed(fleet, hit)
    hit.back(fleet.live, "a server")
    hit.next()
    fleet.finish()
    return hit


def power_cut(fleet: Loopback) -> Hit:
    """Everything is killed at once."""
    fleet.begin()
    fleet.busy("node-1", TURN)
    hit = Hit(fleet, f"SIGKILL to all processes of the fleet and to `fedgen run` at once in round {TURN}")
    killed = 0
    while pids := [pid for pid in fleet.marked() if _runs(pid)]:
        killed += len(pids)
        for pid in pids:
            send(pid, signal.SIGKILL)
    assert fleet.player is not None
    fleet.player.kill()
    hit.seen.append(f"{killed} processes were killed")
    fleet.up()
    return gone_on(fleet, hit)


def _runs(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


# ---- clients that fail, and nodes that lie


def client_raises(fleet: Loopback) -> Hit:
    """A client's own part is damaged on its disk, and put back two rounds later."""
    fleet.begin()
    until(lambda: fleet.rounds() >= TURN - 1, "a round to end")
    hit = Hit(fleet, f"ann's own part damaged on node-1's disk after round {TURN - 1}, put back after round {TURN}")
    name = next(name for name in hit.parts if name.startswith("ann."))
    (path,) = fleet.node("node-1").glob(f"runs/*/{SHELF}/{name}")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    hit.next()
    path.write_bytes(whole)
    fleet.finish()
    return hit


def node_late(fleet: Loopback) -> Hit:
    """A node is halted until after the deadline, and goes on."""
    fleet.begin(f"fleet.deadline={DEADLINE}")
    pid = fleet.busy("node-3", TURN)
    hit = Hit(fleet, f"SIGSTOP to `fedgen node` of node-3 in round {TURN} for {HALT:.0f} s, deadline {DEADLINE:.0f} s")
    hit.late = True
    send(pid, signal.SIGSTOP)
    hit.next()
    until(lambda: hit.spent() >= HALT, "the time to pass")
    send(pid, signal.SIGCONT)
    until(lambda: any("too late" in line for line in fleet.noticed()), "the late answer")
    hit.whole = hit.spent()
    fleet.finish()
    return hit


def lied(fleet: Loopback, lie: str, said: str) -> Hit:
    """A hostile node in the place of node-2's own tells one lie."""
    home = fleet.node("node-2")
    environ = os.environ | {MARK: str(home), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).parent / "liar.py"), str(home), lie, str(TURN)]
    with (home / "node.log").open("ab") as log:
        liar = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True)
    fleet.asides.append(liar)
    until(lambda: fleet.pid("node-2"), "the hostile node")
    fleet.begin()
    fleet.training(TURN)
    hit = Hit(fleet, f"a hostile node in the place of node-2's own sends {said} in round {TURN}")
    hit.late = True
    hit.next()
    fleet.finish()
    return hit


def sends_nan(fleet: Loopback) -> Hit:
    """A node sends numbers that are none."""
    return lied(fleet, "nan", "one NaN in each adapter")


def sends_shape(fleet: Loopback) -> Hit:
    """A node sends adapters of another shape."""
    return lied(fleet, "shape", "factors of one row too many")


def sends_stale(fleet: Loopback) -> Hit:
    """A node sends the reply of another round."""
    return lied(fleet, "stale", "replies that say they are of the round before")


def sends_flood(fleet: Loopback) -> Hit:
    """A node sends 100 MB of zeros."""
    return lied(fleet, "flood", "100 MB of zeros")


# ---- who is not let in


def stranger(fleet: Loopback) -> Hit:
    """A node that nobody admitted."""
    home, near = fleet.home.parent / "stranger", Fleet(fleet.home).near
    fleet.fedgen("fleet", "join", str(home), "--server", near, "--ca", str(fleet.home / "ca.crt"))
    fleet.begin()
    fleet.training(TURN)
    hit = Hit(fleet, f"a node with a key that was never admitted joins in round {TURN}")
    said = fleet.fedgen("fleet", "join", str(home), "--server", near, wanted=1)
    hit.seen.append(f"refused after {hit.spent():.0f} s, exit 1: {_last(said)}")
    fleet.finish()
    return hit


def expired(fleet: Loopback) -> Hit:
    """The server comes back with a certificate that has expired."""
    fleet.begin()
    fleet.busy("node-1", TURN)
    what = f"the fleet taken down in round {TURN}; the server comes back with an expired certificate, then a new one"
    hit = Hit(fleet, what)
    folder, near = str(fleet.home), Fleet(fleet.home).near
    fleet.fedgen("fleet", "down", "--folder", folder)
    (fleet.home / "server.pem").unlink()
    make_server(fleet.home, days=0)
    time.sleep(1.0)
    said = fleet.fedgen("fleet", "up", "--folder", folder, "--detach", wanted=1)
    hit.seen.append(f"`fedgen fleet up` refuses, exit 1: {_last(said)}")
    host, port = split(Fleet(fleet.home).address)
    launch.start(fleet.home, launch.superlink(fleet.home, host, port, near, insecure=False), bound=False)
    until((fleet.home / "superlink.up").exists, "the SuperLink")
    said = fleet.fedgen("fleet", "join", str(fleet.node("node-1")), "--server", near, wanted=1)
    hit.seen.append(f"started past it, a node refuses, exit 1: {_last(said)}")
    fleet.fedgen("fleet", "down", "--folder", folder)
    (fleet.home / "server.pem").unlink()
    fleet.up()
    return gone_on(fleet, hit)


def _last(said: str) -> str:
    return next(line.strip() for line in reversed(said.splitlines()) if line.strip())


SCENARIOS: dict[str, Callable[[Loopback], Hit]] = {
    "node killed in its turn": node_killed,
    "SuperNode away for a round": supernode_away,
    "SuperLink killed between rounds": superlink_between,
    "SuperLink killed within a round": superlink_within,
    "server killed": server_killed,
    "client raises": client_raises,
    "answer after the deadline": node_late,
    "NaN": sends_nan,
    "another shape": sends_shape,
    "another round's reply": sends_stale,
    "100 MB of zeros": sends_flood,
    "unregistered node": stranger,
    "expired certificate": expired,
    "power cut": power_cut,
}


def measured(name: str, folder: Path, world: Path) -> dict[str, Any]:
    """A scenario, and how its end compares with that in one process."""
    plan, began = tiny(world), time.monotonic()
    with loopback(folder, plan) as fleet:
        hit = SCENARIOS[name](fleet)
        seconds = time.monotonic() - began
        run, parts = Run(fleet.run), newest(fleet.parts())
        said = [*hit.seen, *told(run), *(line for line in fleet.noticed() if not line.startswith("node '"))]
    out = missing(run)
    other = replayed(plan, folder / "other", out, late=hit.late) if out else uninterrupted(plan, world / "run")
    return {
        "what": hit.what,
        "seen": [plain(line, folder) for line in said],
        "seconds_until_whole": hit.whole,
        "seconds_until_the_round_ended": hit.on,
        "finished": run.finished and len(run.journal) == plan["rounds"],
        "missing": {str(turn): sorted(names) for turn, names in out.items()},
        "same_shared_adapter": same_shared(run.folder, other.folder),
        "same_own_parts": parts == newest(hashes((other.folder / SHELF).glob("[!.]*"))),
        "own_parts_kept": hit.kept,
        "seconds_in_all": round(seconds, 1),
        "load": round(os.getloadavg()[1], 1),
    }


def plain(line: str, folder: Path) -> str:
    """A line without the folder of this very measurement."""
    return line.replace(f"{os.path.realpath(folder)}/", "").replace(f"{folder}/", "")


def kept(path: Path, name: str, found: dict[str, Any]) -> None:
    """Add a result to the file, in the order of the scenarios."""
    before = json.loads(path.read_text("utf-8")) if path.exists() else {}
    results = before.get("scenarios", {}) | {name: found}
    here = about()
    here["versions"] |= {"flwr": version("flwr")}
    said = {"nodes": len(NODES), "clients": 6, "rounds": 4}
    content = here | said | {"scenarios": {name: results[name] for name in SCENARIOS if name in results}}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(SCENARIOS)}; all without any")
    parser.add_argument("--out", type=Path, default=RESULTS / "faults.json")
    asked = parser.parse_args()
    if odd := [name for name in asked.names if name not in SCENARIOS]:
        parser.error(f"'{odd[0]}' is not one of {', '.join(SCENARIOS)}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for at, scenario in enumerate(asked.names or SCENARIOS):
            found = measured(scenario, folder / str(at), folder / "world")
            print(json.dumps({scenario: found}, indent=1, ensure_ascii=False), flush=True)
            kept(asked.out, scenario, found)


if __name__ == "__main__":
    main()
