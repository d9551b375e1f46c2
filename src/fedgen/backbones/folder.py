"""Diffusers folders, here or on the hub: which parts one has, and each part loaded as the folder's index names it."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fedgen.backbones.language import moved
from fedgen.backbones.quiet import silence
from fedgen.errors import BackboneError

EMBEDDED = Path(__file__).parent / "embedded" / "image"
INDEX = "model_index.json"
NETWORKS = ("unet", "transformer", "text_encoder", "vae")


@dataclass(frozen=True)
class Reader:
    """Reads the parts of one diffusers folder, each as the folder's index names it."""

    source: str
    folder: Path
    index: Mapping[str, Any]
    dtype: str
    device: str

    def module(self, part: str) -> Any:
        """A frozen network on its device, or None if the folder has no such part."""
        found = self.part(part, weights=True)
        if found is None:
            return None
        return moved(found, self.device).eval().requires_grad_(False)

    def part(self, part: str, *, weights: bool = False) -> Any:
        """Any part, or None if the folder has none."""
        library, name = named(self.index, part)
        if not library:
            return None
        here = self.folder / part if (self.folder / part).is_dir() else self.folder  # early folders have one level
        with silence():  # diffusers imports what it finds, and some of that talks
            known = getattr(library_of(library), name, None)
        if known is None:
            raise BackboneError(
                f"backbone: {INDEX} of '{self.source}' names {library}.{name}, which this version lacks"
            )
        options: dict[str, Any] = {"local_files_only": True}
        if weights:
            auto = torch.float32 if self.device == "cpu" else torch.bfloat16
            dtype = auto if self.dtype == "auto" else getattr(torch, self.dtype)
            options |= {"use_safetensors": True, "output_loading_info": True}
            options |= (
                {"torch_dtype": dtype, "low_cpu_mem_usage": False} if library == "diffusers" else {"dtype": dtype}
            )
        try:
            with silence():
                found = known.from_pretrained(here, **options)
        except Exception as error:  # the libraries raise many kinds for one cause: a folder that is not a model
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BackboneError(f"backbone: {part} of '{self.source}' cannot be loaded: {reason}") from error
        return self._whole(part, *found) if weights else found

    def _whole(self, part: str, network: nn.Module, found: dict[str, Any]) -> nn.Module:
        if missing := sorted(found["missing_keys"]):  # they would be drawn at random, anew at each load
            raise BackboneError(
                f"backbone: {part} of '{self.source}' lacks {len(missing)} of its weights, first '{missing[0]}'; "
                "get it whole"
            )
        return network


def located(source: str) -> Path:
    """The folder of a source, fetched from the hub if it names one there."""
    if source.startswith("hub:"):
        return _fetched(source.removeprefix("hub:"))
    folder = EMBEDDED if source == "embedded" else Path(source).expanduser()
    if not (folder / INDEX).is_file():
        raise BackboneError(
            f"backbone: no {INDEX} in '{folder}'; wanted 'embedded', a diffusers folder, or 'hub:owner/name'"
        )
    return folder


def _fetched(name: str) -> Path:
    """The parts of a model on the hub that are used here: no pickles, no second copies."""
    weights = [f"{part}/*model{shard}.safetensors" for part in NETWORKS for shard in ("", "-0????-of-0????")]
    wanted = ["*.json", "tokenizer/*", "diffusion_pytorch_model.safetensors", *weights]
    try:
        return Path(import_module("huggingface_hub").snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # no network, no such model, no right to it: the hub's own words say which
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BackboneError(f"backbone: 'hub:{name}' cannot be fetched: {reason}") from error


def library_of(name: str) -> ModuleType:
    """diffusers or transformers, and no other library that an index may name."""
    if name not in ("diffusers", "transformers"):
        raise BackboneError(f"backbone: {INDEX} names a part of '{name}'; wanted diffusers or transformers alone")
    try:
        return import_module("diffusers") if name == "diffusers" else import_module("transformers")
    except ImportError as error:
        raise BackboneError(
            f"backbone: wanted {name} for images, which is not installed; pip install fedgen-edge[images] ({error})"
        ) from error


def hash_of(folder: Path, parts: Sequence[str]) -> str:
    """The content's name of a diffusers folder: the settings and weights of the parts that make its pictures."""
    content = hashlib.sha256()
    places = {folder / part if (folder / part).is_dir() else folder for part in parts}
    for path in sorted(path for place in places for path in place.glob("*")):
        if path.suffix in (".json", ".safetensors") and path.name != INDEX:
            with path.open("rb") as file:
                name = path.relative_to(folder).as_posix()
                content.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    return content.hexdigest()


def index_of(folder: Path) -> dict[str, Any]:
    """Which parts a diffusers folder has, and of which class each is."""
    path = folder / INDEX
    try:
        found = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise BackboneError(f"{path}: wanted JSON, came something that is not ({error})") from error
    if not isinstance(found, dict):
        raise BackboneError(f"{path}: wanted a JSON object, came a {type(found).__name__}")
    return found


def named(index: Mapping[str, Any], part: str) -> tuple[str, str]:
    """The library and the class of a part; empty if the folder has no such part."""
    found = index.get(part) or [None, None]
    if found == [None, None]:
        return "", ""
    if not (isinstance(found, list) and len(found) == 2 and all(isinstance(name, str) and name for name in found)):
        raise BackboneError(f"backbone: {INDEX} wanted '{part}' as a library and a class, came {found!r}")
    return found[0], found[1]
