"""What every guard promises, and the simplest one."""

from dataclasses import dataclass
from typing import Annotated, Protocol

import torch

from fedgen import tree
from fedgen.records import Range, Tree


class Guard(Protocol):
    """What stands on the way of a change, with a client's end and a server's end."""

    def out(self, change: Tree, draw: torch.Generator) -> Tree:
        """The client's end: what goes on instead of the change."""

    def back(self, came: Tree, like: Tree) -> Tree:
        """The server's end: the change, as near as it can be had, from what came; `like` has its keys and shapes."""


@dataclass(frozen=True)
class Clip:
    """A change is at most `norm` long: a client shortens what is longer, and so does the server, whoever sent it."""

    norm: Annotated[float, Range(0, open=True)] = 1.0

    def out(self, change: Tree, draw: torch.Generator) -> Tree:
        """Shortened."""
        return tree.clip(change, self.norm)

    def back(self, came: Tree, like: Tree) -> Tree:
        """Shortened, whether the client has done so or not."""
        tree.check(came, like, "clip")
        return tree.clip(came, self.norm)
