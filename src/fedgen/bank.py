"""Many adapters stacked on one frozen backbone, routed row by row.

An adapter is one line of numbers; a bank is a table of such lines, one a slot. Training a cohort, serving a crowd and
mixing styles are the same act: `carry` gives each group of a batch's rows its own line, cut once into the factors of
every layer. Slot 0 is zeros: the backbone itself. A narrower adapter is padded with zeros, which changes nothing.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedgen import lora
from fedgen.errors import TreeError
from fedgen.records import Tree

Drop = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Spot:
    """Where one layer's pair lies in the line: A, then B."""

    path: str
    a: tuple[int, ...]
    b: tuple[int, ...]
    groups: int

    @property
    def sizes(self) -> tuple[int, int]:
        """How many numbers A and B have."""
        return math.prod(self.a), math.prod(self.b)


class Layout:
    """How the trees of one backbone and one widest rank lie in a line."""

    def __init__(self, layers: Mapping[str, nn.Module], rank: int) -> None:
        self.rank = rank
        self.spots = [_spot(path, layer, rank) for path, layer in layers.items()]
        self.cuts = [size for spot in self.spots for size in spot.sizes]
        self.width = sum(self.cuts)

    def vector(self, adapter: Tree) -> Tensor:
        """The tree as one line, padded to the widest rank."""
        pairs = {pair.path: pair for pair in lora.pairs(adapter)}
        self._check(pairs)
        parts = []
        for spot in self.spots:
            pair = pairs[spot.path]
            a, b = pair.a.new_zeros(spot.a), pair.b.new_zeros(spot.b)
            near_a, near_b, r = _heads(a, b, spot.groups, pair.a.shape[0])
            near_a.copy_(pair.a.view(spot.groups, r, *spot.a[1:]))
            near_b.copy_(pair.b)
            parts += [a.flatten(), b.flatten()]
        return torch.cat(parts)

    def tree(self, line: Tensor, rank: int) -> Tree:
        """The tree of this rank that lies in a line."""
        return self._tree(line, {spot.path: rank for spot in self.spots})

    def shaped(self, line: Tensor, like: Tree) -> Tree:
        """The tree that lies in a line, its layers of the ranks that this one's have."""
        return self._tree(line, {pair.path: len(pair.a) for pair in lora.pairs(like)})

    def _tree(self, line: Tensor, ranks: Mapping[str, int]) -> Tree:
        found: Tree = {}
        for spot, a, b in zip(self.spots, *self._cut(line), strict=True):
            near_a, near_b, _ = _heads(a.view(spot.a), b.view(spot.b), spot.groups, ranks[spot.path])
            found[f"{lora.PREFIX}{spot.path}.lora_A.weight"] = near_a.flatten(0, 1).clone()
            found[f"{lora.PREFIX}{spot.path}.lora_B.weight"] = near_b.clone()
        return found

    def rank_of(self, adapter: Tree) -> int:
        """The adapter's own rank."""
        return lora.rank(adapter)

    def _cut(self, line: Tensor) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        parts = line.split(self.cuts, dim=-1)
        return parts[0::2], parts[1::2]

    def factors(self, lines: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each layer's A and B out of lines [..., width], as views: one cut forward, one join backward."""
        for spot, a, b in zip(self.spots, *self._cut(lines), strict=True):
            yield a.view(*lines.shape[:-1], *spot.a), b.view(*lines.shape[:-1], *spot.b)

    def _check(self, pairs: Mapping[str, lora.Pair]) -> None:
        paths = {spot.path for spot in self.spots}
        if odd := paths ^ set(pairs):
            raise TreeError(f"bank: the adapter and the bank's targets differ in layer '{min(odd)}'")
        for spot in self.spots:
            pair = pairs[spot.path]
            r = pair.a.shape[0]
            if r > self.rank:
                raise TreeError(f"bank: rank {r} does not fit a bank of rank {self.rank}; shrink it with lora.resize")
            if pair.a.shape[1:] != spot.a[1:] or pair.b.shape[0] != spot.b[0] or pair.b.shape[1] * spot.groups != r:
                came = f"{tuple(pair.a.shape)} and {tuple(pair.b.shape)}"
                raise TreeError(f"bank: '{spot.path}' wants A {spot.a} and B {spot.b} at rank {self.rank}, came {came}")


def _spot(path: str, layer: nn.Module, rank: int) -> Spot:
    a, b = lora.shapes(layer, rank)
    return Spot(path, a, b, layer.groups if isinstance(layer, nn.Conv2d) else 1)


def _heads(a: Tensor, b: Tensor, groups: int, rank: int) -> tuple[Tensor, Tensor, int]:
    """The part of padded factors that a pair of this rank fills: the head of every group."""
    r = rank // groups
    return a.view(groups, -1, *a.shape[1:])[:, :r], b[:, :r], r


class Lane(nn.Module):
    """A frozen layer, only ever called, and the low-rank path of each group of rows beside it."""

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        self.frozen = frozen
        self.a: Tensor | None = None
        self.b: Tensor | None = None
        self.drop: Drop | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The frozen output plus B A x, every group of rows with its own B and A."""
        y: Tensor = self.frozen(x)
        if self.a is None or self.b is None:
            return y
        rows = x.to(self.a.dtype).reshape(len(self.a), x.shape[0] // len(self.a), *x.shape[1:])
        if self.drop is not None:
            rows = self.drop(rows)
        return self.added(y, rows, self.a, self.b)

    def added(self, y: Tensor, rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """y plus rows [g, m, ..., in] through a [g, r, in] and b [g, out, r], in one pass over y."""
        low, b = torch.bmm(rows.flatten(1, -2), a.transpose(1, 2)), b.transpose(1, 2)
        if low.dtype != y.dtype:
            return y + torch.bmm(low, b).view(y.shape).to(y.dtype)
        add = torch.baddbmm if torch.is_grad_enabled() else Tensor.baddbmm_
        return add(y.reshape(len(a), -1, y.shape[-1]), low, b).view(y.shape)

    def mix(self, a: Tensor, b: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """k pairs a group as one pair of rank k*r: exact, never an average of factors."""
        b = b * weights[..., None, None]
        return a.flatten(1, 2), b.transpose(1, 2).flatten(2)


class ConvLane(Lane):
    """A frozen convolution; the groups of rows become groups of one grouped convolution.

    As in PEFT, A reads all input channels and B has the frozen layer's own groups.
    """

    frozen: nn.Conv2d

    def added(self, y: Tensor, rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """y plus rows [g, m, in, h, w] through a [g, r, in, kh, kw] and b [g, out, r, 1, 1]."""
        conv = self.frozen
        x = rows.transpose(0, 1).flatten(1, 2)
        h = F.conv2d(x, a.flatten(0, 1), None, conv.stride, conv.padding, conv.dilation, len(a))
        low = F.conv2d(h, b.flatten(0, 1), groups=len(a) * conv.groups)
        return y + low.view(low.shape[0], len(a), -1, *low.shape[2:]).transpose(0, 1).reshape(y.shape).to(y.dtype)

    def mix(self, a: Tensor, b: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """As in `Lane`, with the ranks of the k pairs side by side inside each of the convolution's own groups."""
        g, k, r = a.shape[:3]
        own = self.frozen.groups
        a = a.view(g, k, own, r // own, *a.shape[3:]).transpose(1, 2).flatten(1, 3)
        b = b * weights[..., None, None, None, None]
        return a, b.transpose(1, 2).flatten(2, 3)


class Bank:
    """Slots of adapters on one network, whose target layers are lanes until `close`.

    A pass carries any number of lines `at_once`.
    """

    at_once: int | None = None

    def __init__(self, network: nn.Module, names: Sequence[str], rank: int, slots: int = 0) -> None:
        self.network = network.requires_grad_(False)
        self._layers = lora.targets(network, names)
        self.layout = Layout(self._layers, rank)
        device = next(network.parameters()).device
        self.lines = torch.zeros(slots + 1, self.layout.width, device=device)
        self.ranks = [rank] * (slots + 1)
        self._lanes = [ConvLane(x) if isinstance(x, nn.Conv2d) else Lane(x) for x in self._layers.values()]
        for path, lane in zip(self._layers, self._lanes, strict=True):
            _replace(network, path, lane)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Put the frozen layers back where they were."""
        for path, layer in self._layers.items():
            _replace(self.network, path, layer)

    def fresh(self, draw: torch.Generator, rank: int = 0) -> Tree:
        """An adapter that changes nothing yet: A drawn, B zero; as wide as the bank, or of this rank."""
        return lora.fresh(self._layers, rank or self.layout.rank, draw)

    def write(self, slot: int, adapter: Tree) -> None:
        """Fill a slot; slot 0 is the backbone and stays zeros."""
        if not 0 < slot < len(self.lines):
            raise TreeError(f"bank: slot {slot} cannot be written, wanted 1 to {len(self.lines) - 1}")
        self.lines[slot] = self.layout.vector(adapter).to(self.lines)
        self.ranks[slot] = lora.rank(adapter)

    def read(self, slot: int) -> Tree:
        """The adapter in a slot, at its own rank."""
        return self.layout.tree(self.lines[slot].cpu(), self.ranks[slot])

    def passes(self, owners: Sequence[object], most: int) -> list[slice]:
        """Rows in passes of at most so many; whose they are does not matter."""
        return [slice(at, at + most) for at in range(0, len(owners), most)]

    @contextmanager
    def rows(self, slots: Tensor, weights: Tensor | None = None) -> Iterator[None]:
        """Route a batch: row i through slot `slots[i]`, or through a mixture of `slots[i, :]` with `weights[i, :]`."""
        with self.carry(self.lines[slots.to(self.lines.device)], weights=weights):
            yield

    @contextmanager
    def carry(self, lines: Tensor, *, weights: Tensor | None = None, drop: Drop | None = None) -> Iterator[None]:
        """Give each of len(lines) equal groups of a batch's rows its own line; gradients flow back into the lines."""
        for lane, (a, b) in zip(self._lanes, self.layout.factors(lines), strict=True):
            lane.a, lane.b = (a, b) if weights is None else lane.mix(a, b, weights.to(a))
            lane.drop = drop
        try:
            yield
        finally:
            for lane in self._lanes:
                lane.a = lane.b = lane.drop = None

    @contextmanager
    def bare(self) -> Iterator[None]:
        """The backbone alone, whatever is carried; that goes on afterwards."""
        carried = [(lane.a, lane.b, lane.drop) for lane in self._lanes]
        for lane in self._lanes:
            lane.a = lane.b = lane.drop = None
        try:
            yield
        finally:
            for lane, before in zip(self._lanes, carried, strict=True):
                lane.a, lane.b, lane.drop = before


def abreast(mixtures: Sequence[Sequence[tuple[Tensor, float]]], zeros: Tensor) -> tuple[Tensor, Tensor | None]:
    """The lines and weights that `carry` takes, for mixtures of lines, one a group of rows.

    Narrower mixtures are filled up with the line of zeros; where each is one line in full, there is nothing to weigh.
    """
    if all([weight for _, weight in one] in ([], [1.0]) for one in mixtures):
        return torch.stack([one[0][0] if one else zeros for one in mixtures]), None
    widest = max(map(len, mixtures))
    full = [[*one, *[(zeros, 0.0)] * (widest - len(one))] for one in mixtures]
    lines = torch.stack([torch.stack([line for line, _ in one]) for one in full])
    return lines, torch.tensor([[weight for _, weight in one] for one in full])


def _replace(network: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, layer)
