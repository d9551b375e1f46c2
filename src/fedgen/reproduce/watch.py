"""What a run tells while it is played and its journal does not say: quality in a study's measure, sizes, and drift."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fedgen import lora
from fedgen.errors import TreeError
from fedgen.evaluate import Score, total
from fedgen.journal import load_checkpoint
from fedgen.records import GLOBAL, Report, Tree, Update
from fedgen.run import CHECKPOINT, Began
from fedgen.turns import read_scores

TINY = 1e-12  # a length below this is none


def measure(score: Score) -> float:
    """Perplexity per word of text, the mean loss of pictures: lower is better."""
    return score.per_word if score.words else score.loss / score.terms


class Watch:
    """Hears a run's events. With `drift` it looks at every update, so it costs time."""

    def __init__(self, drift: bool) -> None:
        self.wanted = drift
        self.rounds: list[dict[str, Any]] = []
        self.moves: dict[str, list[float]] = {"drift": [], "spread": [], "apart": []}
        self.sizes: list[int] = []
        self.adds = False  # whether clients send what is to be added to the adapter, and not a new one
        self.checks: list[Score] = []
        self.updates: list[Update] = []
        self.folder = Path()
        self.start: Tree | None = None

    def tell(self, event: object) -> None:
        """Take one event in."""
        if isinstance(event, Began):
            self.folder, self.adds = event.folder, event.plan.share.sends == "increment"
        elif isinstance(event, Update) and "steps" in event.metrics:
            self.sizes.append(event.up)
            self.updates += [event] if self.wanted else []
        elif isinstance(event, Update) and event.metrics:
            self.checks += read_scores(event).values()
        elif isinstance(event, Report):
            self._close(event)

    @property
    def message(self) -> int:
        """The mean bytes of an update."""
        return round(sum(self.sizes) / len(self.sizes)) if self.sizes else 0

    def _close(self, report: Report) -> None:
        told = {key: value for key, value in report.metrics.items() if not key.startswith("check_")}
        seen = {"measure": measure(total(self.checks))} if self.checks else {}
        line = {"round": report.round, "up": report.up, "down": report.down, **told, **seen}
        self.rounds.append(
            {key: value for key, value in line.items() if key not in ("terms", "perplexity", "denoising")}
        )
        if self.wanted:
            self._moved()
        self.checks, self.updates = [], []

    def _moved(self) -> None:
        state = load_checkpoint(self.folder / CHECKPOINT)
        before, self.start = self.start, state.adapters.get(GLOBAL) if state else None
        updates = sorted(self.updates, key=lambda update: update.client)
        found = moves(None if self.adds else before, [(float(update.examples), update.adapter) for update in updates])
        for name, value in found.items():
            self.moves[name].append(value)


def moves(start: Tree | None, parts: Sequence[tuple[float, Tree]]) -> Mapping[str, float]:
    """What updates that are whole adapters say of their clients, in products; `start` is what they trained from.

    `drift` is their mean distance from the mean, in lengths of the mean's step; `spread` is one less the mean cosine of
    two clients' steps; `apart` is how far averaging A and B apart is off.
    """
    try:
        apart = lora.apart_error(parts)
        nothing = {key: torch.zeros_like(half) for key, half in parts[0][1].items()}
        found = lora.gram([start or nothing, *(adapter for _, adapter in parts)])
    except (TreeError, IndexError):  # a part of an adapter, or a whole model
        return {}
    steps = found[1:, 1:] - found[:1, 1:] - found[1:, :1] + found[0, 0]
    weights = torch.tensor([weight for weight, _ in parts], dtype=steps.dtype)
    weights /= weights.sum()
    mean = float(weights @ steps @ weights)
    away = (steps.diagonal() - 2 * steps @ weights + mean).clamp(min=0).sqrt()
    length = steps.diagonal().clamp(min=TINY).sqrt()
    cosines, n = steps / (length[:, None] * length), len(parts)
    alike = float((cosines.sum() - cosines.diagonal().sum()) / max(n * (n - 1), 1))
    return {"drift": float(weights @ away) / math.sqrt(max(mean, TINY)), "spread": 1 - alike, "apart": apart}
