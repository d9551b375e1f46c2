"""A run on a fleet: the server's half, played where Flower starts it, and whoever follows it from a terminal.

The two share nothing but the run folder: its journal, what stands (`live.json`), and what was noticed (`fleet.log`).
"""

import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedgen.cohort import wanted
from fedgen.devices import said_again
from fedgen.errors import ClientError, FedgenError
from fedgen.groups import refuse
from fedgen.journal import Journal, held, hold
from fedgen.places.asking import Asking, Standing
from fedgen.places.inprocess import facts_of, kinds_of, known, load_on, start_of
from fedgen.places.roll import CENSUS, Noticed, Post, Roll
from fedgen.places.wire import Errand
from fedgen.plan import Fleet, write
from fedgen.records import Failure, Report
from fedgen.run import FACTS, JOURNAL, SCORES, SHELF, Began, Place, Run, Tell, go, rules_of
from fedgen.store import Shelf, write_whole

LIVE, LOG, NAME, SESSION, JOB = "live.json", "fleet.log", "run-id", "session", "job"
KINDS = "devices.json"  # in a fleet's folder
OFTEN, NAP = 0.5, 0.2  # seconds between two writings of what stands, and between two looks at it
UP = 180.0  # seconds until a server that was asked for must have begun
ROOM = 2**20  # bytes of an honest reply beside twice its adapter


# ---- the server's half


def serve(folder: Path, post: Post, number: str = "") -> Run:
    """Play the run of this folder over a post, or go on with it; what goes wrong is said in the folder too.

    `number` is what Flower knows this server by.
    """
    with hold(folder):
        write_whole(folder / JOB, number.encode())
        live = Live(folder)
        try:
            found = _served(folder, post, live.tell)
        except FedgenError as error:
            live.end(str(error))
            raise
        except Exception as error:
            live.end(f"{type(error).__name__}: {error}")
            raise
        live.end("")
        return found


def _served(folder: Path, post: Post, tell: Tell) -> Run:
    run = Run(folder)
    settled = run.plan
    backbone = settled.backbone.load()
    told = replace(settled, fleet=Fleet())  # where the server's folders lie is nobody's business
    errand = Errand((folder / NAME).read_text("utf-8"), write(told), _session(folder))
    bank = settled.adapter.bank(backbone.network, settled.width)
    start, facts = start_of(settled, bank), facts_of(settled, backbone)
    load = load_on(settled, backbone, bank, start) if settled.mixed else None
    most = ROOM + 2 * bank.lines.element_size() * bank.layout.width
    del backbone, bank  # from here on the server has adapters alone
    roll = Roll(post, errand, settled.fleet, facts["backbone_hash"], tell)
    before = run.facts  # of a run that goes on: its clients are those that it began with
    roll.gather(before.get("sizes", ()))
    mine = {key: before.get(key, {}) for key in CENSUS} if before else roll.census()
    hardware = {name: said_again(f"facts: hardware of '{name}'", said) for name, said in mine["hardware"].items()}
    _note_kinds(Path(settled.fleet.folder), roll.kinds())
    counts = {"clients": len(mine["sizes"]), "rows": sum(mine["sizes"].values()), "where": roll.said()}
    asking = Asking(post, errand, settled.fleet, roll, most, tell=tell, guards=settled.passage)
    facts |= mine | counts | kinds_of(hardware)
    place = Place(mine["sizes"], asking.ask, start, Shelf(folder / SHELF), facts, known(mine["labels"]), hardware, load)
    wanted(settled.cohort, len(place.sizes))  # refuses more than there are
    refuse(rules_of(settled, place), sorted(place.sizes))
    return go(folder, settled, place, tell)


def _note_kinds(home: Path, kinds: dict[str, str]) -> None:
    """Note in a fleet's folder what its nodes say they are, for whoever asks how it stands."""
    if home.is_dir() and kinds:
        write_whole(home / KINDS, json.dumps(noted_kinds(home) | kinds).encode())


def noted_kinds(home: Path) -> dict[str, str]:
    """The class of devices of each node that has ever said it, by its id."""
    path = home / KINDS
    found: dict[str, str] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found


def _session(folder: Path) -> str:
    """The number of this session of the server, which is higher than any before."""
    path = folder / SESSION
    number = 1 + (int(path.read_text("utf-8")) if path.exists() else 0)
    write_whole(path, f"{number:09}".encode())
    return f"{number:09}"


