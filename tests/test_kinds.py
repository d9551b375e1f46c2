"""One loop, two kinds of measure: a made-up denoiser through scoring, a whole run, its page and the terminal."""

import dataclasses
import html
import math
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

from fedgen import Bank, Run, report
from fedgen import plan as plans
from fedgen.backbones import Diffusion
from fedgen.data.deal import count, take
from fedgen.evaluate import YARDSTICKS, score
from fedgen.places import inprocess, silent
from fedgen.records import Document, Report, Rows
from fedgen.run import PLAN, SCORES, SHELF, Began, go
from fedgen.screen import Screen, outcome_table, runs_table, standing
from fedgen.turns import head

PIXELS, LOOKS = 12, 3


class Guesser(nn.Module):
    """Two layers that guess what noise is in a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.guess = nn.Linear(PIXELS, 16, bias=False), nn.Linear(16, PIXELS, bias=False)
        draw = torch.Generator().manual_seed(7)
        for layer in (self.read, self.guess):
            nn.init.normal_(layer.weight, std=0.3, generator=draw)

    def forward(self, noisy: Tensor) -> Tensor:
        return self.guess(self.read(noisy).tanh())


@dataclass(frozen=True)
class Denoiser:
    """A backbone of pictures of one line each; a document's text is cut into them, byte by byte."""

    looks: int = LOOKS
    network: nn.Module = field(default_factory=Guesser)
    name: str = "guesser"
    hash: str = "0" * 64
    kind: str = "image"
    component: str = "unet"
    targets: tuple[str, ...] = ("read", "guess")
    length: int = 16

    def encode(self, documents: Sequence[Document]) -> Rows:
        raw = "".join(document.text for document in documents).encode()[: 40 * PIXELS]
        whole = len(raw) // PIXELS * PIXELS
        return {"picture": torch.tensor(list(raw[:whole])).view(-1, PIXELS) / 64 - 1.5}

    def draw(self, rows: Rows, draw: torch.Generator) -> Rows:
        noise = [torch.randn(PIXELS, generator=draw) * torch.rand(1, generator=draw) for _ in range(count(rows))]
        return rows | {"noise": torch.stack(noise)}

    def losses(self, rows: Rows) -> tuple[Tensor, Tensor]:
        guessed = self.network(rows["picture"] + rows["noise"])
        return (guessed - rows["noise"]).square().mean(1), torch.ones(len(guessed), dtype=torch.long)

    def row_bytes(self, *, anew: bool = False) -> int:
        return 4 * 100


# --- scoring


def tasks_on(bank: Bank, sizes: Sequence[int]) -> list[tuple[Tensor, Rows]]:
    """Adapters that change something, each with so many pictures of its own."""
    draw = torch.Generator().manual_seed(1)
    return [
        (0.3 * torch.randn(bank.layout.width, generator=draw), {"picture": torch.randn(size, PIXELS, generator=draw)})
        for size in sizes
    ]


@pytest.mark.parametrize("batch", [1, 2, 5, 16, 100])
@pytest.mark.parametrize("looks", [1, 3])
def test_pictures_scored_together_are_scored_as_alone(looks: int, batch: int) -> None:
    denoiser = Denoiser(looks)
    with Bank(denoiser.network, denoiser.targets, 2) as bank:
        tasks = tasks_on(bank, [3, 1, 7, 4])
        together = score(denoiser, bank, tasks, batch=batch)
        alone = [score(denoiser, bank, [task], batch=7)[0] for task in tasks]
    assert [found.loss for found in together] == pytest.approx([found.loss for found in alone], rel=1e-6)
    assert [found.terms for found in together] == [found.terms for found in alone] == [3, 1, 7, 4]
    assert all((found.words, found.bytes) == (0, 0) for found in together)


def test_a_score_is_the_mean_of_the_looks_by_hand() -> None:
    denoiser = Denoiser()
    with Bank(denoiser.network, denoiser.targets, 2) as bank:
        (line, rows), draw = tasks_on(bank, [2])[0], torch.Generator().manual_seed(0)
        (found,) = score(denoiser, bank, [(line, rows)])
        loss = 0.0
        for at in range(2):
            for _ in range(LOOKS):
                row = denoiser.draw(take(rows, torch.tensor([at])), draw)
                with bank.carry(line[None]):
                    loss += denoiser.losses(row)[0].item() / LOOKS
    assert found.loss == pytest.approx(loss, rel=1e-6)


