"""Centroids, folding, points made of likenesses, the plane, and how good clusters are."""

import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score
from torch import Tensor
from torch.nn import functional as F

from fedgen.cluster import ari, centroids, folded, nearest, nmi, plane, points, points_of_gram, quality, silhouette
from fedgen.errors import DataError


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sphere(size: int, width: int = 16, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(size, width, generator=draw(seed)), dim=1)


def around(angles: list[float]) -> Tensor:
    turned = torch.tensor(angles)
    return torch.stack([turned.cos(), turned.sin()], 1)


# ---- centroids and folding


def test_a_centroid_is_the_direction_of_the_sum() -> None:
    rows, labels = sphere(50), torch.arange(50) % 3
    wanted = torch.stack([rows[labels == group].sum(0) for group in range(3)])
    found = centroids(labels, rows)
    assert found.dtype == torch.float32
    assert torch.allclose(found, F.normalize(wanted, dim=1), atol=1e-6)
    assert torch.allclose(found.norm(dim=1), torch.ones(3))


def test_a_centroid_is_the_same_bytes_in_any_order_and_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = sphere(1000), torch.arange(1000) % 7
    wanted = centroids(labels, rows)
    for seed in range(3):
        order = torch.randperm(1000, generator=draw(seed))
        assert torch.equal(centroids(labels[order], rows[order]), wanted)
    monkeypatch.setattr(points, "BATCH", 64)
    assert torch.equal(centroids(labels, rows), wanted)


def test_who_comes_late_goes_to_the_nearest() -> None:
    centres = around([0.0, 1.5, 3.0])
    assert nearest(around([0.2, 1.2, 2.9, -1.0]), centres).tolist() == [0, 1, 2, 0]


def test_a_late_profile_of_another_width_is_refused() -> None:
    with pytest.raises(DataError, match="wanted points of 16 numbers as the clusters have, came 8"):
        nearest(sphere(2, 8), sphere(3, 16))


def test_small_clusters_go_into_the_nearest() -> None:
    rows = around([0, 0.1, 0.2, 0.6, 3.0, 3.1, 3.2, 2.6, 2.5])
    labels = torch.tensor([3, 3, 3, 0, 1, 1, 1, 2, 2])
    assert folded(labels, rows, 1).tolist() == labels.tolist()
    assert folded(labels, rows, 2).tolist() == [2, 2, 2, 2, 0, 0, 0, 1, 1]
    assert folded(labels, rows, 3).tolist() == [1, 1, 1, 1, 0, 0, 0, 0, 0]
    assert folded(labels, rows, 5).tolist() == [0] * 9


def test_the_smallest_is_folded_first_and_may_save_the_next() -> None:
    rows = around([0, 0.1, 0.4, 2.0, 2.1, 2.2])
    assert folded(torch.tensor([0, 0, 1, 2, 2, 2]), rows, 3).tolist() == [0, 0, 0, 1, 1, 1]


def test_fewer_clients_than_a_cluster_needs_are_one_cluster() -> None:
    assert folded(torch.tensor([0, 1, 2]), sphere(3), 10).tolist() == [0, 0, 0]


# ---- points of likenesses


def test_points_have_the_likenesses_they_are_made_of() -> None:
    cosines = (rows := sphere(20, 6)) @ rows.T
    found = points_of_gram(cosines)
    assert found.shape == (20, 6)  # no more dimensions than the likenesses have
    assert torch.allclose(found.norm(dim=1), torch.ones(20), atol=1e-6)
    assert torch.allclose(found @ found.T, cosines, atol=1e-5)


def test_likenesses_that_no_points_have_are_come_near() -> None:
    cosines = (rows := sphere(20, 64)) @ rows.T
    noise = 0.02 * torch.randn(20, 20, generator=draw(1))
    found = points_of_gram((cosines + noise + noise.T).fill_diagonal_(1).double())
    assert torch.allclose(found.norm(dim=1), torch.ones(20), atol=1e-6)
    assert (found @ found.T - cosines).abs().max() < 0.15


