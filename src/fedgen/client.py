"""A client's local training, alone or many at once.

A cohort is a table of lines, one an adapter, sorted so that whoever still has steps to do is a prefix of it. Each step
takes every active job's next batch through the bank in one pass; an adapter's line meets only its own rows, so its
gradient is its own, and all that couples numbers (the clipped norm, the schedule) is done line by line.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from torch import Tensor

from fedgen import factors, lora, tree
from fedgen.backbones import Backbone
from fedgen.chart import Chart, chart_of
from fedgen.data.deal import count, join, take
from fedgen.records import Range, Rows, Tree
from fedgen.weights import AnyBank

BETAS, EPSILON = (0.9, 0.999), 1e-8
PASS_TOKENS = 1024  # more tokens a pass leave the caches of a CPU; a GPU takes 32 times as many


@dataclass(frozen=True)
class Training:
    """How a client trains: for `steps`, or if that is 0 for `epochs` over its rows, `batch` rows a step.

    `warmup` is the share of steps in which the rate rises, `cooldown` that in which it falls. `decay` pulls the adapter
    to zero and `proximal` to what was offered, `clip` is the longest gradient (0: any), `momentum` is SGD's, `dropout`
    is of the adapter's input. `cohort` is how many clients share a pass (0: as many as memory carries).

    With `ahead`, the gradient is taken where a step of that rate on the first half of the batch would lead, on the
    other half (Per-FedAvg). With `follow`, what was offered goes after the adapter: so large a share of the way, every
    `inner` steps; it is what is sent (pFedMe). With `press`, so many times |A| |B| of the last half of the ranks is
    added to the loss, which presses them to nothing (HetLoRA).

    `even` is the power of a client's rank by which its rate is divided: at 0.5 a narrow adapter goes about as far as a
    wide one. For little memory: `micro` is how many rows of a batch share a pass (0: all), with `checkpoint`
    activations are computed anew in the backward pass, and with `offload` the optimizer's moments stay in main memory.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Range(0, open=True)] = 3e-3
    epochs: Annotated[int, Range(1)] = 1
    steps: Annotated[int, Range(0)] = 0
    batch: Annotated[int, Range(1)] = 4
    warmup: Annotated[float, Range(0, 1)] = 0.0
    cooldown: Annotated[float, Range(0, 1)] = 0.0
    decay: Annotated[float, Range(0)] = 0.0
    momentum: Annotated[float, Range(0, 1)] = 0.0
    clip: Annotated[float, Range(0)] = 1.0
    proximal: Annotated[float, Range(0)] = 0.0
    dropout: Annotated[float, Range(0, 0.9)] = 0.0
    cohort: Annotated[int, Range(0)] = 0
    ahead: Annotated[float, Range(0)] = 0.0
    follow: Annotated[float, Range(0, 1)] = 0.0
    inner: Annotated[int, Range(1)] = 1
    press: Annotated[float, Range(0)] = 0.0
    even: Annotated[float, Range(0, 1)] = 0.0
    micro: Annotated[int, Range(0)] = 0
    checkpoint: bool = False
    offload: bool = False

    @property
    def rows_a_pass(self) -> int:
        """How many rows of a client share a pass."""
        return min(self.micro or self.batch, self.batch)


@dataclass(frozen=True)
class Start:
    """What an adapter's training starts from.

    Of its numbers those move where `free` is one (None: all); what `proximal` pulls to is `anchor` (None: the start).
    With a `frame`, B is the frame's B times a square factor, and nothing but that factor is trained.
    """

    adapter: Tree
    free: Tree | None = None
    anchor: Tree | None = None
    frame: Tree | None = None


@dataclass(frozen=True)
class Job:
    """One adapter to train at a rank on one client's rows; `draw(use)` gives the job's own generators."""

    name: str
    start: Start
    rows: Rows
    draw: Callable[[str], torch.Generator]
    rank: int = 1


