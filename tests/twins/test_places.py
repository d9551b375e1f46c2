"""One plan, three places: in this process, on Ray, and on a fleet of three nodes with TLS and sign-in; text and images.

The same clients take part with the same seeds, so the adapters are the same, personal ones included.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import fedgen
from fedgen import Run
from fedgen.plan import read, write
from fedgen.records import Tree
from fedgen.run import SHELF
from fedgen.store import Shelf

pytest.importorskip("flwr")
pytest.importorskip("ray")

CLOSE = 1e-5
KEPT = ["personal.kind=keep", "personal.steps=2"]
Plans = dict[str, dict[str, Any]]


def said(*words: str) -> str:
    """What `fedgen` prints; it must succeed. All it starts have one thread, as these tests: sums depend on how many."""
    command, alone = [sys.executable, "-m", "fedgen", *words], os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, env=alone, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def played(plan: dict[str, Any], folder: Path, *settings: str) -> Run:
    """The run of a plan by the command, in a process of its own, as Ray leaves some of its own behind."""
    path = folder.with_suffix(".toml")
    path.write_text(write(read(plan, [*KEPT, *settings])), "utf-8")
    said("run", str(path), "--to", str(folder))
    return Run(folder)


@pytest.fixture(scope="module")
def plans(tiny_plan: dict[str, Any], digits_plan: Callable[[str], dict[str, Any]]) -> Plans:
    """Six clients each, all of them in every round."""
    text = tiny_plan | {"cohort": {"count": 6}}
    images = digits_plan("classes") | {"partition": {"kind": "even", "clients": 6}, "cohort": {"count": 6}}
    return {"text": text, "images": images}


@pytest.fixture(scope="module")
def here(plans: Plans, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Each plan's run in this process."""
    folder = tmp_path_factory.mktemp("here")
    return {kind: fedgen.run(plan, folder / kind, settings=KEPT) for kind, plan in plans.items()}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A loopback fleet of three nodes."""
    folder = tmp_path_factory.mktemp("fleet")
    try:
        assert "TLS and sign-in" in said("fleet", "up", "--folder", str(folder), "--nodes", "3", "--detach")
        yield folder
    finally:
        said("fleet", "down", "--folder", str(folder))


def same(found: Run, wanted: Run, own: dict[str, Tree]) -> None:
    """The same global adapter, personal adapters and scores."""
    pairs = [(found.adapter("global")[0], wanted.adapter("global")[0])]
    assert sorted(own) == wanted.shelf().clients()
    pairs += [(own[name], wanted.adapter(f"client/{name}")[0]) for name in own]
    for tree, like in pairs:
        assert tree.keys() == like.keys()
        assert max(float((tree[key] - like[key]).abs().max()) for key in like) <= CLOSE
    assert found.scores.keys() == wanted.scores.keys()
    for name, scores in wanted.scores.items():
        for kind, score in scores.items():
            assert found.scores[name][kind].per_term == pytest.approx(score.per_term, rel=CLOSE)


@pytest.mark.parametrize("kind", ["text", "images"])
def test_on_ray(kind: str, plans: Plans, here: dict[str, Run], tmp_path: Path) -> None:
    run = played(plans[kind], tmp_path / kind, "place=ray", "ray.actors=2")
    shelf = run.shelf()
    same(run, here[kind], {name: tree for name in shelf.clients() if (tree := shelf.get(name))})


@pytest.mark.parametrize("kind", ["text", "images"])
def test_on_a_fleet(kind: str, plans: Plans, here: dict[str, Run], fleet: Path, tmp_path: Path) -> None:
    run = played(plans[kind], tmp_path / kind, "place=fleet", f"fleet.folder={fleet}", "fleet.nodes=3")
    assert not run.shelf().clients(), "a personal adapter has left its device"
    own: dict[str, Tree] = {}
    for node in sorted((fleet / "nodes").iterdir()):
        shelves = [Shelf(path) for path in (node / "runs").glob(f"{kind}-*/{SHELF}")]
        assert len(shelves) == 1
        own |= {name: tree for name in shelves[0].clients() if (tree := shelves[0].get(name))}
        loads = (node / "node.log").read_text().count("loaded the backbone")
        assert loads == ["text", "images"].index(kind) + 1, "a backbone is loaded once, however many rounds"
    same(run, here[kind], own)
    shown = said("fleet", "status", "--folder", str(fleet), "--run", str(run.folder))
    assert "finished" in shown.splitlines()[-1]
    assert shown.count("online") == 3
