"""The server's own step: how far the adapter moves towards what the round's updates came to."""

from dataclasses import dataclass
from typing import Annotated, Protocol

from fedgen import tree
from fedgen.records import Range, Tree


class Outer(Protocol):
    """A server step; what it must remember is handed back."""

    def step(self, now: Tree, mean: Tree, memory: Tree) -> tuple[Tree, Tree]:
        """The new adapter and the new memory."""


def _named(part: Tree, name: str) -> Tree:
    return {f"{name}/{key}": value for key, value in part.items()}


def _recall(memory: Tree, name: str, like: Tree) -> Tree:
    return {key: memory[f"{name}/{key}"] for key in like} if memory else tree.zeros(like)


@dataclass(frozen=True)
class Plain:
    """Go there, or a share `lr` of the way."""

    lr: Annotated[float, Range(0, open=True)] = 1.0

    def step(self, now: Tree, mean: Tree, memory: Tree) -> tuple[Tree, Tree]:
        """now + lr (mean - now)."""
        return (mean if self.lr == 1 else tree.add(now, tree.add(mean, now, -1), self.lr)), memory


@dataclass(frozen=True)
class Momentum:
    """Keep going in the direction of earlier rounds (FedAvgM)."""

    lr: Annotated[float, Range(0, open=True)] = 1.0
    beta: Annotated[float, Range(0, 1)] = 0.9

    def step(self, now: Tree, mean: Tree, memory: Tree) -> tuple[Tree, Tree]:
        """speed = beta speed + (mean - now); now + lr speed."""
        speed = tree.add(tree.add(mean, now, -1), _recall(memory, "speed", now), self.beta)
        return tree.add(now, speed, self.lr), _named(speed, "speed")


@dataclass(frozen=True)
class Adam:
    """Scale each number's step by how much it has been moving (FedAdam, without bias correction, as published)."""

    lr: Annotated[float, Range(0, open=True)] = 1e-2
    beta: Annotated[float, Range(0, 1)] = 0.9
    beta2: Annotated[float, Range(0, 1)] = 0.99
    epsilon: Annotated[float, Range(0, open=True)] = 1e-3

    def step(self, now: Tree, mean: Tree, memory: Tree) -> tuple[Tree, Tree]:
        """The moving means of step and squared step, and the step they give."""
        move = tree.add(mean, now, -1)
        first = tree.add(tree.scale(_recall(memory, "first", now), self.beta), move, 1 - self.beta)
        squares = {key: value * value for key, value in move.items()}
        second = tree.add(tree.scale(_recall(memory, "second", now), self.beta2), squares, 1 - self.beta2)
        new = {key: now[key] + self.lr * first[key] / (second[key].sqrt() + self.epsilon) for key in now}
        return new, _named(first, "first") | _named(second, "second")


OUTERS = {"plain": Plain, "momentum": Momentum, "adam": Adam}
