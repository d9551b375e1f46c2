"""Rules that group clients: by points of length 1 (profiles, or the likeness of adapters), by loss, by known labels.

Rules that go by points look at them in an order of their own, so the order of the clients changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from fedgen.cluster.points import are_one, by_size, centroids, check, in_order, nearest, some
from fedgen.cluster.spheres import chosen, kmeans
from fedgen.errors import PlanError
from fedgen.records import Range

By = Literal["profiles", "adapters"]
Evidence = Literal["none", "profiles", "adapters", "losses", "labels", "names"]
PAIRED = 5000  # the most points of which all pairs are compared; of more, so many are drawn


class Clustering(Protocol):
    """A rule that groups clients."""

    @property
    def evidence(self) -> Evidence:
        """What clients are grouped by."""

    def group(self, points: Tensor, draw: torch.Generator) -> Tensor:
        """The number of each point's group, from 0 and with none left out; points are rows [n, d] of length 1."""


@dataclass(frozen=True)
class Nothing:
    """No clusters: one adapter for all."""

    evidence: ClassVar[Evidence] = "none"

    def group(self, points: Tensor, draw: torch.Generator) -> Tensor:
        """Everyone in one."""
        return torch.zeros(len(points), dtype=torch.long)


@dataclass(frozen=True)
class KMeans:
    """Spherical k-means with `count` clusters.

    With 0, as many from `fewest` to `most` as give the best silhouette, or one if points without clusters do as well.
    """

    by: By = "profiles"
    count: Annotated[int, Range(0)] = 0
    fewest: Annotated[int, Range(2)] = 2
    most: Annotated[int, Range(2)] = 8

    @property
    def evidence(self) -> Evidence:
        """What the points are made of."""
        return self.by

    def group(self, points: Tensor, draw: torch.Generator) -> Tensor:
        """Clusters around centroids; the largest is number 0."""
        if self.fewest > self.most:
            raise PlanError(f"cluster.fewest: wanted at most cluster.most = {self.most}, came {self.fewest}; lower it")

        def find(ordered: Tensor) -> Tensor:
            if self.count:
                return kmeans(ordered, self.count, draw)
            enough("fewest", self.fewest, len(ordered))
            most = min(self.most, len(ordered) - 1)  # where every point is a cluster, nothing is measured
            return kmeans(ordered, chosen(ordered, self.fewest, most, draw), draw)

        return _grouped(points, self.count, find)


@dataclass(frozen=True)
class Agglomerative:
    """Join the two nearest clusters until all are farther apart than `threshold`, or `count` are left.

    Far is the mean cosine distance between the members of two clusters, from 0 to 2.
    """

    by: By = "profiles"
    threshold: Annotated[float, Range(0, 2, open=True)] = 0.5
    count: Annotated[int, Range(0)] = 0

    @property
    def evidence(self) -> Evidence:
        """What the points are made of."""
        return self.by

    def group(self, points: Tensor, draw: torch.Generator) -> Tensor:
        """Clusters by average linkage; the largest is number 0."""

        def find(ordered: Tensor) -> Tensor:
            from sklearn.cluster import AgglomerativeClustering  # a second to import, and only this rule needs it

            count = min(self.count, len(ordered.unique(dim=0))) or None  # equal points are never told apart
            limit = None if count else self.threshold
            joined = AgglomerativeClustering(count, metric="cosine", linkage="average", distance_threshold=limit)
            return torch.from_numpy(joined.fit_predict(ordered.numpy())).long()

        return _grouped(points, self.count, lambda ordered: _by_sample(ordered, find, draw))


@dataclass(frozen=True)
class Hdbscan:
    """Dense regions of at least `smallest` points, however many; whoever is in none goes to the nearest.

    Where nothing is dense there is one cluster.
    """

    by: By = "profiles"
    smallest: Annotated[int, Range(2)] = 5

    @property
    def evidence(self) -> Evidence:
        """What the points are made of."""
        return self.by

    def group(self, points: Tensor, draw: torch.Generator) -> Tensor:
        """Clusters by density; the largest is number 0."""
        return _grouped(points, 0, lambda ordered: _by_sample(ordered, self._dense, draw))

    def _dense(self, points: Tensor) -> Tensor:
        from sklearn.cluster import HDBSCAN  # a second to import, and only this rule needs it

        if len(points) < self.smallest:
            return torch.zeros(len(points), dtype=torch.long)
        labels = torch.from_numpy(HDBSCAN(self.smallest, copy=True).fit_predict(points.numpy())).long()
        dense = labels >= 0
        if not dense.any():
            return torch.zeros(len(points), dtype=torch.long)
        return labels.where(dense, nearest(points, centroids(labels[dense], points[dense])))


@dataclass(frozen=True)
class Losses:
    """Each client goes where its loss is least (IFCA), among `count` clusters that begin at random."""

    evidence: ClassVar[Evidence] = "losses"
    count: Annotated[int, Range(2)] = 2

    def group(self, points: Tensor, draw: torch.Generator) -> Tensor:
        """The beginning: at random, in numbers that differ by at most one."""
        enough("count", self.count, len(points))
        return (torch.arange(len(points)) % self.count)[torch.randperm(len(points), generator=draw)]


@dataclass(frozen=True)
class Each:
    """A cluster for every client: nobody shares, but for what `exchange` lets them take from each other (FedAMP)."""

    evidence: ClassVar[Evidence] = "names"

    def group(self, points: Tensor, draw: torch.Generator) -> Tensor:
        """Everyone alone."""
        return torch.arange(len(points))


@dataclass(frozen=True)
class Oracle:
    """The labels that the data knows, for experiments; no real server has them."""

    evidence: ClassVar[Evidence] = "labels"

    def group(self, points: Tensor, draw: torch.Generator) -> Tensor:
        """Points are one-hot labels, and a label in use is a group."""
        check(points)
        labels: Tensor = torch.unique(points.argmax(1), return_inverse=True)[1]
        return labels


def enough(key: str, count: int, clients: int) -> None:
    """Refuse more clusters than there are clients."""
    if count > clients:
        raise PlanError(f"cluster.{key}: wanted {count} clusters, there are {clients} clients; lower it")


def _grouped(points: Tensor, count: int, find: Callable[[Tensor], Tensor]) -> Tensor:
    """What a rule finds in the points when they stand in an order of their own."""
    check(points)
    enough("count", count, len(points))
    if are_one(points):
        return torch.zeros(len(points), dtype=torch.long)
    order = in_order(points)
    return by_size(find(points[order].detach().float()))[order.argsort()]


def _by_sample(points: Tensor, find: Callable[[Tensor], Tensor], draw: torch.Generator) -> Tensor:
    """What is found in a sample, if there are too many points to compare in pairs; the others go to the nearest."""
    few = some(points, PAIRED, draw)
    labels = find(few)
    return labels if len(few) == len(points) else nearest(points, centroids(labels, few))
