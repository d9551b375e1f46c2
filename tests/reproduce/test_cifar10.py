"""CIFAR-10's backbone and clients from archives that look like its own, and distances of what is drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import fedgen
from fedgen.backbones import Diffusion
from fedgen.errors import DataError
from fedgen.quality.resnet import ResNet20
from fedgen.reproduce import cifar10, frechet
from fedgen.reproduce.cifar10 import ANIMALS, Recipe, pictures, prepare

pytest.importorskip("diffusers", reason="the extra 'images' is not installed")

EACH = 12  # pictures of a class


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise in the shape of CIFAR-10's archives, a colour a class, and a network for features."""
    folder, draw = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    labels = np.arange(10 * EACH) % 10
    for name in (cifar10.TRAIN, cifar10.TEST):
        (folder / name).parent.mkdir(exist_ok=True)
        noise = draw.integers(0, 32, (len(labels), 32, 32, 3))
        np.savez(folder / name, x=(noise + 20 * labels[:, None, None, None]).astype(np.uint8), y=labels)
    weights = {f"module.{name}": value for name, value in ResNet20().state_dict().items()}
    torch.save({"state_dict": weights}, folder / "resnet.th")
    return folder


@pytest.fixture(scope="module")
def work(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is prepared of it in a moment."""
    folder = tmp_path_factory.mktemp("work")
    told: list[str] = []
    record = prepare(data, folder, 0.005, told.append)
    assert record["steps"] > 0
    assert record["of"] == ["airplane", "automobile", "ship", "truck"]
    assert record["pictures"] == 4 * EACH
    return folder


def test_clients_trials_and_real_pictures_share_none(work: Path) -> None:
    clients, trials, real = (pictures(work / f"{name}.npz", ANIMALS) for name in ("clients", "trials", "real"))
    assert len(trials) == 6 * EACH // cifar10.TRIAL
    assert len(clients) + len(trials) == 6 * EACH == len(real)
    seen = {tuple(one.picture.flatten().tolist()) for one in (*clients, *trials, *real) if one.picture is not None}
    assert len(seen) == 2 * 6 * EACH
    assert {document.label for document in trials} == set(ANIMALS)


def test_the_backbone_is_a_folder_that_can_be_federated(work: Path) -> None:
    backbone = Diffusion(str(work / cifar10.BACKBONE), dtype="float32", device="cpu").load()
    assert backbone.picture == (3, 32, 32)
    record = json.loads((work / cifar10.BACKBONE / cifar10.RECORD).read_text("utf-8"))
    assert record["parameters"] == sum(weight.numel() for weight in backbone.network.parameters())


def test_what_is_there_is_left_as_it_is(data: Path, work: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()}
    record = prepare(data, work, 60)
    assert record == json.loads((work / cifar10.BACKBONE / cifar10.RECORD).read_text())
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*") if path.is_file()} == before


def test_a_new_backbone_is_the_same_every_time_and_says_nothing(tmp_path: Path) -> None:
    torch.rand(3)  # what others draw changes nothing
    recipe = Recipe(1, width=48, depth=1)
    first, second = (cifar10.untrained(recipe, tmp_path / name).network for name in "ab")
    pairs = list(zip(first.parameters(), second.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not first.proj_out_2.weight.any()


def test_pictures_are_mirrored_and_some_told_an_animal() -> None:
    shown = torch.arange(3 * 32 * 32.0).view(1, 3, 32, 32).expand(400, -1, -1, -1)
    rows = cifar10.altered({"picture": shown, "class": torch.zeros(400, dtype=torch.long)}, torch.Generator())
    mirrored = (rows["picture"] != shown).flatten(1).any(1)
    assert torch.equal(rows["picture"][mirrored], shown[mirrored].flip(3))
    assert 150 < int(mirrored.sum()) < 250
    told = rows["class"][rows["class"] > 0]
    assert 20 < len(told) < 70
    assert {str(label) for label in told.tolist()} <= set(ANIMALS)


def test_missing_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cifar10_train10k"):
        prepare(tmp_path, tmp_path / "work", 0.01)


# ---- distances


@pytest.fixture(scope="module")
def run(data: Path, work: Path, tmp_path_factory: pytest.TempPathFactory) -> fedgen.Run:
    """Two short rounds over the clients, each kept."""
    plan = {
        "rounds": 2,
        "backbone": {"kind": "diffusion", "source": str(work / "backbone"), "dtype": "float32", "device": "cpu"},
        "adapter": {"rank": 2, "targets": ["norm1.linear", "proj_out_2"]},
        "data": {"kind": "npz", "path": str(work / "clients.npz")},
        "partition": {"kind": "even", "clients": 4},
        "cohort": {"count": 2},
        "training": {"steps": 2, "batch": 2, "lr": 0.3},
        "personal": {"kind": "none"},
        "evaluate": {"every": 0, "keep": 1},
        "quality": {"features": "resnet", "weights": str(data / "resnet.th"), "guidance": 1.0},
    }
    return fedgen.run(plan, tmp_path_factory.mktemp("runs") / "cifar")


def test_distances_are_of_the_rounds_that_are_asked_for(run: fedgen.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frechet, "DRAWN", 12)
    monkeypatch.setattr(frechet, "STEPS", 2)
    found = frechet.measured(run, [0, 1, 2])
    assert found["rounds"] == [0, 1, 2]
    assert found["features"] == "Fréchet distance on ResNet-20 features"
    assert found["pictures"] == 12
    assert len(set(found["distance"])) == 3, "each round's adapter draws other pictures"
    assert found == frechet.measured(run, [0, 1, 2])
    assert frechet.measured(run, [2])["distance"] == found["distance"][2:]


def test_classes_take_turns(work: Path) -> None:
    found = frechet.in_turn(pictures(work / "real.npz", ANIMALS))
    assert [document.label for document in found[:7]] == [*ANIMALS, ANIMALS[0]]
    assert len(found) == 6 * EACH


def test_a_run_of_text_has_no_distance(tiny_run: fedgen.Run) -> None:
    with pytest.raises(DataError, match=r"frechet: wanted a run over .*, came Folder"):
        frechet.measured(tiny_run, [0])
