"""What an adapter makes: a run's backbone with its adapters, continuing a prompt or drawing pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedgen import lora, seeds
from fedgen.backbones import Backbone, DiffusionBackbone, LanguageBackbone
from fedgen.bank import Bank
from fedgen.errors import StoreError
from fedgen.records import Document
from fedgen.run import Run

BARE = "backbone"  # the name of no adapter at all
CROWD = 32  # pictures drawn at once, each under its own adapter


@dataclass(frozen=True)
class Wish:
    """One picture: under which adapter, of which prompt or label, from which draw."""

    adapter: str
    asked: Document
    seed: int
    use: str = "sample"


@dataclass(frozen=True)
class Sampler:
    """A run's backbone, ready to write or to draw under any of its adapters."""

    run: Run
    backbone: Backbone
    bank: Bank
    known: dict[str, Tensor] = field(default_factory=dict)

    def line(self, adapter: str) -> Tensor:
        """An adapter as a line of the bank; `backbone` is zeros."""
        if adapter == BARE:
            return self.bank.lines[0]
        if adapter not in self.known:
            found, _ = self.run.adapter(adapter)
            self.known[adapter] = self.bank.layout.vector(lora.resize(found, self.bank.layout.rank)).to(self.bank.lines)
        return self.known[adapter]

    def write(
        self, prompt: str, *, adapter: str = "global", tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[str]:
        """Continue the prompt piece by piece; temperature 0 takes the likeliest token each time."""
        if not isinstance(self.backbone, LanguageBackbone):
            raise StoreError(f"run '{self.run.folder}': its backbone draws pictures and writes no text; use paint")
        draw = seeds.generator(seed, -1, "", "sample")
        with self.bank.carry(self.line(adapter)[None]):
            yield from self.backbone.write(prompt, tokens=tokens, temperature=temperature, draw=draw)

    def paint(self, wishes: Sequence[Wish], *, steps: int, guidance: float) -> Iterator[Tensor]:
        """Every wish's picture in bytes, in order; wishes of different adapters share the passes."""
        if not isinstance(self.backbone, DiffusionBackbone):
            raise StoreError(f"run '{self.run.folder}': its backbone writes text and draws no pictures; use write")
        for at in range(0, len(wishes), CROWD):
            crowd = wishes[at : at + CROWD]
            draws = [seeds.generator(wish.seed, -1, "", wish.use) for wish in crowd]
            with self.bank.carry(torch.stack([self.line(wish.adapter) for wish in crowd])):
                asked = [wish.asked for wish in crowd]
                yield from self.backbone.paint(asked, draws, steps=steps, guidance=guidance)


def sampler(run: Run) -> Sampler:
    """Load a run's backbone and make room for its adapters."""
    plan = run.plan
    backbone = plan.backbone.load()
    return Sampler(run, backbone, Bank(backbone.network, plan.adapter.targets, plan.adapter.rank))
