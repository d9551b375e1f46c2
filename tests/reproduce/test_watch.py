"""Drift, spread and the error of averaging apart, on two clients worked out by hand."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import fedgen
from fedgen import plan as plans
from fedgen.evaluate import Score
from fedgen.methods import METHODS
from fedgen.reproduce.watch import Watch, measure, moves

A, B = "base_model.model.layer.lora_A.weight", "base_model.model.layer.lora_B.weight"


def adapter(a: list[float], b: list[float]) -> dict[str, torch.Tensor]:
    return {A: torch.tensor([a]), B: torch.tensor(b)[:, None]}


def test_moves_of_two_clients_at_a_right_angle() -> None:
    parts = [(1.0, adapter([1.0, 0.0], [2.0, 0.0])), (1.0, adapter([0.0, 1.0], [2.0, 0.0]))]
    found = moves(None, parts)
    # the products are (2 0) and (0 2): their mean (1 1) is as long as either is away from it, and they share nothing
    assert found["drift"] == pytest.approx(1)
    assert found["spread"] == pytest.approx(1)
    assert found["apart"] == pytest.approx(0, abs=1e-9)  # both have one B, so the mean of the factors is exact


def test_moves_are_from_where_the_clients_started() -> None:
    start = adapter([1.0, 0.0], [1.0, 0.0])
    parts = [(3.0, adapter([1.0, 0.0], [2.0, 0.0])), (1.0, adapter([1.0, 0.0], [4.0, 0.0]))]
    found = moves(start, parts)
    # steps of 1 and 3 with weights 3/4 and 1/4: the mean is 1.5, and the distances from it are 0.5 and 1.5
    assert found["drift"] == pytest.approx((0.75 * 0.5 + 0.25 * 1.5) / 1.5)
    assert found["spread"] == pytest.approx(0)


def test_factors_that_cancel_are_as_far_apart_as_can_be() -> None:
    parts = [(1.0, adapter([1.0, 0.0], [1.0, 0.0])), (1.0, adapter([-1.0, 0.0], [-1.0, 0.0]))]
    assert moves(None, parts)["apart"] == pytest.approx(1)


@pytest.mark.parametrize("name", ["fedit", "stack"])
def test_clients_that_send_increments_drift_like_others(name: str, tiny_plan: dict[str, Any], tmp_path: Path) -> None:
    watch = Watch(drift=True)
    plan = METHODS[name].over(plans.read(tiny_plan, ["rounds=2", "training.steps=3"]))
    fedgen.run(plan, tmp_path / "run", tell=watch.tell)
    assert all(0.2 < drift < 5 for drift in watch.moves["drift"]), watch.moves
    assert all(0.05 < spread < 1.5 for spread in watch.moves["spread"]), watch.moves
    assert len(watch.moves["drift"]) == 2


def test_what_is_no_whole_adapter_has_no_moves() -> None:
    half = {B: torch.ones(2, 1)}
    assert moves(None, [(1.0, half), (1.0, half)]) == {}
    assert moves(None, []) == {}


def test_the_measure_is_per_word_of_text_and_per_picture() -> None:
    assert measure(Score(loss=10 * math.log(7), terms=99, words=10)) == pytest.approx(7)
    assert measure(Score(loss=3.0, terms=6)) == pytest.approx(0.5)