def test_every_adapter_and_every_share_of_the_rows_meets_the_same_noise() -> None:
    denoiser = Denoiser()
    with Bank(denoiser.network, denoiser.targets, 2) as bank:
        _, rows = tasks_on(bank, [5])[0]
        bare = torch.zeros(bank.layout.width)
        one, other, few = score(denoiser, bank, [(bare, rows), (bare, rows), (bare, head(rows, 2))], batch=4)
        (rest,) = score(denoiser, bank, [(bare, rows)])
    assert one.loss == pytest.approx(other.loss, rel=1e-6) == pytest.approx(rest.loss, rel=1e-6)
    assert 0 < few.loss < one.loss


# --- a run


@pytest.fixture(scope="module")
def pictured(tiny_plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    """A finished run of pictures, and what the terminal said of it."""
    folder, denoiser, heard = tmp_path_factory.mktemp("pictures") / "pictured", Denoiser(), StringIO()
    settings = ["rounds=3", "evaluate.keep=2", "training.steps=20", "training.lr=0.02", "personal.steps=20"]
    settled = inprocess.settle(plans.read(tiny_plan, settings), denoiser)
    folder.mkdir()
    (folder / PLAN).write_text(plans.write(settled), "utf-8")
    screen = Screen(Console(file=heard, width=160))
    with screen:
        found = go(folder, settled, inprocess.place(settled, denoiser, folder / SHELF, silent), screen.tell)
    return found, heard.getvalue()


def test_a_run_of_pictures_is_measured_in_denoising_loss(pictured: tuple[Run, str]) -> None:
    run, _ = pictured
    assert run.yardstick == YARDSTICKS["image"]
    assert {key: run.facts[key] for key in ("kind", "component", "looks")} == {
        "kind": "image", "component": "unet", "looks": LOOKS,
    }  # fmt: skip
    assert "diffusers" in run.facts["versions"]
    for line in run.journal:
        assert set(line["metrics"]) == {"loss", "terms", "answered", "denoising", "check_up", "check_down"}
        assert line["metrics"]["terms"] == 4 * 20 * 2  # clients, steps, pictures a step
    for found in run.scores.values():
        assert [score.terms for score in found.values()] == [4, 4, 4]
        assert found["personal"].loss < found["backbone"].loss


def test_its_scores_are_those_of_its_adapters_alone(pictured: tuple[Run, str]) -> None:
    run, _ = pictured
    denoiser = Denoiser()
    held, _ = inprocess.hold_data(run.plan, denoiser)
    with Bank(denoiser.network, denoiser.targets, run.plan.adapter.rank) as bank:
        shared = bank.layout.vector(run.adapter("global")[0])
        for name, client in held.items():
            (found,) = score(denoiser, bank, [(shared, head(client.test, 4))], batch=1)
            assert found.loss == pytest.approx(run.scores[name]["global"].loss, rel=1e-5)


def test_adapters_of_pictures_are_kept_on_the_way_and_diffusers_finds_them(pictured: tuple[Run, str]) -> None:
    run, _ = pictured
    assert run.adapters()[:2] == ["global", "global@round-2"]
    for name, turn in (("global", 3), ("global@round-2", 2)):
        _, card = run.adapter(name)
        assert (card.kind, card.cluster, card.round) == ("image", "global", turn)
        assert list(card.metrics) == ["denoising"]
        weights = load_file(run.folder / "adapters" / name / "pytorch_lora_weights.safetensors")
        assert {key.split(".")[0] for key in weights} == {"unet"}
    assert card.metrics["denoising"] == run.journal[1]["metrics"]["denoising"]
    ended = [found["global"] for found in run.scores.values()]
    mean = math.fsum(found.loss for found in ended) / sum(found.terms for found in ended)
    assert run.adapter("global")[1].metrics["denoising"] == pytest.approx(mean)


# --- how it reads

OF_TEXT = re.compile(r"\b(perplexity|perplexities|tokens?|text|words?|nats|bits per byte|bits/byte)\b", re.IGNORECASE)


def read(path: Path) -> str:
    """What a reader sees of a page, but for the resolved plan."""
    bare = re.sub(r"<style>.*?</style>|<pre.*?</pre>|<[^>]+>", " ", path.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(bare).split())


def test_the_page_speaks_of_pictures(pictured: tuple[Run, str]) -> None:
    run, _ = pictured
    said = read(report.write(run))
    assert OF_TEXT.findall(said) == []
    for wanted in (
        "Personal adapters lowered the denoising loss of pictures held out from training by",
        "lower denoising loss with personal adapters",
        "all pictures together: 0.",
        "Denoising loss per picture",
        "On 24 held-out pictures of 6 clients. The first row pools all pictures.",
        "Validation denoising loss",
        "squared error",
        "Pictures a second",
        f"24 pictures of 6 clients, each looked at {LOOKS} times, with the same noise under every adapter",
        "the mean squared error of the denoiser over a picture, weighted as in training; lower is better",
    ):
        assert wanted in said
    assert "What they draw" not in said


def test_an_unfinished_run_of_pictures(pictured: tuple[Run, str], tmp_path: Path) -> None:
    run = Run(shutil.copytree(pictured[0].folder, tmp_path / "cut"))
    (run.folder / SCORES).unlink()
    said = read(report.write(run))
    assert "scores on held-out pictures come at its end" in said
    assert OF_TEXT.findall(said) == []
    seen = run.journal[-1]["metrics"]
    assert f"3 of 3 rounds, loss {seen['loss']:.4f}, denoising loss {seen['denoising']:.4f}; " in standing(run)


def shown(table: object) -> str:
    """A table as the terminal shows it."""
    out = StringIO()
    Console(file=out, width=160).print(table)
    return out.getvalue()


def test_the_terminal_speaks_of_pictures(pictured: tuple[Run, str]) -> None:
    run, heard = pictured
    metrics = run.journal[0]["metrics"]
    assert f"loss {metrics['loss']:.4f}  denoising loss {metrics['denoising']:.4f}" in heard
    assert "pictures/s" in heard
    table = shown(outcome_table(run))
    assert "held-out pictures of 6 clients" in table
    assert "denoising loss" in table
    assert OF_TEXT.findall(heard + table) == []
    assert max(len(line.rstrip()) for line in table.splitlines()) <= 80
    pooled = [found["personal"].loss for found in run.scores.values()]
    assert f"{math.fsum(pooled) / 24:.4f}" in table


def test_a_round_before_the_run_has_said_what_it_is() -> None:
    out = StringIO()
    with Screen(Console(file=out, width=160)) as screen:
        screen.tell(Report(1, ("a",), (), {"loss": 2.0, "terms": 6.0}, 10, 10, 0.5))
    assert "loss 2.000" in out.getvalue()
    assert "12 tokens/s" in out.getvalue()


def test_a_client_left_out_is_said_in_words_of_either_kind(pictured: tuple[Run, str]) -> None:
    run, out = pictured[0], StringIO()
    with Screen(Console(file=out, width=160)) as screen:
        screen.tell(Began(run.folder, run.plan, run.facts | {"dropped": ["gus"]}, 0))
    assert "client 'gus' has too little data and is left out" in out.getvalue()


def test_runs_of_one_kind_are_compared_in_its_measure(pictured: tuple[Run, str], tmp_path: Path) -> None:
    run, _ = pictured
    said = read(report.compare([run, run], tmp_path / "two.html"))
    assert "The lowest held-out denoising loss is 0." in said
    assert "Denoising loss per picture over all held-out pictures; the fall" in said
    assert OF_TEXT.findall(said) == []
    assert shown(runs_table([run, run])).count("denoising") == 0


def test_losses_taken_differently_are_not_compared_in_silence(pictured: tuple[Run, str], tmp_path: Path) -> None:
    runs = [Run(shutil.copytree(pictured[0].folder, tmp_path / name)) for name in ("two", "four", "lean")]
    for run, backbone in zip(runs, (Diffusion(looks=2), Diffusion(looks=4), Diffusion(looks=4)), strict=True):
        deal = dataclasses.replace(run.plan.deal, memory=512 if run.folder.name == "lean" else 1024)
        changed = dataclasses.replace(run.plan, backbone=backbone, deal=deal)
        (run.folder / PLAN).write_text(plans.write(changed), "utf-8")
    two, four, lean = runs
    said = read(report.compare([two, four], tmp_path / "unlike.html"))
    assert "Take care in comparing the denoising loss of these runs: their plans take the loss differently." in said
    assert "Take care" not in read(report.compare([four, lean], tmp_path / "alike.html"))


def test_runs_of_two_kinds_are_not_laid_over_each_other(
    pictured: tuple[Run, str], tiny_run: Run, tmp_path: Path
) -> None:
    run, _ = pictured
    page = report.compare([tiny_run, run], tmp_path / "both.html")
    said = read(page)
    assert "some are perplexity per token and others denoising loss per picture" in said
    assert "Runs of text and runs of pictures; only those of one kind can be compared." in said
    assert "The lowest held-out" not in said
    assert "Perplexity per token over all held-out text and denoising loss per picture over all held-out" in said
    source = page.read_text("utf-8")
    assert source.count("<svg") == 6
    ids = re.findall(r'\bid="([^"]*)"', source)
    assert len(ids) == len(set(ids)) > 0
    table = shown(runs_table([tiny_run, run]))
    assert "text: perplexity per token; pictures: denoising loss per picture" in table
