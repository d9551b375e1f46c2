"""Bundles: what is saved comes back, and what is damaged is refused with a reason."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, safe_open, save_file

from fedgen import lora
from fedgen.errors import StoreError
from fedgen.records import Tree
from fedgen.store import Card, load_bundle, save_bundle
from fedgen.tree import digest

CARD = Card(
    kind="text", backbone="tiny", backbone_hash="b4ckb0ne", run="r1", round=7, cluster="c0", client="zoë",
    parent="p4r3nt", targets=("q_proj", "v_proj"), metrics={"loss": 1.25, "steps": 3},
)  # fmt: skip
KEY = f"{lora.PREFIX}layers.0.q_proj.lora_A.weight"


def make(seed: int = 0, rank: int = 4) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    return lora.tree_of(
        lora.Pair(f"layers.{at}.{name}", torch.randn(rank, 6, generator=draw), torch.randn(5, rank, generator=draw))
        for at in range(2)
        for name in ("q_proj", "v_proj")
    )


def same(one: Tree, two: Tree) -> bool:
    return list(one) == list(two) and all(torch.equal(one[key], two[key]) for key in one)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    tree = make()
    saved = save_bundle(tmp_path / "a", tree, CARD)
    assert saved == dataclasses.replace(CARD, hash=digest(tree), rank=4)
    found, card = load_bundle(tmp_path / "a", backbone_hash="b4ckb0ne")
    assert same(found, tree)
    assert card == saved
    newer = save_bundle(tmp_path / "a", make(1), dataclasses.replace(CARD, parent=saved.hash))
    assert newer.hash != saved.hash
    assert load_bundle(tmp_path / "a")[1].parent == saved.hash


def test_a_text_bundle_has_the_few_keys_that_every_reader_knows(tmp_path: Path) -> None:
    save_bundle(tmp_path, make(), CARD)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "card.json",
    ]  # fmt: skip
    assert json.loads((tmp_path / "adapter_config.json").read_text()) == {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "tiny", "r": 4, "lora_alpha": 4,
        "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"], "bias": "none", "fan_in_fan_out": False,
        "inference_mode": True, "use_rslora": False, "use_dora": False, "modules_to_save": None,
    }  # fmt: skip
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_an_image_bundle_is_spelt_for_diffusers_too(tmp_path: Path) -> None:
    card, tree = dataclasses.replace(CARD, kind="image"), make()
    saved = save_bundle(tmp_path, tree, card, component="transformer")
    with safe_open(tmp_path / "pytorch_lora_weights.safetensors", "pt") as file:
        notes = file.metadata()
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert notes.keys() == {"lora_adapter_metadata"}
    told = json.loads(notes["lora_adapter_metadata"])
    assert told["transformer.r"] == told["transformer.lora_alpha"] == 4
    assert same({key.replace("transformer.", lora.PREFIX): found[key] for key in sorted(found)}, tree)
    again, card = load_bundle(tmp_path)
    assert same(again, tree)
    assert card == saved


def test_targets_are_made_up_where_none_are_given(tmp_path: Path) -> None:
    card = save_bundle(tmp_path, make(), dataclasses.replace(CARD, targets=()))
    assert card.targets == ("q_proj", "v_proj")
    assert load_bundle(tmp_path)[1].targets == ("q_proj", "v_proj")


def test_a_metric_that_is_no_number_is_kept_as_such(tmp_path: Path) -> None:
    save_bundle(tmp_path, make(), dataclasses.replace(CARD, metrics={"loss": math.inf, "bytes": 2.0}))
    metrics = load_bundle(tmp_path)[1].metrics
    assert math.isnan(metrics["loss"])
    assert metrics["bytes"] == 2.0
    assert "Infinity" not in (tmp_path / "card.json").read_text()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_adapter_with_nan_is_not_saved(tmp_path: Path, bad: float) -> None:
    tree = make()
    tree[KEY][1, 2] = bad
    with pytest.raises(StoreError, match=rf"'{KEY}' holds NaN or infinity"):
        save_bundle(tmp_path / "a", tree, CARD)
    assert not list(tmp_path.iterdir())


def test_what_makes_no_bundle_is_not_saved(tmp_path: Path) -> None:
    mixed = make() | {key: value for key, value in make(rank=2).items() if "layers.1" in key}
    for tree, card, said in (
        (mixed, CARD, r"not saved; .*one rank in all layers, came \[2, 4\]"),
        (make(), dataclasses.replace(CARD, targets=("q_proj",)), r"'layers.0.v_proj' is adapted, but is none of"),
        (make() | {"odd": torch.ones(1)}, CARD, "'odd' is no key"),
        (make(), dataclasses.replace(CARD, kind="image"), "image with a component"),
        (make(), dataclasses.replace(CARD, kind="sound"), "wanted kind text"),
    ):
        with pytest.raises(StoreError, match=said):
            save_bundle(tmp_path / "a", tree, card)
    assert not list(tmp_path.iterdir())


def edit(name: str, change: Callable[[Any], Any]) -> Callable[[Path], object]:
    """A change to one of a bundle's JSON files."""
    return lambda folder: (folder / name).write_text(json.dumps(change(json.loads((folder / name).read_text()))))


