"""How much memory tensors take meanwhile: every one that an operation makes, until nothing holds it any more."""

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Held(TorchDispatchMode):
    """While it lasts, `most` is the most bytes that new tensors have held at one moment."""

    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.now = self.most = 0
        self.sizes: dict[int, int] = {}  # of each storage, by where it is known

    def __torch_dispatch__(
        self, act: Any, types: object, given: Sequence[Any] = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        """Do it, and weigh what it made."""
        for tensor in tree_leaves((given, named)):
            self._weigh(tensor, new=False)
        made = act(*given, **(named or {}))
        for tensor in tree_leaves(made):
            self._weigh(tensor, new=True)
        self.most = max(self.most, self.now)
        return made

    def _weigh(self, tensor: object, *, new: bool) -> None:
        """Note a tensor's storage the first time it is met; what is met as given was there before, and so are views."""
        if not isinstance(tensor, Tensor) or tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = storage.nbytes() if new else 0
            self.now += self.sizes[storage._cdata]
            weakref.finalize(storage, self._freed, storage._cdata)

    def _freed(self, at: int) -> None:
        self.now -= self.sizes.pop(at)
