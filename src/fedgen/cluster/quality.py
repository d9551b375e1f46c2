"""How good clusters are: by how they lie, and beside groups that are known."""

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgen.cluster.points import BATCH


def silhouette(points: Tensor, labels: Tensor) -> float | None:
    """How much nearer points of length 1 are to their own cluster than to the next, by cosine, on average: -1 to 1.

    A mean of cosines is the cosine with the mean, so all points are measured, and no table of distances is needed.
    None if there is one cluster, or each point is one.
    """
    _, own, sizes = torch.unique(labels, return_inverse=True, return_counts=True)
    if len(sizes) in (1, len(points)):
        return None
    sums = points.new_zeros(len(sizes), points.shape[1]).index_add_(0, own, points)
    parts = zip(points.split(BATCH), own.split(BATCH), strict=True)
    return sum(_shapes(part, sums, sizes, mine).sum().item() for part, mine in parts) / len(points)


def _shapes(points: Tensor, sums: Tensor, sizes: Tensor, own: Tensor) -> Tensor:
    distance = sizes - points @ sums.T  # the sum over each cluster's points
    mine = F.one_hot(own, len(sizes)).bool()
    inside = distance[mine] / (sizes[own] - 1).clamp(min=1)  # to itself it is 0
    outside = (distance / sizes).masked_fill(mine, torch.inf).amin(1)
    shape = (outside - inside) / torch.maximum(outside, inside).clamp(min=1e-12)
    return shape.where(sizes[own] > 1, 0)


def ari(found: Tensor, known: Tensor) -> float | None:
    """The adjusted Rand index: 1 if the groups are the known ones, about 0 by chance. None if one group is known."""
    from sklearn.metrics import adjusted_rand_score  # a second to import, and only known groups need it

    return float(adjusted_rand_score(known.numpy(), found.numpy())) if len(known.unique()) > 1 else None


def nmi(found: Tensor, known: Tensor) -> float | None:
    """How much groups and known ones tell of each other, from 0 to 1. None if one group is known.

    Not adjusted for chance: many small groups score above 0 even if they are drawn at random.
    """
    from sklearn.metrics import normalized_mutual_info_score  # a second to import, and only known groups need it

    return float(normalized_mutual_info_score(known.numpy(), found.numpy())) if len(known.unique()) > 1 else None
