"""An adapter added into the weights of its backbone: one ordinary model, with nothing of LoRA left in it."""

import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.pytorch_utils import Conv1D

from fedgen import lora
from fedgen.backbones import Diffusion, Language
from fedgen.backbones.folder import INDEX, index_of, located, named
from fedgen.backbones.language import locate
from fedgen.backbones.quiet import silence
from fedgen.errors import StoreError
from fedgen.records import Tree
from fedgen.run import Run

WEIGHTS = "diffusion_pytorch_model"  # how the files of a diffusers network begin
ALONE = (INDEX, "config.json", "scheduler_config.json")  # beside the parts' folders; early folders have one level
KINDS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def merge(run: Run, found: Tree, to: Path) -> None:
    """Write into a folder: a transformers model with its tokenizer, or the parts of a diffusers folder.

    The weights keep the backbone's own precision; what was trained on a quantised one is added to the full one.
    """
    source = run.plan.backbone
    with silence():
        if isinstance(source, Language):
            _language(run, replace(source, device="cpu", dtype="float32", bits=16), found, to)
        elif isinstance(source, Diffusion):
            _diffusion(run, replace(source, device="cpu", dtype="float32"), found, to)


def _language(run: Run, settings: Language, found: Tree, to: Path) -> None:
    backbone: Any = settings.load()
    _refuse_another(run, backbone.hash)
    add(backbone.network, found)
    where, local = locate(settings.source)
    own = AutoConfig.from_pretrained(where, local_files_only=local).dtype or torch.float32
    backbone.network.to(own).save_pretrained(to)
    backbone.tokenizer.save_pretrained(to)


def _diffusion(run: Run, settings: Diffusion, found: Tree, to: Path) -> None:
    backbone: Any = settings.load()
    _refuse_another(run, backbone.hash)
    add(backbone.network, found)
    folder = located(settings.source)
    apart = (folder / backbone.component).is_dir()
    here = folder / backbone.component if apart else folder
    index = index_of(folder)
    for part in folder.iterdir():
        if part.name in ALONE:
            shutil.copyfile(part, to / part.name)
        elif part.is_dir() and named(index, part.name)[0]:
            ours = f"{WEIGHTS}*" if part == here else ""
            shutil.copytree(part, to / part.name, ignore=shutil.ignore_patterns("README*", ours))
    backbone.network.register_to_config(_name_or_path=backbone.name)  # or it would be a path of this machine
    backbone.network.to(_kind(here)).save_pretrained(to / backbone.component if apart else to)


def _kind(folder: Path) -> torch.dtype:
    """The precision of the weights that lie in a folder."""
    path = min(folder.glob(f"{WEIGHTS}*.safetensors"))
    with safe_open(path, "pt") as file:
        return KINDS.get(file.get_slice(next(iter(file.keys()))).get_dtype(), torch.float32)


def _refuse_another(run: Run, came: str) -> None:
    wish = run.facts["backbone_hash"]
    if came != wish:
        raise StoreError(f"run '{run.folder}': was trained on another backbone ({wish}) than is there now ({came})")


@torch.no_grad()
def add(network: nn.Module, found: Tree) -> None:
    """Add each product, or each change of a full model, to the weight that it belongs to."""
    if not all(key.startswith(lora.PREFIX) for key in found):
        weights = dict(network.named_parameters())
        for key, change in found.items():
            weights[key].add_(change.to(weights[key]))
        return
    for pair in lora.pairs(found):
        layer: Any = network.get_submodule(pair.path)
        _refuse_tied(network, pair.path, layer)
        product = _product(pair, layer)
        layer.weight.add_(product.view(layer.weight.shape).to(layer.weight))


def _product(pair: lora.Pair, layer: nn.Module) -> Tensor:
    if isinstance(layer, nn.Conv2d) and layer.groups > 1:
        raise StoreError(f"merge: '{pair.path}' is a grouped convolution, which has no room for the sum; use --as peft")
    product = pair.b.double().flatten(1) @ pair.a.double().flatten(1)
    return product.T.contiguous() if isinstance(layer, Conv1D) else product


def _refuse_tied(network: nn.Module, path: str, layer: Any) -> None:
    for name, other in network.named_modules():
        if name != path and other._parameters.get("weight") is layer.weight:
            raise StoreError(f"merge: '{path}' shares its weight with '{name}', which would change too; use --as peft")


# ---- a folder as one


@contextmanager
def whole(folder: Path, anew: Collection[str] = ()) -> Iterator[Path]:
    """A folder that is there when all of it is, and not before; one of what comes `anew` alone gives way."""
    place = folder.resolve()
    part, old = (place.with_name(f".{place.name}.{end}") for end in ("part", "old"))
    _refuse_to_lose(folder, "*", lambda at: at.name in anew)
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        _refuse_to_lose(folder, "**/*", lambda at: (part / at).exists())
        _sync(part)
        if place.exists():
            shutil.rmtree(old, ignore_errors=True)
            place.rename(old)
        part.rename(place)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{folder}: cannot be written ({error}); make room or choose another folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _refuse_to_lose(folder: Path, which: str, comes: Callable[[Path], bool]) -> None:
    if Path.cwd().is_relative_to(folder.resolve()):
        raise StoreError(f"{folder}: is where you are, and a folder is written as one; name a new one")
    if folder.exists() and not folder.is_dir():
        raise StoreError(f"{folder}: wanted a folder, came a file; choose another")
    for path in sorted(folder.glob(which)):
        if not comes(at := path.relative_to(folder)):
            raise StoreError(f"{folder}: holds '{at}', which would be lost; take it out or choose another folder")


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
