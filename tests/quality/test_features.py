"""The networks that judge pictures: shown what their authors showed them, loaded without a pickle, bad input said."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedgen.errors import DataError
from fedgen.quality import FEATURES, Inception, ResNet, called, extract
from fedgen.quality.resnet import ResNet20

DATA = Path(os.environ.get("FEDGEN_DATA") or Path(__file__).parents[2].parent / "shared" / "data")


class Layers(nn.Module):
    """Every so many pixels of what the network is shown, as so many features."""

    def __init__(self, width: int, step: int) -> None:
        super().__init__()
        self.width, self.step = width, step

    def forward(self, seen: Tensor) -> Tensor:
        return seen.flatten(1)[:, :: self.step][:, : self.width]


class Whole(nn.Module):
    """As the file of Inception lies: the part that makes features is called `layers`."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, seen: Tensor) -> Tensor:
        return self.layers(seen)


def scripted(path: Path, network: nn.Module) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(network).save(str(path))
    return str(path)


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Inception:
    return Inception(scripted(tmp_path_factory.mktemp("inception") / "tiny.pt", Whole(Layers(2048, 131))))


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """A ResNet-20 drawn at random, with statistics that are not those of a new network."""
    draw, found = torch.Generator().manual_seed(1), {}
    with torch.device("meta"):
        names = ResNet20().state_dict()
    for name, tensor in names.items():
        if name.endswith("num_batches_tracked"):
            continue  # the published file is from before torch kept them
        spread = torch.randn(tensor.shape, generator=draw)
        plain = name.endswith(("bn1.weight", "bn2.weight", "running_var"))
        found[f"module.{name}"] = 1 + 0.1 * spread.abs() if plain else 0.2 * spread
    return found | {"module.linear.weight": torch.zeros(10, 64), "module.linear.bias": torch.zeros(10)}


def saved(path: Path, found: object) -> str:
    torch.save(found, path, _use_new_zipfile_serialization=False)
    return str(path)


# --- the table and what its numbers are called


@pytest.mark.parametrize("name", FEATURES)
def test_every_entry_says_what_it_is(name: str) -> None:
    features = FEATURES[name]("nowhere")
    assert features.name == name
    assert features.width > 0
    assert ("FID" in called(features, features.least)) == isinstance(features, Inception)


def test_only_enough_pictures_of_inception_are_called_fid() -> None:
    assert called(Inception("nowhere"), 2048) == "FID (Inception, clean)"
    assert called(ResNet("nowhere"), 4) == "Fréchet distance on ResNet-20 features"
    with pytest.raises(DataError, match=r"FID \(Inception, clean\): wanted at least 2048 .* came 2047"):
        called(Inception("nowhere"), 2047)
    with pytest.raises(DataError, match=r"ResNet-20 features: wanted at least 4 .* came 3"):
        called(ResNet("nowhere"), 3)


# --- Inception


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 64, 40), (3, 299, 299), (3, 512, 300)])
def test_inception_is_shown_what_clean_fid_shows_it(inception: Inception, shape: tuple[int, ...]) -> None:
    image = pytest.importorskip("PIL.Image")
    given = pictures(2, *shape)
    channels = given.expand(-1, 3, -1, -1).flatten(0, 1).numpy().astype(np.float32)
    resized = [image.fromarray(one).resize((299, 299), image.Resampling.BICUBIC) for one in channels]
    seen = torch.from_numpy(np.stack([np.asarray(one).clip(0, 255) for one in resized])).view(2, 3, 299, 299)
    found = inception.of(given)
    assert found.shape == (2, 2048)
    torch.testing.assert_close(found, ((seen - 128) / 128).flatten(1)[:, ::131], rtol=0, atol=1e-6)


def test_inception_shows_grey_as_three_equal_channels(inception: Inception) -> None:
    grey = pictures(2, 1, 20, 20)
    assert torch.equal(inception.of(grey), inception.of(grey.repeat(1, 3, 1, 1)))


def test_inception_of_another_width_is_refused(tmp_path: Path) -> None:
    path = scripted(tmp_path / "narrow.pt", Whole(Layers(100, 1)))
    with pytest.raises(DataError, match=r"narrow\.pt: wanted a network of 2048 features, came one of 100"):
        Inception(path).of(pictures(1, 3, 8, 8))


