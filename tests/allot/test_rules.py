"""The rank of each client, by rule; devices and loads are real ones with round numbers."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from fedgen.allot import Carried, Dealt, Needed
from fedgen.client import Training
from fedgen.devices import Hardware, Load

# An adapter of rank 8 has 800 numbers: 100 a rank, each there four times (itself, slope, two moments) in 4 bytes.
LOAD = Load(1000, 200, 800, 8, 1.0, (Training(),), lambda rank: (400 * rank, 400 * rank))
PHONE = Hardware("phone", 1200 + 1600 * 2, 1.0, 800.0, 800.0)  # two ranks, to the byte
GATEWAY = Hardware("gateway", 10**6, 1.0, 1600.0, 1600.0)
NAMES = ("ann", "bob", "cleo")


def ranks(rule: Carried, hardware: Mapping[str, Hardware], some: tuple[int, ...] = (), rank: int = 8) -> dict[str, int]:
    return rule.ranks(NAMES, rank, some, hardware, LOAD)


def test_ranks_are_dealt_out_in_turn_by_name() -> None:
    assert Dealt().ranks(("cleo", "ann", "bob"), 8, (4, 2), {}, None) == {"ann": 4, "bob": 2, "cleo": 4}
    assert Dealt().ranks(NAMES, 8, (), {}, None) == dict.fromkeys(NAMES, 8)


@pytest.mark.parametrize("rule", [Carried(), Needed()], ids=repr)
def test_a_device_has_the_widest_rank_that_its_memory_takes(rule: Carried) -> None:
    less = replace(PHONE, memory=PHONE.memory - 1)
    assert ranks(rule, {"ann": PHONE, "bob": less, "cleo": GATEWAY}) == {"ann": 2, "bob": 1, "cleo": 8}
    assert ranks(rule, {"ann": PHONE, "bob": less, "cleo": GATEWAY}, (6, 1, 3)) == {"ann": 1, "bob": 1, "cleo": 6}


def test_an_update_goes_up_in_time() -> None:
    fast = {name: replace(GATEWAY, up=up) for name, up in zip(NAMES, (1600.0, 799.0, 3200.0), strict=True)}
    assert ranks(Carried(upload=1.0), fast) == {"ann": 4, "bob": 1, "cleo": 8}
    assert ranks(Carried(), fast) == dict.fromkeys(NAMES, 8)


def test_without_ranks_named_they_double_up_to_the_widest() -> None:
    wide = dict.fromkeys(NAMES, GATEWAY)
    assert ranks(Carried(), wide, rank=6) == dict.fromkeys(NAMES, 6)
    assert ranks(Carried(upload=1.0), wide, rank=6) == dict.fromkeys(NAMES, 4)


def test_a_device_that_carries_none_or_is_unknown_has_the_narrowest() -> None:
    assert ranks(Carried(), {"ann": replace(PHONE, memory=0)}, (4, 2)) == dict.fromkeys(NAMES, 2)
    assert Carried().ranks(NAMES, 8, (4, 2), {"ann": GATEWAY}, None) == dict.fromkeys(NAMES, 2)
