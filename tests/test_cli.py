"""The command: what it prints, what it leaves, and what its exit codes mean."""

import contextlib
import copy
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import fedgen
from fedgen import Run, cli, lora, plan
from fedgen.errors import StoreError
from fedgen.sample import mixture
from fedgen.sheet import GAP, MARGIN
from fedgen.store import load_bundle

COMMAND = [sys.executable, "-m", "fedgen.cli"]
PLAIN = {"NO_COLOR": "1", "COLUMNS": "100", "TERM": "dumb"}


@pytest.fixture
def file(tiny_plan: dict[str, Any], tmp_path: Path) -> Path:
    """The tiny plan as a file."""
    path = tmp_path / "tiny.toml"
    path.write_text(plan.write(plan.read(copy.deepcopy(tiny_plan))), "utf-8")
    return path


def called(*words: object) -> Result:
    """The command, called in this process."""
    return CliRunner().invoke(cli.app, [str(word) for word in words], env=PLAIN)


def asked(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command, called as a user would."""
    line = [*COMMAND, *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, env=os.environ | PLAIN, cwd=cwd, check=False)


def test_a_run_says_its_rounds_its_outcome_and_its_report(file: Path, tmp_path: Path) -> None:
    said = called("run", file, "--to", tmp_path / "run", "--set", "rounds=3")
    assert said.exit_code == 0, said.output
    lines = said.output.splitlines()
    assert "6 clients, 4 a round, 3 rounds; backbone" in said.output
    assert [line.split()[1] for line in lines if re.match(r"round \d", line)] == ["1/3", "2/3", "3/3"]
    run = Run(tmp_path / "run")
    assert run.finished
    assert len(run.journal) == 3
    for adapter in ("backbone", "global", "personal"):
        assert any(line.strip().startswith(adapter) for line in lines)
    assert f"report: {tmp_path / 'run' / 'report.html'}" in said.output
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000


def test_the_table_shows_the_pooled_perplexities(tiny_run: Run) -> None:
    said = called("show", tiny_run.folder)
    assert said.exit_code == 0, said.output
    scores = tiny_run.scores.values()
    loss = sum(found["personal"].loss for found in scores) / sum(found["personal"].terms for found in scores)
    row = next(line.split() for line in said.output.splitlines() if line.strip().startswith("personal"))
    assert float(row[1]) == pytest.approx(2.718281828**loss, rel=1e-3)
    assert "of 6" in said.output


def test_a_dry_run_prints_plan_and_cost_and_writes_nothing(file: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    said = called("run", file, "--dry-run", "--set", "training.lr=0.5")
    assert said.exit_code == 0, said.output
    assert "lr = 0.5" in said.output
    assert re.search(r"clients +6, 4 a round, 2 rounds", said.output)
    assert "less than full-model FedAvg" in said.output
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_says_what_a_turn_is_to_each_class_of_devices(file: Path) -> None:
    said = called("run", file, "--dry-run").stdout
    assert re.search(r"# a turn would be on +in memory +rank +needs +of +down +work +up\n", said)
    assert re.search(r"# board +yes +4 +[\d.]+ kB +1.07 GB +\d+ ms +[\d.]+ m?s +\d+ ms\n", said)
    said = called("run", file, "--dry-run", "--set", "devices.kind=drawn", "--set", 'devices.classes=["phone"]').stdout
    assert re.search(r"# a turn on +clients +in memory +rank .*\n# phone +6 +yes +4 ", said)
    assert "# board" not in said


def test_what_a_dry_run_prints_is_a_plan(file: Path, tmp_path: Path) -> None:
    said = called("run", file, "--dry-run", "--set", "training.lr=0.5")
    (tmp_path / "again.toml").write_text(said.stdout, "utf-8")
    assert plan.read(tmp_path / "again.toml").training.lr == 0.5


def test_a_run_keeps_out_of_a_folder_that_holds_something_else(file: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary", "utf-8")
    said = called("run", file, "--to", tmp_path / "mine")
    assert said.exit_code == 1
    assert "holds other files (first 'diary.txt')" in str(said.exception)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["diary.txt"]


def test_a_comparison_is_a_page_and_replaces_nothing_else(tiny_run: Run, tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("keep me", "utf-8")
    said = called("compare", tiny_run.folder, tiny_run.folder, "--to", tmp_path / "precious.txt")
    assert said.exit_code == 1
    assert "a name ending in .html" in str(said.exception)
    assert (tmp_path / "precious.txt").read_text("utf-8") == "keep me"


def test_a_run_that_is_not_finished_says_how_far_it_is(tiny_run: Run, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.folder, tmp_path / "half")
    (tmp_path / "half" / "scores.json").unlink()
    said = called("show", tmp_path / "half")
    assert said.exit_code == 0
    loss = tiny_run.journal[-1]["metrics"]["loss"]
    assert f"2 of 2 rounds, loss {loss:.3f}, perplexity" in said.stdout
    assert f"go on with `fedgen resume {tmp_path / 'half'}`" in said.stdout


def test_tables_are_whole_in_80_columns(tiny_run: Run) -> None:
    wide = max(len(line) for line in called("show", tiny_run.folder).stdout.splitlines())
    assert wide <= 80
    listed = called("list", tiny_run.folder.parent).stdout
    assert "…" not in listed


def test_a_finished_run_is_resumed_listed_and_compared(tiny_run: Run, tmp_path: Path) -> None:
    assert called("resume", tiny_run.folder).exit_code == 0
    listed = called("list", tiny_run.folder.parent)
    assert listed.exit_code == 0
    assert tiny_run.folder.name in listed.output
    assert "2/2" in listed.output
    nothing = called("list", tmp_path)
    assert nothing.exit_code == 0
    assert "no runs below" in nothing.output
    page = tmp_path / "both.html"
    compared = called("compare", tiny_run.folder, tiny_run.folder, "--to", page)
    assert compared.exit_code == 0, compared.output
    assert page.read_text("utf-8").count("<html") == 1


def test_generate_writes_the_same_for_the_same_seed_and_other_text_for_another_adapter(tiny_run: Run) -> None:
    def written(*words: object) -> str:
        said = called("generate", tiny_run.folder, "--prompt", "the harbour ", "--tokens", 24, *words)
        assert said.exit_code == 0, said.output
        return said.stdout

    warm = ("--temperature", 1.0, "--seed", 3)
    assert written(*warm) == written(*warm)
    assert written(*warm) != written("--temperature", 1.0, "--seed", 4)
    assert written("--adapter", "backbone") == written("--adapter", "backbone")


@pytest.fixture(scope="module")
def picture_run(digits_plan: Callable[[str], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run over digits, each told by its number."""
    return fedgen.run(digits_plan("classes"), tmp_path_factory.mktemp("pictures") / "digits")


def drawn(run: Run, to: Path, *words: object) -> dict[str, bytes]:
    """The files that `generate` draws, which are those that it names."""
    said = called("generate", run.folder, "--steps", 2, "--out", to, *words)
    assert said.exit_code == 0, said.output
    assert said.stdout.splitlines() == [str(to / Path(line).name) for line in said.stdout.splitlines()]
    assert {Path(line).name for line in said.stdout.splitlines()} == {path.name for path in to.iterdir()}
    return {path.name: path.read_bytes() for path in to.iterdir()}


def test_generate_draws_pictures_that_say_how_they_were_made(picture_run: Run, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="the extra 'images' is not installed")
    made = drawn(picture_run, tmp_path / "new", "--prompt", 3, "--n", 12, "--seed", 5, "--guidance", 1)
    assert set(made) == {"3-global-sheet.png", *(f"3-global-{seed}.png" for seed in range(5, 17))}
    how = {"prompt": "3", "adapter": "global", "run": "digits", "steps": 2, "guidance": 1.0}
    with image.open(tmp_path / "new" / "3-global-7.png") as picture:
        picture.load()
        assert (picture.size, picture.mode) == ((8, 8), "L")
        assert json.loads(picture.text["parameters"]) == how | {"seed": 7}
    with image.open(tmp_path / "new" / "3-global-sheet.png") as sheet:
        sheet.load()
        assert sheet.size == (2 * MARGIN + GAP + 10 * 52, 2 * MARGIN + 2 * 52)  # ten in a row, the other two below
        assert json.loads(sheet.text["parameters"]) == how | {"seeds": list(range(5, 17))}


def test_generate_draws_the_same_for_the_same_seed_and_else_something_else(picture_run: Run, tmp_path: Path) -> None:
    first = drawn(picture_run, tmp_path / "first", "--prompt", 3, "--n", 3)
    assert drawn(picture_run, tmp_path / "again", "--prompt", 3, "--n", 3) == first
    alone = drawn(picture_run, tmp_path / "alone", "--prompt", 3, "--seed", 2)
    assert alone["3-global-2.png"] == first["3-global-2.png"]
    other = drawn(picture_run, tmp_path / "other", "--prompt", 4, "--n", 3)
    assert all(other[name.replace("3-", "4-", 1)] != first[name] for name in first)
    assert len(set(first.values())) == 4


def test_generate_draws_nothing_where_the_wish_is_wrong(picture_run: Run, tmp_path: Path) -> None:
    for words, said in (
        (("--prompt", 3, "--adapter", "client/zoe"), "has no adapter 'client/zoe'; it has global"),
        (("--prompt", "a cat"), "label 'a cat': wanted the number of a class, 0 to 9"),
    ):
        found = called("generate", picture_run.folder, "--out", tmp_path / "out", *words)
        assert found.exit_code == 1
        assert said in str(found.exception)
    for words in (("--prompt", 3, "--n", 0), ("--prompt", 3, "--steps", 0), ()):
        assert called("generate", picture_run.folder, "--out", tmp_path / "out", *words).exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_export_makes_a_bundle_with_the_clients_name(tiny_run: Run, tmp_path: Path) -> None:
    said = called("export", tiny_run.folder, "--adapter", "client/ann", "--to", tmp_path / "ann")
    assert said.exit_code == 0, said.output
    adapter, card = load_bundle(tmp_path / "ann")
    own = tiny_run.shelf().get("ann")
    assert own is not None
    assert card.client == "ann"
    assert all(adapter[key].equal(own[key]) for key in own)
    assert json.loads((tmp_path / "ann" / "adapter_config.json").read_text())["lora_alpha"] == card.rank


# ---- mixtures and routes


@pytest.fixture(scope="module")
def clustered_run(tiny_plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny run, its clients in two clusters by how their texts begin."""
    grouped = {"encode": {"kind": "ngrams"}, "cluster": {"kind": "kmeans", "count": 2}}
    return fedgen.run(tiny_plan | grouped, tmp_path_factory.mktemp("runs") / "clustered")


def test_a_sealed_prompt_is_generated_from_like_a_plain_one(tiny_run: Run, tmp_path: Path) -> None:
    note = tmp_path / "deep" / "prompt.safetensors"
    assert str(note) in called("seal", tiny_run.folder, "--prompt", "the harbour ", "--to", note).output
    plain = called("generate", tiny_run.folder, "--prompt", "the harbour ", "--tokens", 8)
    assert called("generate", tiny_run.folder, "--sealed", note, "--tokens", 8).stdout == plain.stdout
    assert called("generate", tiny_run.folder, "--prompt", "", "--tokens", 2).exit_code == 0
    for words in ((), ("--prompt", "x", "--sealed", note), ("--sealed", note, "--route")):
        assert called("generate", tiny_run.folder, *words).exit_code == 2
    assert called("generate", tiny_run.folder, "--prompt", "x", "--gain", 2).exit_code == 2
    missing = called("generate", tiny_run.folder, "--sealed", tmp_path / "none")
    assert isinstance(missing.exception, StoreError)


def test_generate_mixes_adapters(clustered_run: Run) -> None:
    def written(*words: object) -> str:
        warm = ("--prompt", "the harbour ", "--tokens", 24, "--temperature", 1.0)
        said = called("generate", clustered_run.folder, *warm, *words)
        assert said.exit_code == 0, said.output
        return said.stdout

    alone = written("--adapter", "cluster-1")
    assert written("--mix", "cluster-1") == written("--mix", "cluster-1=1,backbone=0.5") == alone
    assert written("--mix", "cluster-1=40,cluster-2=-40") != alone


def test_generate_routes_by_the_prompt_and_says_how(clustered_run: Run) -> None:
    opening = (Path(clustered_run.plan.data.path) / "ann.txt").read_text("utf-8")[:200]  # type: ignore[attr-defined]
    own, sharp = clustered_run.clusters["where"]["ann"], ("--tokens", 8, "--spread", 0.001)
    said = called("generate", clustered_run.folder, "--prompt", opening, "--route", "--top", 1, *sharp)
    assert said.exit_code == 0, said.output
    assert said.stderr == f"routed to {own}=1\n"
    assert said.stdout == called("generate", clustered_run.folder, "--prompt", opening, "--mix", own, *sharp[:2]).stdout
    both = called("generate", clustered_run.folder, "--prompt", opening, "--route", "--spread", 0.5, "--tokens", 2)
    weights = mixture(both.stderr.removeprefix("routed to ").strip())
    assert next(iter(weights)) == own
    assert sorted(weights) == ["cluster-1", "cluster-2"]
    assert sum(weights.values()) == pytest.approx(1, abs=1e-3)


def test_a_route_that_cannot_be_taken_is_one_line(clustered_run: Run, tiny_run: Run) -> None:
    flat = called("generate", tiny_run.folder, "--prompt", "x", "--route")
    assert flat.exit_code == 1
    assert "has no centroids.safetensors to route by" in str(flat.exception)
    both = called("generate", clustered_run.folder, "--prompt", "x", "--route", "--mix", "cluster-1=1")
    assert both.exit_code == 2
    for words in (("--top", 0), ("--spread", 0)):
        assert called("generate", clustered_run.folder, "--prompt", "x", "--route", *words).exit_code == 2


def test_a_mixture_that_cannot_be_made_is_one_line(clustered_run: Run, tmp_path: Path) -> None:
    for text, came in (
        ("cluster-1=0.5,cluster-9=0.5", "has no adapter 'cluster-9'; it has cluster-1, cluster-2, "),
        ("cluster-1=half", "no finite weight of 'cluster-1'"),
        ("cluster-1=0.5,cluster-1=0.5", "names 'cluster-1' twice"),
        ("cluster-1 until 0.5 then cluster-2", "take turns between the steps of a picture alone"),
    ):
        for words in (("generate", "--prompt", "x"), ("export", "--to", tmp_path / "out")):
            said = called(words[0], clustered_run.folder, "--mix", text, *words[1:])
            assert said.exit_code == 1
            assert came in str(said.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_picture_of_a_mixture_says_its_weights(picture_run: Run, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image", reason="the extra 'images' is not installed")
    for text in ("global=0.7,backbone=0.3", "global until 0.5 then global=-1"):
        made = drawn(picture_run, tmp_path / text[:9], "--prompt", 3, "--mix", text)
        for name in made:
            with image.open(tmp_path / text[:9] / name) as picture:
                picture.load()
                assert json.loads(picture.text["parameters"])["adapter"] == text


def test_export_makes_one_adapter_of_a_mixture_and_says_its_loss(clustered_run: Run, tmp_path: Path) -> None:
    mixed = ("--mix", "cluster-1=0.5,cluster-2=0.5")
    said = called("export", clustered_run.folder, *mixed, "--rank", 3, "--to", tmp_path / "narrow")
    assert said.exit_code == 0, said.output
    lost = re.search(r"narrow: rank 3, ([\d.]+)% of its energy lost, content", said.stdout)
    assert lost is not None
    parts = [(0.5, clustered_run.adapter(name)[0]) for name in ("cluster-1", "cluster-2")]
    assert float(lost[1]) == pytest.approx(100 * (1 - lora.energy_kept(lora.product_sum(parts), 3)), abs=0.01)
    _, card = load_bundle(tmp_path / "narrow")
    assert (card.rank, card.cluster, card.run) == (3, "cluster-1=0.5,cluster-2=0.5", "clustered")
    assert card.parent == ",".join(clustered_run.adapter(name)[1].hash for name in ("cluster-1", "cluster-2"))
    whole = called("export", clustered_run.folder, *mixed, "--to", tmp_path / "whole")
    assert "whole: rank 8, content" in whole.stdout


WRONG = [
    (["run", "no-such-plan.toml"], 2, "cannot be read"),
    (["show", "no-such-run"], 1, "wanted the folder of a run"),
    (["resume", "no-such-run"], 1, "wanted the folder of a run"),
    (["frobnicate"], 2, "No such command"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "code", "said"), WRONG, ids=[" ".join(words) for words, _, _ in WRONG])
def test_what_goes_wrong_is_one_line_and_an_exit_code(words: list[str], code: int, said: str, tmp_path: Path) -> None:
    found = asked(*words, cwd=tmp_path)
    assert found.returncode == code
    assert said in found.stderr
    assert "Traceback" not in found.stderr
    if code == 1:
        assert len(found.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_adapter_names_those_there_are(tiny_run: Run) -> None:
    said = called("generate", tiny_run.folder, "--prompt", "x", "--adapter", "client/zoe")
    assert said.exit_code == 1
    assert "has no adapter 'client/zoe'" in str(said.exception)
    assert "client/ann" in str(said.exception)


def until(check: Any, seconds: float = 60) -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def long_run(file: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Path, int]]:
    """A run of very many rounds in a terminal of its own."""
    here, there = pty.openpty()
    folder = tmp_path / "long"
    line = [*COMMAND, "run", str(file), "--to", str(folder), "--set", "rounds=100000"]
    process = subprocess.Popen(line, stdout=there, stderr=there, stdin=there, env=os.environ | {"COLUMNS": "120"})
    os.close(there)
    yield process, folder, here
    process.kill()
    process.wait()
    os.close(here)


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_the_run_can_go_on(
    long_run: tuple[subprocess.Popen[bytes], Path, int], tmp_path: Path
) -> None:
    process, folder, terminal = long_run
    journal = folder / "journal.jsonl"
    os.set_blocking(terminal, False)
    shown = bytearray()

    def read() -> bool:
        with contextlib.suppress(OSError):  # nothing to read yet, or nobody left to write
            shown.extend(os.read(terminal, 65536))
        return journal.exists() and journal.read_bytes().count(b"\n") >= 3

    until(read)
    process.send_signal(signal.SIGINT)
    until(lambda: (read(), process.poll() is not None)[1])
    read()
    text = shown.decode("utf-8", "replace")
    assert process.returncode == 130
    assert "Traceback" not in text
    assert f"fedgen resume {folder}" in re.sub(r"\s+", " ", text)
    rounds = len(Run(folder).journal)
    (folder / "plan.toml").write_text(
        (folder / "plan.toml").read_text().replace("rounds = 100000", f"rounds = {rounds + 1}")
    )
    said = called("resume", folder)
    assert said.exit_code == 0, said.output
    assert len(Run(folder).journal) == rounds + 1
    assert Run(folder).finished
