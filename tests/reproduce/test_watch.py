"""Drift, spread and the error of averaging apart, on two clients worked out by hand."""

import math

import pytest
import torch

from fedgen.evaluate import Score
from fedgen.reproduce.watch import measure, moves

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


def test_what_is_no_whole_adapter_has_no_moves() -> None:
    half = {B: torch.ones(2, 1)}
    assert moves(None, [(1.0, half), (1.0, half)]) == {}
    assert moves(None, []) == {}


def test_the_measure_is_per_word_of_text_and_per_picture() -> None:
    assert measure(Score(loss=10 * math.log(7), terms=99, words=10)) == pytest.approx(7)
    assert measure(Score(loss=3.0, terms=6)) == pytest.approx(0.5)
