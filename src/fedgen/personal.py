"""What a client keeps for itself: its personal adapter, how it starts and when it is trained."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Protocol

from fedgen import factors, lora
from fedgen.client import Start, Training
from fedgen.records import GLOBAL, Offer, Range, Tree
from fedgen.share import stacked

Fresh = Callable[[int], Tree]  # an adapter of a wanted rank that changes nothing yet, drawn by the client


class Personal(Protocol):
    """A rule for the client's own adapter."""

    @property
    def each_round(self) -> bool:
        """Whether the own adapter is trained in every turn, beside the shared one."""

    def rank(self, shared: int) -> int:
        """The rank that an own adapter takes at most, where a shared one takes this."""

    def begin(self, own: Tree | None, offer: Offer, fresh: Fresh) -> Start | None:
        """What the own adapter's training starts from; None if there is no own adapter."""

    def meet(self, own: Tree, offer: Offer) -> Tree:
        """The own adapter that was kept, on what is offered now."""

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

    def meet(self, own: Tree, offer: Offer) -> Tree:
        """As it was kept."""
        return own

    def training(self, training: Training) -> Training:
        """As the plan says; it is not used."""
        return training


@dataclass(frozen=True)
class FineTune:
    """Fine-tune the shared adapter when the rounds are over, for `steps`, or if that is 0 for `epochs`.

    `pull` draws it back to the shared one.
    """

    epochs: Annotated[int, Range(1)] = 1
    steps: Annotated[int, Range(0)] = 0
    lr: Annotated[float, Range(0, open=True)] = 3e-3
    pull: Annotated[float, Range(0)] = 0.0
    each_round = False

    def rank(self, shared: int) -> int:
        """As wide as the shared one."""
        return shared

    def begin(self, own: Tree | None, offer: Offer, fresh: Fresh) -> Start | None:
        """From the shared adapter, always anew."""
        return Start(offer.adapter)

    def meet(self, own: Tree, offer: Offer) -> Tree:
        """As it was kept."""
        return own

    def training(self, training: Training) -> Training:
        """The client's training with its own length and rate."""
        return alone(training, self)


@dataclass(frozen=True)
class Keep:
    """Keep the own adapter across rounds and train it in every turn for `steps` or `epochs`, beside the shared one.

    `pull` draws it to the shared one, as that was offered (Ditto).
    """

    epochs: Annotated[int, Range(1)] = 1
    steps: Annotated[int, Range(0)] = 0
    lr: Annotated[float, Range(0, open=True)] = 3e-3
    pull: Annotated[float, Range(0)] = 0.0
    each_round = True

    def rank(self, shared: int) -> int:
        """As wide as the shared one."""
        return shared

    def begin(self, own: Tree | None, offer: Offer, fresh: Fresh) -> Start | None:
        """From where it was; the first time from the shared adapter."""
        return Start(own or offer.adapter, anchor=offer.adapter)

    def meet(self, own: Tree, offer: Offer) -> Tree:
        """As it was kept."""
        return own

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
        return stacked(below, fresh(self.own))

    def meet(self, own: Tree, offer: Offer) -> Tree:
        """As it was kept."""
        return own

    def training(self, training: Training) -> Training:
        """The client's training with its own length and rate."""
        return replace(alone(training, self), dropout=0.0)


@dataclass(frozen=True)
class Beside:
    """Keep an own adapter of rank `own`, and train it in every turn on top of a share of the shared one.

    With `shared` = 1 the own one begins as nothing (a dual adapter). With less it begins as the rest of the shared one,
    and the two are a mixture (APFL, with its weight held fixed).
    """

    own: Annotated[int, Range(1)] = 2
    shared: Annotated[float, Range(0, 1)] = 1.0
    epochs: Annotated[int, Range(1)] = 1
    steps: Annotated[int, Range(0)] = 0
    lr: Annotated[float, Range(0, open=True)] = 3e-3
    each_round = True

    def rank(self, shared: int) -> int:
        """That of both."""
        return self.own + shared

    def begin(self, own: Tree | None, offer: Offer, fresh: Fresh) -> Start | None:
        """From the own part as it was, on the shared one as it is now."""
        if own:
            return self._on(offer, own)
        if self.shared < 1:
            top = lora.resize(lora.product_sum([(1 - self.shared, offer.adapter)]), self.own)
        else:
            top = fresh(self.own)
        return stacked([(self.shared, offer.adapter)], top)

    def meet(self, own: Tree, offer: Offer) -> Tree:
        """The own part, on a share of the shared one as it is now."""
        return self._on(offer, own).adapter

    def _on(self, offer: Offer, own: Tree) -> Start:
        return stacked([(self.shared, offer.adapter)], factors.split(own, self.own)[1])

    def training(self, training: Training) -> Training:
        """The client's training with its own length and rate."""
        return replace(alone(training, self), dropout=0.0)


def alone(training: Training, rule: FineTune | Keep | Added | Beside) -> Training:
    """A client's training with the rule's own length and rate, and the rule's own pull."""
    pull = rule.pull if isinstance(rule, FineTune | Keep) else 0.0
    return replace(
        training, epochs=rule.epochs, steps=rule.steps, lr=rule.lr, proximal=pull, ahead=0.0, follow=0.0, press=0.0
    )


PERSONALS = {"none": Nothing, "finetune": FineTune, "keep": Keep, "added": Added, "beside": Beside}