def test_a_file_of_another_kind_is_not_inception(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no network")
    saved(tmp_path / "weights.pt", {"state_dict": {}})
    scripted(tmp_path / "whole.pt", Layers(2048, 1))
    for name in ("text.pt", "weights.pt", "whole.pt", "missing.pt"):
        with pytest.raises(DataError, match=rf"{name}: wanted the TorchScript file inception-2015-12-05\.pt, came \w"):
            Inception(str(tmp_path / name)).of(pictures(1, 3, 8, 8))


# --- ResNet-20


def slow(found: dict[str, Tensor], seen: Tensor) -> Tensor:
    """The network written out, layer by layer."""

    def layer(seen: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        seen = F.conv2d(seen, found[f"module.{conv}.weight"], stride=stride, padding=1)
        mean, var, weight, bias = (
            found[f"module.{norm}.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (seen - mean) / (var + 1e-5).sqrt() * weight + bias

    seen = layer(seen, "conv1", "bn1").relu()
    for block in [f"layer{stage}.{at}" for stage in (1, 2, 3) for at in (0, 1, 2)]:
        halve = block in {"layer2.0", "layer3.0"}
        short = seen
        if halve:
            empty = torch.zeros_like(seen[:, : seen.shape[1] // 2])
            short = torch.cat([empty, seen, empty], 1)[:, :, ::2, ::2]
        inner = layer(seen, f"{block}.conv1", f"{block}.bn1", 2 if halve else 1).relu()
        seen = (layer(inner, f"{block}.conv2", f"{block}.bn2") + short).relu()
    return seen.flatten(2).mean(2)


def test_resnet_is_the_network_written_out(weights: dict[str, Tensor], tmp_path: Path) -> None:
    given, before = pictures(3, 3, 32, 32), torch.get_rng_state()
    features = ResNet(saved(tmp_path / "tiny.th", {"state_dict": weights, "best_prec1": 10.0}))
    found = features.of(given)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    wanted = slow(weights, (given / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    assert found.shape == (3, 64)
    assert not found.requires_grad
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_are_as_each_alone(weights: dict[str, Tensor], tmp_path: Path) -> None:
    features, given = ResNet(saved(tmp_path / "tiny.th", {"state_dict": weights})), pictures(70, 3, 32, 32)
    found = extract(features, given)
    assert found.shape == (70, 64)
    torch.testing.assert_close(found[[0, 33, 69]], features.of(given[[0, 33, 69]]))


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: {"state_dict": weights | {"module.layer1.3.conv1.weight": torch.zeros(16, 16, 3, 3)}},
        lambda weights: {"state_dict": {name: t for name, t in weights.items() if "layer2.1" not in name}},
        lambda weights: {"state_dict": weights | {"module.conv1.weight": torch.zeros(16, 1, 3, 3)}},
        lambda weights: weights,
    ],
    ids=["deeper", "shorter", "grey", "bare"],
)
def test_a_file_of_another_kind_is_not_resnet(
    change: Callable[[dict[str, Tensor]], object], weights: dict[str, Tensor], tmp_path: Path
) -> None:
    features = ResNet(saved(tmp_path / "other.th", change(weights)))
    with pytest.raises(DataError, match=r"other\.th: wanted the weights of a CIFAR-10 ResNet-20 .*, came \w"):
        features.of(pictures(1, 3, 32, 32))


class Trap:
    """What makes a folder when its pickle is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_beside_the_weights_is_not_run(weights: dict[str, Tensor], tmp_path: Path) -> None:
    path = saved(tmp_path / "trap.th", {"state_dict": weights, "args": Trap(tmp_path / "caught")})
    with pytest.raises(DataError, match=r"trap\.th: wanted the weights .* came UnpicklingError"):
        ResNet(path).of(pictures(1, 3, 32, 32))
    assert not (tmp_path / "caught").exists()


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        ResNet(str(tmp_path / "nothing.th")).of(pictures(1, 3, 32, 32))


@pytest.mark.slow
def test_resnet_knows_cifar_as_published() -> None:
    file, images = DATA / "weights" / "resnet_cifar10" / "resnet20-12fca82f.th", DATA / "cifar10" / "cifar10_test2k.npz"
    if not (file.is_file() and images.is_file()):
        pytest.skip(f"needs {file} and {images}")
    table = np.load(images)
    some = torch.from_numpy(table["x"][:500]).movedim(-1, 1)
    last = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    said = extract(ResNet(str(file)), some) @ last["module.linear.weight"].T + last["module.linear.bias"]
    right = said.argmax(1) == torch.from_numpy(table["y"][:500]).long()
    assert right.float().mean() > 0.88


# --- bad pictures


@pytest.mark.parametrize(
    ("given", "came"),
    [
        (torch.rand(2, 3, 32, 32), r"float32 \[2, 3, 32, 32\]"),
        (pictures(2, 2, 32, 32), r"uint8 \[2, 2, 32, 32\]"),
        (pictures(3, 32, 32), r"uint8 \[3, 32, 32\]"),
        (pictures(0, 3, 32, 32), r"uint8 \[0, 3, 32, 32\]"),
    ],
)
def test_bad_pictures_are_refused(given: Tensor, came: str, inception: Inception) -> None:
    with pytest.raises(DataError, match=rf"wanted uint8 \[n, 1 or 3, height, width\], came {came}"):
        inception.of(given)


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (2, 3, 28, 28), (2, 3, 32, 33), (3, 32, 32)])
def test_pictures_of_another_size_are_not_for_resnet(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"ResNet-20: wanted RGB pictures \[n, 3, 32, 32\], came \[" + str(shape[0])):
        ResNet("nowhere").of(pictures(*shape))


def test_bytes_as_numbers_are_not_for_resnet() -> None:
    with pytest.raises(DataError, match="wanted uint8"):
        ResNet("nowhere").of(torch.rand(2, 3, 32, 32))
