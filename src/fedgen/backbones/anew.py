"""Activations computed anew in the backward pass: a block keeps its input alone, and is run again when it is needed."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from fedgen.errors import BackboneError

Runner = Callable[..., Any]  # runs a block on its inputs
Lying = dict[int, UntypedStorage]  # by address

again: Runner = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


@contextmanager
def blocks_anew(network: nn.Module, run: Runner = again) -> Iterator[None]:
    """A transformers network whose layers are run so.

    Its own switch asks whether a layer is training, and what is in training drops out; so the layers are run from here.
    """
    blocks = [block for block in network.modules() if isinstance(block, GradientCheckpointingLayer)]
    if not blocks:
        raise BackboneError(
            f"training.checkpoint: {type(network).__name__} has no layers that can be computed anew; set it to false"
        )
    for block in blocks:
        block.__dict__["forward"] = partial(run, block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.__dict__["forward"]


@contextmanager
def denoiser_anew(network: Any, run: Runner = again) -> Iterator[None]:
    """A diffusers network whose blocks are run so; its own switch asks for nothing but a gradient."""
    network.enable_gradient_checkpointing(run)
    try:
        yield
    finally:
        network.disable_gradient_checkpointing()


class Kept:
    """What a forward pass keeps for the backward one, by where it lies: in each block, and in all that is none.

    It is held here too, so that nothing else comes to lie in its place.
    """

    def __init__(self, frozen: Sequence[Tensor]) -> None:
        self.frozen = {_place(weight) for weight in frozen}
        self.rest: Lying = {}
        self.inputs: Lying = {}
        self.blocks: list[Lying] = []

    @contextmanager
    def seen(self, into: Lying) -> Iterator[None]:
        """Write down what is kept meanwhile."""

        def weigh(tensor: Tensor) -> Tensor:
            self._add(tensor, into)
            return tensor

        with saved_tensors_hooks(weigh, lambda tensor: tensor):
            yield

    def run(self, block: Callable[..., Any], *given: Any) -> Any:
        """Run a block, and write down what it keeps and what it is given."""
        for tensor in given:
            if isinstance(tensor, Tensor):
                self._add(tensor, self.inputs)
        self.blocks.append({})
        with self.seen(self.blocks[-1]):
            return block(*given)

    def _add(self, tensor: Tensor, into: Lying) -> None:
        if _place(tensor) not in self.frozen:
            into[_place(tensor)] = tensor.untyped_storage()

    @property
    def whole(self) -> int:
        """Bytes of all of it."""
        found = dict(self.rest)
        for block in self.blocks:
            found |= block
        return _bytes(found)

    @property
    def least(self) -> int:
        """Bytes if every block is computed anew: all inputs, and one block at a time."""
        return _bytes(self.rest | self.inputs) + max(map(_bytes, self.blocks), default=0)


def _bytes(found: Lying) -> int:
    return sum(storage.nbytes() for storage in found.values())


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
