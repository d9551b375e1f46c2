"""A tiny study from one end to the other: read, spread out, played, interrupted, shared among workers, written down."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fedgen import cli
from fedgen.errors import DataError, PlanError
from fedgen.methods import METHODS
from fedgen.reproduce import reproduce, result, study, worker
from fedgen.reproduce.study import TRIAL, Cell, Part
from fedgen.reproduce.worker import Bench

STUDY = """
title = "Tiny"
last = 0.5
[plan]
name = "tiny"
rounds = 2
backbone = {{ source = "{source}", length = 32, device = "cpu" }}
data = {{ kind = "folder", path = "{{data}}" }}
cohort = {{ count = 3 }}
training = {{ steps = 2, batch = 2 }}
personal = {{ kind = "finetune", steps = 2 }}
evaluate = {{ rows = 2, every = 1 }}
[worlds]
even = []
fewer = ["cohort.count=2"]
[rates.adamw]
full = [0.001, 0.002]
other = [0.003, 0.01]
[rates.sgd]
other = [0.1]
[trial]
worlds = ["even"]
settings = ["rounds=1", "evaluate.every=0"]
[[part]]
worlds = ["even"]
methods = ["fedit", "fedgen-edge"]
[[part]]
worlds = ["fewer"]
methods = ["fedit"]
seeds = [1]
sweep = "rank"
key = "adapter.rank"
values = [1, 2]
drift = true
[quick]
plan = ["rounds=1"]
[[quick.part]]
worlds = ["even"]
methods = ["fedit"]
"""


@pytest.fixture
def written(tmp_path: Path, tiny_backbone: Path) -> Path:
    """The study's file."""
    path = tmp_path / "tiny.toml"
    path.write_text(STUDY.format(source=tiny_backbone), "utf-8")
    return path


def bench(written: Path, tiny_text: Path, tmp_path: Path) -> Bench:
    return Bench(study.read(str(written)), tiny_text, tmp_path / "work")


def played(written: Path, data: Path, work: Path, **more: Any) -> tuple[Path, dict[str, Any]]:
    return reproduce(str(written), data=data, work=work, out=work / "out", **({"jobs": 1} | more))


