"""A study's page and figures, of a result file that is made up for these tests."""

import copy
import json
import math
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fedgen.errors import StoreError
from fedgen.report.wording import ABSENT
from fedgen.reproduce import drawing, page, reading
from fedgen.reproduce.figures import FIGURES, ROUNDS
from fedgen.reproduce.reading import Result

pytest.importorskip("matplotlib", reason="the extra 'report' is not installed")

GROUPS = {
    "local": "bounds", "fedavg-full": "full", "fedit": "adapters", "ffa": "adapters", "fedprox": "adapters",
    "fedgen-edge": "own", "stack": "own",
}  # fmt: skip
SKILL = {"local": 0.02, "fedavg-full": 0.12, "stack": 0.125}  # share of the loss that is learnt away in time
START = {"text": 4.4, "image": 0.15}
CLIENTS = 20


def made_run(method: str, world: str, optimizer: str, seed: int, kind: str) -> dict[str, Any]:
    """A run of eight rounds, looked at in every other one."""
    draw = random.Random(f"{method}{world}{optimizer}{seed}")
    start, up = START[kind], {"local": 0, "fedavg-full": 28_000_000, "ffa": 120_000}.get(method, 220_000)
    skill = SKILL.get(method, 0.1) + 0.002 * seed + draw.uniform(0, 0.001) * (method not in ("fedit", "fedgen-edge"))
    losses = [start * (1 - skill * (1 - math.exp(-turn / 3))) for turn in range(1, 9)]
    rounds: list[dict[str, Any]] = [
        {"round": at, "up": up, "down": up, "loss": loss} for at, loss in enumerate(losses, 1)
    ]
    for line in rounds[1::2] if method != "local" else []:
        line["measure"] = math.exp(line["loss"]) if kind == "text" else line["loss"]
    clients = {}
    for at in range(CLIENTS):
        scores = {"backbone": start, "global": start * (1 - skill)}
        if GROUPS[method] == "own":
            scores["personal"] = scores["global"] * (0.99 if at else 1.01)  # all but one gain
        clients[f"client-{at:02d}"] = {name: [(40 + at) * loss, 40 + at] for name, loss in scores.items()}
    total = {name: [sum(one[name][side] for one in clients.values()) for side in (0, 1)] for name in scores}
    return {
        "method": method, "world": world, "optimizer": optimizer, "rate": 0.01, "seed": seed, "sweep": "", "key": "",
        "value": None, "rounds": rounds, "clients": clients, "total": total, "kind": kind, "parameters": 700_000,
        "sent": up // 40, "message": up // 10, "full_message": 2_800_000, "rank": 2, "failures": 0, "seconds": 30.0,
        "drift": [], "spread": [], "apart": [], "error": "",
    }  # fmt: skip


def swept(method: str, key: str, value: int, kind: str, **more: Any) -> dict[str, Any]:
    """A run of a sweep."""
    run = made_run(method, "mild", "adamw", 0, kind)
    return run | {"sweep": key.partition(".")[2], "key": key, "value": value, "clients": {}} | more


