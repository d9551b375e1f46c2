"""Adapters as folders that PEFT and diffusers read unchanged. Nothing is ever unpickled: safetensors and JSON only."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fedgen.errors import StoreError, TreeError
from fedgen.lora import PREFIX, Pair, is_called, pairs, rank, short, tree_of
from fedgen.records import Tree
from fedgen.store.files import read_bytes, save_folder, standing
from fedgen.store.foreign import fold_scale
from fedgen.tree import digest, pack, unpack

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "card.json"
DIFFUSERS = "pytorch_lora_weights.safetensors"
CHANGE = "change.safetensors"  # of a full model


@dataclass(frozen=True, kw_only=True)
class Card:
    """An adapter's identity and lineage; `hash` is its content, `parent` the hash of what it was trained from.

    A full model has rank 0. `fan_in_fan_out` says that the adapted layers keep their weights turned, as GPT-2's Conv1D
    does.
    """

    kind: str
    backbone: str
    backbone_hash: str = ""
    hash: str = ""
    run: str = ""
    round: int = 0
    cluster: str = ""
    client: str = ""
    parent: str = ""
    rank: int = 0
    targets: tuple[str, ...] = ()
    fan_in_fan_out: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)


def save_bundle(
    folder: Path, tree: Tree, card: Card, *, component: str = "", beside: Mapping[str, bytes] | None = None
) -> Card:
    """Save an adapter as a folder, with more files `beside` it; images want a `component` (unet, transformer)."""
    if card.kind not in ("text", "image") or (card.kind == "image") != bool(component):
        raise StoreError(f"{folder}: wanted kind text, or image with a component, came {card.kind} and '{component}'")
    try:
        tree = tree_of(Pair(pair.path, _settled(pair.a), _settled(pair.b)) for pair in pairs(tree))
        card = replace(card, hash=digest(tree), rank=rank(tree), targets=_targets(tree, card.targets))
    except TreeError as error:
        raise StoreError(f"{folder}: not saved; {error}") from error
    _refuse_broken(tree, folder)
    config = _config(card)
    files = {CONFIG: _dump(config), WEIGHTS: pack(tree, {"format": "pt"}), CARD: _dump(_card_out(card))}
    if component:
        files[DIFFUSERS] = _diffusers(tree, config, component)
    save_folder(folder, files | dict(beside or {}))
    return card


def save_change(folder: Path, tree: Tree, card: Card) -> Card:
    """Save a full model as its change from the backbone: no adapter, and of use to nobody but fedgen."""
    tree = {key: _settled(tree[key]) for key in sorted(tree)}
    _refuse_broken(tree, folder)
    card = replace(card, hash=digest(tree), rank=0, targets=())
    save_folder(folder, {CHANGE: pack(tree, {"format": "pt"}), CARD: _dump(_card_out(card))})
    return card


def load_bundle(folder: Path, *, backbone_hash: str = "") -> tuple[Tree, Card]:
    """Load an adapter and its card, ours or PEFT's own, and refuse one that is damaged or of another backbone.

    A full model is loaded as its change from the backbone.
    """
    folder = standing(folder)
    try:
        tree, card = _changed(folder) if (folder / CHANGE).exists() else _adapted(folder)
    except TreeError as error:
        raise StoreError(f"{folder}: {error}") from error
    if card.hash != digest(tree):
        raise StoreError(f"{folder}: the content is not what its card names ({card.hash}); fetch or save it anew")
    if backbone_hash and card.backbone_hash and backbone_hash != card.backbone_hash:
        raise StoreError(
            f"{folder}: made for backbone '{card.backbone}' ({card.backbone_hash}), not for this one ({backbone_hash})"
        )
    return tree, card


def _adapted(folder: Path) -> tuple[Tree, Card]:
    own, config = (folder / CARD).exists(), _json(folder / CONFIG)
    found = _numbers(folder / WEIGHTS)
    tree = fold_scale(found if own else _to_float(found), config, folder / CONFIG)
    return tree, _card_in(folder / CARD) if own else _made_up(tree, config)


def _changed(folder: Path) -> tuple[Tree, Card]:
    return _numbers(folder / CHANGE), _card_in(folder / CARD)


def _numbers(path: Path) -> Tree:
    found, _ = unpack(read_bytes(path), str(path))
    _refuse_broken(found, path)
    return found


def _to_float(tree: Tree) -> Tree:
    return {key: value.float() for key, value in tree.items()}


def _settled(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous()


def _refuse_broken(tree: Tree, where: Path) -> None:
    for key, value in tree.items():
        if not value.isfinite().all():
            raise StoreError(f"{where}: '{key}' holds NaN or infinity; the training that made it went wrong")


def _targets(tree: Tree, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names that mean the tree's layers: those given, if they cover all of them."""
    paths = [pair.path for pair in pairs(tree)]
    for path in paths if names else ():
        if not any(is_called(path, name) for name in names):
            raise TreeError(f"'{path}' is adapted, but is none of the targets {', '.join(names)}")
    return names or tuple(sorted({short(path) for path in paths}))


