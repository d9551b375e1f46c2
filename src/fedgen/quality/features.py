"""Named networks that judge pictures: features for distances between sets, and how well a picture fits its prompt."""

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from fedgen.backbones.quiet import without_bars
from fedgen.data.files import reading
from fedgen.errors import DataError
from fedgen.quality.distances import NEIGHBOURS
from fedgen.quality.judge import Judge
from fedgen.quality.resnet import ResNet20

BATCH = 32  # pictures that go through a network at once
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Features(Protocol):
    """A network that turns pictures into features, with all that a number measured on them must say."""

    @property
    def name(self) -> str:
        """What a plan calls it."""

    @property
    def title(self) -> str:
        """What a Fréchet distance on these features is called."""

    @property
    def width(self) -> int:
        """How many features a picture has."""

    @property
    def least(self) -> int:
        """The fewest pictures a side on which that distance may be called so."""

    def of(self, pictures: Tensor) -> Tensor:
        """Features [n, width] of pictures, which are bytes [n, channels, height, width]."""


@dataclass(frozen=True)
class Inception:
    """The Inception network in the TorchScript file `inception-2015-12-05.pt`, shown pictures as clean-fid does.

    So every channel is resized by Pillow's bicubic and not rounded to bytes. Grey is shown as three equal channels.
    """

    path: str
    name: ClassVar[str] = "inception"
    title: ClassVar[str] = "FID (Inception, clean)"
    width: ClassVar[int] = 2048
    least: ClassVar[int] = 2048  # on fewer the covariance of as many features is not even full

    @torch.no_grad()
    def of(self, pictures: Tensor) -> Tensor:
        """Features of pictures of any size, grey or RGB."""
        # torch's bicubic with antialias is Pillow's; in double the two differ by less than 1e-4 of a level
        fine = F.interpolate(_rgb(pictures).double(), size=(299, 299), mode="bicubic", antialias=True)
        found = cast(Tensor, self._layers((fine.clamp(0, 255).float() - 128) / 128)).flatten(1)
        if found.shape[1] != self.width:
            raise DataError(f"{self.path}: wanted a network of {self.width} features, came one of {found.shape[1]}")
        return found

    @cached_property
    def _layers(self) -> nn.Module:
        with (
            reading(self.path, "the TorchScript file inception-2015-12-05.pt", "give the path of that"),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore", DeprecationWarning)  # torch would rather have another format: it is theirs
            return cast(nn.Module, torch.jit.load(_file(self.path), map_location="cpu").eval().layers)


@dataclass(frozen=True)
class ResNet:
    """The ResNet-20 trained on CIFAR-10 in the file `resnet20-12fca82f.th`: for RGB pictures of 32 x 32 alone."""

    path: str
    name: ClassVar[str] = "resnet"
    title: ClassVar[str] = "Fréchet distance on ResNet-20 features"
    width: ClassVar[int] = 64
    least: ClassVar[int] = NEIGHBOURS + 1

    @torch.no_grad()
    def of(self, pictures: Tensor) -> Tensor:
        """Features of pictures [n, 3, 32, 32]."""
        if pictures.shape[1:] != (3, 32, 32):
            came = list(pictures.shape)
            raise DataError(f"ResNet-20: wanted RGB pictures [n, 3, 32, 32], came {came}; take other features")
        seen = _normal(_rgb(pictures), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        return cast(Tensor, self._network(seen))

    @cached_property
    def _network(self) -> nn.Module:
        with torch.device("meta"):  # no weights are drawn only to be replaced
            network = ResNet20()
        with reading(self.path, "the weights of a CIFAR-10 ResNet-20 (resnet20-12fca82f.th)", "give the path of that"):
            found = torch.load(_file(self.path), map_location="cpu", weights_only=True)["state_dict"]
            weights = {name.removeprefix("module."): tensor for name, tensor in found.items()}
            network.load_state_dict({n: t for n, t in weights.items() if not n.startswith("linear.")}, assign=True)
        return network.eval()


@dataclass(frozen=True)
class Clip:
    """A CLIP in a Hugging Face folder, which says how well a picture fits its prompt."""

    path: str

    @torch.no_grad()
    def score(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        """The CLIP score of each picture with its prompt, 100 · max(cosine, 0): higher is better, 100 is most."""
        if len(pictures) != len(prompts) or not prompts:
            came = f"{len(pictures)} pictures and {len(prompts)} prompts"
            raise DataError(f"CLIP: wanted a prompt a picture, came {came}; give as many of both")
        parts = range(0, len(prompts), BATCH)
        return torch.cat([self._cosines(pictures[at : at + BATCH], prompts[at : at + BATCH]) for at in parts]) * 100

    def _cosines(self, pictures: Tensor, prompts: Sequence[str]) -> Tensor:
        tokenizer, network, (mean, std) = self._parts
        most = network.config.text_config.max_position_embeddings
        read = tokenizer(list(prompts), padding=True, truncation=True, max_length=most, return_tensors="pt")
        seen = _normal(_square(_rgb(pictures), network.config.vision_config.image_size), mean, std)
        found = network(input_ids=read["input_ids"], attention_mask=read["attention_mask"], pixel_values=seen)
        return cast(Tensor, (found.image_embeds * found.text_embeds).sum(1).clamp(min=0))  # both have length 1

    @cached_property
    def _parts(self) -> tuple[Any, Any, tuple[Sequence[float], Sequence[float]]]:
        """The tokenizer, the network, and the mean and spread of the colours it knows."""
        folder = Path(self.path).expanduser()
        wish = "a folder with a CLIP, its weights as safetensors, and its tokenizer"
        with reading(self.path, wish, "give the path of that"), without_bars():
            if (kind := json.loads((folder / "config.json").read_text("utf-8"))["model_type"]) != "clip":
                raise DataError(f"{self.path}: wanted a CLIP, came a model of kind '{kind}'; give the path of a CLIP")
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            network, found = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
            if missing := sorted(found["missing_keys"]):
                wish = f"wanted a whole CLIP, came one that lacks {len(missing)} weights, first '{missing[0]}'"
                raise DataError(f"{self.path}: {wish}; get it again")
            return tokenizer, network.eval(), _colours(folder / "preprocessor_config.json")


def called(features: Features, count: int) -> str:
    """What a Fréchet distance on these features is called when the smaller side has so many pictures."""
    if count < features.least:
        wish = f"wanted at least {features.least} pictures on each side, came {count}"
        raise DataError(f"{features.title}: {wish}; make more, or measure on other features")
    return features.title


def extract(features: Features, pictures: Tensor) -> Tensor:
    """Features [n, width] of any number of pictures, a batch at a time."""
    return torch.cat([features.of(part) for part in pictures.split(BATCH)])


def _rgb(pictures: Tensor) -> Tensor:
    if pictures.dtype != torch.uint8 or pictures.ndim != 4 or pictures.shape[1] not in (1, 3) or not pictures.numel():
        came = f"{pictures.dtype} {list(pictures.shape)}".removeprefix("torch.")
        raise DataError(
            f"pictures: wanted uint8 [n, 1 or 3, height, width], came {came}; scale and round them to bytes"
        )
    return pictures.cpu().expand(-1, 3, -1, -1)


def _normal(pictures: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    return (pictures / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def _square(pictures: Tensor, size: int) -> Tensor:
    """As CLIP was shown pictures: the shorter side resized in bytes, and the middle cut out."""
    height, width = pictures.shape[2:]
    tall, wide = size * height // min(height, width), size * width // min(height, width)
    resized = F.interpolate(pictures, size=(tall, wide), mode="bicubic", antialias=True)
    top, left = (tall - size) // 2, (wide - size) // 2
    return resized[:, :, top : top + size, left : left + size]


def _colours(path: Path) -> tuple[Sequence[float], Sequence[float]]:
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return known.get("image_mean", CLIP_MEAN), known.get("image_std", CLIP_STD)


def _file(path: str) -> str:
    return str(Path(path).expanduser())


FEATURES: dict[str, Callable[[str], Features]] = {"judge": Judge, "inception": Inception, "resnet": ResNet}
