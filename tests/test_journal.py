"""What a run writes down is whole at every moment, and what is damaged is told in one line."""

import json
import multiprocessing
import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedgen import tree
from fedgen.errors import StoreError
from fedgen.journal import Journal, hold, line_of, load_checkpoint, save_checkpoint
from fedgen.outer import Adam
from fedgen.records import Failure, Report, State, Tree

FAILURE = Failure(1, "ann", "global", "no such client here", 7)
REPORT = Report(1, ("ann", "zoë"), (FAILURE,), {"loss": 1 / 3}, 5, 12, 0.25)
NAMES = [f"base_model.model.layer.lora_{half}.weight" for half in "AB"]


def noise(seed: int) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 5, generator=draw) for name in NAMES}


def state() -> State:
    """A state in which everything is used: two clusters, the memory of Adam, and who is where."""
    adapters = {"global": noise(0), "odd|name": noise(1)}
    memory = {}
    for at, cluster in enumerate(adapters):
        adapters[cluster], memory[cluster] = Adam().step(adapters[cluster], noise(2 + at), {})
    return State(3, adapters, memory, {"ann": "odd|name", "zoë": "global"}, needs={"zoë": 1 / 3})


def sealed(path: Path) -> bytes:
    save_checkpoint(path, state())
    return path.read_bytes()


# --- the journal


def test_lines_come_back_as_they_were_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    assert journal.lines() == []
    for turn in (1, 2, 3):
        journal.append(line_of(replace(REPORT, round=turn)))
    assert [line["round"] for line in journal.lines()] == [1, 2, 3]
    first = journal.lines()[0]
    assert first["clients"] == ["ann", "zoë"]
    assert first["failures"] == [vars(FAILURE)]
    assert (first["metrics"], first["up"], first["down"], first["seconds"]) == ({"loss": 1 / 3}, 5, 12, 0.25)


