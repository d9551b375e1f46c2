"""A comparison: every number is that of its own function, good pictures come out better, and too few are refused."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedgen.errors import DataError
from fedgen.quality import Comparison, Inception, ResNet, compare, extract, frechet, kernel, moments, precision_recall
from fedgen.quality.resnet import ResNet20


def weights() -> dict[str, Tensor]:
    """A ResNet-20 drawn at random."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {f"module.{name}": tensor for name, tensor in ResNet20().state_dict().items()}


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> ResNet:
    path = tmp_path_factory.mktemp("resnet") / "tiny.th"
    torch.save({"state_dict": weights()}, path)
    return ResNet(str(path))


def pictures(count: int, *, seed: int, light: float = 1.0) -> Tensor:
    """Broad patches of colour, as bytes."""
    broad = torch.rand(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (255 * light * broad.repeat_interleave(8, 2).repeat_interleave(8, 3)).to(torch.uint8)


def test_every_number_is_that_of_its_function(resnet: ResNet) -> None:
    real, made = pictures(40, seed=0), pictures(50, seed=1, light=0.8)
    known, new = extract(resnet, real), extract(resnet, made)
    precision, recall = precision_recall(known, new)
    assert compare(resnet, real, made) == Comparison(
        features="resnet",
        called="Fréchet distance on ResNet-20 features",
        real=40,
        made=50,
        frechet=frechet(moments(known), moments(new)),
        kernel=kernel(known, new, torch.Generator()),
        precision=precision,
        recall=recall,
    )


def test_good_pictures_come_out_better_than_bad(resnet: ResNet) -> None:
    real = pictures(120, seed=0)
    same, good, dark = (compare(resnet, real, made) for made in (
        real, pictures(120, seed=1), pictures(120, seed=1, light=0.3),
    ))  # fmt: skip
    assert same.frechet < 1e-9 < good.frechet < dark.frechet
    assert good.kernel < dark.kernel
    assert (same.precision, same.recall) == (1, 1)
    assert good.precision > 0.5 > dark.precision
    assert good.recall > 0.5 > dark.recall


def test_a_large_comparison_is_the_same_again() -> None:
    class Mean:
        """Colours as features: what is compared need not be one of ours."""

        name, title, width, least = "mean", "Fréchet distance on mean colours", 3, 4

        def of(self, pictures: Tensor) -> Tensor:
            return pictures.float().mean((2, 3))

    real, made = pictures(1010, seed=0), pictures(60, seed=1)
    assert compare(Mean(), real, made) == compare(Mean(), real, made)


def test_too_few_pictures_are_refused_before_the_work() -> None:
    with pytest.raises(DataError, match=r"FID .* wanted at least 2048 pictures on each side, came 50; make more"):
        compare(Inception("nowhere"), pictures(2048, seed=0), pictures(50, seed=1))
    with pytest.raises(DataError, match=r"ResNet-20 features: wanted at least 4 pictures on each side, came 3"):
        compare(ResNet("nowhere"), pictures(3, seed=0), pictures(50, seed=1))


def test_a_network_that_breaks_is_seen(tmp_path: Path) -> None:
    broken = weights() | {"module.bn1.bias": torch.full((16,), torch.nan)}
    torch.save({"state_dict": broken}, tmp_path / "broken.th")
    with pytest.raises(DataError, match="wanted finite numbers, came 5 of 5 rows with others"):
        compare(ResNet(str(tmp_path / "broken.th")), pictures(5, seed=0), pictures(5, seed=1))
