"""What a run's adapters draw: sheets and measures once the rounds are over, the same whenever they are made."""

import copy
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

import fedgen
from fedgen import FedgenError, Run, report
from fedgen import plan as plans
from fedgen.data.glyphs import Glyphs, character_of, glyph
from fedgen.exhibit import QUALITY, SAMPLES, Painting, chosen, judged, kept, kinds_of, measured, wanted
from fedgen.places import inprocess, resume
from fedgen.plan import Plan
from fedgen.quality import Clip, compare
from fedgen.quality.judge import Judge
from fedgen.records import Document
from fedgen.run import Finished
from fedgen.sample import Sampler, Wish, sampler
from fedgen.sheet import GAP, MARGIN, TEXT

Image = pytest.importorskip("PIL.Image", reason="the extra 'images' is not installed")
pytest.importorskip("matplotlib", reason="the extra 'images' is not installed")

SIDE = 48  # pixels of 16 are shown three times as large


@pytest.fixture(scope="module")
def plan(pipelines: dict[str, Path]) -> Iterator[dict[str, Any]]:
    """Four clients, two styles, three rounds of hardly any training. It is everyone's: lay changes over a copy."""
    plan: dict[str, Any] = {
        "name": "tiny-images",
        "rounds": 3,
        "backbone": {"kind": "diffusion", "source": str(pipelines["flow"]), "size": 16, "device": "cpu"},
        "data": {"kind": "glyphs", "styles": ["bold", "gothic"], "clients": 2, "characters": "abcdefg", "copies": 2}
        | {"left_out": 2, "size": 16},
        "training": {"steps": 2, "batch": 2, "lr": 0.1},
        "personal": {"steps": 2, "lr": 0.1},
        "cohort": {"count": 2},
        "evaluate": {"every": 0, "keep": 1},
        "quality": {"pictures": 3, "clients": 3, "steps": 2, "features": "judge"},
    }
    made = copy.deepcopy(plan)
    yield plan
    assert plan == made, "a test changed the plan that all share"


@pytest.fixture(scope="module")
def events() -> list[object]:
    """What the run below told."""
    return []


