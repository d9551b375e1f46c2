"""Which device each client has: drawn, or named by a file."""

import math
from collections import Counter
from pathlib import Path
from statistics import fmean, stdev

import pytest

from fedgen.devices import CLASSES, Drawn, Hardware, Named, Unknown
from fedgen.errors import PlanError

MANY = [f"client-{at}" for at in range(2000)]
FILE = """
[classes.kiosk]
like = "board"
hours = [9, 18]

[classes.booth]
like = "kiosk"
rows = 5

[clients]
ann = "phone"
bob = "booth"
cleo = { like = "kiosk", up = 1000 }
dan = { memory = 1_000_000, speed = 1e9, up = 1e6, down = 1e6 }
"""


def test_nothing_is_known_unless_a_plan_says_it() -> None:
    assert Unknown().of(MANY, 0) == {}


def test_classes_are_drawn_by_their_shares() -> None:
    found = Drawn(("phone", "board", "laptop"), (1.0, 3.0, 0.0)).of(MANY, 0)
    counts = Counter(device.kind for device in found.values())
    assert counts.keys() == {"phone", "board"}
    assert abs(counts["board"] / len(MANY) - 0.75) < 0.03
    assert all(device == CLASSES[device.kind] for device in found.values())


def test_without_shares_all_classes_are_alike() -> None:
    counts = Counter(device.kind for device in Drawn().of(MANY, 0).values())
    assert counts.keys() == CLASSES.keys()
    assert min(counts.values()) > 320  # 400 are expected, give or take 18


def test_a_draw_is_the_clients_own() -> None:
    rule = Drawn(spread=0.5, shift=3.0)
    found = rule.of(MANY[:10], 7)
    assert rule.of(MANY[4:6], 7) == {name: found[name] for name in MANY[4:6]}
    assert rule.of(MANY[:10], 8) != found


def test_speed_and_links_are_spread_about_the_class_and_memory_is_not() -> None:
    known, found = CLASSES["phone"], Drawn(("phone",), spread=0.5).of(MANY, 0).values()
    for part in ("speed", "up", "down"):
        logs = [math.log(getattr(device, part) / getattr(known, part)) for device in found]
        assert abs(fmean(logs)) < 0.05
        assert abs(stdev(logs) - 0.5) < 0.05
    assert {device.memory for device in found} == {known.memory}


def test_hours_are_moved_round_the_clock_and_a_whole_day_is_not() -> None:
    found = Drawn(("phone", "board"), shift=4.0).of(MANY, 0).values()
    nights = [device.hours for device in found if device.kind == "phone"]
    assert {device.hours for device in found if device.kind == "board"} == {(0.0, 24.0)}
    assert all(0 <= hour < 24 for hours in nights for hour in hours)
    assert all((end - begin) % 24 == pytest.approx(8) for begin, end in nights)
    moved = [(begin - 22 + 12) % 24 - 12 for begin, _ in nights]
    assert -4 <= min(moved) < -3.5
    assert 3.5 < max(moved) <= 4


# ---- a file


def named(tmp_path: Path, text: str = FILE) -> Named:
    (tmp_path / "devices.toml").write_text(text, "utf-8")
    return Named(str(tmp_path / "devices.toml"))


def refused(rule: Named, name: str = "ann") -> str:
    with pytest.raises(PlanError) as caught:
        rule.of([name], 0)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(rule.file, "FILE")


def test_a_file_names_classes_of_its_own_and_each_clients_device(tmp_path: Path) -> None:
    found = named(tmp_path).of(["ann", "bob", "cleo", "dan"], 0)
    board = vars(CLASSES["board"]) | {"hours": (9.0, 18.0)}
    assert found["ann"] == CLASSES["phone"]
    assert found["bob"] == Hardware(**board | {"kind": "booth", "rows": 5})
    assert found["cleo"] == Hardware(**board | {"kind": "kiosk", "up": 1000.0})
    assert found["dan"] == Hardware("own", 1_000_000, 1e9, 1e6, 1e6)


WRONG = [
    ("[clients]", "devices 'FILE': says nothing of client 'ann'; add it under [clients], as a class or a table"),
    ("", "devices 'FILE': says nothing of client 'ann'; add it under [clients], as a class or a table"),
    ("[client]", "devices 'FILE': 'client' is not one of classes, clients"),
    ("clients = 3", "devices 'FILE': clients: is a section, came 3; write [clients] and its keys below it"),
    ("[clients]\nann = 'fridge'",
     "devices 'FILE': clients.ann: 'fridge' is not one of phone, tablet, laptop, board, gateway"),
    ("[clients]\nann = 3",
     "devices 'FILE': clients.ann: wanted a table with memory, speed, up, down, hours, lost, rows, came 3"),
    ("[classes.phone]\nlike = 'board'", "devices 'FILE': classes.phone: is a class already; choose another name"),
    ("[classes.kiosk]\nup = 3",
     "devices 'FILE': classes.kiosk.memory: is missing; say it, or like = 'phone' or another class"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line"), WRONG, ids=[line for _, line in WRONG])
def test_a_wrong_file_is_refused_in_one_line(text: str, line: str, tmp_path: Path) -> None:
    assert refused(named(tmp_path, text)) == line


def test_a_file_that_is_none(tmp_path: Path) -> None:
    assert refused(Named(str(tmp_path / "gone.toml"))) == (
        "devices 'FILE': cannot be read (No such file or directory); wanted a TOML file"
    )
    assert refused(named(tmp_path, "[")).startswith("devices 'FILE': is not TOML: ")
