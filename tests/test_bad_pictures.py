"""What is wrong with a diffusion backbone or its pictures is said in one clear line, before anything is written."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

import fedgen
from fedgen import places
from fedgen.backbones import Diffusion, DiffusionBackbone
from fedgen.errors import BackboneError, DataError, FedgenError
from fedgen.records import Document

Plan = dict[str, Any]

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def copied(pipelines: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a folder, to be spoilt."""
    return lambda kind: Path(shutil.copytree(pipelines[kind], tmp_path / kind))


@pytest.fixture
def stable(copied: Callable[[str], Path]) -> Path:
    """A copy of the folder with the most parts."""
    return copied("stable")


def refused(folder: Path, kind: type[FedgenError] = BackboneError, **settings: Any) -> str:
    """The line with which a run, a question for its cost and the backbone itself are refused; nothing is written."""
    plan: Plan = {"backbone": {"kind": "diffusion", "source": str(folder), "device": "cpu"}, "data": {"kind": "digits"}}
    plan |= {"partition": {"kind": "even", "clients": 2}, "cohort": {"count": 2}}
    plan = {key: value | settings.get(key, {}) for key, value in plan.items()}
    before = sorted(folder.parent.rglob("*"))
    with pytest.raises(kind) as caught:
        fedgen.run(plan, folder.parent / "runs" / "run")
    with pytest.raises(kind) as asked:
        places.cost(plan)
    assert "\n" not in str(caught.value)
    assert str(asked.value) == str(caught.value)
    assert sorted(folder.parent.rglob("*")) == before
    return str(caught.value)


def reindex(folder: Path, **parts: Any) -> None:
    """Write other parts into the folder's index."""
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | parts))


# ---- the index


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    line = refused(tmp_path / "nowhere")
    wanted = "wanted 'embedded', a diffusers folder, or 'hub:owner/name'"
    assert line == f"backbone: no model_index.json in '{tmp_path / 'nowhere'}'; {wanted}"


def test_a_folder_without_an_index(stable: Path) -> None:
    (stable / "model_index.json").unlink()
    assert refused(stable).startswith(f"backbone: no model_index.json in '{stable}'; wanted 'embedded', a diffusers")


@pytest.mark.parametrize("content", [b"", b'{"unet": ', b"\xff\xfe", b"{]"])
def test_an_index_that_is_no_json(content: bytes, stable: Path) -> None:
    (stable / "model_index.json").write_bytes(content)
    assert refused(stable).startswith(f"{stable / 'model_index.json'}: wanted JSON, came something that is not (")


@pytest.mark.parametrize(("content", "came"), [("[]", "list"), ("null", "NoneType"), ('"unet"', "str")])
def test_an_index_that_is_no_object(content: str, came: str, stable: Path) -> None:
    (stable / "model_index.json").write_text(content)
    assert refused(stable) == f"{stable / 'model_index.json'}: wanted a JSON object, came a {came}"


@pytest.mark.parametrize("entry", ["UNet2DConditionModel", 5, ["diffusers"], ["diffusers", 7], {"a": 1}, [None, "x"]])
@pytest.mark.parametrize("part", ["unet", "scheduler", "vae"])
def test_an_index_with_a_part_that_is_no_pair_of_names(part: str, entry: Any, stable: Path) -> None:
    reindex(stable, **{part: entry})
    line = refused(stable)
    assert line == f"backbone: model_index.json wanted '{part}' as a library and a class, came {entry!r}"


@pytest.mark.parametrize("library", ["os", "flax", "pipeline_of_mine", "diffusers.utils"])
@pytest.mark.parametrize("part", ["scheduler", "text_encoder"])
def test_an_index_that_names_another_library(part: str, library: str, stable: Path) -> None:
    reindex(stable, **{part: [library, "system"]})
    line = refused(stable)
    assert line == f"backbone: model_index.json names a part of '{library}'; wanted diffusers or transformers alone"


def test_an_index_that_names_a_class_that_is_not_known(stable: Path) -> None:
    reindex(stable, vae=["diffusers", "AutoencoderOfTomorrow"])
    line = refused(stable)
    assert line.startswith(f"backbone: model_index.json of '{stable}' names diffusers.AutoencoderOfTomorrow, which")


FLUX = "FluxTransformer2DModel"