def made(kind: str) -> dict[str, Any]:
    """A whole result file."""
    tables = [("adamw", seed, world) for seed in (0, 1, 2) for world in ("mild", "wild")] + [("sgd", 0, "mild")]
    runs = [made_run(method, world, kind_of, seed, kind) for kind_of, seed, world in tables for method in GROUPS]
    for value in (1, 4, 16):
        runs += [
            swept("fedgen-edge", "adapter.rank", value, kind, apart=[0.01 * value] * 8, message=1000 * value),
            swept("fedgen-edge", "training.steps", value, kind, drift=[value / 4] * 8, spread=[0.1] * 8),
            swept("fedgen-edge", "cohort.count", value, kind),
        ]
    if kind == "image":
        drawn = {
            "rounds": [0, 8],
            "distance": [34.0, 28.0],
            "features": "Distance of a test",
            "pictures": 4,
            "real": 1.5,
        }
        runs += [swept(name, "evaluate.keep", 4, kind, frechet=drawn) for name in ("fedit", "fedavg-full")]
    titles = {"fedavg-full": "FedAvg, full model", "fedit": "FedIT"}
    return {
        "about": {
            "date": "2026-01-02", "machine": "made up", "python": "3.11", "versions": {"torch": "2"}, "threads": 1,
            "seeds": [0, 1, 2], "study": "made", "title": "A made-up study", "quick": False, "minutes": 1.5,
            "wanted": len(runs) + 1, "missing": 1,
        },
        "plan": 'rounds = 8\n[training]\nsteps = 8\nbatch = 4\n[adapter]\nrank = 2\ntargets = ["q"]',
        "worlds": {"mild": [], "wild": ["partition.alpha=0.1"]},
        "trial": {"worlds": ["mild"], "settings": ["rounds=3"]},
        "backbone": {"steps": 12},
        "methods": {
            name: {"title": titles.get(name, name), "group": group, "settings": [name], "paper": "", "departs": ""}
            for name, group in GROUPS.items()
        },
        "rates": {"mild": {"adamw": {"fedit": {"0.01": 81.0, "0.03": None}}, "sgd": {}}},
        "runs": runs,
    }  # fmt: skip


@pytest.fixture(scope="module")
def text() -> Result:
    """A study of text."""
    return Result(made("text"))


@pytest.fixture(scope="module")
def image() -> Result:
    """A study of pictures."""
    return Result(made("image"))


def without(result: Result, **said: Any) -> Result:
    """The result without the runs of which all this holds."""
    content = dict(result.content)
    content["runs"] = [run for run in content["runs"] if not all(run[key] == value for key, value in said.items())]
    return Result(content)


# ---- figures


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_drawn_from_the_file_alone(name: str, image: Result) -> None:
    sheet = FIGURES[name].sheet(image)
    assert sheet is not None
    png = drawing.png(sheet)
    assert png.startswith(b"\x89PNG")
    assert int.from_bytes(png[16:20], "big") == drawing.WIDE * drawing.DOTS


@pytest.mark.parametrize(
    ("name", "key"), [("rank", "adapter.rank"), ("local-steps", "training.steps"), ("participation", "cohort.count")]
)
def test_a_study_without_a_sweep_leaves_its_figure_out(name: str, key: str, text: Result) -> None:
    assert FIGURES[name].sheet(text) is not None
    assert FIGURES[name].sheet(without(text, key=key)) is None


def test_a_sweep_without_a_figure_is_a_table(text: Result) -> None:
    run = swept("fedit", "adapter.targets", 0, "text") | {"value": '["q_proj"]', "sweep": "layers"}
    found = page.sweeps(Result(dict(text.content) | {"runs": [*text.content["runs"], run]}))
    assert list(found) == ["layers"]
    assert found["layers"][0].startswith("| `adapter.targets` |")
    assert found["layers"][2].startswith('| `["q_proj"]` | FedIT |')
    assert page.sweeps(text) == {}


def test_text_draws_no_pictures(text: Result) -> None:
    assert FIGURES["frechet"].sheet(text) is None


def test_one_world_shows_no_heterogeneity(text: Result) -> None:
    assert FIGURES["worlds"].sheet(without(text, world="wild", sweep="")) is None


def test_no_runs_make_no_figures() -> None:
    empty = Result(made("text") | {"runs": []})
    assert [name for name, figure in FIGURES.items() if figure.sheet(empty)] == []


def painted(name: str, result: Result) -> Any:
    """The axes of a figure, painted and looked at."""
    sheet = FIGURES[name].sheet(result)
    assert sheet is not None
    with drawing.matplotlib().style.context(["default", drawing.SETTINGS]):
        figure = drawing.matplotlib().figure.Figure(figsize=(8, 4))
        sheet.paint(figure)
    return figure.axes


def test_upload_is_a_round_times_500_and_agrees_with_what_was_counted(text: Result) -> None:
    (axes,) = painted("upload", text)
    bars = [bar.get_width() for bar in axes.patches]
    rings = [ring.get_xdata()[0] for ring in axes.lines]
    assert bars == rings == sorted(bars, reverse=True)
    assert bars[0] == 28_000_000 * ROUNDS
    assert "local" not in [label.get_text() for label in axes.get_yticklabels()], "it sends nothing"


