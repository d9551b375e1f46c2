"""Keys and values of many rows in one block of memory, each row's own places from its beginning, never padded.

transformers is given it as its cache: what a layer adds is laid at the places that were set for the pass, and what it
reads back is what the rows of that pass have.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache

Pair = tuple[Tensor, Tensor]  # one layer's keys and values, [rows, heads, tokens, size]
NEAR = 4 << 20  # bytes that lie in a processor's cache: copied there first, attention over scattered rows is faster


class Slab(Cache):  # type: ignore[misc]
    """So many rows of so many places for each layer, shaped `like` one token's keys and values."""

    def __init__(self, like: Sequence[Pair], rows: int, length: int) -> None:
        Cache.__init__(self, layers=[])
        self.rows, self.length = rows, length
        ones = [part[0, :, 0] for two in like for part in two]  # [heads, size]
        self._flat = [one.new_zeros(rows * len(one) * length + 1, one.shape[1]) for one in ones]
        self._tables = [flat[:-1].view(rows, -1, length, flat.shape[1]) for flat in self._flat]
        self._widths = [one.numel() for one in ones]
        self._heads = {len(one): torch.arange(len(one), device=one.device)[:, None] for one in ones}
        self._spots: dict[int, Tensor] = {}
        self._seen: tuple[slice | list[int], slice, slice] = (slice(0), slice(0), slice(0))

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return sum(flat.nbytes for flat in self._flat)

    def aim(self, rows: slice | list[int], numbers: Tensor, places: Tensor, ends: Tensor, *, seen: int) -> None:
        """Set a pass: its rows, where each of their tokens lies [rows, tokens], and where the last one of each ends.

        What stands behind a row's end fills it up, and is laid where nobody looks. `seen` is the farthest end.
        """
        self._seen = (rows, slice(None), slice(seen))
        for heads, each in self._heads.items():
            spots = (numbers[..., None] * heads + each) * self.length + places[:, None]
            nowhere = self.rows * heads * self.length
            self._spots[heads] = spots.where(places[:, None] < ends[..., None], nowhere).flatten()

    def update(self, keys: Tensor, values: Tensor, layer: int, *more: object) -> Pair:
        """What transformers calls in each layer: lay down what is new, and see all that the rows have."""
        return self._laid(2 * layer, keys), self._laid(2 * layer + 1, values)

    def _laid(self, at: int, new: Tensor) -> Tensor:
        self._flat[at].index_copy_(0, self._spots[new.shape[1]], new.flatten(0, 2))
        seen = self._tables[at][self._seen]
        return seen.contiguous() if seen.is_cpu and seen.nbytes < NEAR else seen

    def read(self, row: int, start: int, stop: int) -> Tensor:
        """All layers' numbers at these places of a row, a line a place."""
        return torch.cat([table[row, :, start:stop].transpose(0, 1).flatten(1) for table in self._tables], 1)

    def write(self, row: int, lines: Tensor) -> None:
        """Put back from the row's beginning what `read` gave."""
        for table, part in zip(self._tables, lines.split(self._widths, 1), strict=True):
            near = table[row, :, : len(lines)]
            near.copy_(part.view(len(lines), len(near), -1).transpose(0, 1))

    def swap(self, row: int, other: int, most: int) -> None:
        """Let two rows change places; neither has more than `most` tokens."""
        for table in self._tables:
            table[[row, other], :, :most] = table[[other, row], :, :most]

    def clear(self, row: int, most: int) -> None:
        """Wipe a row of so many tokens: even behind a mask, what is not a number would spoil the next one's sums."""
        for table in self._tables:
            table[row, :, :most].zero_()