@pytest.mark.parametrize("name", ["a\u2028b", "a\x85b", "a\nb", "a\udc80b", "\u00e9"])
def test_a_client_may_be_called_anything(name: str, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for turn in (1, 2):
        journal.append(line_of(replace(REPORT, round=turn, clients=(name,))))
    journal.rewind(2)
    assert [line["clients"] for line in journal.lines()] == [[name], [name]]


def test_a_last_line_cut_anywhere_does_not_count(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append(line_of(REPORT))
    kept = journal.path.read_bytes()
    journal.append(line_of(replace(REPORT, round=2)))
    whole = journal.path.read_bytes()
    for length in range(len(kept), len(whole)):  # the cut also falls inside the two bytes of ë
        journal.path.write_bytes(whole[:length])
        assert [line["round"] for line in journal.lines()] == [1]
    journal.rewind(1)
    assert journal.path.read_bytes() == kept


def test_rewind_forgets_what_came_after(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.rewind(0)
    for turn in (1, 2, 3):
        journal.append({"round": turn})
    journal.rewind(5)
    assert [line["round"] for line in journal.lines()] == [1, 2, 3]
    journal.rewind(1)
    journal.append({"round": 2, "again": True})
    assert journal.lines() == [{"round": 1}, {"round": 2, "again": True}]
    journal.rewind(0)
    assert journal.path.read_bytes() == b""


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.path.write_bytes(b'{"round": 1}\n{"round": \xff\n{"round": 3}\n')
    with pytest.raises(StoreError, match=r"journal\.jsonl, line 2: wanted a round as JSON, came a damaged line; put"):
        journal.lines()


def test_a_full_disk_stops_the_line_and_not_the_lines_before(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    journal.append({"round": 1})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.path.stat().st_size + 5, hard))
    try:
        with pytest.raises(StoreError, match=r"journal\.jsonl: cannot be written .*; make room, then resume"):
            journal.append({"round": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert journal.path.read_bytes() == b'{"round": 1}\n{"rou'
    journal.rewind(1)
    journal.append({"round": 2})
    assert journal.lines() == [{"round": 1}, {"round": 2}]


# --- the checkpoint


def test_a_checkpoint_is_the_state_bit_for_bit(tmp_path: Path) -> None:
    before, path = state(), tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, before)
    after = load_checkpoint(path)
    assert after is not None
    assert (after.round, after.where) == (3, before.where)
    for old, new in ((before.adapters, after.adapters), (before.memory, after.memory)):
        assert old.keys() == new.keys()
        assert all(old[name].keys() == new[name].keys() for name in old)
        assert all(old[name][key].equal(new[name][key]) for name in old for key in old[name])
    assert before.memory["global"].keys() == {f"{part}/{name}" for part in ("first", "second") for name in NAMES}


def test_the_same_state_is_the_same_file(tmp_path: Path) -> None:
    assert sealed(tmp_path / "one") == sealed(tmp_path / "other")


def test_no_checkpoint_is_no_state(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "checkpoint.safetensors") is None


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.2, 0.5, 0.99, 0.9999])
def test_a_checkpoint_cut_short_is_refused_with_a_remedy(share: float, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    raw = sealed(path)
    path.write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(StoreError) as caught:
        load_checkpoint(path)
    line = str(caught.value)
    assert line.startswith(f"checkpoint '{path}': wanted whole safetensors, came {int(len(raw) * share)} bytes")
    assert line.endswith("put back a copy of it, or delete it to play the run's rounds anew")
    assert "\n" not in line


FOREIGN = {
    "no notes": tree.pack({"adapters|global|x": torch.ones(1)}),
    "other names": tree.pack({"model.layer.weight": torch.ones(1)}, {"state": '{"round": 1, "where": {}}'}),
    "other parts": tree.pack({"a|b|c": torch.ones(1)}, {"state": '{"round": 1, "where": {}}'}),
    "no round": tree.pack({"adapters|global|x": torch.ones(1)}, {"state": "{}"}),
    "a list": tree.pack({"adapters|global|x": torch.ones(1)}, {"state": "[]"}),
    "no JSON": tree.pack({"adapters|global|x": torch.ones(1)}, {"state": "?"}),
    "no adapters": tree.pack({}, {"state": '{"round": 1, "where": {}}'}),
}


@pytest.mark.parametrize("raw", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_file_is_no_checkpoint(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(raw)
    with pytest.raises(StoreError) as caught:
        load_checkpoint(path)
    line = str(caught.value)
    assert line.startswith(f"checkpoint '{path}': wanted a run's state, came another safetensors file; put back a copy")


# --- the hold

PROCESSES = multiprocessing.get_context("forkserver")  # forks from a process that has imported all and done nothing
PROCESSES.set_forkserver_preload(["fedgen", "transformers.models.llama.modeling_llama"])
HOLDER = """
import time
from pathlib import Path
from fedgen.journal import hold
with hold(Path({folder!r})):
    time.sleep(60)
"""


def wait_for(path: Path) -> None:
    """Wait until the file says something."""
    ends = time.monotonic() + 60
    while not (path.exists() and path.read_bytes()):
        assert time.monotonic() < ends, f"{path} stayed empty"
        time.sleep(0.01)


def test_a_second_process_is_told_who_holds_the_run_and_a_killed_one_frees_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    holder = PROCESSES.Process(target=exec, args=(HOLDER.format(folder=str(folder)), {}))
    holder.start()
    try:
        wait_for(folder / "lock")
        with pytest.raises(StoreError) as caught, hold(folder):
            pass
        assert str(caught.value) == f"run '{folder}': is in use by process {holder.pid}; wait for it, or stop it"
    finally:
        assert holder.pid
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
    with hold(folder):
        assert (folder / "lock").read_text() == str(os.getpid())


def test_a_hold_ends_with_its_block_and_with_an_error(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), hold(tmp_path):
            json.loads("1") / 0
    with hold(tmp_path):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(StoreError, match=r"cannot be written \(.*\); choose another folder"), hold(folder):
            pass
    assert (tmp_path / "file").read_text() == "mine"