def test_a_growing_upload_sets_bar_and_ring_apart(text: Result) -> None:
    content = copy.deepcopy(dict(text.content))
    grown = next(run for run in content["runs"] if run["method"] == "fedavg-full")
    grown["rounds"][-1]["up"] *= 9
    (axes,) = painted("upload", Result(content))
    assert axes.lines[0].get_xdata()[0] == 2 * axes.patches[0].get_width()


def test_lines_that_are_one_have_one_name(text: Result) -> None:
    names = [label.get_text() for axes in painted("progress", text) for label in axes.texts]
    assert "FedIT, fedgen-edge" in names
    assert "fedprox" not in names, "it is grey"


def test_gains_are_sorted_and_counted(text: Result) -> None:
    left, right = painted("personal", text)
    falls = list(left.lines[0].get_ydata())
    assert falls == sorted(falls)
    assert len(falls) == CLIENTS
    assert falls[0] < 0 < falls[1]
    assert left.get_legend().get_texts()[0].get_text() == f"mild: 95% of {CLIENTS} gain"
    assert right.get_title("left") == "clients"


def test_names_at_the_ends_of_lines_do_not_touch(text: Result) -> None:
    axes = painted("progress", text)[1]
    heights = sorted(label.get_position()[1] for label in axes.texts)
    assert min(b - a for a, b in pairwise(heights)) > 0.04
    assert max(heights) <= 1 + 1e-9