@dataclass(frozen=True)
class Trained:
    """What came of a job: the adapter, its mean training loss, and how much was done; and where the anchor went."""

    name: str
    adapter: Tree
    loss: float
    steps: int
    terms: int
    anchor: Tree = field(default_factory=dict)


def order(training: Training, rows: int, draw: torch.Generator) -> Tensor:
    """Which rows each step takes, [steps, batch]; -1 where the last batch of an epoch is not full."""
    a_pass = math.ceil(rows / training.batch)
    passes = math.ceil(training.steps / a_pass) if training.steps else training.epochs
    steps = training.steps or passes * a_pass
    index = torch.full((passes, a_pass * training.batch), -1)
    for line in index:
        line[:rows] = torch.randperm(rows, generator=draw)
    return index.view(-1, training.batch)[:steps]


def width(training: Training, backbone: Backbone, memory: int) -> int:
    """How many jobs share a pass: as set, or what memory carries and a pass can use."""
    if training.cohort:
        return training.cohort
    on_gpu = next(backbone.network.parameters()).device.type == "cuda"
    useful = PASS_TOKENS * (32 if on_gpu else 1) // backbone.length
    carried = memory // 2 // backbone.row_bytes(anew=training.checkpoint)
    return max(1, min(useful, carried) // training.rows_a_pass)


class Stepper:
    """AdamW or SGD on a table of lines; elementwise, so it is one optimizer a line. Plain SGD keeps no moments."""

    def __init__(self, training: Training, lines: Tensor, ranks: Sequence[int]) -> None:
        self.training = training
        self.rates = torch.tensor([[training.lr / max(rank, 1) ** training.even] for rank in ranks]).to(lines)
        self.home = torch.device("cpu") if training.offload else lines.device
        adamw = training.optimizer == "adamw"
        self.first = torch.zeros_like(lines if adamw or training.momentum else lines[:, :0], device=self.home)
        self.second = torch.zeros_like(lines if adamw else lines[:, :0], device=self.home)

    def step(self, lines: Tensor, slope: Tensor, at: int, steps: Tensor) -> None:
        """Move the first len(slope) lines, each of which has done `at` of its own number of `steps`."""
        n, training = len(slope), self.training
        if training.clip:
            length = slope.norm(dim=1, keepdim=True)
            slope = slope * (training.clip / (length + 1e-6)).clamp(max=1)
        rise, fall = ((share * steps[:n]).ceil().clamp(min=1) for share in (training.warmup, training.cooldown))
        part = torch.minimum((at + 1) / rise, (steps[:n] - at) / fall).clamp(max=1)
        lr = self.rates[:n] * part.unsqueeze(1).to(lines)
        lines[:n] *= 1 - lr * training.decay
        lines[:n] -= self._way(slope.to(self.home), lr.to(self.home), at).to(lines.device)

    def _way(self, slope: Tensor, lr: Tensor, at: int) -> Tensor:
        """How far each line goes down, once the moments have taken in its slope."""
        n, training = len(slope), self.training
        first, second = self.first[:n], self.second[:n]
        if training.optimizer == "sgd":
            return lr * (first.mul_(training.momentum).add_(slope) if training.momentum else slope)
        first.lerp_(slope, 1 - BETAS[0])
        second.lerp_(slope * slope, 1 - BETAS[1])
        spread = (second / (1 - BETAS[1] ** (at + 1))).sqrt_().add_(EPSILON)
        return lr / (1 - BETAS[0] ** (at + 1)) * first / spread


class Drops:
    """Dropout on the adapters' input, each job's mask from its own generator."""

    def __init__(self, share: float, draws: Sequence[torch.Generator]) -> None:
        self.share, self.draws = share, draws

    def __call__(self, rows: Tensor) -> Tensor:
        """rows [jobs, ...] with a share of each job's numbers set to zero and the rest scaled up."""
        drawn = [torch.rand(part.shape, generator=draw) for part, draw in zip(rows, self.draws, strict=True)]
        return rows * (torch.stack(drawn) >= self.share).to(rows) / (1 - self.share)


Found = tuple[Tensor, Tensor, Tensor]  # each job's gradient, mean loss and terms


def _pooled(one: Found, other: Found) -> Found:
    """Two passes as one: each is a mean over its terms, and weighs as many."""
    terms = one[2] + other[2]
    share = other[2] / terms.clamp(min=1)
    return one[0].lerp_(other[0], share[:, None].to(one[0])), one[1].lerp(other[1], share.to(one[1])), terms


class Passes:
    """The batches of a table of jobs, and the gradient of each job's own loss at its own line."""

    def __init__(self, training: Training, backbone: Backbone, bank: AnyBank, jobs: Sequence[Job]) -> None:
        self.training, self.backbone, self.bank, self.jobs = training, backbone, bank, jobs
        self.noise, self.masks = [job.draw("noise") for job in jobs], [job.draw("dropout") for job in jobs]

    def slope(self, lines: Tensor, picks: Tensor, chart: Chart) -> Found:
        """The gradient, mean loss and terms of the first len(picks) jobs on the rows picked; -1 picks none."""
        n, real = len(picks), picks >= 0
        taken = [take(job.rows, pick.clamp(min=0)) for job, pick in zip(self.jobs[:n], picks, strict=True)]
        drawn = [self.backbone.draw(own, draw) for own, draw in zip(taken, self.noise[:n], strict=True)]
        parts = [part for part in torch.arange(real.shape[1]).split(self.training.rows_a_pass) if real[:, part].any()]
        each = (self._pass(lines, join([take(own, part) for own in drawn]), real[:, part], chart) for part in parts)
        return functools.reduce(_pooled, each)

    def _pass(self, lines: Tensor, rows: Rows, real: Tensor, chart: Chart) -> Found:
        """The same of the rows that share a pass, of which those count that are real."""
        n, leaf = len(lines), lines.detach().requires_grad_()
        drop = Drops(self.training.dropout, self.masks[:n]) if self.training.dropout else None
        anew = self.backbone.anew() if self.training.checkpoint else contextlib.nullcontext()
        with self.bank.carry(chart.up(leaf), drop=drop), anew:  # what is computed anew is so with the lines carried
            with precision(lines.device):
                sums, counts = self.backbone.losses(rows)
            real = real.to(sums.device)
            sums, counts = sums.view(n, -1) * real, counts.view(n, -1) * real
            each = sums.sum(1) / counts.sum(1).clamp(min=1)
            (slope,) = torch.autograd.grad(each.sum(), leaf)
        return slope, each.detach(), counts.sum(1)

    def ahead(self, lines: Tensor, picks: Tensor, chart: Chart, free: Tensor | None) -> Found:
        """The same, where a step on half of each batch leads, and on its other half, if any (first-order MAML)."""
        first, second = picks[:, ::2], picks[:, 1::2]
        second = second.where((second >= 0).any(1, keepdim=True), first[:, : second.shape[1]])
        second = second if second.shape[1] else first
        slope, each, terms = self.slope(lines, first, chart)
        step = slope if free is None else slope.where(free, 0)
        slope, _, more = self.slope(lines - self.training.ahead * step, second, chart)
        return slope, each, terms + more


def train(training: Training, backbone: Backbone, bank: AnyBank, jobs: Sequence[Job]) -> list[Trained]:
    """Train every job, all in one pass a step, with the same result as one at a time."""
    plans = {job.name: order(training, count(job.rows), job.draw("order")) for job in jobs}
    jobs = sorted(jobs, key=lambda job: -len(plans[job.name]))
    steps = torch.tensor([len(plans[job.name]) for job in jobs])
    chart = chart_of(bank.layout, jobs[0].start.frame)
    start = chart.down(_stacked(bank, [job.start.adapter for job in jobs]))
    anchor = chart.down(_stacked(bank, [job.start.anchor or job.start.adapter for job in jobs]))
    lines, stepper, free = start.clone(), Stepper(training, start, [job.rank for job in jobs]), _free(bank, jobs)
    passes, tails = Passes(training, backbone, bank, jobs), _tails(bank, jobs) if training.press else None
    losses, terms = torch.zeros(len(jobs)), torch.zeros(len(jobs), dtype=torch.long)
    for at in range(int(steps.max())):
        n = int((steps > at).sum())
        picks = torch.stack([plans[job.name][at] for job in jobs[:n]])
        if training.ahead:
            slope, each, seen = passes.ahead(lines[:n], picks, chart, None if free is None else free[:n])
        else:
            slope, each, seen = passes.slope(lines[:n], picks, chart)
        if training.proximal:
            slope = slope + training.proximal * (lines[:n] - anchor[:n])
        if tails:
            slope = slope + training.press * pressing(lines[:n], *(tail[:n] for tail in tails))
        if free is not None:
            slope = slope.where(free[:n], 0)
        stepper.step(lines, slope, at, steps.to(lines.device))
        if free is not None:
            lines = lines.where(free, start)  # decay pulls at what stands still, too
        if training.follow and (at + 1) % training.inner == 0:
            anchor[:n].lerp_(lines[:n], training.follow)
        losses[:n] += each.cpu()
        terms[:n] += seen.cpu()
    ends, went = chart.up(lines).cpu(), chart.up(anchor).cpu() if training.follow else [None] * len(jobs)
    done = zip(jobs, ends, went, (losses / steps).tolist(), steps.tolist(), terms.tolist(), strict=True)
    return [
        Trained(job.name, _tree(bank, line, job), loss, int(own), int(seen), _tree(bank, to, job))
        for job, line, to, loss, own, seen in done
    ]


def pressing(lines: Tensor, tail_a: Tensor, tail_b: Tensor) -> Tensor:
    """The slope of |A| |B| of what two masks pick of each line."""
    a, b = lines * tail_a, lines * tail_b
    long_a, long_b = a.norm(dim=1, keepdim=True), b.norm(dim=1, keepdim=True)
    slope: Tensor = a * (long_b / long_a.clamp(min=EPSILON)) + b * (long_a / long_b.clamp(min=EPSILON))
    return slope


def _tails(bank: AnyBank, jobs: Sequence[Job]) -> tuple[Tensor, Tensor]:
    """Where A and where B of the last half of each job's ranks lie in its line."""
    found = []
    for end in (lora.A_END, lora.B_END):
        marks = [_marked(job.start.adapter, end) for job in jobs]
        found.append(_stacked(bank, marks))
    return found[0], found[1]


def _marked(adapter: Tree, end: str) -> Tree:
    """Ones in the last half of the ranks of the factors with this end, and zeros elsewhere."""
    last = lora.rank(adapter) // 2
    if not last:
        return tree.zeros(adapter)
    front, back = factors.split(adapter, last)
    ones = {key: torch.full_like(half, key.endswith(end)) for key, half in back.items()}
    return lora.product_sum([(1.0, tree.zeros(front)), (1.0, ones)])


def _stacked(bank: AnyBank, trees: Sequence[Tree]) -> Tensor:
    return torch.stack([bank.layout.vector(adapter) for adapter in trees]).to(bank.lines)


def _tree(bank: AnyBank, line: Tensor | None, job: Job) -> Tree:
    return {} if line is None else bank.layout.shaped(line, job.start.adapter)


def _free(bank: AnyBank, jobs: Sequence[Job]) -> Tensor | None:
    """Which numbers of each job's line move; None if all of all do."""
    if all(job.start.free is None for job in jobs):
        return None
    every = torch.ones(bank.layout.width)
    found = [bank.layout.vector(job.start.free) if job.start.free else every for job in jobs]
    return torch.stack(found).to(bank.lines) > 0


def precision(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Mixed precision on a GPU, plain elsewhere."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
