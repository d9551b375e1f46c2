"""Arithmetic on trees: flat dicts of tensors with the same keys and shapes, checked once at the door.

`Sum` adds in whole numbers, so its result does not depend on the order in which trees arrive.
"""

import hashlib
import json
import math
from collections.abc import Mapping

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fedgen.errors import TreeError
from fedgen.records import Tree

FRACTION = 32  # bits behind the point in a Sum: far below what half a float32 step of a weight can say
LIMIT = 2.0 ** (62 - FRACTION)


def check(tree: Tree, like: Tree, where: str) -> None:
    """Raise unless `tree` has exactly the keys and shapes of `like`."""
    for key in like:
        if key not in tree:
            raise TreeError(f"{where}: '{key}' is missing; both sides must adapt the same layers")
        if tree[key].shape != like[key].shape:
            raise TreeError(f"{where}: '{key}' has shape {tuple(tree[key].shape)}, wanted {tuple(like[key].shape)}")
    for key in tree:
        if key not in like:
            raise TreeError(f"{where}: '{key}' is not expected here; both sides must adapt the same layers")


def is_finite(tree: Tree) -> bool:
    """Whether every number in the tree is a number."""
    return all(bool(value.isfinite().all()) for value in tree.values())


def zeros(like: Tree) -> Tree:
    """A tree of zeros."""
    return {key: torch.zeros_like(value) for key, value in like.items()}


def add(a: Tree, b: Tree, weight: float = 1.0) -> Tree:
    """a + weight * b."""
    check(b, a, "add")
    return {key: a[key] + weight * b[key] for key in a}


def scale(tree: Tree, by: float) -> Tree:
    """Every number times `by`."""
    return {key: value * by for key, value in tree.items()}


def norm(tree: Tree) -> float:
    """The Euclidean length of the whole tree."""
    return math.sqrt(sum(value.double().square().sum().item() for value in tree.values()))


def clip(tree: Tree, longest: float) -> Tree:
    """The tree, shortened to at most `longest`."""
    length = norm(tree)
    return tree if length <= longest else scale(tree, longest / length)


def size(tree: Tree) -> int:
    """How many numbers it holds."""
    return sum(value.numel() for value in tree.values())


def flatten(tree: Tree) -> Tensor:
    """All numbers in one line, keys in order."""
    return torch.cat([tree[key].flatten() for key in sorted(tree)])


def unflatten(line: Tensor, like: Tree) -> Tree:
    """The tree that `flatten` made this line of."""
    parts = line.split([like[key].numel() for key in sorted(like)])
    return {key: part.view(like[key].shape) for part, key in zip(parts, sorted(like), strict=True)}


def pack(tree: Tree, notes: Mapping[str, str] | None = None) -> bytes:
    """The tree as it crosses a wire or lies on a disk: safetensors. Several notes are kept in no fixed order."""
    kept: dict[int, Tensor] = {}  # a tensor that stands under two keys is written twice
    apart = {key: value.contiguous() for key, value in tree.items()}
    for key, value in apart.items():
        apart[key] = value.clone() if value.untyped_storage().data_ptr() in kept else value
        kept[value.untyped_storage().data_ptr()] = value
    return safetensors.torch.save(apart, dict(notes or {}))


def unpack(raw: bytes, where: str = "message") -> tuple[Tree, dict[str, str]]:
    """The tree and the notes of `pack`."""
    try:
        found = safetensors.torch.load(raw)
        header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    except (SafetensorError, ValueError, KeyError) as error:  # the last: a kind of number torch lacks
        raise TreeError(f"{where}: wanted whole safetensors, came {len(raw)} bytes that are not ({error})") from error
    return found, header.get("__metadata__", {})


def digest(tree: Tree) -> str:
    """The content's name: the same numbers under the same keys have the same digest."""
    ordered = {key: tree[key] for key in sorted(tree)}
    return hashlib.sha256(pack(ordered)).hexdigest()


class Sum:
    """A weighted sum of trees, kept as 64-bit whole numbers: exact to 2**-32, and blind to the order of arrival."""

    def __init__(self) -> None:
        self._total: dict[str, Tensor] = {}
        self._like: Tree = {}
        self._reach = 0.0
        self.weight = 0.0

    def add(self, tree: Tree, weight: float) -> None:
        """Fold one tree in."""
        if not self._total:
            self._like = {key: value.new_empty(0) for key, value in tree.items()}
            self._total = {key: torch.zeros(value.shape, dtype=torch.int64) for key, value in tree.items()}
        check(tree, self._total, "sum")
        longest = torch.tensor([value.abs().max().item() for value in tree.values()], dtype=torch.float64)
        reach = self._reach + weight * longest.max().item()  # torch's, which lets a NaN through wherever it stands
        if not reach < LIMIT:
            raise TreeError(f"sum: weighted values reach {reach:.3g}, at most {LIMIT:.3g} can be summed exactly")
        self._reach = reach  # one that is refused leaves no trace
        for key, value in tree.items():
            self._total[key] += (value.detach().cpu().double() * (weight * 2.0**FRACTION)).round().long()
        self.weight += weight

    def mean(self) -> Tree:
        """The sum over the weights' sum."""
        if not self.weight:
            raise TreeError("mean: nothing was added")
        by = 2.0**FRACTION * self.weight
        return {key: (total.double() / by).to(self._like[key].dtype) for key, total in self._total.items()}