def weights(change: Callable[[Tree], Tree]) -> Callable[[Path], None]:
    """A change to a bundle's tensors."""
    path = "adapter_model.safetensors"
    return lambda folder: save_file(change(load_file(folder / path)), folder / path, {"format": "pt"})


def cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), r"adapter_config.json: cannot be read"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), r"model.safetensors: cannot be read"),
        (lambda folder: (folder / "adapter_config.json").write_text('{"r": 4,'), r"adapter_config.json: wanted JSON"),
        (lambda folder: (folder / "card.json").write_bytes(b"\xff\xfe{}"), r"card.json: wanted JSON"),
        (lambda folder: (folder / "card.json").write_text("[]"), r"card.json: wanted a JSON object, came a list"),
        (edit("card.json", lambda card: card | {"round": "7"}), r"'round' must be a int, came '7'"),
        (edit("card.json", lambda card: {"kind": "text"}), r"card.json: 'backbone' must be a str, came None"),
        (edit("card.json", lambda card: card | {"metrics": {"loss": "low"}}), r"metric 'loss' must be a number"),
        (edit("card.json", lambda card: card | {"hash": "0" * 64}), r"not what its card names \(0{64}\)"),
        (cut, r"adapter_model.safetensors: wanted whole safetensors"),
        (weights(lambda tree: tree | {KEY: tree[KEY] * math.nan}), rf"'{KEY}' holds NaN"),
        (weights(lambda tree: tree | {KEY: tree[KEY] + 1}), r"the content is not what its card names"),
        (weights(lambda tree: {key: tree[key] for key in tree if key != KEY}), rf"'{KEY}' is missing, but"),
        (edit("adapter_config.json", lambda config: config | {"lora_alpha": 8}), r"not what its card names"),
        (edit("adapter_config.json", lambda config: config | {"lora_alpha": None}), r"lora_alpha must be a number"),
        (edit("adapter_config.json", lambda config: config | {"alpha_pattern": {"(": 1}}), r"alpha_pattern must be"),
        (edit("adapter_config.json", lambda config: config | {"use_dora": True}), r"use_dora = True is not plain LoRA"),
        (edit("adapter_config.json", lambda config: config | {"peft_type": "IA3"}), r"peft_type = 'IA3' is not plain"),
        (edit("adapter_config.json", lambda config: config | {"bias": "all"}), r"bias = 'all' is not plain LoRA"),
        (edit("adapter_config.json", lambda config: config | {"init_lora_weights": "pissa"}), r"'pissa' is not plain"),
    ],
)
def test_a_damaged_bundle_is_refused_with_the_reason(tmp_path: Path, harm: Callable[[Path], object], said: str) -> None:
    save_bundle(tmp_path / "a", make(), CARD)
    harm(tmp_path / "a")
    with pytest.raises(StoreError, match=said) as caught:
        load_bundle(tmp_path / "a")
    assert str(tmp_path / "a") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bundle_of_another_backbone_is_refused_with_both_names(tmp_path: Path) -> None:
    save_bundle(tmp_path / "a", make(), CARD)
    with pytest.raises(StoreError, match=r"made for backbone 'tiny' \(b4ckb0ne\), not for this one \(0th3r\)"):
        load_bundle(tmp_path / "a", backbone_hash="0th3r")


def test_no_bundle_at_all_is_told_as_such(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"nowhere/adapter_config.json: cannot be read"):
        load_bundle(tmp_path / "nowhere")
