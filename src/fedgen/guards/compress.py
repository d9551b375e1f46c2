"""A change as few bytes: tensors that hardly moved left out, the longest numbers of the rest, each in few bits.

Both ends know the keys and shapes, so none are sent, and what a message must come to is known while it is read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
import torch

from fedgen import tree
from fedgen.errors import TreeError
from fedgen.guards.codes import Bits, Code, Line, longest, read_bits
from fedgen.guards.frame import Bytes, Frame, framed
from fedgen.records import Range, Tree

PACKED = "packed"  # the one key of a tree that is bytes


@dataclass(frozen=True)
class Compress:
    """A change in `bits` a number: 16, 8 or 4 are whole steps of the longest of its `group`, 1 is signs and a mean.

    Steps are rounded by chance, so that they are right on average, or to the `nearest`. Only a share `top` of the
    numbers is sent, the longest; and no tensor whose root mean square is below a share `skip` of that of all. What is
    lost so is made up for with `feedback`: a client keeps it and adds it to its next change. `lossless` coding comes on
    top. What the server offers has `down` bits a number, rounded to the nearest.
    """

    bits: Literal[32, 16, 8, 4, 1] = 4
    group: Annotated[int, Range(2)] = 64
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    top: Annotated[float, Range(0, 1, open=True)] = 1.0
    skip: Annotated[float, Range(0, 1)] = 0.0
    feedback: bool = False
    lossless: Literal["none", "zstd"] = "none"
    down: Literal[32, 16, 8, 4] = 32

    def downward(self) -> "Compress":
        """The way down: whole adapters, in as many bits as that takes."""
        return replace(self, bits=self.down, rounding="nearest", top=1.0, skip=0.0, feedback=False)

    def out(self, change: Tree, draw: torch.Generator) -> Tree:
        """One line of bytes."""
        line, sizes = tree.flatten(change).float().cpu().numpy(), _sizes(change)
        many, pieces = self._many(len(line)), list[Bytes]()
        if self.skip:
            moved = self._moved(line, sizes)
            pieces.append(np.packbits(moved))
            line = line[np.repeat(moved, sizes)]
        if self.top < 1:
            chosen = longest(line, many)
            pieces.append(np.packbits(chosen))
            line = line[chosen]
        pieces += self._code.write(line, draw if self.rounding == "stochastic" else None)
        return {PACKED: torch.from_numpy(framed(pieces, zipped=self.lossless == "zstd"))}

    def back(self, came: Tree, like: Tree) -> Tree:
        """What the bytes stand for, with zeros where nothing was sent."""
        frame, sizes = Frame(_bytes(came), zipped=self.lossless == "zstd"), _sizes(like)
        spots = np.ones(sum(sizes), np.bool_)
        if self.skip:
            spots = np.repeat(read_bits(frame.take(-(-len(sizes) // 8)), len(sizes)), sizes)
        if self.top < 1:
            spots[spots] = self._chosen(frame, int(spots.sum()), self._many(len(spots)))
        line = np.zeros(len(spots), np.float32)
        line[spots] = self._code.read(frame, int(spots.sum()))
        frame.end()
        return tree.unflatten(torch.from_numpy(line), like)

    @property
    def _code(self) -> Code:
        return Code(self.bits, self.group)

    def _many(self, size: int) -> int:
        """How many numbers of a whole line are sent at most."""
        return math.ceil(round(self.top * size, 6))

    def _moved(self, line: Line, sizes: Sequence[int]) -> Bits:
        """Which tensors are sent."""
        parts = np.split(line.astype(np.float64), np.cumsum(sizes)[:-1])
        means = np.array([part @ part / max(len(part), 1) for part in parts])
        moved: Bits = means >= self.skip**2 * (means @ np.array(sizes)) / max(len(line), 1)
        return moved

    def _chosen(self, frame: Frame, count: int, many: int) -> Bits:
        """Which of so many numbers came: as many as may, or all."""
        chosen, wanted = read_bits(frame.take(-(-count // 8)), count), min(count, many)
        if int(chosen.sum()) != wanted:
            raise TreeError(f"compress: wanted {wanted:,} numbers, came the places of {int(chosen.sum()):,}")
        return chosen


def _sizes(like: Tree) -> list[int]:
    """How many numbers each tensor has, keys in order."""
    return [like[key].numel() for key in sorted(like)]


def _bytes(came: Tree) -> Bytes:
    """The one line of bytes that came."""
    found = came.get(PACKED)
    if found is None or len(came) > 1 or found.dtype != torch.uint8 or found.dim() != 1:
        raise TreeError(f"compress: wanted one line of bytes, came {len(came)} tensors, or of another kind")
    raw: Bytes = found.cpu().numpy()
    return raw