def test_the_same_clients_in_another_order_get_the_same_points() -> None:
    cosines = (rows := sphere(12)) @ rows.T
    order = torch.randperm(12, generator=draw(3))
    assert torch.equal(points_of_gram(cosines[order][:, order]), points_of_gram(cosines)[order])


@pytest.mark.parametrize(
    ("cosines", "words"),
    [(torch.ones(3, 2), r"\[n, n\], came a shape of \[3, 2\]"), (torch.full((2, 2), torch.nan), "are numbers")],
    ids=["shape", "nan"],
)
def test_what_are_not_likenesses_is_refused(cosines: Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        points_of_gram(cosines)


# ---- the plane


def test_the_plane_is_the_first_two_principal_components() -> None:
    rows = sphere(40)
    flat, kept = plane(rows)
    truth = PCA(2, svd_solver="full").fit(rows.double().numpy())
    wanted = torch.from_numpy(truth.transform(rows.double().numpy())).float()
    assert torch.allclose(flat.abs(), wanted.abs(), atol=1e-5)
    assert kept == pytest.approx(float(truth.explained_variance_ratio_.sum()))


def test_the_plane_is_not_mirrored_by_the_order_of_rows() -> None:
    rows = sphere(40)
    order = torch.randperm(40, generator=draw(1))
    assert torch.allclose(plane(rows[order])[0], plane(rows)[0][order], atol=1e-5)


@pytest.mark.parametrize("rows", [sphere(1), sphere(5, 1).abs(), sphere(1).repeat(4, 1)], ids=["one", "flat", "equal"])
def test_points_without_a_plane_lie_in_its_middle(rows: Tensor) -> None:
    flat, kept = plane(rows)
    assert flat.shape == (len(rows), 2)
    assert flat.abs().max() < 1e-6
    assert kept == 1


# ---- how good clusters are


@pytest.mark.parametrize("batch", [7, 10_000])
@pytest.mark.parametrize("sizes", [(30, 30), (50, 9, 1), (3, 2)])
def test_silhouette_is_scikit_learn_s_by_cosine(
    sizes: tuple[int, ...], batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "BATCH", batch)
    rows, labels = sphere(sum(sizes)), torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    wanted = silhouette_score(rows.numpy(), labels.numpy(), metric="cosine")
    assert silhouette(rows, labels) == pytest.approx(float(wanted), abs=1e-5)


def test_silhouette_is_high_for_clusters_and_low_for_wrong_ones() -> None:
    rows, labels = torch.eye(8)[torch.arange(24) % 3], torch.arange(24) % 3
    assert silhouette(rows, labels) == pytest.approx(1, abs=1e-6)
    assert (silhouette(rows, torch.arange(24) // 8) or 1) < 0


@pytest.mark.parametrize("labels", [torch.zeros(6, dtype=torch.long), torch.arange(6)], ids=["one", "each its own"])
def test_a_silhouette_that_means_nothing_is_none(labels: Tensor) -> None:
    assert silhouette(sphere(6), labels) is None


def test_known_labels_are_matched_whatever_their_numbers() -> None:
    known, renamed = torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([5, 5, 0, 0, 3, 3])
    assert (ari(renamed, known), nmi(renamed, known)) == (1, pytest.approx(1))
    halves = torch.tensor([0, 0, 0, 1, 1, 1])
    assert 0 < (ari(halves, known) or 0) < 1
    assert 0 < (nmi(halves, known) or 0) < 1


def test_one_cluster_has_found_nothing_of_several_labels() -> None:
    one, known = torch.zeros(6, dtype=torch.long), torch.arange(6) % 2
    assert (ari(one, known), nmi(one, known)) == (0, 0)
    assert (ari(known, one), nmi(known, one)) == (None, None)
