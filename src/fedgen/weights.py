"""Whole models where adapters would be: every weight is trained, and what travels is its change from the backbone.

The bytes of the frozen network stay as they are: a change is added to them for as long as it is carried, and zeros are
the backbone itself. A full model is used as a bank is, but for this: a pass carries one.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import torch
from torch import Tensor, nn

from fedgen import tree
from fedgen.bank import Bank, Drop
from fedgen.errors import BackboneError, TreeError
from fedgen.records import Tree


class Span:
    """How the change of every weight lies in a line, the weights in alphabetical order."""

    rank = 0

    def __init__(self, like: Tree) -> None:
        self.like = like
        self.width = tree.size(like)

    def vector(self, change: Tree) -> Tensor:
        """The change as one line."""
        tree.check(change, self.like, "weights")
        return tree.flatten(change)

    def tree(self, line: Tensor, rank: int) -> Tree:
        """The change that lies in a line; it has no rank to choose."""
        return {key: part.clone() for key, part in self.parts(line).items()}

    def shaped(self, line: Tensor, like: Tree) -> Tree:
        """The change that lies in a line; all have one shape."""
        return self.tree(line, 0)

    def parts(self, line: Tensor) -> Tree:
        """Each weight's change out of a line, as views."""
        return tree.unflatten(line, self.like)

    def rank_of(self, change: Tree) -> int:
        """A change of whole weights has none."""
        return self.rank


class Weights:
    """A network that takes on one change of all its weights at a time; a tied weight is one weight."""

    at_once: int | None = 1

    def __init__(self, network: nn.Module) -> None:
        self.network = network.requires_grad_(False)
        self._frozen = _trainable(network)
        names = {id(weight): key for key, weight in self._frozen.items()}
        self._places = [
            (module, name, names[id(weight)])
            for module in network.modules()
            for name, weight in module.named_parameters(recurse=False, remove_duplicate=False)
        ]
        self.layout = Span({key: torch.empty_like(self._frozen[key], device="meta") for key in sorted(self._frozen)})
        self.lines = torch.zeros(1, self.layout.width, device=next(network.parameters()).device)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Nothing to do: between two passes the network is the frozen one."""

    def fresh(self, draw: torch.Generator, rank: int = 0) -> Tree:
        """The change that changes nothing; nothing is drawn."""
        return self.layout.tree(torch.zeros(self.layout.width), rank)

    def passes(self, owners: Sequence[object], most: int) -> list[slice]:
        """Rows in passes of at most so many; all of one pass have one owner."""
        found, at = [], 0
        for _, own in itertools.groupby(owners):
            end = at + len(list(own))
            found += [slice(start, min(start + most, end)) for start in range(at, end, most)]
            at = end
        return found

    @contextmanager
    def carry(self, lines: Tensor, *, weights: Tensor | None = None, drop: Drop | None = None) -> Iterator[None]:
        """Give all rows of a batch the one line, or the sum of one's mixture; gradients flow back into the lines."""
        if len(lines) != 1 or drop is not None:
            raise TreeError(f"weights: a pass carries one whole model and drops nothing out, came {len(lines)} models")
        line = lines[0] if weights is None else weights[0].to(lines) @ lines[0]
        changes = self.layout.parts(line)
        try:
            self._put({key: (weight + changes[key]).to(weight.dtype) for key, weight in self._frozen.items()})
            yield
        finally:
            self._put(self._frozen)

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for module, name, key in self._places:
            module._parameters[name] = weights[key]  # type: ignore[assignment]  # setattr takes no plain tensor


AnyBank = Bank | Weights


def _trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """Every weight once, under the first of its names."""
    found = dict(network.named_parameters())
    for key, weight in found.items():
        if not weight.is_floating_point():
            kind = str(weight.dtype).removeprefix("torch.")
            raise BackboneError(f"weights: '{key}' is quantised ({kind}) and cannot be trained; load 16 bits or more")
    return found
