"""An adapter added into the weights of its backbone: one ordinary model, with nothing of LoRA left in it."""

import os
import shutil
from collections.abc import Iterator
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
from fedgen.backbones.folder import located
from fedgen.backbones.language import locate
from fedgen.backbones.quiet import silence
from fedgen.errors import StoreError
from fedgen.records import Tree
from fedgen.run import Run

WEIGHTS = "diffusion_pytorch_model"  # how the files of a diffusers network begin
KINDS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def merge(run: Run, found: Tree, to: Path) -> None:
    """Write a new folder: a transformers model with its tokenizer, or the whole diffusers folder.

    The weights keep the backbone's own precision; what was trained on a quantised one is added to the full one.
    """
    source = run.plan.backbone
    with _whole(to) as part, silence():
        if isinstance(source, Language):
            _language(run, replace(source, device="cpu", dtype="float32", bits=16), found, part)
        elif isinstance(source, Diffusion):
            _diffusion(run, replace(source, device="cpu", dtype="float32"), found, part)


def _language(run: Run, settings: Language, found: Tree, part: Path) -> None:
    backbone: Any = settings.load()
    _refuse_another(run, backbone.hash)
    add(backbone.network, found)
    where, local = locate(settings.source)
    own = AutoConfig.from_pretrained(where, local_files_only=local).dtype or torch.float32
    backbone.network.to(own).save_pretrained(part)
    backbone.tokenizer.save_pretrained(part)


def _diffusion(run: Run, settings: Diffusion, found: Tree, part: Path) -> None:
    backbone: Any = settings.load()
    _refuse_another(run, backbone.hash)
    add(backbone.network, found)
    folder = located(settings.source)
    apart = (folder / backbone.component).is_dir()  # early folders have one level
    here = folder / backbone.component if apart else folder

    def left(at: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(at) == here and name.startswith(WEIGHTS)]

    shutil.copytree(folder, part, ignore=left, dirs_exist_ok=True)
    backbone.network.register_to_config(_name_or_path=backbone.name)  # or it would be a path of this machine
    backbone.network.to(_kind(here)).save_pretrained(part / backbone.component if apart else part)


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


@contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A new folder, which is there when all of it is, and not before."""
    part = folder.with_name(f".{folder.name}.part")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder}: wanted a new or an empty folder for a whole model; choose another")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        for path in part.rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        part.replace(folder)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{folder}: cannot be written ({error}); make room or choose another folder") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
