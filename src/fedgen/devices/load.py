"""What one turn of a plan asks of a device: memory, arithmetic, and bytes on its link."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from fedgen import seeds, tree
from fedgen.backbones import Backbone, DiffusionBackbone
from fedgen.client import Job, Start, Training, train
from fedgen.data.deal import take
from fedgen.devices.hardware import Hardware
from fedgen.devices.held import Held
from fedgen.records import Document, Rows, Tree
from fedgen.weights import AnyBank

Messages = Callable[[int], tuple[int, int]]  # bytes of an update and of an offer, by rank
NUMBER = 4  # bytes: adapters are trained in single precision


@dataclass(frozen=True)
class Turn:
    """Seconds of a turn: the offer comes down, is trained, and the update goes up."""

    down: float
    work: float
    up: float


@dataclass(frozen=True)
class Load:
    """What a plan's turn asks of a device, beside what the program itself takes.

    Bytes of the `frozen` weights and of all that a step holds beside these and an adapter's copies (`active`), the
    `numbers` of an adapter of `rank` (0: a full model, which has none), the FLOPs of a `row`, how a turn trains (once,
    or its own adapter too), and how large its messages are.
    """

    frozen: int
    active: int
    numbers: int
    rank: int
    row: float
    trainings: tuple[Training, ...]
    messages: Messages

    def memory(self, rank: int) -> int:
        """Bytes that a turn takes at its peak: trainings follow each other, so that of the widest."""
        own = self.numbers * rank // self.rank if self.rank else self.numbers
        return self.frozen + self.active + NUMBER * own * max(map(_copies, self.trainings))

    def up(self, rank: int) -> int:
        """Bytes of an update."""
        return self.messages(rank)[0]

    def down(self, rank: int) -> int:
        """Bytes of an offer."""
        return self.messages(rank)[1]

    def fits(self, hardware: Hardware, rank: int) -> bool:
        """Whether a device has the memory for a turn at this rank."""
        return self.memory(rank) <= hardware.memory

    def seconds(self, hardware: Hardware, rank: int, rows: int) -> Turn:
        """How long a turn takes a device that has so many rows to train on."""
        passed = sum(_passed(training, rows) for training in self.trainings)
        return Turn(self.down(rank) / hardware.down, passed * self.row / hardware.speed, self.up(rank) / hardware.up)


def _copies(training: Training) -> int:
    """How often an adapter's numbers lie in memory: themselves, their slope, and the optimizer's moments."""
    return 2 + (2 if training.optimizer == "adamw" else int(training.momentum > 0))


def _passed(training: Training, rows: int) -> int:
    """How many rows go through the network and back."""
    return training.batch * (training.steps or training.epochs * math.ceil(rows / training.batch))


def load_of(trainings: Sequence[Training], backbone: Backbone, bank: AnyBank, start: Tree, messages: Messages) -> Load:
    """The load of a turn of these trainings, of which one pass is trained once."""
    weights = list(backbone.network.parameters())  # a tied weight counts once
    frozen = sum(weight.numel() * weight.element_size() for weight in weights)
    held, row = _pass(trainings[0], backbone, bank, start)
    size, rank = tree.size(start), bank.layout.rank_of(start)
    active = max(held - NUMBER * size * max(map(_copies, trainings)), 0)
    return Load(frozen, active, size, rank, row, tuple(trainings), messages)


def _pass(training: Training, backbone: Backbone, bank: AnyBank, start: Tree) -> tuple[int, float]:
    """Counted over a step of one pass, as this training takes it: bytes beside the weights, and the FLOPs of a row."""
    many, row = training.rows_a_pass, _row(backbone)
    once = replace(training, steps=1, batch=many, micro=0, cohort=1, ahead=0.0)
    rows = take(row, torch.zeros(many, dtype=torch.long))
    job = Job("", Start(start), rows, lambda use: seeds.generator(0, -1, "", use))
    with torch.no_grad():  # what a backbone makes once is no part of a step
        backbone.losses(backbone.draw(row, job.draw("first")))
    with Held() as held, FlopCounterMode(display=False) as counter:
        train(once, backbone, bank, [job])
    return held.most, counter.get_total_flops() / many


def _row(backbone: Backbone) -> Rows:
    """A row of nothing in particular, as long as any."""
    picture = torch.zeros(backbone.picture, dtype=torch.uint8) if isinstance(backbone, DiffusionBackbone) else None
    return take(backbone.encode([Document("", "a row " * 200, label="0", picture=picture)]), torch.arange(1))