Done = tuple[Path, Path, dict[str, Any]]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path, tiny_text: Path) -> Done:
    """The study played to its end: its file, its folder, and what it came to. It is everyone's: spoil copies."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.toml").write_text(STUDY.format(source=tiny_backbone), "utf-8")
    path, found = played(folder / "tiny.toml", tiny_text, folder / "work")
    assert path == folder / "work" / "out" / "tiny.json"
    return folder / "tiny.toml", folder / "work", found


def test_cells_come_in_the_order_of_parts_each_behind_its_trials(written: Path) -> None:
    cells = list(study.read(str(written)).cells())
    found = [(cell.method, cell.world, cell.seed, cell.value, cell.rate) for cell in cells]
    assert found == [
        ("fedit", "even", TRIAL, None, 0.003),
        ("fedit", "even", TRIAL, None, 0.01),
        ("fedgen-edge", "even", TRIAL, None, 0.003),
        ("fedgen-edge", "even", TRIAL, None, 0.01),
        ("fedit", "even", 0, None, None),
        ("fedgen-edge", "even", 0, None, None),
        ("fedit", "fewer", 1, 1, None),
        ("fedit", "fewer", 1, 2, None),
    ]


def test_a_job_says_all_that_its_method_world_rate_and_value_ask(
    written: Path, tiny_text: Path, tmp_path: Path
) -> None:
    tiny = study.read(str(written))
    cell = Cell(tiny.parts[1], "fedgen-edge", "fewer", 1, 2)
    plan = tiny.job(cell, 0.01).resolved(tiny_text, tmp_path)
    assert (plan.seed, plan.adapter.rank, plan.cohort.count) == (1, 2, 2)
    assert (plan.training.lr, plan.personal.lr, plan.training.optimizer) == (0.01, 0.005, "adamw")  # type: ignore[attr-defined]
    assert plan.data.path == str(tiny_text)  # type: ignore[attr-defined]


def test_a_key_depends_on_all_that_a_result_does_and_on_no_folder(written: Path) -> None:
    tiny = study.read(str(written))
    cell = Cell(tiny.parts[0], "fedit", "even", 0)
    key = tiny.job(cell, 0.01).key
    others = {
        tiny.job(cell, 0.02).key,
        tiny.job(cell, 0.01, "another backbone").key,
        tiny.job(Cell(tiny.parts[0], "fedit", "even", 1), 0.01).key,
        tiny.job(Cell(tiny.parts[0], "fedgen-edge", "even", 0), 0.01).key,
        tiny.job(Cell(Part(("even",), drift=True), "fedit", "even", 0), 0.01).key,
    }
    assert key not in others
    assert len(others) == 5
    assert tiny.job(cell, 0.01).key == key


def test_a_study_comes_to_one_file_with_everything_in_it(done: Done) -> None:
    _, work, found = done
    assert json.loads((work / "out" / "tiny.json").read_text("utf-8")) == found
    assert found["about"]["missing"] == 0
    assert found["about"]["seeds"] == [0, 1]
    assert found["methods"]["fedit"]["title"] == METHODS["fedit"].title
    first, _, narrow, wide = found["runs"]
    tried = found["rates"]["even"]["adamw"]["fedit"]
    assert set(tried) == {"0.003", "0.01"}
    assert first["rate"] == float(min(tried, key=tried.__getitem__))
    assert [line["round"] for line in first["rounds"]] == [1, 2]
    assert all(line["measure"] > 1 and line["up"] > 0 and line["down"] > 0 for line in first["rounds"])
    assert len(first["clients"]) == 6
    assert first["drift"] == []
    assert (narrow["value"], wide["value"], narrow["sweep"]) == (1, 2, "rank")
    assert narrow["clients"] == {}
    assert narrow["message"] < wide["message"]
    assert wide["message"] < wide["full_message"]
    assert [len(wide[name]) for name in ("drift", "spread", "apart")] == [2, 2, 2]
    assert not [entry for entry in (work / "runs").iterdir() if entry.is_dir()]


def test_what_has_been_played_is_not_played_again(done: Done, tiny_text: Path, tmp_path: Path) -> None:
    written, before, whole = done
    shutil.copytree(before, tmp_path / "work")
    runs = tmp_path / "work" / "runs"
    times = {path: path.stat().st_mtime_ns for path in runs.iterdir()}
    last = max(times, key=times.__getitem__)
    last.unlink()
    (runs / last.stem).mkdir()  # as a worker leaves it that is stopped in the middle of a run
    (runs / last.stem / "half").touch()
    _, short = played(written, tiny_text, tmp_path / "work", minutes=1e-6)
    assert (len(short["runs"]), short["about"]["missing"]) == (3, 1)
    _, again = played(written, tiny_text, tmp_path / "work")
    assert {path for path in runs.iterdir() if path.stat().st_mtime_ns != times[path]} == {last}
    assert timeless(again) == timeless(whole)


def timeless(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**run, "seconds": 0} for run in found["runs"]]


def test_workers_do_not_play_what_another_has_claimed(written: Path, tiny_text: Path, tmp_path: Path) -> None:
    tiny = bench(written, tiny_text, tmp_path)
    job = tiny.job(next(tiny.study.cells()))
    assert job
    with worker._claim(tiny.work / "claims" / job.key) as mine:
        assert mine
        assert not worker._played(tiny, job, [])
    assert worker._played(tiny, job, [])
    assert not worker._played(tiny, job, [])


@pytest.mark.slow
def test_two_workers_come_to_what_one_does(done: Done, tiny_text: Path, tmp_path: Path) -> None:
    written, _, alone = done
    path, team = played(written, tiny_text, tmp_path, quick=True, jobs=2)
    assert path.name == "tiny-quick.json"
    assert team["rates"]["even"]["adamw"]["fedit"] == alone["rates"]["even"]["adamw"]["fedit"]
    assert [len(run["rounds"]) for run in team["runs"]] == [1]


def test_a_run_that_diverges_is_a_result_and_its_rate_is_not_chosen(
    written: Path, tiny_text: Path, tmp_path: Path
) -> None:
    text = written.read_text("utf-8").replace("other = [0.003, 0.01]", "other = [0.003, 1e30]")
    written.write_text(text, "utf-8")
    tiny = bench(written, tiny_text, tmp_path)
    for cell in tiny.study.trials(Cell(tiny.study.parts[0], "fedit", "even", 0)):
        job = tiny.job(cell)
        assert job
        assert worker._played(tiny, job, [])
    assert "none of 3 clients sent an update; the first said: the update holds numbers of" in tiny.found(job)["error"]
    wanted = Cell(tiny.study.parts[0], "fedit", "even", 0)
    assert tiny.tries(wanted)[1e30] is None
    assert tiny.chosen(wanted) == 0.003
    found = result.write(tiny, {}, tmp_path / "out.json")
    assert found["rates"]["even"]["adamw"]["fedit"]["1e+30"] is None


def test_the_command_goes_on_and_says_what_is_missing(done: Done, tiny_text: Path, tmp_path: Path) -> None:
    written, before, _ = done
    shutil.copytree(before, tmp_path / "work")
    next((tmp_path / "work" / "runs").iterdir()).unlink()
    said = ["reproduce", written, "--data", tiny_text, "--work", tmp_path / "work", "--out", tmp_path, "--jobs", 1]

    def called(*more: object) -> str:
        return CliRunner().invoke(cli.app, [str(word) for word in (*said, *more)], catch_exceptions=False).output

    assert "missing: the same command goes on" in called("--minutes", 1e-6)
    assert f"{tmp_path / 'tiny.json'}: 4 of 4 runs\n{tmp_path / 'tiny.md'}\n" in called()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("title =", "titel =", "'titel' is not one of title, prepare"),
        ("[trial]", "[trail]", "'trail' is not one of"),
        ('methods = ["fedit", "fedgen-edge"]', 'methods = ["fedavgg"]', "method 'fedavgg' is not one of"),
        ('worlds = ["fewer"]', 'worlds = ["odd"]', "world 'odd' is not one of even, fewer"),
        ('sweep = "rank"\n', "", "a sweep wants its name, a key and values"),
        ("drift = true", 'drift = "yes"', "'drift' wanted bool, came 'yes'"),
        ("seeds = [1]", "seeds = 1", "'seeds' wanted a list, came 1"),
        ("seeds = [1]", "seed = [1]", "'seed' is not one of worlds"),
        ("other = [0.003, 0.01]", "", "wanted rates for every group it names and for 'other'"),
        ('key = "adapter.rank"', 'key = "adapter.rang"', "adapter.rang: no such key"),
        ("[quick]", "[quick]\nrounds = 1", "[quick]: 'rounds' is not one of plan"),
        ("[rates.sgd]", "[rates.sgd", "is not TOML"),
    ],
)
def test_a_slip_in_a_study_is_one_clear_line(written: Path, old: str, new: str, said: str) -> None:
    text = written.read_text("utf-8")
    assert old in text
    written.write_text(text.replace(old, new, 1), "utf-8")
    with pytest.raises(PlanError) as error:
        study.read(str(written))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_study_and_a_missing_folder_are_told(written: Path, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="'mnist' is no study; there are"):
        study.read("mnist")
    with pytest.raises(DataError, match="name the one that holds the data with --data"):
        reproduce(str(written), data=tmp_path / "none", work=tmp_path / "work", out=tmp_path)


def test_the_shipped_studies_can_be_read() -> None:
    for name in ("ptb", "cifar10"):
        for quick in (False, True):
            found = study.read(name, quick=quick)
            assert found.parts
            assert all(
                len(own) == len(next(iter(groups.values())))
                for groups in found.rates.values()
                for own in groups.values()
            )