class Live:
    """Writes down what a run tells, for whoever follows it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.at = folder, 0.0
        self.standing: dict[str, Any] = {}
        self._write()

    def tell(self, event: object) -> None:
        """Note what stands, now and then, and each thing noticed."""
        if isinstance(event, Standing):
            self.standing = asdict(event)
            if time.monotonic() - self.at > OFTEN:
                self._write()
        elif isinstance(event, Noticed):
            with (self.folder / LOG).open("a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {' '.join(event.said.split())}\n")

    def end(self, error: str) -> None:
        """The last word: why the server stopped, or that it is done."""
        self._write(error)

    def _write(self, error: str = "") -> None:
        self.at = time.monotonic()
        said = {"error": error, "time": time.time(), "standing": self.standing}
        write_whole(self.folder / LIVE, json.dumps(said).encode())


# ---- whoever follows


@dataclass
class _Seen:
    """How much of a run's folder was told already."""

    rounds: int
    noticed: int
    began: bool = False
    moment: float = 0.0
    size: int = -1


def name(folder: Path) -> None:
    """Give a run a name of its own among all that its devices may ever see; once."""
    if not (folder / NAME).exists():
        write_whole(folder / NAME, f"{folder.name}-{secrets.token_hex(4)}".encode())


def job(folder: Path) -> str:
    """The number that Flower knows the run's last server by; none if it was never begun."""
    return (folder / JOB).read_text("utf-8") if (folder / JOB).exists() else ""


def standing(folder: Path) -> Standing | str:
    """How far the run of a folder has come; in words where nothing is asked now."""
    if Run(folder).finished:
        return "finished"
    if not held(folder):
        why = _live(folder).get("error")
        return f"is not under way{f' ({why})' if why else ''}; `fedgen resume {folder}` goes on with it"
    asks = _live(folder).get("standing")
    return Standing(**asks) if asks else "waits for nodes"


def follow(folder: Path, standing: Callable[[], str], tell: Tell, *, begun: bool = False) -> Run:
    """Tell what a fleet's run does until it has ended; `standing` is Flower's word on it, should it end without one."""
    log = folder / LOG
    seen = _Seen(len(Journal(folder / JOURNAL).lines()), log.stat().st_size if log.exists() else 0)
    asked, began = time.time(), begun
    while True:
        began = began or _live(folder).get("time", 0.0) >= asked
        ended = began and not held(folder)
        if began:
            _told(folder, seen, tell)
        if ended:
            if (folder / SCORES).exists():
                return Run(folder)
            why = _live(folder).get("error") or f"its server ended without a word ({standing()})"
            remedy = f"all finished rounds are safe: go on with `fedgen resume {folder}`"
            raise ClientError(f"run '{folder}': {why}; {remedy}")
        if not began and time.time() - asked > UP:
            raise ClientError(f"run '{folder}': no server began within {UP:g} s ({standing()}); see superlink.log")
        time.sleep(NAP)


def _live(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / LIVE).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return found


def _told(folder: Path, seen: _Seen, tell: Tell) -> None:
    """Tell what is new in the folder."""
    run = Run(folder)
    if not seen.began and (folder / FACTS).exists():
        seen.began, seen.rounds = True, min(seen.rounds, len(run.journal))  # a round cut short is played anew
        tell(Began(folder, run.plan, run.facts, seen.rounds))
    for noticed in _noticed(folder, seen):
        tell(noticed)
    live = _live(folder)
    if live.get("standing") and live["time"] > seen.moment:
        seen.moment = live["time"]
        tell(Standing(**live["standing"]))
    journal = folder / JOURNAL
    if not seen.began or not journal.exists() or journal.stat().st_size == seen.size:
        return
    seen.size = journal.stat().st_size
    for line in Journal(journal).lines()[seen.rounds :]:
        seen.rounds += 1
        failures = tuple(Failure(**failure) for failure in line["failures"])
        for event in (*failures, Report(**line | {"failures": failures})):
            tell(event)


def _noticed(folder: Path, seen: _Seen) -> list[Noticed]:
    """What the log has that was not told."""
    if not (folder / LOG).exists():
        return []
    with (folder / LOG).open("rb") as log:
        log.seek(seen.noticed)
        raw = log.read()
    whole = raw[: raw.rfind(b"\n") + 1]
    seen.noticed += len(whole)
    return [Noticed(line.split(" ", 2)[2]) for line in whole.decode().split("\n") if line]
