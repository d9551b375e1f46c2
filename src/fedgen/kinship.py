"""Which clusters have become one and which one is two: by the likeness of adapters and of their members' steps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedgen.errors import TreeError


def redundant(cosines: Tensor, names: Sequence[str], threshold: float) -> list[tuple[str, str]]:
    """The pairs of clusters to merge: at least so alike, the most alike first, and none in two pairs at a time."""
    _check(cosines, len(names))
    alike = sorted(
        (-float(cosines[one, two]), min(names[one], names[two]), max(names[one], names[two]))
        for one in range(len(names))
        for two in range(one + 1, len(names))
        if cosines[one, two] >= threshold
    )
    found: list[tuple[str, str]] = []
    for _, one, two in alike:
        if not {one, two} & {name for pair in found for name in pair}:
            found.append((one, two))
    return found


def halves(cosines: Tensor, threshold: float, least: int) -> Tensor | None:
    """Which half each member is in (0 the larger), if their steps part: below the threshold on the mean between halves.

    None for members who agree, or of whom a half would have fewer than `least`.
    """
    _check(cosines, len(cosines))
    if len(cosines) < 2 * max(least, 1):
        return None
    from sklearn.cluster import AgglomerativeClustering  # a second to import, and only a split needs it

    rule = AgglomerativeClustering(n_clusters=2, metric="precomputed", linkage="average")
    labels = torch.from_numpy(rule.fit_predict((1 - cosines).clamp(min=0).numpy())).long()
    counts = labels.bincount()
    between = cosines[labels == 0][:, labels == 1].mean()
    if counts.min() < least or between >= threshold:
        return None
    return labels if counts[0] > counts[1] or (counts[0] == counts[1] and labels[0] == 0) else 1 - labels


def _check(cosines: Tensor, wanted: int) -> None:
    if cosines.shape != (wanted, wanted) or not cosines.isfinite().all():
        raise TreeError(f"kinship: wanted {wanted} x {wanted} finite likenesses, came {tuple(cosines.shape)}")
