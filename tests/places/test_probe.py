"""What a machine is, by its own measure or its owner's word."""

import time

import pytest
import torch

from fedgen.devices import CLASSES, nearest
from fedgen.places.device import Consent, Device, Limits
from fedgen.places.probe import SPAN, TRAINS, measured, product_speed

TRIAL = Consent(plan_data=True)


def test_a_probe_is_short_and_about_as_fast_as_matrices_are_multiplied() -> None:
    began = time.perf_counter()
    found = product_speed(0.05)
    assert time.perf_counter() - began < 0.05 + SPAN
    matrix = torch.rand(384, 384)
    spans = []
    for _ in range(20):
        start = time.perf_counter()
        matrix @ matrix
        spans.append(time.perf_counter() - start)
    assert found == pytest.approx(2 * 384**3 / min(spans), rel=0.9)


def test_a_device_measures_its_memory_and_speed_and_takes_the_rest_from_the_nearest_class() -> None:
    found = measured(Device("ada", consent=TRIAL, limits=Limits(memory=700, hours="22-6")), 0.02)
    assert found.memory == 700 * 2**20
    assert found.kind == nearest(found.memory, found.speed)
    assert found.hours == (22.0, 6.0)
    assert (found.up, found.down, found.lost) == tuple(
        getattr(CLASSES[found.kind], part) for part in ("up", "down", "lost")
    )


def test_without_limits_it_has_what_is_free() -> None:
    found = measured(Device("ada", consent=TRIAL), 0.02)
    assert 2**26 < found.memory < 2**50
    assert found.hours == (0.0, 24.0)
    assert found.speed / TRAINS > 1e8


def test_its_owners_word_is_taken_and_nothing_measured() -> None:
    began = time.perf_counter()
    found = measured(Device("ada", consent=TRIAL, kind="phone", limits=Limits(hours="")), 60.0)
    assert time.perf_counter() - began < 10
    assert (found.kind, found.memory, found.speed) == ("phone", CLASSES["phone"].memory, CLASSES["phone"].speed)
