"""Points of length 1: checked, put in an order of their own, drawn from, and turned into centroids and pictures."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgen.errors import DataError

BATCH = 8192  # rows that are compared with all centroids at once
FRACTION = 2.0**40  # centroids are summed in whole numbers of this fineness, so no order of rows leaves a trace
ROUGH = 1e-3  # how far from 1 a length may be: profiles may have travelled in half precision
NEAR = 1e-6  # points no farther than this from their mean, in each number, are the same point


def check(points: Tensor) -> None:
    """Raise unless the points are rows [n, d] of finite numbers and length 1."""
    if points.ndim != 2 or not points.numel():
        raise DataError(f"cluster: wanted points as rows [n, d], came a shape of {list(points.shape)}; send profiles")
    if wrong := int((~points.isfinite()).any(1).sum()):
        raise DataError(f"cluster: wanted finite numbers, came {wrong} of {len(points)} points with others; drop those")
    lengths = points.norm(dim=1)
    worst = float(lengths[(lengths - 1).abs().argmax()])
    if abs(worst - 1) > ROUGH:
        raise DataError(f"cluster: wanted points of length 1, came one of {worst:.4g}; normalise the rows")


def in_order(rows: Tensor) -> Tensor:
    """An order of the rows that depends on what they hold and not on how they came: the one of their bytes."""
    table = rows.detach().contiguous().numpy()
    return torch.from_numpy(table.view(f"S{table.itemsize * table.shape[1]}").ravel().argsort(kind="stable"))


def by_size(labels: Tensor) -> Tensor:
    """The same groups, numbered from the largest; of equal ones, the one with the first row comes first."""
    _, inverse, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    first = torch.full_like(sizes, len(labels)).scatter_reduce(0, inverse, torch.arange(len(labels)), "amin")
    ranked = sorted(range(len(sizes)), key=lambda group: (-int(sizes[group]), int(first[group])))
    return torch.tensor(ranked).argsort()[inverse]


def some(points: Tensor, most: int, draw: torch.Generator) -> Tensor:
    """At most so many of the points, in the order they stand in."""
    if len(points) <= most:
        return points
    return points[torch.randperm(len(points), generator=draw)[:most].sort().values]


def are_one(points: Tensor) -> bool:
    """Whether all points are the same but for rounding."""
    return bool(((points - points.mean(0)).abs() <= NEAR).all())


def centroids(labels: Tensor, points: Tensor) -> Tensor:
    """The direction [k, d] that each cluster's points have together; zeros where they cancel out."""
    sums = torch.zeros(int(labels.max()) + 1, points.shape[1], dtype=torch.int64)
    for own, part in zip(labels.split(BATCH), points.split(BATCH), strict=True):
        sums.index_add_(0, own, (part.double() * FRACTION).round().long())
    return F.normalize(sums.double(), dim=1).float()


def nearest(points: Tensor, centres: Tensor) -> Tensor:
    """The centroid that each point is most like."""
    if points.shape[1] != centres.shape[1]:
        wish = f"wanted points of {centres.shape[1]} numbers as the clusters have, came {points.shape[1]}"
        raise DataError(f"cluster: {wish}; encode with the same encoder and width")
    return torch.cat([(part @ centres.T).argmax(1) for part in points.split(BATCH)])


def folded(labels: Tensor, points: Tensor, least: int) -> Tensor:
    """Clusters of fewer than `least` go into the nearest one, smallest first, until all have enough or one is left."""
    while True:
        labels = torch.unique(labels, return_inverse=True)[1]
        sizes = labels.bincount()
        smallest = int(sizes.argmin())
        if len(sizes) == 1 or sizes[smallest] >= least:
            return labels
        centres = centroids(labels, points)
        likeness = centres @ centres[smallest]
        likeness[smallest] = -torch.inf
        labels = labels.where(labels != smallest, likeness.argmax())


def points_of_gram(cosines: Tensor) -> Tensor:
    """Unit points [n, at most n] whose inner products are the cosines [n, n], as nearly as points can have them.

    Rows are worked on in an order of their own, so that the same clients in another order get the same points.
    """
    if cosines.ndim != 2 or cosines.shape[0] != cosines.shape[1]:
        raise DataError(f"cluster: wanted cosines [n, n], came a shape of {list(cosines.shape)}; compare all with all")
    if not cosines.isfinite().all():
        raise DataError("cluster: wanted cosines that are numbers, came others; leave out adapters that are all zeros")
    order = in_order(cosines.sort(dim=1).values)
    values, vectors = torch.linalg.eigh(cosines[order][:, order].double())
    kept = values > values[-1] * len(values) * torch.finfo(cosines.dtype).eps
    found = F.normalize(vectors[:, kept] * values[kept].sqrt(), dim=1).float()
    return found[order.argsort()]


def plane(points: Tensor) -> tuple[Tensor, float]:
    """The points' first two principal components [n, 2], and the share of their variance that those keep."""
    centred = points.double() - points.double().mean(0)
    _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
    largest = axes[:2].gather(1, axes[:2].abs().argmax(1, keepdim=True))
    heads = axes[:2] * largest.sign()  # an axis has no sign of its own, and pictures should not be mirrored
    flat = F.pad(centred @ heads.T, (0, 2 - len(heads)))
    kept = 1.0 if are_one(points) else float(spread[:2].square().sum() / spread.square().sum())
    return flat.float(), kept
