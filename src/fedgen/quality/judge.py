"""The glyph judge: a small network, trained on real glyphs alone, that tells a picture's letter and its style."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedgen.data.glyphs import CHARACTERS, STYLES
from fedgen.errors import DataError
from fedgen.store import read_bytes
from fedgen.tree import unpack

WEIGHTS = Path(__file__).parent / "embedded" / "judge.safetensors"
SIDE, FEATURES = 32, 64


class Eye(nn.Module):
    """Three convolutions, 64 features, and two answers."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (1, 16, 32, 64)
        layers = [(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)) for a, b in pairwise(sizes)]
        self.look = nn.Sequential(*(layer for part in layers for layer in part), nn.Flatten())
        self.features = nn.Linear(sizes[-1] * (SIDE // 8) ** 2, FEATURES)
        self.styles, self.letters = nn.Linear(FEATURES, len(STYLES)), nn.Linear(FEATURES, len(CHARACTERS))

    def forward(self, pictures: Tensor) -> Tensor:
        """Grey pictures in bytes as features."""
        ink = 1 - pictures.float() / 255
        return F.relu(self.features(self.look(ink)))


@dataclass(frozen=True)
class Judge:
    """Says of grey pictures which letter and style they are; its own accuracy on real glyphs is in its record."""

    path: str = ""
    name: ClassVar[str] = "judge"
    title: ClassVar[str] = "Fréchet distance on glyph-judge features"
    width: ClassVar[int] = FEATURES
    least: ClassVar[int] = 4

    @property
    def weights(self) -> Path:
        """Where its weights are: its own, or those of another training."""
        return Path(self.path).expanduser() if self.path else WEIGHTS

    @cached_property
    def record(self) -> dict[str, Any]:
        """How it was trained, and how often it is right on real glyphs that it had not seen."""
        found: dict[str, Any] = json.loads(read_bytes(self.weights.with_suffix(".json")))
        return found

    @cached_property
    def _eye(self) -> Eye:
        weights, _ = unpack(read_bytes(self.weights), str(self.weights))
        eye = Eye()
        if {key: value.shape for key, value in weights.items()} != {k: v.shape for k, v in eye.state_dict().items()}:
            raise DataError(f"{self.weights}: wanted a judge's weights, came others; give the path of a judge")
        eye.load_state_dict({key: value.float() for key, value in weights.items()})
        return eye.eval().requires_grad_(False)

    def of(self, pictures: Tensor) -> Tensor:
        """Pictures [n, 1, high, wide] in bytes as features [n, 64], each of length 8: their mean square is 1."""
        found: Tensor = F.normalize(self._seen(pictures)) * FEATURES**0.5
        return found

    @torch.no_grad()
    def _seen(self, pictures: Tensor) -> Tensor:
        if pictures.dim() != 4 or pictures.shape[1] != 1 or pictures.dtype != torch.uint8:
            raise DataError(f"judge: wanted grey pictures [n, 1, high, wide] in bytes, came {tuple(pictures.shape)}")
        if pictures.shape[2:] != (SIDE, SIDE):
            pictures = F.interpolate(pictures.float(), (SIDE, SIDE), mode="bilinear", antialias=True)
        found: Tensor = self._eye(pictures)
        return found

    def styles(self, pictures: Tensor, among: Sequence[str]) -> list[str]:
        """The likeliest of some styles, a picture each."""
        return _best(self._eye.styles(self._seen(pictures)), list(STYLES), among)

    def letters(self, pictures: Tensor, among: Sequence[str]) -> list[str]:
        """The likeliest of some characters, a picture each."""
        return _best(self._eye.letters(self._seen(pictures)), list(CHARACTERS), among)


def _best(said: Tensor, names: Sequence[str], among: Sequence[str]) -> list[str]:
    if not among:
        raise DataError("judge: wanted at least one to choose among, came none")
    if unknown := sorted(set(among) - set(names)):
        raise DataError(f"judge: '{unknown[0]}' is none that it knows; it knows {', '.join(names)}")
    places = [names.index(name) for name in among]
    return [among[at] for at in said[:, places].argmax(1).tolist()]
