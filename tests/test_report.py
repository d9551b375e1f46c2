"""The report: a run's own numbers, whole and escaped, on a page that needs nothing else."""

import copy
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import fedgen
from fedgen import FedgenError, Run, report
from fedgen.errors import StoreError
from fedgen.evaluate import YARDSTICKS, gains, total
from fedgen.journal import Journal, line_of
from fedgen.records import Failure, Report
from fedgen.report.wording import number, percent, saving, scale, size, span
from fedgen.run import CHECKPOINT, FACTS, JOURNAL, SCORES

KINDS = ("backbone", "global", "personal")
NASTY = '<img src=x onerror="alert(1)">&'


class Page(HTMLParser):
    """A page as a reader's browser takes it apart; a tag closed out of turn is an error."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text("utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.words: list[str] = []
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        """Everything that is read."""
        return " ".join(" ".join(self.words).split())

    def table(self, column: str) -> list[list[str]]:
        """The table that has a column of this name."""
        return next(table for table in self.tables if column in table[0])


def page(run: Run) -> Page:
    return Page(report.write(run))


def copied(run: Run, folder: Path) -> Run:
    return Run(Path(shutil.copytree(run.folder, folder)))


@pytest.fixture(scope="module")
def shown(tiny_run: Run) -> Page:
    """The page of the run that all share."""
    return page(tiny_run)


@pytest.fixture
def unfinished(tiny_run: Run, tmp_path: Path) -> Run:
    """The run as a kill after its first round would have left it."""
    run = copied(tiny_run, tmp_path / "cut")
    (run.folder / SCORES).unlink()
    (run.folder / CHECKPOINT).unlink()
    Journal(run.folder / JOURNAL).rewind(1)
    return run


@pytest.fixture(scope="module")
def nasty_run(tiny_plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose names would be markup if anyone forgot to escape them."""
    folder = tmp_path_factory.mktemp("nasty")
    text = Path(shutil.copytree(tiny_plan["data"]["path"], folder / "text"))
    (text / "ann.txt").rename(text / f"{NASTY}.txt")
    (text / "<script>.txt").write_text("short", "utf-8")
    plan = copy.deepcopy(tiny_plan) | {"name": "<u>nasty & co", "rounds": 1, "deal": {"small": "drop"}}
    plan["data"]["path"] = str(text)
    return fedgen.run(plan, folder / "<u>run")


def test_the_scores_are_the_runs_own(tiny_run: Run, shown: Page) -> None:
    scores = tiny_run.scores
    rows = {row[0]: row[1:] for row in shown.table("Backbone")}
    pooled = [total(found[kind] for found in scores.values()) for kind in KINDS]
    assert rows["Perplexity per token"] == [number(score.per_term) for score in pooled]
    assert rows["Perplexity per word"] == [number(score.per_word) for score in pooled]
    assert rows["Bits per byte"] == [f"{score.bits_per_byte:.3f}" for score in pooled]
    before = {name: found["backbone"] for name, found in scores.items()}
    yardstick = YARDSTICKS["text"]
    gained = [gains(before, {name: found[kind] for name, found in scores.items()}, yardstick) for kind in KINDS[1:]]
    assert rows["Mean fall per client"][1:] == [percent(gain.mean) for gain in gained]
    assert rows["Fall, worst tenth"][1:] == [percent(gain.worst_decile) for gain in gained]
    assert rows["Clients that gained"][1:] == [f"{gain.gained} of 6" for gain in gained]
    assert f"{pooled[0].terms:,} held-out tokens of 6 clients" in shown.text
    assert f"{gained[1].gained} of 6 clients gained" in shown.text


def test_every_client_has_a_row_and_a_mark(tiny_run: Run, shown: Page) -> None:
    rows = {row[0]: row[1:] for row in shown.table("Client")[1:]}
    assert rows.keys() == tiny_run.scores.keys()
    for name, found in tiny_run.scores.items():
        falls = [percent(1 - found[kind].per_term / found["backbone"].per_term) for kind in ("global", "personal")]
        values = [number(found[kind].per_term) for kind in ("backbone", "global", "personal")]
        assert rows[name] == [f"{found['backbone'].terms}", *values, *falls]
        title = f"{name}: global {falls[0]}, personal {falls[1]}"
        assert shown.source.count(f"<title>{title}</title>") == 2