@pytest.fixture(scope="module")
def run(plan: dict[str, Any], events: list[object], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The finished run of that plan, drawn."""
    return fedgen.run(plan, tmp_path_factory.mktemp("runs") / "tiny", tell=events.append)


@pytest.fixture(scope="module")
def held(run: Run) -> dict[str, list[Document]]:
    return inprocess.holdings(run.plan)


@pytest.fixture(scope="module")
def voice(run: Run) -> Iterator[Sampler]:
    found = sampler(run)
    with found.bank:
        yield found


def content(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.folder / QUALITY).read_bytes())
    return found


def drawn(run: Run) -> dict[str, bytes]:
    """All that was drawn and measured."""
    files = [run.folder / QUALITY, *sorted((run.folder / SAMPLES).iterdir())]
    return {path.name: path.read_bytes() for path in files}


def cell(path: Path, row: int, column: int, columns: int) -> Tensor:
    """A picture cut out of a sheet of so many columns, grey, in its own size; three gaps count as a row."""
    with Image.open(path) as sheet:
        left = sheet.width - MARGIN - (columns - column) * (SIDE + GAP)
        top = MARGIN + row % 100 * (SIDE + GAP) + row // 100 * ((SIDE + GAP) // 3)
        shown = sheet.convert("L").crop((left, top, left + SIDE, top + SIDE)).resize((16, 16), Image.Resampling.NEAREST)
        return torch.frombuffer(bytearray(shown.tobytes()), dtype=torch.uint8).view(1, 16, 16)


# --- the end of a run


def test_a_run_ends_with_sheets_and_measures(run: Run) -> None:
    found = content(run)
    assert found.keys() == {"sheets", "measures"}
    assert [sheet["title"] for sheet in found["sheets"]] == ["Side by side", "Round by round"]
    assert [sheet["file"] for sheet in found["sheets"]] == ["samples/side-by-side.png", "samples/rounds.png"]
    made = {"run": "tiny", "steps": 2, "guidance": 2.0, "seed": 0}
    for sheet in found["sheets"]:
        with Image.open(run.folder / sheet["file"]) as picture:
            picture.load()
            assert json.loads(picture.text["parameters"]) == made
    measures = found["measures"]
    assert measures["columns"] == ["backbone", "global", "personal"]
    assert [row[0] for row in measures["rows"]] == [
        "Style judged right",
        "Letter judged right",
        "Style judged right, characters held out",
        "Letter judged right, characters held out",
        "Fréchet distance on glyph-judge features",
        "Kernel distance, same features",
        "Precision",
        "Recall",
    ]
    assert {len(row) for row in measures["rows"]} == {4}
    assert measures["note"].startswith("9 pictures by each adapter, 2 steps, guidance 2, one seed; the judge chooses")
    assert measures["note"].endswith("distances are to 42 pictures of the same clients; lower is better")


def test_every_picture_is_told_and_the_end_last(run: Run, events: list[object]) -> None:
    told = [event for event in events if isinstance(event, Painting)]
    total = 3 * 3 * 3 + 4 * 3  # three kinds for three clients, and a picture a client after each of four states
    assert told == [Painting(number, total) for number in range(1, total + 1)]
    assert events[-1] == Finished(run.folder)
    assert events[-2] == told[-1]


def test_a_place_of_a_sheet_is_what_its_adapter_draws(run: Run, voice: Sampler, held: Any) -> None:
    path = run.folder / "samples" / "side-by-side.png"
    asked = wanted(held["bold-1"], 3)
    for column, document in enumerate(asked):
        assert document.picture is not None
        assert cell(path, 0, column, 3).equal(document.picture)
    for row, adapter in enumerate(("backbone", "global", "client/bold-1"), 1):
        wishes = [Wish(adapter, document, at) for at, document in enumerate(asked)]
        for column, picture in enumerate(voice.paint(wishes, steps=2, guidance=2.0)):
            assert (cell(path, row, column, 3).int() - picture.int()).abs().max() <= 1
    assert not cell(path, 1, 0, 3).equal(cell(path, 3, 0, 3))


def test_the_course_of_rounds_ends_with_the_global_adapter(run: Run, voice: Sampler, held: Any) -> None:
    assert kept(run) == ["global@round-1", "global@round-2"]
    path, names = run.folder / "samples" / "rounds.png", chosen(run, held, 3)
    with Image.open(path) as sheet:
        assert sheet.height == 2 * MARGIN + 4 * (SIDE + GAP)
    for row, adapter in enumerate(("backbone", "global@round-1", "global@round-2", "global")):
        wishes = [Wish(adapter, wanted(held[name], 1)[0], at) for at, name in enumerate(names)]
        for column, picture in enumerate(voice.paint(wishes, steps=2, guidance=2.0)):
            assert (cell(path, row, column, 3).int() - picture.int()).abs().max() <= 1


def test_the_report_shows_them(run: Run) -> None:
    page = report.write(run).read_text("utf-8")
    assert "<h2>What they draw</h2>" in page
    assert page.count('<img src="data:image/png;base64,') == 2
    assert "Fréchet distance on glyph-judge features" in page
    assert "draw the samples anew" not in page


def test_drawn_anew_they_are_the_same_bytes(run: Run, tmp_path: Path) -> None:
    again = Run(shutil.copytree(run.folder, tmp_path / "tiny"))
    (again.folder / QUALITY).unlink()
    shutil.rmtree(again.folder / SAMPLES)
    told: list[object] = []
    assert resume(again.folder, tell=told.append).folder == again.folder
    assert drawn(again) == drawn(run)
    assert isinstance(told[0], Painting)


def test_what_is_drawn_is_not_drawn_again(run: Run) -> None:
    before, told = (run.folder / QUALITY).stat().st_mtime_ns, list[object]()
    resume(run.folder, tell=told.append)
    assert told == []
    assert (run.folder / QUALITY).stat().st_mtime_ns == before


def test_without_own_adapters_there_is_no_column_for_them(plan: dict[str, Any], tmp_path: Path) -> None:
    lean = plans.read(plan, ["personal.kind=none", "evaluate.keep=0", "rounds=1", "quality.features=none"])
    found = fedgen.run(lean, tmp_path / "lean")
    assert list(kinds_of(found)) == ["backbone", "global"]
    assert [sheet["title"] for sheet in content(found)["sheets"]] == ["Side by side"]
    assert content(found)["measures"]["columns"] == ["backbone", "global"]
    assert [row[0].partition(" ")[0] for row in content(found)["measures"]["rows"]] == ["Style", "Letter"] * 2
    assert chosen(found, inprocess.holdings(found.plan), 9) == ["bold-1", "gothic-1", "bold-2", "gothic-2"]


def test_nothing_is_drawn_that_is_not_wanted(plan: dict[str, Any], tmp_path: Path) -> None:
    found = fedgen.run(plans.read(plan, ["quality.pictures=0", "rounds=1"]), tmp_path / "bare")
    assert found.finished
    assert not (found.folder / QUALITY).exists()
    assert not (found.folder / SAMPLES).exists()


# --- a run with clusters


@pytest.fixture(scope="module")
def grouped(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run as if the clients of each style had been a cluster, but for one in none; drawn anew."""
    found = Run(Path(shutil.copytree(run.folder, tmp_path_factory.mktemp("grouped") / "grouped")))
    adapters = found.folder / "adapters"
    shutil.copytree(adapters / "global@round-1", adapters / "cluster-bold")
    shutil.copytree(adapters / "global@round-2", adapters / "cluster-gothic")
    where = {"bold-1": "cluster-bold", "bold-2": "cluster-bold", "gothic-1": "cluster-gothic"}
    (found.folder / "clusters.json").write_text(json.dumps({"where": where}), "utf-8")
    (found.folder / QUALITY).unlink()
    return resume(found.folder)


def test_clients_are_drawn_under_their_own_and_another_cluster_and_a_hybrid(grouped: Run) -> None:
    kinds = kinds_of(grouped)
    assert list(kinds) == ["backbone", "global", "cluster", "other cluster", "hybrid", "personal"]
    assert [kinds[kind]("gothic-1") for kind in list(kinds)[2:]] == [
        "cluster-gothic", "cluster-bold", "cluster-gothic=0.5,cluster-bold=0.5", "client/gothic-1",
    ]  # fmt: skip
    assert [kinds[kind]("gothic-2") for kind in list(kinds)[2:5]] == [
        "global",
        "cluster-bold",
        "global=0.5,cluster-bold=0.5",
    ]


def test_one_cluster_has_no_other(grouped: Run, tmp_path: Path) -> None:
    alone = Run(Path(shutil.copytree(grouped.folder, tmp_path / "alone")))
    (alone.folder / "clusters.json").write_text(json.dumps({"where": {"bold-1": "cluster-bold"}}), "utf-8")
    assert list(kinds_of(alone)) == ["backbone", "global", "cluster", "personal"]


def test_others_and_hybrids_are_shown_and_not_measured(grouped: Run) -> None:
    found = content(grouped)
    assert found["measures"]["columns"] == ["backbone", "global", "cluster", "personal"]
    assert {len(row) for row in found["measures"]["rows"]} == {5}
    assert [sheet["title"] for sheet in found["sheets"]] == ["Side by side", "Prompt by prompt", "Round by round"]
    with Image.open(grouped.folder / "samples" / "side-by-side.png") as sheet:
        assert sheet.height == 2 * MARGIN + 3 * 7 * (SIDE + GAP) + 2 * ((SIDE + GAP) // 3)
    page = report.write(grouped).read_text("utf-8")
    assert page.count('<img src="data:image/png;base64,') == 3
    assert "<h3>Prompt by prompt</h3>" in page


def test_a_row_of_prompts_is_one_prompt_under_each_adapter(grouped: Run, held: Any) -> None:
    heads = ["backbone", "global", "own cluster", "other cluster", "hybrid", "personal"]
    font = import_module("PIL.ImageFont").load_default(TEXT)
    wide = max(int(font.getlength(head)) + 2 * GAP for head in heads)
    voice, names = sampler(grouped), chosen(grouped, held, 3)
    with Image.open(grouped.folder / "samples" / "prompts.png") as sheet, voice.bank:
        assert sheet.height == 2 * MARGIN + 2 * TEXT + 3 * 2 * (SIDE + GAP)
        for row, (name, at) in enumerate((name, at) for name in names for at in (0, 1)):
            asked = wanted(held[name], 3)[at]
            wishes = [Wish(adapter(name), asked, at) for adapter in kinds_of(grouped).values()]
            for column, picture in enumerate(voice.paint(wishes, steps=2, guidance=2.0)):
                left = sheet.width - MARGIN - (6 - column) * (wide + GAP) + (wide - SIDE) // 2
                top = MARGIN + 2 * TEXT + row * (SIDE + GAP)
                shown = (
                    sheet.convert("L")
                    .crop((left, top, left + SIDE, top + SIDE))
                    .resize((16, 16), Image.Resampling.NEAREST)
                )
                seen = torch.frombuffer(bytearray(shown.tobytes()), dtype=torch.uint8).view(1, 16, 16)
                assert (seen.int() - picture.int()).abs().max() <= 1


# --- what is drawn


def test_clients_of_every_label_are_chosen_and_only_such_as_have_an_adapter(run: Run, held: Any) -> None:
    more = held | {"aaa": held["bold-1"]}
    assert chosen(run, more, 3) == ["bold-1", "gothic-1", "bold-2"]
    assert chosen(run, more, 9) == ["bold-1", "gothic-1", "bold-2", "gothic-2"]


def test_one_of_each_prompt_is_wanted_and_those_for_testing_first() -> None:
    documents = [
        Document("ann", "", "a cat", "1"),
        Document("ann", "", "a cat", "1"),
        Document("ann", "", "a cat", "2", "train"),
        Document("ann", "", "a dog", "1", "test"),
    ]
    each = [("a dog", "1"), ("a cat", "1"), ("a cat", "2")]
    assert [(one.prompt, one.label) for one in wanted(documents, 3)] == each
    assert [(one.prompt, one.label) for one in wanted(documents, 7)] == [*each, *each, each[0]]
    assert wanted(documents, 0) == []


# --- measures

WORLD = Glyphs(("bold", "gothic"), 1, "abcdefghijkl", left_out=4)
ASKED = [one for at, one in enumerate(WORLD.read()) if at % 4 == 0]


def as_drawn(style: str) -> Tensor:
    """What is asked for, in one style."""
    return torch.stack([glyph(style, character_of(one.prompt)) for one in ASKED])


def test_real_glyphs_are_judged_right_and_those_of_another_style_wrong() -> None:
    real = torch.stack([one.picture for one in ASKED if one.picture is not None])
    half = len(ASKED) // 2  # bold is asked for first, then gothic
    swapped = torch.cat([as_drawn("gothic")[:half], as_drawn("bold")[half:]])
    rows, note = judged(WORLD, ASKED, {"real": real, "bold": as_drawn("bold"), "swapped": swapped})
    found = {name: [float(cell.rstrip("%")) for cell in cells] for name, *cells in rows}
    for name in ("Style judged right", "Style judged right, characters held out"):
        right, one_for_all, wrong = found[name]
        assert right > 90
        assert one_for_all == pytest.approx(50, abs=8)
        assert wrong < 10
    assert min(found["Letter judged right"]) > 75
    assert note.startswith("the judge chooses among the clients' 2 styles and 12 characters; on real glyphs")


def test_shares_of_held_out_characters_are_of_those_alone() -> None:
    trained = [one for one in ASKED if one.part != "test"]
    rows, _ = judged(WORLD, trained, {"real": torch.stack([one.picture for one in trained if one.picture is not None])})
    assert [name for name, _ in rows] == ["Style judged right", "Letter judged right"]


def test_distances_are_those_of_a_comparison(pipelines: dict[str, Path]) -> None:
    plan = plans.read({
        "backbone": {"kind": "diffusion", "source": str(pipelines["flow"])},
        "data": {"kind": "digits"}, "quality": {"pictures": 1, "features": "judge"},
    })  # fmt: skip
    drawn = {"backbone": as_drawn("plain"), "global": as_drawn("bold")}
    found = measured(plan, ASKED, drawn, as_drawn("bold"))
    each = [compare(Judge(), as_drawn("bold"), made) for made in drawn.values()]
    assert found["rows"] == [
        ["Fréchet distance on glyph-judge features", each[0].frechet, each[1].frechet],
        ["Kernel distance, same features", each[0].kernel, each[1].kernel],
        ["Precision", each[0].precision, each[1].precision],
        ["Recall", each[0].recall, each[1].recall],
    ]
    assert each[1].frechet < each[0].frechet


@pytest.fixture(scope="module")
def clip(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of one layer a side, with the tiny denoiser's tokenizer."""
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {"vocab_size": 300, "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(1)  # such that it likes the pictures: a score is never below 0
        vision = small | {"image_size": 16, "patch_size": 8}
        network = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=4))
    folder = tmp_path_factory.mktemp("clip")
    network.save_pretrained(folder)
    AutoTokenizer.from_pretrained(pipelines["flow"] / "tokenizer").save_pretrained(folder)
    return folder


def test_a_clip_score_is_the_mean_over_pictures_and_their_prompts(clip: Path) -> None:
    plan = replace(Plan(), quality=plans.Quality(clip=str(clip)))
    drawn = {"backbone": as_drawn("plain"), "global": as_drawn("bold")}
    found = measured(plan, ASKED, drawn, as_drawn("bold"))
    means = [float(Clip(str(clip)).score(made, [one.prompt for one in ASKED]).mean()) for made in drawn.values()]
    assert found["rows"] == [["CLIP score", *means]]
    assert means[0] != means[1]


@pytest.mark.parametrize(
    ("quality", "line"),
    [
        ({"features": "resnet", "weights": "nowhere.th"}, "wanted RGB pictures"),
        ({"features": "judge", "pictures": 1, "clients": 1}, "wanted at least 4"),
        ({"clip": "nowhere"}, "nowhere"),
    ],
)
def test_what_would_fail_at_the_end_is_refused_at_the_start(
    plan: dict[str, Any], quality: dict[str, Any], line: str, tmp_path: Path
) -> None:
    wrong = plan | {"quality": plan["quality"] | quality}
    with pytest.raises(FedgenError, match=line):
        fedgen.run(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_features_that_cannot_see_the_pictures_leave_the_run_as_it_was(run: Run, tmp_path: Path) -> None:
    wrong = Run(shutil.copytree(run.folder, tmp_path / "tiny"))
    (wrong.folder / QUALITY).unlink()
    text = (wrong.folder / "plan.toml").read_text("utf-8").replace('weights = ""', f'weights = "{tmp_path}/none"')
    (wrong.folder / "plan.toml").write_text(text, "utf-8")
    with pytest.raises(fedgen.FedgenError, match=r"none: cannot be read .*is the path right\?"):
        resume(wrong.folder)
    assert wrong.finished
    assert not (wrong.folder / QUALITY).exists()
    report.write(wrong)
