"""Spherical k-means, and whether there are clusters at all: likeness to a centroid is the cosine."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgen.cluster.points import BATCH, nearest, some
from fedgen.cluster.quality import silhouette

RESTARTS = 4  # how often k-means starts anew
TRIES = 32  # how many points each next centroid is chosen from
PASSES = 100  # the most passes over all points; it is rarely 30
SAMPLE = 4096  # of more points than this, so many are drawn to find where to start
CHOICE = 1024  # of more points than this, so many are drawn to choose a number of clusters
NULLS = 19  # draws without clusters that the points must beat: all of them, by chance once in 20


def kmeans(points: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """So many clusters: the best of a few starts, found on a sample if there are many points, then fitted to all."""
    few = some(points, SAMPLE, draw)
    centres, score = _fit(few, _starts(few, count, draw))
    best = centres[score.argmax()]
    if len(few) < len(points):
        best = _fit(points, best[None])[0][0]
    return nearest(points, best)


def chosen(points: Tensor, fewest: int, most: int, draw: torch.Generator) -> int:
    """The number of clusters with the best silhouette, or 1 if points without clusters can have as good a one."""
    few = some(points, CHOICE, draw)
    score, count = _best(few, fewest, most, draw)
    beaten = (_best(null, fewest, most, draw)[0] < score for null in _without(few, draw))
    return count if all(beaten) else 1


def _best(points: Tensor, fewest: int, most: int, draw: torch.Generator) -> tuple[float, int]:
    tried = [(silhouette(points, kmeans(points, count, draw)) or 0.0, -count) for count in range(fewest, most + 1)]
    score, count = max(tried, default=(0.0, -1))
    return score, -count


def _without(points: Tensor, draw: torch.Generator) -> Iterator[Tensor]:
    """As many points of the same mean and spread, again and again, drawn evenly from a box along the principal axes.

    In one dimension the even law is, of all laws with a single peak, the hardest to tell from clusters (Tibshirani,
    Walther and Hastie 2001, the gap statistic). With fewer points than dimensions the box is as flat as the points are:
    it lies in the space that they span, so many dimensions without points in them cannot pass for evidence.
    """
    mean = points.mean(0)
    _, spread, axes = torch.linalg.svd(points - mean, full_matrices=False)
    sides = math.sqrt(12 / max(len(points) - 1, 1)) * spread  # an even law's side is the root of 12 of its deviations
    for _ in range(NULLS):
        even = torch.rand(len(points), len(sides), generator=draw) - 0.5
        yield F.normalize(mean + even * sides @ axes, dim=1)


def _starts(points: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Centroids [starts, count, d] among the points (greedy k-means++): of some likely ones, the most useful next."""
    every = torch.arange(RESTARTS)
    picked = [torch.randint(len(points), (RESTARTS,), generator=draw)]
    far = 1 - points[picked[0]] @ points.T
    for _ in range(count - 1):
        tried = torch.multinomial(far.clamp(min=1e-9), TRIES, replacement=True, generator=draw)
        after = torch.minimum(far[:, None], 1 - points[tried] @ points.T)
        best = after.sum(2).argmin(1)
        far = after[every, best]
        picked.append(tried[every, best])
    return points[torch.stack(picked, 1)]


def _fit(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Every start's centroids [starts, k, d] when passes no longer move them, and how like them the points are."""
    for _ in range(PASSES):
        sums, score = torch.zeros_like(centres), torch.zeros(len(centres))
        for part in points.split(BATCH):
            likeness, own = (part @ centres.flatten(0, 1).T).view(len(part), *centres.shape[:2]).max(2)
            members = F.one_hot(own, centres.shape[1]).flatten(1).to(part)
            sums += (members.T @ part).view_as(sums)
            score += likeness.sum(0)
        moved = F.normalize(sums, dim=2).where(sums.any(2, keepdim=True), centres)  # who has lost all stays
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres, score
