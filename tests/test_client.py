"""The client's turn: which rows a step takes, how many share a pass, the optimizers, dropout, and what comes back."""

import functools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedgen import seeds
from fedgen.backbones import Language, LanguageBackbone
from fedgen.bank import Bank
from fedgen.client import PASS_TOKENS, Drops, Job, Start, Stepper, Training, order, train, width
from fedgen.data.deal import take
from fedgen.records import Document, Rows

LENGTH = 16


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> LanguageBackbone:
    return Language(str(tiny_backbone), length=LENGTH, device="cpu").load()


@pytest.fixture(scope="module")
def rows(backbone: LanguageBackbone, tiny_text: Path) -> Rows:
    return take(backbone.encode([Document("", (tiny_text / "ann.txt").read_text("utf-8"))]), torch.arange(7))


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def job(bank: Bank, rows: Rows, name: str = "ann") -> Job:
    return Job(name, Start(bank.fresh(drawn())), rows, functools.partial(seeds.generator, 0, 1, name))


# ---- which rows


def test_an_epoch_takes_every_row_once_and_marks_what_is_missing() -> None:
    picks = order(Training(batch=3, epochs=4), 7, drawn())
    assert picks.shape == (12, 3)
    for epoch in picks.view(4, 9):
        assert sorted(epoch.tolist()) == [-1, -1, *range(7)]
        assert epoch[-2:].tolist() == [-1, -1]
    assert not torch.equal(picks[:3], picks[3:6])


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 11])
def test_steps_stop_or_go_on_in_the_middle_of_an_epoch(steps: int) -> None:
    picks = order(Training(batch=3, steps=steps, epochs=9), 7, drawn())
    assert picks.shape == (steps, 3)
    assert torch.equal(picks, order(Training(batch=3, epochs=4), 7, drawn())[:steps])


def test_a_client_with_less_than_a_batch_has_a_step_an_epoch() -> None:
    assert order(Training(batch=4, epochs=2), 1, drawn()).tolist() == [[0, -1, -1, -1]] * 2


def test_the_order_is_its_generators() -> None:
    training = Training(batch=2, epochs=2)
    assert torch.equal(order(training, 9, drawn(1)), order(training, 9, drawn(1)))
    assert not torch.equal(order(training, 9, drawn(1)), order(training, 9, drawn(2)))


# ---- how many share a pass


def test_the_width_is_what_was_set(backbone: LanguageBackbone) -> None:
    assert width(Training(cohort=7), backbone, 0) == 7


def test_the_width_is_what_memory_carries_and_a_pass_can_use(backbone: LanguageBackbone) -> None:
    row, training = backbone.row_bytes(), Training(batch=4)
    assert width(training, backbone, 2**50) == PASS_TOKENS // LENGTH // 4
    assert width(training, backbone, 2 * row * 12) == 3  # half the memory, 12 rows, 4 a job
    assert width(training, backbone, row) == 1
    assert width(Training(batch=10**6), backbone, 2**50) == 1


def test_what_takes_less_memory_lets_more_share_a_pass(backbone: LanguageBackbone) -> None:
    room = 2 * backbone.row_bytes() * 16  # half of it for four clients of four rows
    assert width(Training(batch=4), backbone, room) == 4
    assert width(Training(batch=4, micro=2), backbone, room) == 8
    assert width(Training(batch=4, micro=9), backbone, room) == 4
    anew = width(Training(batch=4, checkpoint=True), backbone, room)
    assert anew == room // 2 // backbone.row_bytes(anew=True) // 4 > 4


def test_a_row_takes_at_least_its_activations(backbone: LanguageBackbone) -> None:
    longer = replace(backbone, length=2 * LENGTH)
    assert longer.row_bytes() == 2 * backbone.row_bytes()
    assert backbone.row_bytes() > 4 * LENGTH * backbone.network.config.vocab_size


# ---- the optimizers, against torch's own on each line


