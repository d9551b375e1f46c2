"""How far two sets of pictures lie apart on their features: Fréchet and kernel distance, precision and recall."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fedgen.errors import DataError

NEIGHBOURS = 3  # how many neighbours a feature's ball reaches to
SUBSET, SUBSETS = 1000, 100  # how the kernel distance of large sets is usually reported
CHUNK = 500  # rows of a table of distances that are in memory at once


@dataclass(frozen=True, eq=False)
class Moments:
    """How many features there were, their mean, and their covariance (over one fewer than their number)."""

    count: int
    mean: Tensor
    cov: Tensor

    def __add__(self, other: "Moments") -> "Moments":
        """The moments of both sets as one: what the joined features would have, so clients can be pooled."""
        _same_width(self.mean, other.mean)
        count, apart = self.count + other.count, self.mean - other.mean
        mean = (self.count * self.mean + other.count * other.mean) / count
        within = (self.count - 1) * self.cov + (other.count - 1) * other.cov
        between = self.count * other.count / count * torch.outer(apart, apart)
        return Moments(count, mean, (within + between) / (count - 1))


def moments(features: Tensor) -> Moments:
    """The moments of features [n, d]; those of a single one, whose covariance is zero, are there to be added."""
    table = _table(features, 1)
    centred = table - table.mean(0)
    return Moments(len(table), table.mean(0), centred.T @ centred / max(len(table) - 1, 1))


def frechet(a: Moments, b: Moments) -> float:
    """The Fréchet distance of two normal distributions with these moments, squared as FID is; lower is better.

    The trace of the root of S_a S_b is the sum of the singular values of S_a^½ S_b^½, which stays real, and exact to
    rounding, when there are fewer features than their width.
    """
    _same_width(a.mean, b.mean)
    if min(a.count, b.count) < 2:
        raise DataError(f"features: wanted at least 2 on each side, came {a.count} and {b.count}; make more pictures")
    shared = torch.linalg.svdvals(_root(a.cov) @ _root(b.cov)).sum()
    distance = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * shared
    return max(float(distance), 0.0)


def kernel(a: Tensor, b: Tensor, draw: torch.Generator) -> float:
    """The squared kernel distance of features [n, d] as KID has it, with (x·y / d + 1)³ for kernel; lower is better.

    It is unbiased, so of two equal distributions it is 0 on average and may fall below. A set of more than 1000 is
    measured by 100 subsets of that size, and the mean is taken.
    """
    a, b = _pair(a, b, 2)
    if max(len(a), len(b)) <= SUBSET:
        return _discrepancy(a, b)
    return math.fsum(_discrepancy(_some(a, draw), _some(b, draw)) for _ in range(SUBSETS)) / SUBSETS


def precision_recall(real: Tensor, made: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Precision and recall of made features [n, d] (Kynkäänniemi et al. 2019); higher is better, 1 is best.

    Around every feature lies a ball that reaches to its k-th neighbour of the same set. Precision is the share of made
    features in a ball of a real one (they look real), recall that of real ones in a ball of a made one (few missed).
    """
    real, made = _pair(real, made, k + 1)
    return _covered(made, real, k), _covered(real, made, k)


def _root(cov: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(cov)
    noise = values[-1] * len(values) * torch.finfo(values.dtype).eps  # below it a zero cannot be told from rounding
    root: Tensor = (vectors * values.where(values > noise, 0).sqrt()) @ vectors.T
    return root


def _discrepancy(a: Tensor, b: Tensor) -> float:
    within = _cubes(a, a), _cubes(b, b)
    alike = sum((table.sum() - table.trace()).item() / (len(table) * (len(table) - 1)) for table in within)
    return alike - 2 * _cubes(a, b).mean().item()


def _cubes(a: Tensor, b: Tensor) -> Tensor:
    return (a / a.shape[1] @ b.T + 1) ** 3


def _some(features: Tensor, draw: torch.Generator) -> Tensor:
    return features[torch.randperm(len(features), generator=draw)[:SUBSET]]


def _covered(points: Tensor, centres: Tensor, k: int) -> float:
    """The share of points that lie in the ball of at least one centre."""
    nearest = (_distances(part, centres).kthvalue(k + 1).values for part in centres.split(CHUNK))  # the first is itself
    radii = torch.cat(list(nearest))
    inside = sum(int((_distances(part, centres) <= radii).any(1).sum()) for part in points.split(CHUNK))
    return inside / len(points)


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # by matrix products it would be faster, but equal pictures would not be at distance 0, and fall out of their balls
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _pair(a: Tensor, b: Tensor, least: int) -> tuple[Tensor, Tensor]:
    a, b = _table(a, least), _table(b, least)
    _same_width(a, b)
    return a, b


def _table(features: Tensor, least: int) -> Tensor:
    if features.ndim != 2 or len(features) < least:
        shape = list(features.shape)
        raise DataError(f"features: wanted at least {least} in a table [n, d], came {shape}; make more pictures")
    table = features.detach().cpu().double()
    if broken := int((~table.isfinite()).any(1).sum()):
        wish = f"wanted finite numbers, came {broken} of {len(table)} rows with others"
        raise DataError(f"features: {wish}; look at those pictures and at the network")
    return table


def _same_width(a: Tensor, b: Tensor) -> None:
    if a.shape[-1] != b.shape[-1]:
        wish = f"wanted one width, came {a.shape[-1]} and {b.shape[-1]}"
        raise DataError(f"features: {wish}; take both sides' from the same network")
