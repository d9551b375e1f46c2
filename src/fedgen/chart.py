"""Which numbers of an adapter's line are trained: all of them, or the square factors inside a fixed frame (Fed-SB)."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fedgen.bank import Layout
from fedgen.records import Tree
from fedgen.weights import Span


class Chart(Protocol):
    """Lines of adapters by the numbers that are trained, and back."""

    def down(self, lines: Tensor) -> Tensor:
        """The trained numbers of lines [n, width]."""

    def up(self, points: Tensor) -> Tensor:
        """The lines that such numbers stand for; gradients flow through."""


@dataclass(frozen=True)
class Whole:
    """Every number is its own."""

    def down(self, lines: Tensor) -> Tensor:
        """As they are."""
        return lines

    def up(self, points: Tensor) -> Tensor:
        """As they are."""
        return points


class Square:
    """A is that of a frame, and B the frame's B, whose columns are orthonormal, times a square factor."""

    def __init__(self, layout: Layout, frame: Tree) -> None:
        found = zip(layout.spots, layout.factors(layout.vector(frame)), strict=True)
        self.frames = [(a.flatten(), b.reshape(spot.groups, -1, b.shape[1])) for spot, (a, b) in found]
        self.layout = layout

    def down(self, lines: Tensor) -> Tensor:
        """frame^T B, layer by layer."""
        pairs = zip(self.frames, self.layout.factors(lines), strict=True)
        return torch.cat([(b.mT @ own.reshape(-1, *b.shape)).flatten(1) for (_, b), (_, own) in pairs], 1)

    def up(self, points: Tensor) -> Tensor:
        """A and frame R, layer by layer."""
        parts, cuts = [], [len(b) * b.shape[2] ** 2 for _, b in self.frames]
        for (a, b), own in zip(self.frames, points.split(cuts, 1), strict=True):
            parts += [a.expand(len(points), -1), (b @ own.view(-1, len(b), b.shape[2], b.shape[2])).flatten(1)]
        return torch.cat(parts, 1)


def chart_of(layout: Layout | Span, frame: Tree | None) -> Chart:
    """The chart for a frame, or for none."""
    return Square(layout, frame) if frame and isinstance(layout, Layout) else Whole()