def tables(training: Training, steps: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Lines moved together by a Stepper, and each alone by torch's optimizer, on the same slopes."""
    start = torch.randn(len(steps), 5, generator=drawn())
    slopes = torch.randn(max(steps), len(steps), 5, generator=drawn(1))
    together, stepper = start.clone(), Stepper(training, start, [1] * len(start))
    for at in range(max(steps)):
        n = sum(own > at for own in steps)
        stepper.step(together, slopes[at, :n], at, torch.tensor(steps))
    alone = []
    for line, own in enumerate(steps):
        weight = start[line].clone().requires_grad_()
        settings: dict[str, Any] = {"lr": training.lr, "weight_decay": training.decay}
        made = torch.optim.SGD([weight], momentum=training.momentum, **settings)
        optimizer = made if training.optimizer == "sgd" else torch.optim.AdamW([weight], **settings)
        rise, fall = (max(1, math.ceil(share * own)) for share in (training.warmup, training.cooldown))
        for at in range(own):
            optimizer.param_groups[0]["lr"] = training.lr * min(1, (at + 1) / rise, (own - at) / fall)
            weight.grad = slopes[at, line].clone()
            if training.clip:
                torch.nn.utils.clip_grad_norm_([weight], training.clip)
            optimizer.step()
        alone.append(weight.detach())
    return together, torch.stack(alone)


def test_a_rate_falls_with_a_power_of_the_rank() -> None:
    start, slope = torch.randn(3, 5, generator=drawn()), torch.randn(3, 5, generator=drawn(1))
    moves = []
    for training, ranks in (
        (Training(even=0.5), [1, 4, 16]),
        (Training(), [1, 4, 16]),
        (Training(even=0.5), [0, 1, 1]),
    ):
        lines = start.clone()
        Stepper(training, start, ranks).step(lines, slope, 0, torch.tensor([1, 1, 1]))
        moves.append(lines - start)
    torch.testing.assert_close(moves[0], moves[1] * torch.tensor([[1.0], [0.5], [0.25]]))
    torch.testing.assert_close(moves[2], moves[1])


@pytest.mark.parametrize(
    "training",
    [
        Training(lr=0.1, clip=0.0),
        Training(lr=0.1, clip=0.5, decay=0.2, warmup=0.5),
        Training(lr=0.1, warmup=0.3, cooldown=0.7),
        Training(optimizer="sgd", lr=0.1, clip=0.0),
        Training(optimizer="sgd", lr=0.1, clip=0.0, cooldown=1.0),
        Training(optimizer="sgd", lr=0.1, clip=0.5, momentum=0.9, warmup=1.0),
        Training(optimizer="sgd", lr=0.1, clip=0.5, decay=0.2),
        Training(lr=0.1, clip=0.5, decay=0.2, offload=True),
    ],
)
def test_a_table_of_lines_moves_as_each_line_alone(training: Training) -> None:
    together, alone = tables(training, [6, 6, 4, 1])
    assert (together - alone).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("training", "moments"),
    [
        (Training(), 2),
        (Training(optimizer="sgd", momentum=0.9), 1),
        (Training(optimizer="sgd"), 0),
    ],
)
@pytest.mark.parametrize("offload", [False, True])
def test_moments_are_as_many_as_are_used_and_where_they_are_wanted(
    training: Training, moments: int, offload: bool
) -> None:
    stepper = Stepper(replace(training, offload=offload), torch.zeros(3, 5, device="meta"), [1, 1, 1])
    found = [stepper.first, stepper.second]
    assert sum(moment.numel() for moment in found) == moments * 15
    assert {moment.device.type for moment in found} == {"cpu" if offload else "meta"}


# ---- dropout


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    dropped = Drops(0.25, [drawn(1), drawn(2)])(torch.ones(2, 100, 100))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert (dropped == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)
    assert not torch.equal(dropped[0], dropped[1])


def test_each_mask_is_its_jobs_own() -> None:
    ones = torch.ones(2, 8, 8)
    both, second = Drops(0.5, [drawn(1), drawn(2)])(ones), Drops(0.5, [drawn(2)])(ones[:1])
    assert torch.equal(both[1], second[0])


# ---- what comes back


def test_training_learns_and_leaves_its_start_alone(backbone: LanguageBackbone, bank: Bank, rows: Rows) -> None:
    task = job(bank, take(rows, torch.arange(2)))
    before = {key: value.clone() for key, value in task.start.adapter.items()}
    (first,) = train(Training(lr=0.02, batch=2, steps=1), backbone, bank, [task])
    (last,) = train(Training(lr=0.02, batch=2, steps=20), backbone, bank, [task])
    assert last.loss < first.loss - 0.1
    assert all(torch.equal(task.start.adapter[key], before[key]) for key in before)
    assert last.adapter.keys() == before.keys()
    assert not last.adapter["base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"].requires_grad


def test_the_first_loss_is_the_backbones_own(backbone: LanguageBackbone, bank: Bank, rows: Rows) -> None:
    (done,) = train(Training(batch=7), backbone, bank, [job(bank, rows)])
    sums, counts = backbone.losses(rows)  # a fresh adapter changes nothing
    assert done.loss == pytest.approx((sums.sum() / counts.sum()).item(), rel=1e-6)
    assert (done.steps, done.terms) == (1, 7 * LENGTH)


def test_what_was_done_is_counted(backbone: LanguageBackbone, bank: Bank, rows: Rows) -> None:
    jobs = [job(bank, rows, "ann"), job(bank, take(rows, torch.arange(3)), "bob")]
    found = {done.name: done for done in train(Training(batch=2, epochs=2), backbone, bank, jobs)}
    assert (found["ann"].steps, found["ann"].terms) == (8, 14 * LENGTH)
    assert (found["bob"].steps, found["bob"].terms) == (4, 6 * LENGTH)


def test_the_same_job_has_the_same_end(backbone: LanguageBackbone, bank: Bank, rows: Rows) -> None:
    training = Training(batch=2, dropout=0.1)
    (one,), (two,) = (train(training, backbone, bank, [job(bank, rows)]) for _ in range(2))
    assert all(torch.equal(one.adapter[key], two.adapter[key]) for key in one.adapter)


def test_global_randomness_is_neither_used_nor_moved(backbone: LanguageBackbone, bank: Bank, rows: Rows) -> None:
    before = torch.get_rng_state()
    train(Training(batch=2, dropout=0.1), backbone, bank, [job(bank, rows)])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_strong_proximal_pull_stays_nearer_to_the_start(backbone: LanguageBackbone, bank: Bank, rows: Rows) -> None:
    task = job(bank, rows)

    def far(proximal: float) -> float:
        training = Training(optimizer="sgd", lr=0.2, batch=2, clip=0.0, epochs=3, proximal=proximal)
        (done,) = train(training, backbone, bank, [task])
        return sum(float((done.adapter[key] - task.start.adapter[key]).square().sum()) for key in task.start.adapter)

    assert far(2.0) < 0.5 * far(0.0)
