"""How good made pictures are: beside real ones on the features of a named network, and beside their prompts."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.quality.distances import Moments, frechet, kernel, moments, precision_recall
from fedgen.quality.features import FEATURES, Clip, Features, Inception, ResNet, called, extract

__all__ = [
    "FEATURES",
    "Clip",
    "Comparison",
    "Features",
    "Inception",
    "Moments",
    "ResNet",
    "called",
    "compare",
    "extract",
    "frechet",
    "kernel",
    "moments",
    "precision_recall",
]


@dataclass(frozen=True)
class Comparison:
    """Made pictures beside real ones on the features so named; `called` is what their Fréchet distance is called.

    Lower is better for `frechet` and `kernel`, higher for `precision` (made pictures look real) and `recall` (real ones
    could have been made). Only numbers on the same features and of as many pictures are comparable.
    """

    features: str
    called: str
    real: int
    made: int
    frechet: float
    kernel: float
    precision: float
    recall: float


def compare(features: Features, real: Tensor, made: Tensor) -> Comparison:
    """Measure made pictures against real ones, both uint8 [n, channels, height, width]."""
    title = called(features, min(len(real), len(made)))  # too few are refused before the work
    known, new = extract(features, real), extract(features, made)
    precision, recall = precision_recall(known, new)
    return Comparison(
        features=features.name,
        called=title,
        real=len(real),
        made=len(made),
        frechet=frechet(moments(known), moments(new)),
        kernel=kernel(known, new, torch.Generator().manual_seed(0)),  # the same subsets whenever they are measured
        precision=precision,
        recall=recall,
    )