def _config(card: Card) -> dict[str, Any]:
    """The few keys that every reader knows."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if card.kind == "text" else None,
        "base_model_name_or_path": card.backbone,
        "r": card.rank,
        "lora_alpha": card.rank,
        "lora_dropout": 0.0,
        "target_modules": list(card.targets),
        "bias": "none",
        "fan_in_fan_out": card.fan_in_fan_out,
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }


def _diffusers(tree: Tree, config: Mapping[str, Any], component: str) -> bytes:
    renamed = {f"{component}.{key.removeprefix(PREFIX)}": value for key, value in tree.items()}
    notes = json.dumps({f"{component}.{key}": value for key, value in config.items()}, sort_keys=True)
    return pack(renamed, {"lora_adapter_metadata": notes})  # one note alone: safetensors shuffles several


def _dump(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_bytes(path))
    except ValueError as error:
        raise StoreError(f"{path}: wanted JSON, came something that is not ({error})") from error
    if not isinstance(content, dict):
        raise StoreError(f"{path}: wanted a JSON object, came a {type(content).__name__}")
    return content


def _card_out(card: Card) -> dict[str, Any]:
    """The card as JSON, which knows no NaN: a metric that is no number is null."""
    metrics = {name: float(value) if math.isfinite(value) else None for name, value in card.metrics.items()}
    return asdict(card) | {"metrics": metrics}


def _made_up(tree: Tree, config: Mapping[str, Any]) -> Card:
    """A card for an adapter that came without one."""
    return Card(
        kind="image" if "diffusers" in str(config.get("auto_mapping")) else "text",
        backbone=str(config.get("base_model_name_or_path") or ""),
        hash=digest(tree),
        rank=rank(tree),
        targets=_targets(tree, ()),
    )


def _card_in(path: Path) -> Card:
    content = _json(path)
    for name, wanted in CARD_TYPES.items():
        if not isinstance(content.get(name), wanted):
            raise StoreError(f"{path}: '{name}' must be a {wanted.__name__}, came {content.get(name)!r}")
    known: dict[str, Any] = {name: content[name] for name in CARD_TYPES}
    for name, value in known["metrics"].items():
        if not isinstance(value, int | float | None):
            raise StoreError(f"{path}: metric '{name}' must be a number or null, came {value!r}")
    metrics = {name: math.nan if value is None else float(value) for name, value in known["metrics"].items()}
    return Card(**known | {"targets": tuple(map(str, known["targets"])), "metrics": metrics})


CARD_TYPES: dict[str, type] = {
    **dict.fromkeys(("kind", "backbone", "backbone_hash", "hash", "run", "cluster", "client", "parent"), str),
    **dict.fromkeys(("round", "rank"), int),
    "targets": list,
    "metrics": dict,
}
