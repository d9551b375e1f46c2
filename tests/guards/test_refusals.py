"""Which plans of guards are refused, and what crosses a wire only where guards make bytes."""

import json
from typing import Any

import pytest
import torch

from fedgen import plan as plans
from fedgen import tree
from fedgen.errors import PlanError
from fedgen.guards import PACKED, Clip, Compress, Guards
from fedgen.places.wire import Parcel, answered, read_replies
from fedgen.records import GLOBAL, Failure, Offer, Tree, Update

OWED: dict[str, Any] = {"guards": ["compress"], "compress": {"feedback": True}}
ANOTHER = "so what is kept would be added to another thing; set it to false"
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"guards": "compress"}, "guards: wanted a list of texts, came 'compress'"),
    ({"guards": ["squeeze"]}, "guards: 'squeeze' is not one of clip, compress"),
    ({"guards": ["clip", "clip"]},
     "guards: wanted each once, in the order of a client's way out: clip; came clip, clip"),
    ({"guards": ["compress", "clip"]},
     "guards: wanted each once, in the order of a client's way out: clip, compress; came compress, clip"),
    ({"clip": {"norm": 2}, "guards": ["compress"]}, "clip: is set, and no guard is so called; add it to guards"),
    ({"compress": {"bits": 8}}, "compress: is set, and no guard is so called; add it to guards"),
    ({"guards": ["compress"], "compress": {"bits": 2}}, "compress.bits: 2 is not one of 32, 16, 8, 4, 1"),
    ({"guards": ["compress"], "compress": {"down": 1}}, "compress.down: 1 is not one of 32, 16, 8, 4"),
    ({"guards": ["compress"], "compress": {"top": 0}},
     "compress.top: wanted a number above 0 and at most 1, came 0.0"),
    ({"guards": ["compress"], "compress": {"group": 1}}, "compress.group: wanted a whole number at least 2, came 1"),
    ({"guards": ["clip"], "clip": {"norm": 0}}, "clip.norm: wanted a number above 0, came 0.0"),
    ({"guards": ["compress"], "share": {"prune": True}, "aggregate": {"kind": "padded"}},
     "compress and share.prune: both ends must know the shapes; set share.prune = false"),
    (OWED | {"share": {"kind": "increment", "half": "b"}},
     f"compress.feedback: share.kind = 'increment' draws A anew each round, {ANOTHER}"),
    (OWED | {"aggregate": {"kind": "exact"}},
     f"compress.feedback: aggregate.kind = 'exact' makes new factors each round, {ANOTHER}"),
    (OWED | {"adapter": {"ranks": [2, 4]}, "aggregate": {"kind": "padded"}},
     f"compress.feedback: clients of several ranks are offered new factors each round, {ANOTHER}"),
    (OWED | {"cluster": {"kind": "losses"}, "exchange": {"kind": "neighbours", "on": "products"}},
     f"compress.feedback: exchange.on = 'products' makes new factors each round, {ANOTHER}"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "line"), WRONG, ids=[line[:60] for _, line in WRONG])
def test_a_plan_of_guards_that_disagree_is_refused(keys: dict[str, Any], line: str) -> None:
    with pytest.raises(PlanError) as error:
        plans.read(keys)
    assert str(error.value) == line


def test_without_feedback_each_of_these_is_a_plan() -> None:
    for keys, line in WRONG:
        if "compress.feedback" in line:
            assert plans.read(keys | {"compress": {}}).guards == ("compress",)


def test_a_plan_makes_its_guards_and_is_read_as_it_was_written() -> None:
    keys = {"guards": ["clip", "compress"], "clip": {"norm": 2}, "compress": {"bits": 1, "feedback": True}}
    plan = plans.read(keys)
    assert plan.passage == Guards((Clip(2.0), Compress(1, feedback=True)), plan.share, plan.seed)
    assert plans.read(plan) == plan
    assert plans.read({}).passage.way == ()


# ---- over the wire

ASKED = Offer(1, "ann", GLOBAL, {"x": torch.zeros(2)})
LINE = torch.tensor([1, 2, 3], dtype=torch.uint8)


def crossed(carried: Tree, *, packed: bool) -> Update | Failure:
    sent = Update(1, "ann", GLOBAL, carried, 5, {"loss": 1.0, "terms": 3})
    (reply,) = read_replies(answered([sent]), [ASKED], 10**4, packed=packed)
    assert isinstance(reply, Update | Failure)
    return reply


def test_a_line_of_bytes_crosses_where_guards_make_one() -> None:
    found = crossed({PACKED: LINE}, packed=True)
    assert isinstance(found, Update)
    assert torch.equal(found.adapter[PACKED], LINE)
    assert found.adapter[PACKED].dtype == torch.uint8


@pytest.mark.parametrize(
    "carried",
    [{"x": LINE}, {PACKED: LINE, "x": LINE}, {PACKED: LINE[None]}, {PACKED: LINE.to(torch.int16)}],
    ids=["another name", "two", "a table", "whole numbers"],
)
def test_no_other_whole_numbers_cross(carried: Tree) -> None:
    found = crossed(carried, packed=True)
    assert isinstance(found, Failure)
    assert "wanted numbers with a point" in found.reason


def test_no_bytes_cross_where_none_are_made() -> None:
    assert isinstance(crossed({PACKED: LINE}, packed=False), Failure)


def test_bytes_are_no_score() -> None:
    words = {"round": 1, "client": "ann", "cluster": GLOBAL, "examples": 5, "metrics": {}, "tree": 0}
    parcel = Parcel(json.dumps({"replies": [words]}), (tree.pack({PACKED: LINE}),))
    (reply,) = read_replies(parcel, [Offer(1, "ann", GLOBAL, {}, "check")], 10**4, packed=True)
    assert isinstance(reply, Failure)