def test_places_are_moved_no_more_than_they_must() -> None:
    assert drawing.apart([0.2, 0.5, 0.9], 0.1) == [0.2, 0.5, 0.9]
    assert drawing.apart([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert drawing.apart([0.98, 0.99, 1.0], 0.1) == pytest.approx([0.8, 0.9, 1.0], abs=1e-3)


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, text: Result) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    sheet = FIGURES["upload"].sheet(text)
    assert sheet is not None
    with pytest.raises(Exception, match=r"fedgen-edge\[report\]"):
        drawing.png(sheet)


# ---- what is read


def test_perplexity_is_of_all_words_and_denoising_of_all_pictures(text: Result, image: Result) -> None:
    run = text.table("mild")["fedit"][0]
    loss, words = run["total"]["global"]
    assert reading.own(run) == pytest.approx(math.exp(loss / words))
    loss, pictures = (run := image.table("mild")["fedit"][0])["total"]["global"]
    assert reading.own(run) == pytest.approx(loss / pictures)


def test_an_own_adapter_comes_before_the_shared_one(text: Result) -> None:
    run = text.table("mild")["fedgen-edge"][0]
    shared = reading.shared(run)
    assert shared is not None
    assert reading.own(run) < shared < reading.bare(run)


def test_the_worst_tenth_is_a_mean_of_clients(text: Result) -> None:
    run = copy.deepcopy(text.table("mild")["fedit"][0])
    run["clients"]["client-00"]["global"] = [10 * math.log(300), 10]
    run["clients"]["client-01"]["global"] = [10 * math.log(200), 10]
    assert reading.worst_tenth(run) == pytest.approx(250)


def test_the_target_is_the_best_round_of_the_same_seed(text: Result) -> None:
    table = text.table("mild")
    full = table["fedavg-full"]
    goal = reading.target(full, 0)
    assert goal == reading.course(full[0])[-1][1]
    assert goal is not None
    turn, up = reading.reached(table["stack"][0], goal) or (0, 0)
    assert (turn, up) == (8, 8 * 220_000)
    assert reading.reached(table["ffa"][0], goal) is None


def test_ranks_correlate() -> None:
    assert reading.rank_correlation([1.0, 2.0, 3.0], [10.0, 20.0, 90.0]) == pytest.approx(1)
    assert reading.rank_correlation([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1)
    assert reading.rank_correlation([1.0, 1.0, 2.0], [1.0, 2.0, 3.0]) == pytest.approx(3**0.5 / 2)  # a tie


def test_a_run_that_failed_is_no_run(text: Result) -> None:
    content = copy.deepcopy(dict(text.content))
    content["runs"][0]["error"] = "diverged"
    assert len(Result(content).runs) == len(text.runs) - 1
    assert "Runs that did not come to their end: 1." in page.page(Result(content), "made")


@pytest.mark.parametrize("said", ["", "[]", '{"about": {}}'])
def test_another_file_is_refused(said: str, tmp_path: Path) -> None:
    (tmp_path / "made.json").write_text(said, "utf-8")
    with pytest.raises(StoreError, match=r"made\.json: wanted the result file of a study"):
        reading.read(tmp_path / "made.json")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="`fedgen reproduce` writes one"):
        reading.read(tmp_path / "none.json")


# ---- the page


def test_the_page_and_its_figures_stand_beside_the_file(tmp_path: Path) -> None:
    path = tmp_path / "made.json"
    path.write_text(json.dumps(made("text")), "utf-8")
    written = page.write(path)
    said = (tmp_path / "made.md").read_text("utf-8")
    assert written[-1] == tmp_path / "made.md"
    assert sorted(each.name for each in written[:-1]) == sorted(each.name for each in tmp_path.glob("*.png"))
    assert all(f"]({each.name})" in said for each in written[:-1])
    assert "Figures left out for want of runs: pictures that are drawn." in said
    assert page.page(reading.read(path), "made") == said


def test_the_table_has_the_best_method_first_and_says_when_it_got_there(text: Result) -> None:
    lines = page.main_table(text, "mild")
    assert lines[2].startswith("| stack (3 seeds) |")
    assert "| 95.0% | 22 kB, 99.21% less than the model |" in lines[2]
    assert lines[2].endswith("| 8 | 1.76 MB |")
    ffa = next(line for line in lines if line.startswith("| ffa (3 seeds) |"))
    assert f"| {ABSENT} | 12 kB, 99.57% less than the model |" in ffa
    assert ffa.endswith(f"| not reached | {ABSENT} |")
    assert any(line.startswith("| the bare backbone | 81.45") for line in lines)
    assert lines[-1].startswith(f"{CLIENTS} clients, AdamW, one seed where no more are named.")


def test_rows_stand_in_the_order_of_the_seeds_that_all_have(text: Result) -> None:
    """A method with one lucky seed is not put before others with three."""
    content = copy.deepcopy(dict(text.content))
    content["runs"] = [run for run in content["runs"] if run["method"] != "stack" or run["seed"] == 0]
    firsts = [line for line in page.main_table(Result(content), "mild")[2:] if line.startswith("| ")]
    seed = {"runs": [run for run in text.content["runs"] if run["seed"] == 0]}
    alone = page.main_table(Result(dict(text.content) | seed), "mild")[2:]
    order = [line.split(" | ")[0].removesuffix(" (3 seeds)") for line in firsts]
    assert order == [line.split(" | ")[0] for line in alone if line.startswith("| ")]


def test_the_page_says_how_it_was_done(text: Result) -> None:
    said = page.page(text, "made")
    assert said.startswith("# A made-up study\n")
    for part in (
        "`fedgen reproduce made` plays it anew. Not played: 1 of its 59 runs.", "| local training | steps 8, batch 4 |",
        "| adapter | rank 2, targets q |", "- **wild**: `partition.alpha=0.1`", "**0.01: 81.00**, 0.03: diverged",
        "Spearman's correlation of the two rankings: ", "made up, 1 thread a run, 1.5 minutes of runs",
    ):  # fmt: skip
        assert part in said, part


def test_one_optimizer_is_no_ranking(text: Result) -> None:
    assert page.rankings(text, "mild")
    assert page.rankings(text, "wild") == []


def test_the_pages_that_are_kept_are_what_their_results_make() -> None:
    results = Path(__file__).parents[2] / "docs" / "results"
    for path in sorted(results.glob("*.json")):
        kept = path.with_suffix(".md").read_text("utf-8")
        assert kept == page.page(reading.read(path), path.stem), "run: python docs/reproduction.py"