def test_bytes_are_counted_both_ways_and_beside_the_full_model(tiny_run: Run, shown: Page) -> None:
    rows = {row[0]: row[1:] for row in shown.table("Bytes up")}
    lines, outcome, full = tiny_run.journal, tiny_run.outcome, tiny_run.facts["full_bytes"] * 8
    up, down = sum(line["up"] for line in lines), sum(line["down"] for line in lines)
    assert rows["Adapters, 2 rounds"] == [f"{up:,}", f"{down:,}"]
    assert rows["Last question: everyone's scores"] == [f"{outcome['up']:,}", f"{outcome['down']:,}"]
    checks = [int(sum(line["metrics"][f"check_{way}"] for line in lines)) for way in ("up", "down")]
    assert checks[1] > checks[0] > 0
    assert rows["Validation between rounds"] == [f"{check:,}" for check in checks]
    assert rows["All of it"] == [f"{up + checks[0] + outcome['up']:,}", f"{down + checks[1] + outcome['down']:,}"]
    assert rows["Full-model FedAvg, the same rounds"] == [f"{full:,}"] * 2
    assert rows["Saved in the rounds"] == [saving(1 - up / full), saving(1 - down / full)]


def test_every_round_has_a_row(tiny_run: Run, shown: Page) -> None:
    rows = shown.table("Seconds")[1:]
    for row, line in zip(rows, tiny_run.journal, strict=True):
        assert row[:4] == [str(line["round"]), "4", "0", f"{line['metrics']['loss']:.4f}"]
        assert row[4:7] == [number(line["metrics"]["perplexity"]), f"{line['up']:,}", f"{line['down']:,}"]


def test_a_small_saving_is_said_with_its_reason(tiny_run: Run, shown: Page, tmp_path: Path) -> None:
    assert "under 99%" in shown.text
    assert f"the whole model only {size(tiny_run.facts['full_bytes'])}" in shown.text
    run = copied(tiny_run, tmp_path / "large")
    facts = run.facts | {"full_bytes": 10**10}
    (run.folder / FACTS).write_text(json.dumps(facts), "utf-8")
    assert "under 99%" not in page(run).text


def test_it_says_how_it_was_measured(tiny_run: Run, shown: Page) -> None:
    for said in ("Seed 0: one run", tiny_run.facts["machine"], tiny_run.facts["versions"]["torch"], "Peak memory"):
        assert said in shown.text
    assert (tiny_run.folder / "plan.toml").read_text("utf-8") in shown.words


def test_seven_figures_that_can_be_read_without_eyes(shown: Page) -> None:
    drawn = [attrs for tag, attrs in shown.tags if tag == "svg"]
    assert len(drawn) == 7
    assert all(attrs["role"] == "img" and len(attrs["aria-label"] or "") > 20 for attrs in drawn)


