"""What fedgen asks of a frozen model, and the kinds of frozen model there are."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from fedgen.backbones.diffusion import Diffusion, DiffusionBackbone
from fedgen.backbones.language import Language, LanguageBackbone
from fedgen.records import Document, Rows


class Backbone(Protocol):
    """A frozen network that can say how well it knows a row."""

    @property
    def kind(self) -> str:
        """What it makes: text, or image."""

    @property
    def component(self) -> str:
        """Which part of an image pipeline the network is (unet, transformer); none for text."""

    @property
    def name(self) -> str:
        """Where it comes from."""

    @property
    def hash(self) -> str:
        """The content's name of its weights."""

    @property
    def network(self) -> nn.Module:
        """The frozen network."""

    @property
    def targets(self) -> Sequence[str]:
        """The layers to adapt when a plan does not say."""

    @property
    def length(self) -> int:
        """How many places one row has (tokens, for text)."""

    @property
    def looks(self) -> int:
        """How often a held-out row is looked at to measure it: once, or more where chance has a part in its loss."""

    def encode(self, documents: Sequence[Document]) -> Rows:
        """Raw documents as rows, ready to be learnt or measured."""

    def draw(self, rows: Rows, draw: torch.Generator) -> Rows:
        """The rows with what chance adds before a loss can be taken: nothing for text, noise for images.

        It draws row by row, so that how rows are batched leaves no trace.
        """

    def losses(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Each row's summed loss, with gradient, and how many terms were summed."""

    def seal(self, prompt: str) -> Rows:
        """What a device sends in place of a prompt, for inference: hidden states, no text and no token ids."""

    def row_bytes(self, *, anew: bool = False) -> int:
        """About how much memory one row's forward and backward pass takes, also with activations computed `anew`."""

    def anew(self) -> AbstractContextManager[None]:
        """While it lasts, a pass keeps little for its gradient, and computes the rest anew when that is taken."""


class Model(Protocol):
    """Which frozen model, and how it is loaded: a part of a plan."""

    @property
    def source(self) -> str:
        """`embedded`, a folder, or `hub:owner/name`."""

    def load(self) -> Backbone:
        """The frozen model."""


__all__ = ["BACKBONES", "Backbone", "Diffusion", "DiffusionBackbone", "Language", "LanguageBackbone", "Model"]

BACKBONES: dict[str, type[Model]] = {"language": Language, "diffusion": Diffusion}
