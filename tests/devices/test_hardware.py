"""Classes of devices, the nearest of them, and devices that a table says."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from fedgen.devices import CLASSES, Hardware, nearest, read_hardware, said_again
from fedgen.devices.hardware import GIGABYTE
from fedgen.errors import PlanError

WHOLE = {"memory": GIGABYTE, "speed": 1e9, "up": 1e6, "down": 2e6}


def refused(said: Any) -> str:
    with pytest.raises(PlanError) as caught:
        read_hardware("ann", said)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_nearest_to_itself_also_when_twice_as_large(name: str) -> None:
    own = CLASSES[name]
    assert own.kind == name
    assert nearest(own.memory, own.speed) == name
    assert nearest(1.1 * own.memory, 1.1 * own.speed) == name


def test_the_nearest_goes_by_ratios() -> None:
    assert nearest(GIGABYTE / 4, 1e9) == "board"
    assert nearest(64 * GIGABYTE, 5e12) == "laptop"
    assert nearest(2 * GIGABYTE, 14e9) == "phone"


def test_a_table_says_a_whole_device() -> None:
    assert read_hardware("ann", WHOLE) == Hardware("own", GIGABYTE, 1e9, 1e6, 2e6)
    more = {"hours": [22, 6], "lost": 0.5, "rows": 12}
    assert read_hardware("ann", WHOLE | more) == Hardware("own", GIGABYTE, 1e9, 1e6, 2e6, (22.0, 6.0), 0.5, 12)


def test_a_table_says_what_differs_from_a_class() -> None:
    found = read_hardware("ann", {"like": "phone", "up": 1000})
    assert found == replace(CLASSES["phone"], up=1000.0)
    assert type(found.up) is float


WRONG: list[tuple[Any, str]] = [
    (3, "ann: wanted a table with memory, speed, up, down, hours, lost, rows, came 3"),
    ({"like": "fridge"}, "ann.like: 'fridge' is not one of phone, tablet, laptop, board, gateway"),
    ({"like": ["phone"]}, "ann.like: ['phone'] is not one of phone, tablet, laptop, board, gateway"),
    ({"memory": 1}, "ann.speed: is missing; say it, or like = 'phone' or another class"),
    (
        WHOLE | {"ram": 1},
        "ann.ram: no such key; a device has memory, speed, up, down, hours, lost, rows, or is like another",
    ),
    (WHOLE | {"memory": 0}, "ann.memory: wanted a whole number at least 1 and at most 1e+18, came 0"),
    (WHOLE | {"memory": 1.5}, "ann.memory: wanted a whole number at least 1 and at most 1e+18, came 1.5"),
    (WHOLE | {"memory": True}, "ann.memory: wanted a whole number at least 1 and at most 1e+18, came True"),
    (WHOLE | {"speed": 0.0}, "ann.speed: wanted a number above 0 and at most 1e+18, came 0.0"),
    (WHOLE | {"up": float("nan")}, "ann.up: wanted a number above 0 and at most 1e+18, came nan"),
    (WHOLE | {"down": "fast"}, "ann.down: wanted a number above 0 and at most 1e+18, came 'fast'"),
    (WHOLE | {"lost": 1.1}, "ann.lost: wanted a number at least 0 and at most 1, came 1.1"),
    (WHOLE | {"rows": -1}, "ann.rows: wanted a whole number at least 0 and at most 1e+18, came -1"),
    (WHOLE | {"hours": 8}, "ann.hours: wanted two hours of the day, such as [22, 6], came 8"),
    (WHOLE | {"hours": [8, 25]}, "ann.hours: wanted a number at least 0 and at most 24, came 25"),
]


@pytest.mark.parametrize(("said", "line"), WRONG, ids=[line for _, line in WRONG])
def test_a_table_that_is_no_device_is_refused_in_one_line(said: Any, line: str) -> None:
    assert refused(said) == line


def test_a_device_said_in_full_comes_back() -> None:
    own = replace(CLASSES["gateway"], memory=123, hours=(1.5, 2.0))
    assert said_again("ann", asdict(own)) == own
    with pytest.raises(PlanError, match=r"ann.kind: 'own' is not one of"):
        said_again("ann", asdict(own) | {"kind": "own"})