@pytest.mark.parametrize(("entry", "came"), [(["diffusers", FLUX], FLUX), (None, "none")])
def test_a_denoiser_that_is_not_known_here(entry: Any, came: str, stable: Path) -> None:
    reindex(stable, unet=entry)
    known = "UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel, PixArtTransformer2DModel"
    assert refused(stable) == f"backbone: '{stable}' has a denoiser of type {came}; wanted one of {known}"


def test_a_denoiser_under_another_name(stable: Path) -> None:
    reindex(stable, unet=["diffusers", "AutoencoderKL"])
    assert "has a denoiser of type AutoencoderKL; wanted one of" in refused(stable)


def test_a_folder_without_scheduler(stable: Path) -> None:
    reindex(stable, scheduler=None)
    assert refused(stable) == f"backbone: '{stable}' has no scheduler; get it whole"


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder"])
def test_a_denoiser_of_prompts_that_nobody_reads(part: str, stable: Path) -> None:
    reindex(stable, **{part: [None, None]})
    assert "UNet2DConditionModel reads prompts, but the folder has no tokenizer and text_encoder" in refused(stable)


# ---- the parts

PARTS = {
    "unet": f"unet/{WEIGHTS}",
    "vae": f"vae/{WEIGHTS}",
    "text_encoder": "text_encoder/model.safetensors",
}


@pytest.mark.parametrize("kept", [0, 4, 500, -100])
@pytest.mark.parametrize("part", PARTS)
def test_weights_cut_short(part: str, kept: int, stable: Path) -> None:
    raw = (stable / PARTS[part]).read_bytes()
    (stable / PARTS[part]).write_bytes(raw[:kept])
    assert refused(stable).startswith(f"backbone: {part} of '{stable}' cannot be loaded: ")


@pytest.mark.parametrize("part", PARTS)
def test_no_weights_at_all(part: str, stable: Path) -> None:
    (stable / PARTS[part]).unlink()
    assert refused(stable).startswith(f"backbone: {part} of '{stable}' cannot be loaded: ")


@pytest.mark.parametrize("part", PARTS)
def test_a_weight_that_is_missing_is_not_made_up(part: str, stable: Path) -> None:
    weights = load_file(stable / PARTS[part])
    lost = sorted(key for key in weights if key.endswith("bias"))[:2]
    save_file({key: value for key, value in weights.items() if key not in lost}, stable / PARTS[part], {"format": "pt"})
    line = refused(stable)
    assert line.startswith(f"backbone: {part} of '{stable}' lacks 2 of its weights, first '")
    assert line.endswith("'; get it whole")


@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_part_with_broken_settings(file: str, content: str | None, stable: Path) -> None:
    (stable / file).unlink()
    if content is not None:
        (stable / file).write_text(content)
    assert refused(stable).startswith(f"backbone: {file.partition('/')[0]} of '{stable}' cannot be loaded: ")


def test_pickled_weights_are_not_read(stable: Path) -> None:
    weights = load_file(stable / PARTS["unet"])
    (stable / PARTS["unet"]).unlink()
    torch.save(weights, stable / "unet" / "diffusion_pytorch_model.bin")
    assert refused(stable).startswith(f"backbone: unet of '{stable}' cannot be loaded: ")


def test_a_text_encoder_of_another_width(stable: Path) -> None:
    shutil.rmtree(stable / "text_encoder")
    CLIPTextModel(CLIPTextConfig(hidden_size=24, intermediate_size=8, num_attention_heads=2)).save_pretrained(
        stable / "text_encoder"
    )
    assert "the denoiser reads text of width 32, the text encoder writes 24" in refused(stable)


def reschedule(folder: Path, kind: str, **settings: Any) -> None:
    diffusers: Any = pytest.importorskip("diffusers")
    getattr(diffusers, kind)(**settings).save_pretrained(folder / "scheduler")
    reindex(folder, scheduler=["diffusers", kind])


@pytest.mark.parametrize("kind", ["ScoreSdeVeScheduler", "EDMEulerScheduler"])
def test_a_scheduler_without_a_course_of_noise(kind: str, stable: Path) -> None:
    reschedule(stable, kind)
    assert refused(stable).startswith(f"scheduler: {kind} has no course of noise to train on; wanted one with betas")


