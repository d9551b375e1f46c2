"""What a client keeps for itself: its personal adapter, how it starts and when it is trained."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Protocol

import torch

from fedgen import lora
from fedgen.client import Training
from fedgen.records import GLOBAL, Offer, Range, Tree

Fresh = Callable[[int], Tree]  # an adapter of a wanted rank that changes nothing yet, drawn by the client


@dataclass(frozen=True)
class Start:
    """What an own adapter's training starts from, and which of its numbers move: ones among zeros (None: all)."""

    adapter: Tree
    free: Tree | None = None


class Personal(Protocol):
    """A rule for the client's own adapter."""

    @property
    def each_round(self) -> bool:
        """Whether the own adapter is trained in every turn, beside the shared one."""

    def rank(self, shared: int) -> int:
        """The rank that an own adapter takes at most, where a shared one takes this."""

    def begin(self, own: Tree | None, offer: Offer, fresh: Fresh) -> Start | None:
        """What the own adapter's training starts from; None if there is no own adapter."""

    def training(self, training: Training) -> Training:
        """How the own adapter is trained."""


@dataclass(frozen=True)
class Nothing:
    """No personal adapter."""

    each_round = False

    def rank(self, shared: int) -> int:
        """As wide as the shared one."""
        return shared

    def begin(self, own: Tree | None, offer: Offer, fresh: Fresh) -> Start | None:
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

    def rank(self, shared: int) -> int:
        """As wide as the shared one."""
        return shared

    def begin(self, own: Tree | None, offer: Offer, fresh: Fresh) -> Start | None:
        """From the shared adapter, always anew."""
        return Start(offer.adapter)

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

    def rank(self, shared: int) -> int:
        """As wide as the shared one."""
        return shared

    def begin(self, own: Tree | None, offer: Offer, fresh: Fresh) -> Start | None:
        """From where it was; the first time from the shared adapter."""
        return Start(own or offer.adapter)

    def training(self, training: Training) -> Training:
        """The client's training with its own length and rate."""
        return alone(training, self)


@dataclass(frozen=True)
class Added:
    """Train a small adapter on top of the shared one, which stays as it is, when the rounds are over.

    Its rank is `own`. Below it lies the cluster's adapter, of which a share of `whole` gives way to the global one.
    Nothing is dropped out, as that would meet what lies below too.
    """

    own: Annotated[int, Range(1)] = 2
    whole: Annotated[float, Range(0, 1)] = 0.0
    epochs: Annotated[int, Range(1)] = 1
    steps: Annotated[int, Range(0)] = 0
    lr: Annotated[float, Range(0, open=True)] = 3e-3
    each_round = False

    def rank(self, shared: int) -> int:
        """That of all that lies on each other."""
        return self.own + shared * (2 if self.whole else 1)

    def begin(self, own: Tree | None, offer: Offer, fresh: Fresh) -> Start | None:
        """From the sum of products, of which the last moves."""
        below = [(1.0, offer.adapter)]
        if self.whole and offer.cluster != GLOBAL and GLOBAL in offer.beside:
            below = [(1 - self.whole, offer.adapter), (self.whole, offer.beside[GLOBAL])]
        top = fresh(self.own)
        still = [(share, {key: torch.zeros_like(half) for key, half in tree.items()}) for share, tree in below]
        moving = {key: torch.ones_like(half) for key, half in top.items()}
        return Start(lora.product_sum([*below, (1.0, top)]), lora.product_sum([*still, (1.0, moving)]))

    def training(self, training: Training) -> Training:
        """The client's training with its own length and rate."""
        return replace(alone(training, self), dropout=0.0)


def alone(training: Training, rule: FineTune | Keep | Added) -> Training:
    """A client's training with the rule's own length and rate, and nothing that pulls it back."""
    return replace(training, epochs=rule.epochs, steps=rule.steps, lr=rule.lr, proximal=0.0)


PERSONALS = {"none": Nothing, "finetune": FineTune, "keep": Keep, "added": Added}
