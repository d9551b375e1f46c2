"""What prompts that begin alike have in common is read once: keys and values by blocks of tokens.

A block is known by all that it depends on: whose prompt it was, the adapters' contents and weights, and every token up
to its end. So a new round under an old name finds nothing of the old one, and nobody can tell by the time it takes
what somebody else has asked.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fedgen.serve.engine.slab import Slab
from fedgen.serve.pool import Mixture

BLOCK = 16  # tokens


class Prefixes:
    """Blocks of at most so many bytes in all; those that nobody has wanted for longest go first."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.nbytes = self.hits = self.misses = 0  # hits and misses count blocks
        self._blocks: OrderedDict[bytes, Tensor] = OrderedDict()

    def __len__(self) -> int:
        """How many blocks are kept."""
        return len(self._blocks)

    def find(self, owner: str, mixture: Mixture, ids: Sequence[int]) -> Tensor | None:
        """What is kept of the longest beginning, a line a token. The last token is never: it is read in any case."""
        names = list(_names(owner, mixture, ids[:-1]))
        found = []
        for name in names:
            if name not in self._blocks:
                break
            found.append(self._blocks[name])
        self.hits += len(found)
        self.misses += len(names) - len(found)
        self._touch(names[: len(found)])
        return torch.cat(found) if found else None

    def keep(self, owner: str, mixture: Mixture, ids: Sequence[int], *, slab: Slab, row: int) -> None:
        """Keep the whole blocks of a row that has read these tokens."""
        names = list(_names(owner, mixture, ids))
        for at, name in enumerate(names):
            if name not in self._blocks:
                block = slab.read(row, at * BLOCK, (at + 1) * BLOCK)
                if block.nbytes * (at + 1) > self.room:  # it would push out its own beginning
                    names = names[:at]
                    break
                self._blocks[name] = block
                self.nbytes += block.nbytes
        self._touch(names)
        while self.nbytes > self.room:
            self.nbytes -= self._blocks.popitem(last=False)[1].nbytes

    def _touch(self, names: Sequence[bytes]) -> None:
        """The beginning is the one used last, so that it outlives what follows it."""
        for name in reversed(names):
            self._blocks.move_to_end(name)


def _names(owner: str, mixture: Mixture, ids: Sequence[int]) -> Iterator[bytes]:
    """The names of all whole blocks of a text, each one made of the one before it."""
    parts = sorted((adapter.hash, weight) for adapter, weight in mixture.items())
    name = hashlib.blake2b(repr((owner, parts)).encode(), digest_size=16).digest()
    for at in range(0, len(ids) - BLOCK + 1, BLOCK):
        name = hashlib.blake2b(name + repr(list(ids[at : at + BLOCK])).encode(), digest_size=16).digest()
        yield name