def test_an_unknown_kind_of_prediction(stable: Path) -> None:
    reschedule(stable, "DDIMScheduler", prediction_type="score")
    assert refused(stable).startswith("scheduler: DDIMScheduler predicts 'score', wanted one of epsilon, sample, v_pr")


def test_a_denoiser_that_does_not_say_its_size(copied: Callable[[str], Path]) -> None:
    folder = copied("classes")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sample_size": None}))
    line = refused(folder)
    assert line == f"backbone: '{folder.name}' does not say for which size it is made; set backbone.size"
    assert Diffusion(str(folder), size=8, device="cpu").load().picture == (1, 8, 8)


# ---- half precision


def loud(folder: Path, key: str) -> None:
    """Scale one layer of the VAE beyond what half precision can hold."""
    weights = load_file(folder / PARTS["vae"])
    weights[key] *= 1e7
    save_file(weights, folder / PARTS["vae"], {"format": "pt"})


def test_a_vae_that_half_precision_cannot_hold(stable: Path) -> None:
    loud(stable, "encoder.conv_in.weight")
    loud(stable, "decoder.conv_in.weight")
    whole, half = (Diffusion(str(stable), dtype=dtype, device="cpu").load() for dtype in ("float32", "float16"))
    document = Document("", "", "a client", picture=torch.zeros(whole.picture, dtype=torch.uint8))
    assert whole.encode([document])["picture"].isfinite().all()
    line = "^backbone: the VAE gives NaN or infinity in float16; set backbone.dtype = 'float32'$"
    with pytest.raises(BackboneError, match=line):
        half.encode([document])
    with pytest.raises(BackboneError, match=line):
        half.paint([document], [torch.Generator()], steps=1)


# ---- the pictures


def test_pictures_of_another_size(copied: Callable[[str], Path]) -> None:
    line = refused(copied("classes"), DataError, data={"size": 12})
    wanted = "wanted (1, 8, 8) (channels, height, width) for 'classes', came (1, 12, 12)"
    assert line == f"picture 'the digit 1' of '': {wanted}; set size and mode of the data, or backbone.size"


def test_pictures_of_another_mode(copied: Callable[[str], Path]) -> None:
    line = refused(copied("ddpm"), DataError)
    assert "wanted (3, 8, 8) (channels, height, width) for 'ddpm', came (1, 8, 8); set size and mode of" in line


def test_text_for_a_backbone_of_pictures(copied: Callable[[str], Path], tiny_text: Path) -> None:
    folder = copied("pixart")
    line = refused(folder, DataError, data={"kind": "folder", "path": str(tiny_text)})
    assert "came no picture; " in line


def test_a_label_that_is_no_class(denoisers: dict[str, DiffusionBackbone]) -> None:
    denoiser = denoisers["classes"]
    document = Document("", "", label="sans", picture=torch.zeros(denoiser.picture, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"^label 'sans': wanted the number of a class, 0 to 9; name such a label$"):
        denoiser.encode([document])
    with pytest.raises(DataError, match="label '10'"):
        denoiser.paint([replace(document, label="10")], [torch.Generator()], steps=1)


def test_a_prompt_that_is_too_long(pipelines: dict[str, Path]) -> None:
    strict, lenient = (Diffusion(str(pipelines["pixart"]), long=long, device="cpu").load() for long in ("error", "cut"))
    document = Document("", "", "z" * 60, picture=torch.zeros(strict.picture, dtype=torch.uint8))
    with pytest.raises(
        DataError, match=r"^prompt 'z{40}\.\.\.': wanted at most 16 tokens, came 62; shorten it, or set"
    ):
        strict.encode([document])
    assert lenient.encode([document])["text"].shape == (1, 16, 32)
    assert lenient.paint([document], [torch.Generator()], steps=1).shape == (1, 1, 8, 8)


# ---- settings

WRONG = {
    "size": -8,
    "drop": 1.5,
    "weighting": "max_snr",
    "gamma": 0.0,
    "looks": 0,
    "long": "wrap",
    "dtype": "float64",
    "length": 32,
}


@pytest.mark.parametrize("key", WRONG)
def test_a_setting_out_of_range(key: str, stable: Path) -> None:
    assert refused(stable, FedgenError, backbone={key: WRONG[key]}).startswith(f"backbone.{key}: ")


def test_a_device_that_is_not_there(stable: Path) -> None:
    assert "backbone.device: 'warp' cannot be used" in refused(stable, backbone={"device": "warp"})
