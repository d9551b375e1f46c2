"""A whole run on nodes, each with a desk of its own: it ends as in one process, and goes on after it was cut short."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fedgen
from fedgen import Run
from fedgen import plan as plans
from fedgen.devices import CLASSES, said_again
from fedgen.errors import ClientError
from fedgen.places import fleet, roll
from fedgen.places.desk import Desk
from fedgen.places.device import Consent, Device
from fedgen.places.roll import Arrived
from fedgen.places.wire import Parcel
from fedgen.plan import Fleet
from fedgen.records import Tree
from fedgen.run import PLAN
from fedgen.store import Shelf, write_whole

SETTINGS = ["personal.kind=keep", "training.cohort=2", "training.steps=2", "personal.steps=1", "encode.kind=backbone"]
CLUSTERED = {"cluster": {"kind": "kmeans", "count": 2}}


class Hand:
    """Carries parcels to desks in this process, at once; it drops dead over one of them."""

    def __init__(self, desks: Mapping[int, Desk], dies: int = 0) -> None:
        self.desks, self.dies = desks, dies
        self.tickets = itertools.count(1)
        self.sent: dict[str, tuple[int, Parcel]] = {}

    def nodes(self) -> set[int]:
        return set(self.desks)

    def send(self, node: int, parcel: Parcel, use: str, turn: int) -> str:
        ticket = str(next(self.tickets))
        self.sent[ticket] = node, parcel
        return ticket

    def arrived(self, tickets: Sequence[str]) -> list[Arrived]:
        found = []
        for ticket in tickets:
            node, parcel = self.sent[ticket]
            found.append(Arrived(ticket, self.desks[node].answer(parcel)))
            if ticket == str(self.dies):
                raise ClientError("the server is killed")
        return found


def same(one: Tree | None, other: Tree | None) -> bool:
    return (
        one is not None
        and other is not None
        and one.keys() == other.keys()
        and all(one[key].equal(other[key]) for key in one)
    )


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roll, "LOOK", 0.0)


@pytest.fixture(scope="module")
def here(tiny_plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run in this process."""
    return fedgen.run(tiny_plan | CLUSTERED, tmp_path_factory.mktemp("here") / "run", settings=SETTINGS)


@pytest.fixture
def there(here: Run, tmp_path: Path) -> Path:
    """A run folder of the same plan on a fleet."""
    settled = replace(here.plan, place="fleet", fleet=Fleet(nodes=3, deadline=60.0))
    write_whole(tmp_path / "there" / PLAN, plans.write(settled).encode())
    fleet.name(tmp_path / "there")
    return tmp_path / "there"


def desks(folder: Path) -> dict[int, Desk]:
    """Three devices that play a third of the plan's clients each."""
    consents = [Consent(plan_data=True, share=f"{at}/3") for at in (1, 2, 3)]
    return {
        at: Desk(Device(f"node-{at}", consent=consent), folder / f"node-{at}") for at, consent in enumerate(consents, 1)
    }


def check(run: Run, here: Run, folder: Path) -> None:
    """The run is as the one in this process, and clients have on their nodes what they have there."""
    assert run.scores == here.scores
    assert run.clusters == here.clusters
    for name in [name for name in here.adapters() if not name.startswith("client/")]:
        assert same(run.adapter(name)[0], here.adapter(name)[0])
    for line, other in zip(run.journal, here.journal, strict=True):
        assert (line["clients"], line["failures"]) == (other["clients"], [])
        assert line["metrics"]["loss"] == other["metrics"]["loss"]
        assert line["up"] > 0
    owns = {name: Shelf(path) for path in folder.glob("node-*/*/shelf") for name in Shelf(path).clients()}
    assert sorted(owns) == here.shelf().clients()
    assert all(same(shelf.get(name), here.shelf().get(name)) for name, shelf in owns.items())
    assert run.shelf().clients() == [], "of what clients keep nothing is the server's"


def test_a_run_on_nodes_ends_as_the_one_in_this_process(here: Run, there: Path, tmp_path: Path) -> None:
    run = fleet.serve(there, Hand(desks(tmp_path)))
    check(run, here, tmp_path)
    assert run.facts["rows"] == here.facts["rows"]


def test_a_run_knows_what_its_nodes_say_they_are(there: Path, tmp_path: Path) -> None:
    plan = replace(Run(there).plan, fleet=Fleet(str(tmp_path / "home"), nodes=3, deadline=60.0))
    (tmp_path / "home").mkdir()
    write_whole(there / PLAN, plans.write(plan).encode())
    held = desks(tmp_path)
    held[1].hardware, held[2].hardware = CLASSES["board"], replace(CLASSES["phone"], memory=10**9, hours=(22.0, 7.0))
    run = fleet.serve(there, Hand(held))
    assert run.facts["devices"] == {"board": 2, "phone": 2}
    assert fleet.noted_kinds(tmp_path / "home") == {"1": "board", "2": "phone"}
    known = {name: said_again(name, said) for name, said in run.facts["hardware"].items()}
    owner = {name: at for at, desk in held.items() for name in Shelf(next(desk.folder.glob("*/shelf"))).clients()}
    assert {owner[name] for name in known} <= {1, 2}
    assert all(device == held[owner[name]].hardware for name, device in known.items())


@pytest.mark.parametrize("dies", [8, 11, 14])
def test_a_server_killed_on_the_way_goes_on_to_the_same_end(dies: int, here: Run, there: Path, tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="the server is killed"):
        fleet.serve(there, Hand(desks(tmp_path), dies))
    assert not Run(there).finished
    check(fleet.serve(there, Hand(desks(tmp_path))), here, tmp_path)
