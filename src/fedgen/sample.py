"""What an adapter writes: a run's backbone with one of its adapters, continuing a prompt."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fedgen import lora, seeds
from fedgen.backbones import LanguageBackbone
from fedgen.bank import Bank
from fedgen.run import Run


@dataclass(frozen=True)
class Sampler:
    """A run's backbone, ready to write under any of its adapters."""

    run: Run
    backbone: LanguageBackbone
    bank: Bank

    def write(
        self, prompt: str, *, adapter: str = "global", tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[str]:
        """Continue the prompt piece by piece; temperature 0 takes the likeliest token each time."""
        slot = 0
        if adapter != "backbone":
            found, _ = self.run.adapter(adapter)
            self.bank.write(1, lora.resize(found, self.bank.layout.rank))
            slot = 1
        draw = seeds.generator(seed, -1, "", "sample")
        with self.bank.rows(torch.tensor([slot])):
            yield from self.backbone.write(prompt, tokens=tokens, temperature=temperature, draw=draw)


def sampler(run: Run) -> Sampler:
    """Load a run's backbone and make room for its adapters."""
    plan = run.plan
    backbone = plan.backbone.load()
    return Sampler(run, backbone, Bank(backbone.network, plan.adapter.targets, plan.adapter.rank, slots=1))
