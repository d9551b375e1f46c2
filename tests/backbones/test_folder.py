"""Diffusers folders: their content's name, and what is fetched of one on the hub."""

import fnmatch
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from fedgen.backbones import Diffusion, DiffusionBackbone
from fedgen.errors import BackboneError

WEIGHTS = "diffusion_pytorch_model.safetensors"


def load(folder: Path) -> DiffusionBackbone:
    return Diffusion(str(folder), device="cpu").load()


# ---- identity


@pytest.fixture
def copied(pipelines: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the folder with the most parts, to be changed."""
    return Path(shutil.copytree(pipelines["stable"], tmp_path / "copy"))


def nudge(file: Path) -> None:
    """Change one number of the weights."""
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, file, {"format": "pt"})


def test_the_hash_does_not_know_the_folder(copied: Path, denoisers: dict[str, DiffusionBackbone]) -> None:
    (copied / "README.md").write_text("of no matter")
    assert load(copied).hash == denoisers["stable"].hash
    assert len({denoiser.hash for denoiser in denoisers.values()}) == len(denoisers)


@pytest.mark.parametrize("file", [f"unet/{WEIGHTS}", f"vae/{WEIGHTS}", "text_encoder/model.safetensors"])
def test_the_hash_changes_with_the_weights(file: str, copied: Path, denoisers: dict[str, DiffusionBackbone]) -> None:
    nudge(copied / file)
    assert load(copied).hash != denoisers["stable"].hash


@pytest.mark.parametrize("kind", ["stable", "ddpm"])
def test_the_hash_changes_with_the_scheduler(
    kind: str, pipelines: dict[str, Path], denoisers: dict[str, DiffusionBackbone], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pipelines[kind], tmp_path / "copy"))
    (file,) = folder.rglob("scheduler_config.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"beta_start": 0.01}))
    assert load(folder).hash != denoisers[kind].hash


def test_a_folder_of_one_level_is_known_by_its_weights(pipelines: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pipelines["ddpm"], tmp_path / "copy"))
    (folder / "scheduler").mkdir()
    (folder / "scheduler_config.json").rename(folder / "scheduler" / "scheduler_config.json")
    before = load(folder).hash
    nudge(folder / WEIGHTS)
    assert load(folder).hash != before


# ---- the hub


def test_a_name_of_the_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # what the variable of that name sets
    with pytest.raises(BackboneError) as caught:
        Diffusion("hub:nobody/nothing").load()
    assert str(caught.value).startswith("backbone: 'hub:nobody/nothing' cannot be fetched: ")
    assert "\n" not in str(caught.value)


def test_only_what_is_used_is_fetched(monkeypatch: pytest.MonkeyPatch, pipelines: dict[str, Path]) -> None:
    asked: dict[str, list[str]] = {}

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        asked[name] = allow_patterns
        return str(pipelines["ddpm"])

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert Diffusion("hub:some/model", device="cpu").load().name == "some/model"
    (patterns,) = asked.values()
    taken = {file for file in REMOTE if any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns)}
    assert {file for file, wanted in REMOTE.items() if wanted} == taken


REMOTE = {  # files as models on the hub have them, and whether they are wanted
    "model_index.json": True,
    f"unet/{WEIGHTS}": True,
    "unet/config.json": True,
    WEIGHTS: True,
    "scheduler/scheduler_config.json": True,
    "tokenizer/spiece.model": True,
    "text_encoder/model.safetensors": True,
    "text_encoder/model-00001-of-00002.safetensors": True,
    "transformer/diffusion_pytorch_model-00002-of-00003.safetensors": True,
    "unet/diffusion_pytorch_model.bin": False,
    "unet/diffusion_pytorch_model.fp16.safetensors": False,
    "unet/diffusion_pytorch_model.non_ema.safetensors": False,
    "text_encoder/model.fp16-00001-of-00002.safetensors": False,
    "safety_checker/model.safetensors": False,
    "v1-5-pruned.safetensors": False,
    "README.md": False,
}
