"""Rules that group: clear clusters are found, none are found where there are none, and order leaves no trace."""

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.nn import functional as F

from fedgen.cluster import CLUSTERS, Agglomerative, Clustering, Hdbscan, KMeans, Losses, Nothing, Oracle, rules, spheres
from fedgen.errors import DataError, PlanError

BY_POINTS: dict[str, KMeans | Agglomerative | Hdbscan] = {
    "kmeans": KMeans(count=4),
    "kmeans-chosen": KMeans(),
    "agglomerative": Agglomerative(),
    "agglomerative-count": Agglomerative(count=4),
    "hdbscan": Hdbscan(),
}
each_rule = pytest.mark.parametrize("rule", BY_POINTS.values(), ids=list(BY_POINTS))


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clusters(count: int, each: int, noise: float = 0.5, *, width: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points about so many random directions, the noise as long as said beside a length of 1; and which is whose."""
    chance = draw(seed)
    middles = F.normalize(torch.randn(count, width, generator=chance), dim=1)
    whose = torch.arange(count * each) % count
    points = middles[whose] + noise / width**0.5 * torch.randn(count * each, width, generator=chance)
    return F.normalize(points, dim=1), whose


def one_cloud(size: int, width: int, steep: float, seed: int) -> Tensor:
    """A single normal cloud about one direction, `steep` powers of ten longer than it is thin."""
    cloud = 0.5 * torch.randn(size, width, generator=draw(seed)) * torch.logspace(0, -steep, width)
    return F.normalize(F.pad(cloud, (0, 1), value=1.0), dim=1)


def agree(found: Tensor, known: Tensor) -> float:
    return float(adjusted_rand_score(known.numpy(), found.numpy()))


# ---- rules that go by points


@each_rule
def test_clear_clusters_are_found(rule: Clustering) -> None:
    points, whose = clusters(4, 10)
    found = rule.group(points, draw())
    assert found.dtype == torch.long
    assert agree(found, whose) == 1
    assert found.unique().tolist() == [0, 1, 2, 3]


@each_rule
def test_the_order_of_clients_changes_nothing(rule: Clustering) -> None:
    points, _ = clusters(4, 15, noise=1.3)
    found = rule.group(points, draw())
    for seed in range(3):
        shuffled = torch.randperm(len(points), generator=draw(seed))
        assert torch.equal(rule.group(points[shuffled], draw()), found[shuffled])


@each_rule
def test_the_largest_cluster_is_number_0(rule: Clustering) -> None:
    points, whose = clusters(4, 10)
    kept = torch.cat([(whose == group).nonzero().ravel()[:size] for group, size in enumerate((6, 10, 8, 7))])
    assert rule.group(points[kept], draw()).bincount().tolist() == [10, 8, 7, 6]


@each_rule
def test_a_rule_says_what_its_points_are_made_of(rule: KMeans | Agglomerative | Hdbscan) -> None:
    assert rule.evidence == "profiles"
    assert replace(rule, by="adapters").evidence == "adapters"


@each_rule
@pytest.mark.parametrize("size", [4, 30])
def test_equal_points_are_one_cluster(rule: Clustering, size: int) -> None:
    points = F.normalize(torch.randn(1, 8, generator=draw()), dim=1).repeat(size, 1)
    points[0] += 1e-8  # as rounding leaves them
    assert rule.group(points, draw()).tolist() == [0] * size


@each_rule
def test_two_points_many_times_over_are_at_most_two_clusters(rule: Clustering) -> None:
    whose = torch.arange(20) % 2
    assert agree(rule.group(torch.eye(8)[whose], draw()), whose) == 1


@each_rule
@pytest.mark.parametrize(
    ("points", "words"),
    [
        (torch.eye(5).index_fill(0, torch.tensor(1), torch.nan), "finite .* 1 of 5 points"),
        (2 * torch.eye(5), "length 1, came one of 2"),
        (torch.ones(5), r"\[n, d\], came a shape of \[5\]"),
        (torch.ones(0, 5), r"came a shape of \[0, 5\]"),
    ],
    ids=["nan", "long", "flat", "none"],
)
def test_what_are_not_points_is_refused(rule: Clustering, points: Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        rule.group(points, draw())


@pytest.mark.parametrize(
    ("rule", "key"),
    [
        (KMeans(count=6), "count"),
        (KMeans(fewest=6), "fewest"),
        (Agglomerative(count=6), "count"),
        (Losses(count=6), "count"),
    ],
)
def test_more_clusters_than_clients_are_refused(rule: Clustering, key: str) -> None:
    with pytest.raises(PlanError, match=rf"^cluster\.{key}: wanted 6 clusters, there are 5 clients; lower it$"):
        rule.group(torch.eye(5), draw())


def test_a_range_that_is_upside_down_is_refused() -> None:
    with pytest.raises(PlanError, match=r"cluster\.fewest: wanted at most cluster\.most = 3, came 5"):
        KMeans(fewest=5, most=3).group(torch.eye(9), draw())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_k_means_may_be_as_many_as_the_points(count: int) -> None:
    assert sorted(KMeans(count=count).group(torch.eye(5), draw()).unique().tolist()) == list(range(count))


def test_as_few_points_as_clusters_to_choose_from_are_one() -> None:
    assert KMeans(fewest=2).group(torch.eye(2), draw()).tolist() == [0, 0]
    assert KMeans(fewest=2).group(torch.eye(1), draw()).tolist() == [0]


# ---- how many


@pytest.mark.parametrize(
    ("size", "width", "steep"),
    [(8, 32, 1), (30, 200, 0), (40, 3, 2), (150, 2, 0)],
    ids=["few", "more dimensions than points", "long", "round"],
)
def test_one_cloud_is_one_cluster(size: int, width: int, steep: float) -> None:
    runs = [KMeans(most=6).group(one_cloud(size, width, steep, seed), draw(seed)) for seed in range(40)]
    assert sum(int(found.max()) == 0 for found in runs) >= 38  # 95%


@pytest.mark.parametrize(("count", "each", "noise"), [(2, 12, 0.5), (3, 5, 0.5), (4, 8, 1.0), (7, 12, 1.0)])
def test_the_number_of_clear_clusters_is_found(count: int, each: int, noise: float) -> None:
    made = [clusters(count, each, noise, seed=seed) for seed in range(8)]
    right = [agree(KMeans().group(points, draw()), whose) > 0.9 for points, whose in made]
    assert sum(right) >= 7


def test_silhouette_alone_would_have_found_clusters_in_one_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    points = one_cloud(40, 3, 2, 0)
    assert KMeans().group(points, draw()).max() == 0
    monkeypatch.setattr(spheres, "NULLS", 0)
    assert KMeans().group(points, draw()).max() > 0


def test_the_number_stays_in_its_range() -> None:
    points, _ = clusters(6, 10)
    assert KMeans(most=4).group(points, draw()).max() <= 3
    assert KMeans(fewest=7, most=9).group(points, draw()).max() in (0, 6, 7, 8)


# ---- many points


def test_k_means_of_many_points_starts_from_a_sample_and_fits_all(monkeypatch: pytest.MonkeyPatch) -> None:
    points, whose = clusters(12, 60, noise=1.0)
    for name, size in {"SAMPLE": 200, "CHOICE": 150, "BATCH": 64}.items():
        monkeypatch.setattr(spheres, name, size)
    shuffled = torch.randperm(len(points), generator=draw(1))
    for rule in (KMeans(count=12), KMeans(fewest=10, most=14)):
        found = rule.group(points, draw())
        assert agree(found, whose) == 1
        assert torch.equal(rule.group(points[shuffled], draw()), found[shuffled])


def test_a_pass_in_batches_is_a_pass_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    points, _ = clusters(5, 40, noise=2.0)
    whole = KMeans(count=5).group(points, draw())
    monkeypatch.setattr(spheres, "BATCH", 32)
    assert agree(KMeans(count=5).group(points, draw()), whole) == 1


def test_k_means_is_a_fixed_point_no_worse_than_the_known_clusters() -> None:
    points, whose = clusters(8, 30, noise=1.0)
    found = KMeans(count=8).group(points, draw())
    inside = {}
    for name, labels in {"found": found, "known": whose}.items():
        centres = F.normalize(torch.stack([points[labels == group].sum(0) for group in range(8)]), dim=1)
        inside[name] = float((points * centres[labels]).sum())
        if name == "found":
            assert torch.equal((points @ centres.T).argmax(1), labels)
    assert inside["found"] >= inside["known"] - 1e-3


@pytest.mark.parametrize("rule", [Agglomerative(), Hdbscan()], ids=["agglomerative", "hdbscan"])
def test_pairs_are_compared_in_a_sample_of_many_points(rule: Clustering, monkeypatch: pytest.MonkeyPatch) -> None:
    points, whose = clusters(4, 60)
    monkeypatch.setattr(rules, "PAIRED", 60)
    assert agree(rule.group(points, draw()), whose) == 1


# ---- each rule's own


def test_agglomerative_joins_up_to_its_threshold() -> None:
    angles = torch.tensor([0.0, 0.1, 0.8, 0.9, 2.4])
    points = torch.stack([angles.cos(), angles.sin()], 1)
    for threshold, wanted in ((0.001, [0, 1, 2, 3, 4]), (0.1, [0, 0, 1, 1, 2]), (0.6, [0, 0, 0, 0, 1]), (2, [0] * 5)):
        assert agree(Agglomerative(threshold=threshold).group(points, draw()), torch.tensor(wanted)) == 1


def test_hdbscan_sends_those_in_between_to_the_nearest() -> None:
    points, whose = clusters(3, 20)
    stray = F.normalize(points[0] + 0.6 * torch.randn(64, generator=draw(5)) / 8 * 2, dim=0)
    found = Hdbscan().group(torch.cat([points, stray[None]]), draw())
    assert agree(found[:-1], whose) == 1
    assert found[-1] == found[0]


@pytest.mark.parametrize("size", [3, 5, 60])
def test_hdbscan_without_a_dense_region_is_one_cluster(size: int) -> None:
    assert Hdbscan().group(clusters(1, size)[0], draw()).tolist() == [0] * size


def test_nothing_is_one_cluster() -> None:
    assert Nothing().group(torch.eye(3), draw()).tolist() == [0, 0, 0]


def test_losses_begin_at_random_and_even() -> None:
    begun = [Losses(count=3).group(torch.ones(11, 1), draw(seed)) for seed in (0, 0, 1)]
    assert sorted(begun[0].bincount().tolist()) == [3, 4, 4]
    assert torch.equal(begun[0], begun[1])
    assert not torch.equal(begun[0], begun[2])


def test_oracle_takes_the_labels_as_they_are() -> None:
    assert Oracle().group(torch.eye(4)[[2, 0, 2, 3]], draw()).tolist() == [1, 0, 1, 2]  # label 1 is not in use


def test_every_rule_says_what_it_goes_by() -> None:
    found = {kind: part().evidence for kind, part in CLUSTERS.items()}
    points = dict.fromkeys(("kmeans", "agglomerative", "hdbscan"), "profiles")
    assert found == {"none": "none", **points, "losses": "losses", "oracle": "labels", "each": "names"}


def test_nothing_is_drawn_from_the_world() -> None:
    points, _ = clusters(3, 12, noise=1.5)
    torch.manual_seed(1)
    found = KMeans(count=5).group(points, draw())
    torch.manual_seed(2)
    assert torch.equal(KMeans(count=5).group(points, draw()), found)
    assert torch.initial_seed() == 2
