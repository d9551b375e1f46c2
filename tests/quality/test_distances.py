"""Distances on features: against closed forms and slow twins, pooled as at once, and what is said of bad features."""

import math

import pytest
import scipy.linalg
import torch
from torch import Tensor

from fedgen.errors import DataError
from fedgen.quality import Moments, frechet, kernel, moments, precision_recall
from fedgen.quality.distances import CHUNK, SUBSET, SUBSETS


def features(count: int, width: int, *, seed: int = 0, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """Features whose columns go together, around `shift`."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=draw, dtype=torch.float64)
    return shift + scale * torch.randn(count, width, generator=draw, dtype=torch.float64) @ mix


def normal(mean: Tensor, cov: Tensor) -> Moments:
    return Moments(1000, mean.double(), cov.double())


# --- moments


def test_moments_are_those_torch_says() -> None:
    table = features(50, 7)
    found = moments(table.float())
    assert found.count == 50
    assert found.mean.dtype == found.cov.dtype == torch.float64
    torch.testing.assert_close(found.mean, table.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.cov, table.T.cov(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sizes", [(30, 70), (1, 1), (1, 40), (2, 3, 60, 1)])
def test_pooled_moments_are_those_of_all_at_once(sizes: tuple[int, ...]) -> None:
    table = torch.cat([features(size, 6, seed=at, shift=10.0 * at) for at, size in enumerate(sizes)])
    first, *others = [moments(part) for part in table.split(list(sizes))]
    pooled = first
    for other in others:
        pooled = pooled + other
    whole = moments(table)
    assert pooled.count == whole.count == sum(sizes)
    torch.testing.assert_close(pooled.mean, whole.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pooled.cov, whole.cov, rtol=1e-11, atol=1e-11)


# --- the Fréchet distance


@pytest.mark.parametrize("width", [1, 5, 40])
def test_frechet_is_the_formula_with_scipys_root(width: int) -> None:
    a, b = moments(features(300, width, seed=1)), moments(features(200, width, seed=2, shift=0.5, scale=2.0))
    root = scipy.linalg.sqrtm((a.cov @ b.cov).numpy())
    slow = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * root.trace().real
    assert frechet(a, b) == pytest.approx(slow.item(), rel=1e-9)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-9)


def test_frechet_of_shifted_and_of_wider_normals_is_known() -> None:
    cov = features(100, 4).T.cov()
    mean = torch.tensor([3.0, 0.0, 4.0, 0.0])
    assert frechet(normal(mean, cov), normal(0 * mean, cov)) == pytest.approx(25)
    spreads = torch.tensor([1.0, 2.0, 3.0, 0.0]), torch.tensor([4.0, 2.0, 0.0, 1.0])
    wide = [normal(0 * mean, torch.diag(spread**2)) for spread in spreads]
    assert frechet(*wide) == pytest.approx((spreads[0] - spreads[1]).square().sum().item())
    assert frechet(normal(mean, cov), normal(mean, 9 * cov)) == pytest.approx(4 * cov.trace().item())


@pytest.mark.parametrize("count", [2, 20, 64, 200])
def test_frechet_of_a_set_with_itself_is_nothing_and_not_below(count: int) -> None:
    own = moments(features(count, 64, scale=30.0))
    assert 0 <= frechet(own, own) < 1e-10 * own.cov.trace().item()


def test_frechet_with_fewer_features_than_their_width_is_exact() -> None:
    a, b = features(20, 64, seed=1), features(30, 64, seed=2, shift=0.1)
    alike = torch.linalg.svdvals((a - a.mean(0)) @ (b - b.mean(0)).T).sum() / math.sqrt(19 * 29)
    slow = (a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * alike
    assert frechet(moments(a), moments(b)) == pytest.approx(slow.item(), rel=1e-9)


# --- the kernel distance


def naive_kernel(a: Tensor, b: Tensor) -> float:
    """The unbiased estimate, pair by pair."""

    def alike(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    within = sum(alike(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j) / (len(a) * (len(a) - 1))
    other = sum(alike(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j) / (len(b) * (len(b) - 1))
    return within + other - 2 * sum(alike(x, y) for x in a for y in b) / (len(a) * len(b))


def test_kernel_is_the_double_loop() -> None:
    a, b = features(17, 5, seed=1), features(23, 5, seed=2, shift=0.3)
    assert kernel(a.float(), b.float(), torch.Generator()) == pytest.approx(naive_kernel(a, b), rel=1e-4)
    assert kernel(a, b, torch.Generator()) == pytest.approx(naive_kernel(a, b), rel=1e-10)


def test_kernel_of_two_features_a_side_is_known() -> None:
    a, b = torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.zeros(2, 2)
    assert kernel(a, b, torch.Generator()) == pytest.approx(2.0**3 + 1 - 2)


def test_kernel_is_without_bias() -> None:
    draw = torch.Generator().manual_seed(0)
    found = [kernel(*torch.randn(2, 20, 3, generator=draw), draw) for _ in range(400)]
    assert min(found) < 0 < max(found)
    assert abs(math.fsum(found) / len(found)) < 0.05


def test_kernel_of_large_sets_is_the_mean_over_subsets_of_the_generator() -> None:
    a, b = features(SUBSET + 200, 3, seed=1), features(300, 3, seed=1, shift=0.3)
    found, draw = kernel(a, b, torch.Generator().manual_seed(5)), torch.Generator().manual_seed(5)
    slow = []
    for _ in range(SUBSETS):
        some = [table[torch.randperm(len(table), generator=draw)[:SUBSET]] for table in (a, b)]
        slow.append(kernel(*some, torch.Generator()))
    assert found == pytest.approx(math.fsum(slow) / SUBSETS, rel=1e-12)


# --- precision and recall


def naive_share(points: Tensor, centres: Tensor, k: int) -> float:
    """The share of points within a centre's k-th neighbour, one by one."""
    radii = []
    for at, centre in enumerate(centres):
        others = torch.cat([centres[:at], centres[at + 1 :]])
        radii.append((others - centre).square().sum(1).sqrt().sort().values[k - 1])
    far = torch.stack(radii)
    return sum(bool(((centres - p).square().sum(1).sqrt() <= far).any()) for p in points) / len(points)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_the_loops(k: int) -> None:
    table = features(2 * CHUNK + 49, 3)
    real, made = table[: CHUNK + 40], 0.7 * table[CHUNK + 40 :] + 0.5
    found = precision_recall(real, made, k)
    assert found == (naive_share(made, real, k), naive_share(real, made, k))
    assert 0 < min(found) < max(found) < 1
    assert precision_recall(made, real, k) == found[::-1]


def test_precision_and_recall_tell_narrow_from_strange() -> None:
    real = features(200, 4)
    assert precision_recall(real, real) == (1, 1)
    assert precision_recall(real, real + 1000) == (0, 0)
    precision, recall = precision_recall(real, real.mean(0) + 0.01 * (real - real.mean(0)))
    assert precision > 0.9
    assert recall < 0.1


def test_a_picture_made_over_and_over_covers_itself_alone() -> None:
    real = features(40, 8)
    assert precision_recall(real, real[:1].repeat(50, 1)) == (1, 1 / 40)


def test_copies_of_pictures_that_come_many_times_are_covered() -> None:
    draw = torch.Generator().manual_seed(0)  # distances by matrix products are wrong in about half of these draws
    for _ in range(8):
        few = torch.randn(20, 1024, generator=draw, dtype=torch.float64)
        real, made = (few[torch.randint(20, (count,), generator=draw)] for count in (130, 90))
        assert precision_recall(real, made)[0] == 1


# --- bad features


@pytest.mark.parametrize(
    ("broken", "wish"),
    [
        (torch.full((5, 3), math.nan), r"wanted finite numbers, came 5 of 5 rows"),
        (torch.tensor([[1.0, 2.0]] * 4 + [[1.0, math.inf]]), r"wanted finite numbers, came 1 of 5 rows"),
        (torch.zeros(0, 3), r"wanted at least \d in a table \[n, d\], came \[0, 3\]"),
        (torch.zeros(9), r"wanted at least \d in a table \[n, d\], came \[9\]"),
    ],
)
def test_bad_features_are_refused(broken: Tensor, wish: str) -> None:
    good = torch.ones(5, broken.shape[-1])
    for measure in (moments, lambda table: kernel(good, table, torch.Generator()), lambda t: precision_recall(t, good)):
        with pytest.raises(DataError, match=wish):
            measure(broken)


def test_too_few_features_are_refused() -> None:
    one, three, many = features(1, 4), features(3, 4), features(9, 4)
    with pytest.raises(DataError, match="wanted at least 2 on each side, came 1 and 9"):
        frechet(moments(one), moments(many))
    with pytest.raises(DataError, match=r"wanted at least 2 .* came \[1, 4\]"):
        kernel(many, one, torch.Generator())
    with pytest.raises(DataError, match=r"wanted at least 4 .* came \[3, 4\]"):
        precision_recall(many, three)


def test_features_of_two_widths_are_refused() -> None:
    a, b = features(9, 4), features(9, 5)
    measures = [
        lambda: moments(a) + moments(b),
        lambda: frechet(moments(a), moments(b)),
        lambda: kernel(a, b, torch.Generator()),
        lambda: precision_recall(a, b),
    ]
    for measure in measures:
        with pytest.raises(DataError, match="wanted one width, came 4 and 5"):
            measure()
