"""A run outlives what breaks: every scenario of the fault bench, with real processes, asserted."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3] / "bench"))  # its scripts know each other by name

from faults import SCENARIOS, TURN, measured

MISSING = {  # who is not heard in the round of the fault, and nobody else in any other
    "SuperNode away for a round": ["bob", "eve"],
    "client raises": ["ann"],
    "answer after the deadline": ["cleo", "finn"],
    "NaN": ["bob", "eve"],
    "another shape": ["bob", "eve"],
    "another round's reply": ["bob", "eve"],
    "100 MB of zeros": ["bob", "eve"],
}
SAID = {  # in what is to be seen of it
    "client raises": "round 2: ann: StoreError on 'node-1'; its node.log says more",
    "answer after the deadline": "too late; dropped",
    "NaN": "bob: the update holds numbers that are not finite",
    "another shape": "has shape (5, 32), wanted (4, 32)",
    "another round's reply": f"bob: the answer is of round {TURN - 1}, wanted {TURN}",
    "100 MB of zeros": "bob: the answer has 100,000,",
    "unregistered node": "the server refuses this node: its key is not admitted",
    "expired certificate": "a node refuses, exit 1: error",
    "server killed": "`fedgen resume` went on",
    "power cut": "`fedgen resume` went on",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny federation is, and its uninterrupted run in one process."""
    return tmp_path_factory.mktemp("faults") / "world"


@pytest.mark.faults
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_run_outlives_what_breaks(name: str, world: Path, tmp_path: Path) -> None:
    found = measured(name, tmp_path / "fault", world)
    assert found["finished"]
    assert found["same_shared_adapter"]
    assert found["same_own_parts"]
    assert found["own_parts_kept"] is not False
    out, wanted = found["missing"], MISSING.get(name, [])
    assert out.get(str(TURN), []) == wanted
    assert all(set(names) <= set(wanted) for names in out.values())
    assert SAID.get(name, "") in "\n".join(found["seen"])
