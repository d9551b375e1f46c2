"""A line of numbers in few bits: whole steps of a scale that each group of them shares, or signs and a mean length.

A scale is the group's longest number, rounded up to bfloat16: so nothing is cut off, and steps that are rounded by
chance are right on average. How many bytes a line takes depends on nothing but how many numbers it has.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedgen.errors import TreeError
from fedgen.guards.frame import Bytes, Frame

Line = NDArray[np.float32]
Bits = NDArray[np.bool_]
LONGEST = 3.3895e38  # about the largest number that bfloat16 has


@dataclass(frozen=True)
class Code:
    """So many bits a number (32: as it is, 1: its sign), in groups of so many numbers."""

    bits: int
    group: int

    @property
    def levels(self) -> int:
        """Whole steps to either side of zero."""
        return int(2 ** (self.bits - 1)) - 1

    def write(self, line: Line, draw: torch.Generator | None) -> list[Bytes]:
        """The scales and the numbers; steps are rounded by chance, or without a draw to the nearest."""
        if len(line) and not np.abs(line).max() <= LONGEST:
            raise TreeError(f"compress: wanted numbers up to {LONGEST:g}, came longer ones, or some that are none")
        if self.bits == 32:
            return [line.astype("<f4").view(np.uint8)]
        blocks = _blocks(line, self.group)
        lengths = np.abs(blocks)
        if self.bits == 1:
            means = lengths.sum(1, dtype=np.float64) / _counts(len(line), self.group)
            return [_up(means.astype(np.float32)), np.packbits(line < 0)]
        scales = _up(lengths.max(1))
        steps = _rounded(blocks / _divisors(scales) * self.levels, draw).reshape(-1)[: len(line)]
        return [scales, _packed(steps, self.bits)]

    def read(self, frame: Frame, count: int) -> Line:
        """So many numbers again; refused is what `write` never writes."""
        if self.bits == 32:
            return _finite(frame.take(4 * count).view("<f4").astype(np.float32))
        scales = _finite(_down(frame.take(2 * -(-count // self.group))))
        if (scales < 0).any():
            raise TreeError("compress: wanted scales from zero on, came some below")
        raw = frame.take(-(-count * self.bits // 8))
        if self.bits == 1:
            steps = 1 - 2 * read_bits(raw, count).astype(np.float32)
            return (_blocks(steps, self.group) * scales[:, None]).reshape(-1)[:count]
        steps = _unpacked(raw, count, self.bits)
        if len(steps) and steps.min() < -self.levels:
            raise TreeError(f"compress: wanted at most {self.levels} steps, came {-steps.min():g}")
        return (_blocks(steps, self.group) * (scales / np.float32(self.levels))[:, None]).reshape(-1)[:count]


def read_bits(raw: Bytes, count: int) -> Bits:
    """So many bits; those that fill the last byte are zeros."""
    bits = np.unpackbits(raw)
    if bits[count:].any():
        raise TreeError("compress: wanted zeros behind the last bit, came ones")
    return bits[:count].view(np.bool_)


def longest(line: Line, many: int) -> Bits:
    """Which are the so many longest numbers; of equal ones the first."""
    if many >= len(line):
        return np.ones(len(line), np.bool_)
    lengths, at = np.abs(line), len(line) - many
    edge = np.partition(lengths, at)[at]
    found: Bits = lengths > edge
    found[np.flatnonzero(lengths == edge)[: many - int(found.sum())]] = True
    return found


def _finite(line: Line) -> Line:
    if not np.isfinite(line).all():
        raise TreeError("compress: wanted numbers, came some that are not finite")
    return line


def _blocks(line: Line, group: int) -> Line:
    """Rows of so many numbers, the last one filled with zeros."""
    group = min(group, max(len(line), 1))  # one that has room for all is no longer than that
    more = -len(line) % group
    return (np.concatenate((line, np.zeros(more, np.float32))) if more else line).reshape(-1, group)


def _counts(count: int, group: int) -> Line:
    """How many numbers each group has."""
    found = np.full(-(-count // group), group, np.float32)
    found[-1:] -= -count % group
    return found


def _up(lengths: Line) -> Bytes:
    """The bytes of bfloat16, the upper half of a float32, rounded up."""
    return ((lengths.view(np.uint32) + np.uint32(0xFFFF)) >> 16).astype("<u2").view(np.uint8)


def _down(scales: Bytes) -> Line:
    """The lengths again."""
    return (scales.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _divisors(scales: Bytes) -> Line:
    """What a group is divided by: its scale, unless all of it is zeros."""
    found = _down(scales)
    return np.where(found > 0, found, np.float32(1))[:, None]


def _rounded(steps: Line, draw: torch.Generator | None) -> Line:
    if draw is None:
        return np.rint(steps)
    low = np.floor(steps)
    chance = torch.rand(steps.shape, generator=draw).numpy()
    return low + (chance < steps - low)


def _packed(steps: Line, bits: int) -> Bytes:
    if bits > 4:
        return steps.astype("<i2" if bits == 16 else "i1").view(np.uint8)
    halves = steps.astype(np.int8).view(np.uint8) & 15
    if len(halves) % 2:
        halves = np.append(halves, np.uint8(0))
    return (halves[0::2] | halves[1::2] << 4).astype(np.uint8)


def _unpacked(raw: Bytes, count: int, bits: int) -> Line:
    if bits > 4:
        return raw.view("<i2" if bits == 16 else "i1").astype(np.float32)
    halves = np.stack((raw & 15, raw >> 4), 1).reshape(-1)
    if halves[count:].any():
        raise TreeError("compress: wanted zeros behind the last number, came something else")
    return ((halves[:count] ^ 8).astype(np.int8) - np.int8(8)).astype(np.float32)
