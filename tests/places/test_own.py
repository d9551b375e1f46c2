"""A device's own adapter as a bundle: what is on its shelf, with what it is of."""

from pathlib import Path
from typing import Any

import pytest

from fedgen import plan as plans
from fedgen.errors import StoreError
from fedgen.places import own
from fedgen.places.desk import Desk
from fedgen.places.device import Consent, Device
from fedgen.places.inprocess import settle, start_of
from fedgen.places.node import RUNS
from fedgen.places.wire import Errand, offered
from fedgen.records import GLOBAL, Offer
from fedgen.store import Shelf, load_bundle


@pytest.fixture
def home(tiny_plan: dict[str, Any], tmp_path: Path) -> Path:
    """A node's folder after one turn of two clients."""
    plan = plans.read(tiny_plan, ["personal.kind=keep", "personal.steps=1", "training.steps=1"])
    backbone = plan.backbone.load()
    settled = settle(plan, backbone)
    start = start_of(settled, settled.adapter.bank(backbone.network, settled.width))
    desk = Desk(Device("box", consent=Consent(plan_data=True)), tmp_path / RUNS)
    offers = [Offer(1, name, GLOBAL, start) for name in ("ann", "bob")]
    desk.answer(offered(Errand("tiny-0a1b", plans.write(settled), "000000001"), offers))
    return tmp_path


def test_an_own_adapter_is_taken_out_as_a_bundle(home: Path, tmp_path: Path) -> None:
    card = own.take(home, tmp_path / "out", client="ann")
    found, read = load_bundle(tmp_path / "out")
    kept = Shelf(home / RUNS / "tiny-0a1b" / "shelf").get("ann")
    assert kept is not None
    assert found.keys() == kept.keys()
    assert all(found[key].equal(kept[key]) for key in kept)
    assert (card.client, card.run, card.round, card.kind) == ("ann", "tiny-0a1b", 1, "text")
    assert read.backbone_hash == card.backbone_hash != ""


@pytest.mark.parametrize(
    ("run", "client", "said"),
    [
        ("", "", "wanted one of the clients ann, bob, came ''"),
        ("", "eve", "wanted one of the clients ann, bob, came 'eve'"),
        ("other", "ann", "wanted a run that it took part in, came 'other'; it has tiny-0a1b"),
    ],
)
def test_what_is_not_there_is_said(run: str, client: str, said: str, home: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=said):
        own.take(home, tmp_path / "out", run, client)
    assert not (tmp_path / "out").exists()


def test_a_node_that_took_part_in_nothing_has_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="wanted a run that it took part in, came none"):
        own.take(tmp_path, tmp_path / "out")
