"""What a client keeps for itself: its personal adapter, how it starts and when it is trained."""

from dataclasses import dataclass, replace
from typing import Annotated, Protocol

from fedgen.client import Training
from fedgen.records import Range, Tree


class Personal(Protocol):
    """A rule for the client's own adapter."""

    @property
    def each_round(self) -> bool:
        """Whether the own adapter is trained in every turn, beside the shared one."""

    def begin(self, own: Tree | None, shared: Tree) -> Tree | None:
        """What the own adapter's training starts from; None if there is no own adapter."""

    def training(self, training: Training) -> Training:
        """How the own adapter is trained."""


@dataclass(frozen=True)
class Nothing:
    """No personal adapter."""

    each_round = False

    def begin(self, own: Tree | None, shared: Tree) -> Tree | None:
        """Nothing begins."""
        return None

    def training(self, training: Training) -> Training:
        """As the plan says; it is not used."""
        return training


@dataclass(frozen=True)
class FineTune:
    """Fine-tune the shared adapter when the rounds are over, for `steps`, or if that is 0 for `epochs`."""

    epochs: Annotated[int, Range(1)] = 1
    steps: Annotated[int, Range(0)] = 0
    lr: Annotated[float, Range(0, open=True)] = 3e-3
    each_round = False

    def begin(self, own: Tree | None, shared: Tree) -> Tree | None:
        """From the shared adapter, always anew."""
        return shared

    def training(self, training: Training) -> Training:
        """The client's training with its own length and rate."""
        return alone(training, self)


@dataclass(frozen=True)
class Keep:
    """Keep the own adapter across rounds and train it in every turn for `steps` or `epochs`, beside the shared one."""

    epochs: Annotated[int, Range(1)] = 1
    steps: Annotated[int, Range(0)] = 0
    lr: Annotated[float, Range(0, open=True)] = 3e-3
    each_round = True

    def begin(self, own: Tree | None, shared: Tree) -> Tree | None:
        """From where it was; the first time from the shared adapter."""
        return own or shared

    def training(self, training: Training) -> Training:
        """The client's training with its own length and rate."""
        return alone(training, self)


def alone(training: Training, rule: FineTune | Keep) -> Training:
    """A client's training with the rule's own length and rate, and nothing that pulls it back."""
    return replace(training, epochs=rule.epochs, steps=rule.steps, lr=rule.lr, proximal=0.0)


PERSONALS = {"none": Nothing, "finetune": FineTune, "keep": Keep}