def well_made(shown: Page) -> None:
    """What holds for every page: nothing from elsewhere, ids said once and found, heads with scope, themed colours."""
    assert not re.search(r"https?:|//|@import|<script|\bsrc=", re.sub(r"&lt;.*?&gt;", "", shown.source))
    ids = [attrs["id"] for _, attrs in shown.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    references = [attrs["href"] for _, attrs in shown.tags if "href" in attrs]
    references += re.findall(r"url\((.*?)\)", shown.source)
    assert references
    assert {(reference or "").removeprefix("#") for reference in references} <= set(ids)
    assert all(attrs.get("scope") in ("col", "row") for tag, attrs in shown.tags if tag == "th")
    svgs = re.findall(r"<svg.*?</svg>", shown.source, re.DOTALL)
    assert not [colour for svg in svgs for colour in re.findall(r"#[0-9a-f]{6}\b", svg)]
    assert "prefers-color-scheme: dark" in shown.source
    levels = [int(tag[1]) for tag, _ in shown.tags if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_the_page_is_well_made(shown: Page) -> None:
    well_made(shown)


def test_the_same_run_gives_the_same_bytes(tiny_run: Run) -> None:
    first = report.write(tiny_run).read_bytes()
    assert report.write(tiny_run).read_bytes() == first


def test_drawing_leaves_the_settings_of_others_alone(tiny_run: Run) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    with matplotlib.rc_context({"lines.linewidth": 7.0, "svg.fonttype": "path", "text.usetex": True}):
        before = dict(matplotlib.rcParams)
        odd = report.write(tiny_run).read_bytes()
        assert dict(matplotlib.rcParams) == before
    assert report.write(tiny_run).read_bytes() == odd


def test_names_are_text_and_never_markup(nasty_run: Run, tmp_path: Path) -> None:
    shown = page(nasty_run)
    well_made(shown)
    assert not {tag for tag, _ in shown.tags} & {"u", "img", "script"}
    assert not [attrs for _, attrs in shown.tags if "onerror" in attrs]
    assert NASTY in [row[0] for row in shown.table("Client")]
    assert "Dropped before the first round, because their data was too small: <script>." in shown.text
    assert "<u>nasty & co" in shown.text
    beside = Page(report.compare([nasty_run, nasty_run], tmp_path / "both.html"))
    well_made(beside)
    assert beside.table("Gained")[1][0] == "<u>run (1)"


def test_an_unfinished_run_says_so_and_shows_its_rounds(unfinished: Run) -> None:
    shown = page(unfinished)
    well_made(shown)
    assert "This run is not finished: 1 of 2 rounds so far" in shown.text
    assert len(shown.table("Seconds")) == 2
    assert not [table for table in shown.tables if "Backbone" in table[0]]
    assert len([tag for tag, _ in shown.tags if tag == "svg"]) == 6


def test_a_run_before_its_first_round(unfinished: Run) -> None:
    (unfinished.folder / JOURNAL).unlink()
    assert "0 of 2 rounds so far" in page(unfinished).text
    (unfinished.folder / FACTS).unlink()
    assert "0 of 2 rounds so far" in page(unfinished).text


def test_failures_are_counted_by_reason(unfinished: Run) -> None:
    failures = tuple(Failure(2, name, "global", "<b>no</b> answer", 10) for name in ("bob", "ann"))
    line = line_of(Report(2, ("ann", "bob", "cleo"), failures, {"loss": 3.0, "terms": 60.0}, 500, 1500, 0.5))
    Journal(unfinished.folder / JOURNAL).append(line)
    shown = page(unfinished)
    assert shown.table("Reason")[1:] == [["<b>no</b> answer", "2", "ann, bob"]]
    assert shown.table("Seconds")[2][:5] == ["2", "3", "2", "3.0000", "–"]
    assert "7 turns asked for, 5 answered" in shown.text


def test_a_run_without_personal_adapters(tiny_plan: dict[str, Any], tmp_path: Path) -> None:
    plan = copy.deepcopy(tiny_plan) | {"rounds": 1, "personal": {"kind": "none"}, "evaluate": {"every": 0}}
    run = fedgen.run(plan, tmp_path / "shared")
    shown = page(run)
    well_made(shown)
    assert shown.table("Backbone")[0] == ["", "Backbone", "Global"]
    assert "The global adapter lowered" in shown.text or "The global adapter raised" in shown.text
    assert "Validation none" in shown.text


def test_a_client_without_scores_is_left_out_and_counted(tiny_run: Run, tmp_path: Path) -> None:
    run = copied(tiny_run, tmp_path / "less")
    outcome = run.outcome
    outcome["clients"]["ann"]["personal"]["loss"] = float("nan")
    (run.folder / SCORES).write_text(json.dumps(outcome), "utf-8")
    shown = page(run)
    assert "Left out here: 1 client that could not be scored" in shown.text
    assert "ann" not in [row[0] for row in shown.table("Client")]


def test_runs_side_by_side(tiny_run: Run, unfinished: Run, tmp_path: Path) -> None:
    plan = (unfinished.folder / "plan.toml").read_text("utf-8").replace("rank = 4", "rank = 2")
    (unfinished.folder / "plan.toml").write_text(plan, "utf-8")
    shown = Page(report.compare([tiny_run, unfinished], tmp_path / "new" / "both.html"))
    well_made(shown)
    whole, cut = shown.table("Gained")[1:]
    kinds = ("backbone", "global", "personal")
    pooled = [number(total(found[kind] for found in tiny_run.scores.values()).per_term) for kind in kinds]
    assert whole[:6] == ["tiny", "2", "6", *pooled]
    assert cut[:6] == ["cut", "1 of 2, unfinished", "6", "–", "–", "–"]
    assert shown.table("adapter.rank") == [["Run", "adapter.rank"], ["tiny", "4"], ["cut", "2"]]
    assert len([tag for tag, _ in shown.tags if tag == "svg"]) == 3
    assert "Take care" not in shown.text


def test_runs_on_other_text_are_not_laid_side_by_side_in_silence(tiny_run: Run, nasty_run: Run, tmp_path: Path) -> None:
    shown = Page(report.compare([tiny_run, nasty_run], tmp_path / "both.html"))
    assert "their plans choose the text differently" in shown.text


def test_nothing_to_compare(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="wanted at least one run, came none"):
        report.compare([], tmp_path / "none.html")
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_the_remedy_is_said(tiny_run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = copied(tiny_run, tmp_path / "bare")
    (run.folder / "report.html").unlink(missing_ok=True)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(FedgenError, match=r"pip install fedgen-edge\[report\]"):
        report.write(run)
    assert not (run.folder / "report.html").exists()


def test_numbers_as_people_read_them() -> None:
    assert [number(value) for value in (3.14159, 123.456, 12345.6, float("inf"))] == ["3.14", "123.5", "12,346", "–"]
    assert [percent(value) for value in (0.1234, -0.05)] == ["12.3%", "−5.0%"]
    assert [saving(value) for value in (0.98999, 0.99)] == ["98.99%", "99.00%"]
    sizes = (0, 999, 1000, 999_499, 999_500, 10_230_528, 5e15)
    assert [size(value) for value in sizes] == ["0 bytes", "999 bytes", "1 kB", "999 kB", "1 MB", "10.2 MB", "5,000 TB"]
    assert [span(value) for value in (1.25, 79.6, 3725)] == ["1.2 s", "1 min 20 s", "1 h 2 min"]
    assert [scale(value)[0] for value in (119, 120, 7199, 7200)] == ["seconds", "minutes", "minutes", "hours"]
