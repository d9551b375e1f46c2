"""What a turn asks of a device: against numbers worked by hand, and against the arithmetic of a real pass."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from fedgen import plan as plans
from fedgen.client import Training
from fedgen.devices import CLASSES, Hardware, Load, Turn, burdens
from fedgen.places import cost, inprocess, silent
from fedgen.records import GLOBAL, Offer, Update
from fedgen.run import Place

LOAD = Load(1000, 200, 80, 8, 50.0, (Training(batch=4, epochs=2),), lambda rank: (10 * rank, 100 * rank))
DEVICE = Hardware("own", 2000, 100.0, 5.0, 20.0)


def test_memory_is_weights_activations_and_four_copies_of_an_adapter() -> None:
    assert LOAD.memory(8) == 1000 + 200 + 4 * 80 * 4
    assert LOAD.memory(2) == 1000 + 200 + 4 * 20 * 4
    assert [LOAD.fits(DEVICE, rank) for rank in (2, 5, 6)] == [True, True, False]


@pytest.mark.parametrize(
    ("training", "copies"),
    [(Training(), 4), (Training(optimizer="sgd"), 2), (Training(optimizer="sgd", momentum=0.9), 3)],
)
def test_the_optimizer_decides_how_many_copies(training: Training, copies: int) -> None:
    assert replace(LOAD, trainings=(training,)).memory(8) == 1200 + 4 * 80 * copies
    assert replace(LOAD, trainings=(Training(optimizer="sgd"), training)).memory(8) == 1200 + 4 * 80 * copies


def test_a_full_model_has_no_rank() -> None:
    assert replace(LOAD, rank=0).memory(0) == 1200 + 4 * 80 * 4


def test_the_seconds_of_a_turn() -> None:
    assert LOAD.seconds(DEVICE, 2, 7) == Turn(200 / 20, 2 * 8 * 50 / 100, 20 / 5)  # two epochs of two batches of four
    steps = replace(LOAD, trainings=(Training(batch=4, steps=3), Training(batch=2, steps=1)))
    assert steps.seconds(DEVICE, 1, 7).work == (3 * 4 + 2) * 50 / 100


def test_burdens_are_a_line_a_kind() -> None:
    hardware = {"ann": DEVICE, "bob": replace(DEVICE, memory=1300, speed=50.0), "cleo": CLASSES["phone"]}
    one, other = burdens(hardware, LOAD, {"ann": 2, "bob": 4, "cleo": 8}, dict.fromkeys(hardware, 8))
    assert (one.kind, one.clients, one.fits, one.ranks) == ("own", 2, 1, (2, 4))
    assert (one.needs, one.memory) == (LOAD.memory(4), 1300)
    assert one.turn == Turn(15.0, (8 + 16) / 2, 6.0)
    assert (other.kind, other.fits, other.ranks) == ("phone", 1, (8, 8))


# ---- of a real plan


def placed(keys: dict[str, Any], *settings: str) -> tuple[plans.Plan, Place]:
    plan = plans.read(keys, settings)
    backbone = plan.backbone.load()
    settled = inprocess.settle(plan, backbone)
    return settled, inprocess.place(settled, backbone, None, silent)


def load_of(keys: dict[str, Any], *settings: str) -> Load:
    load = placed(keys, *settings)[1].load
    assert load is not None
    return load


def test_the_arithmetic_of_a_row_is_that_of_its_products(tiny_plan: dict[str, Any]) -> None:
    load, tokens, ids = load_of(tiny_plan), 32, 300
    layer = 4 * 32 * 32 + 3 * 32 * 64
    frozen = 2 * tokens * (2 * layer + 32 * ids)  # multiply and add
    scores = 2 * 2 * 2 * tokens * tokens * 32  # queries with keys, weights with values
    low = 2 * 2 * tokens * 2 * (32 + 32) * 4  # two adapted layers in each of the two
    forward = frozen + scores + low
    assert forward * 1.5 < load.row < forward * 3.5  # and about as much again back, or twice where there are scores


def test_a_rows_arithmetic_is_its_own_however_it_is_trained(tiny_plan: dict[str, Any]) -> None:
    plain = load_of(tiny_plan)
    assert load_of(tiny_plan, "training.batch=7", "training.micro=2", "training.steps=9").row == plain.row
    assert load_of(tiny_plan, "training.ahead=0.1").row == plain.row
    assert plain.row < load_of(tiny_plan, "training.checkpoint=true").row < 2 * plain.row  # once more forward
    assert load_of(tiny_plan, "training.checkpoint=true").active < plain.active


def test_what_lies_below_the_last_layers_is_neither_kept_nor_reckoned(tiny_plan: dict[str, Any]) -> None:
    plain, last = load_of(tiny_plan), load_of(tiny_plan, "adapter.last=0.5")
    assert last.numbers == plain.numbers / 2
    assert last.active < 0.8 * plain.active
    assert last.row < plain.row


def test_what_a_step_holds_is_the_same_each_time_and_grows_with_its_rows(tiny_plan: dict[str, Any]) -> None:
    one, two, four = (load_of(tiny_plan, "training.batch=4", f"training.micro={rows}").active for rows in (1, 2, 4))
    assert four == load_of(tiny_plan, "training.batch=4").active
    assert (four - two) == pytest.approx(2 * (two - one), rel=0.02)


def test_a_load_of_a_whole_model(tiny_plan: dict[str, Any]) -> None:
    pairs, whole = load_of(tiny_plan), load_of(tiny_plan, "adapter.of=weights", "personal.kind=none")
    assert whole.rank == 0
    assert whole.numbers * 4 == pairs.frozen
    assert whole.up(0) > pairs.frozen
    assert whole.memory(0) > 4 * pairs.frozen


def test_who_trains_an_own_adapter_each_round_works_twice(tiny_plan: dict[str, Any]) -> None:
    once, twice = load_of(tiny_plan), load_of(tiny_plan, "personal.kind=keep", "personal.steps=3")
    assert twice.seconds(DEVICE, 4, 9).work == pytest.approx(2 * once.seconds(DEVICE, 4, 9).work)


def test_messages_are_those_that_cross(tiny_plan: dict[str, Any]) -> None:
    ranks = ("adapter.ranks=[2,4]", "aggregate.kind=exact")
    for settings in (ranks, ("share.half=b",), ("guards=['compress']",)):
        settled, place = placed(tiny_plan, *settings)
        assert place.load is not None
        reply = next(place.ask([Offer(1, "ann", GLOBAL, place.start, rank=4)]))
        assert isinstance(reply, Update)
        words = 600  # of JSON beside the numbers
        assert place.load.up(4) < reply.up < place.load.up(4) + words
        assert place.load.down(4) < reply.down < place.load.down(4) + words
    settled, place = placed(tiny_plan, *ranks)
    assert place.load is not None
    assert place.load.up(2) < 0.7 * place.load.up(4)
    assert settled.adapter.rank == 4


def test_counting_leaves_no_trace(tiny_plan: dict[str, Any]) -> None:
    before = torch.get_rng_state()
    load_of(tiny_plan)
    assert torch.get_rng_state().equal(before)


# ---- the place


def test_clients_keep_no_more_rows_than_their_devices(tiny_plan: dict[str, Any], tmp_path: Any) -> None:
    names = ("ann", "bob", "cleo", "dan", "eve", "finn")
    lines = [f'{name} = {{ like = "board", rows = {at} }}' for at, name in enumerate(names)]
    (tmp_path / "devices.toml").write_text("\n".join(["[clients]", *lines]), "utf-8")
    free = placed(tiny_plan)[1]
    file = f"devices.file={tmp_path / 'devices.toml'}"
    held = placed(tiny_plan, "devices.kind=named", file)[1]
    assert held.sizes == {name: at or free.sizes["ann"] for at, name in enumerate(names)}
    assert min(free.sizes.values()) > 6
    assert held.facts["devices"] == {"board": 6}
    assert held.facts["rows"] == sum(held.sizes.values())
    assert {name: device.rows for name, device in held.hardware.items()} == dict(zip(names, range(6), strict=True))
    assert "devices" not in free.facts
    assert free.hardware == {}


def test_a_cost_says_each_class_where_nothing_is_known(tiny_plan: dict[str, Any]) -> None:
    found = cost(tiny_plan)[1].devices
    assert [own.kind for own in found] == sorted(CLASSES)
    assert all((own.clients, own.fits, own.ranks) == (1, 1, (4, 4)) for own in found)
    slow, fast = (next(own.turn for own in found if own.kind == kind) for kind in ("board", "laptop"))
    assert slow.work / fast.work == pytest.approx(CLASSES["laptop"].speed / CLASSES["board"].speed)


def test_a_cost_says_the_classes_in_use(tiny_plan: dict[str, Any]) -> None:
    known = cost(tiny_plan, settings=["devices.kind=drawn", 'devices.classes=["phone", "board"]'])[1].devices
    assert {own.kind for own in known} <= {"phone", "board"}
    assert sum(own.clients for own in known) == 6
    dealt = cost(tiny_plan, settings=["devices.kind=drawn", "adapter.ranks=[1,4]", "aggregate.kind=exact"])[1].devices
    assert min(own.ranks[0] for own in dealt) == 1
    assert max(own.ranks[1] for own in dealt) == 4
