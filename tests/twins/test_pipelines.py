"""What fedgen paints == what diffusers' own pipelines paint from the same folder and the same noise."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from fedgen import lora
from fedgen.backbones import DiffusionBackbone
from fedgen.bank import Bank
from fedgen.records import Document, Tree
from fedgen.store import Card, save_bundle

diffusers = pytest.importorskip("diffusers")

Denoisers = dict[str, DiffusionBackbone]

HALF = 0.5 + 0.01  # what rounding to bytes may take away, and a little for the order of sums
STEPS = 4
PROMPTS = ["the quick brown fox", "a client", ""]
LABELS = ["3", "0", "999"]


def draws() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in range(len(PROMPTS))]


def asked() -> list[Document]:
    return [Document("", "", prompt, label) for prompt, label in zip(PROMPTS, LABELS, strict=True)]


def painted(denoiser: DiffusionBackbone, guidance: float) -> Tensor:
    return denoiser.paint(asked(), draws(), steps=STEPS, guidance=guidance)


def pipeline(folder: Path, **parts: Any) -> Any:
    """The folder as diffusers itself loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the pipeline has to say of its own parts
        found = diffusers.DiffusionPipeline.from_pretrained(folder, **parts)
    found.set_progress_bar_config(disable=True)
    return found


def pixels(found: Any) -> Tensor:
    """A pipeline's float pictures as bytes that are not yet rounded, channels first."""
    return 255 * torch.from_numpy(found.images).permute(0, 3, 1, 2)


def with_scheduler(denoiser: DiffusionBackbone, name: str) -> DiffusionBackbone:
    kind = getattr(diffusers, name)
    return replace(denoiser, scheduler=kind.from_config(denoiser.scheduler.config))


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize(
    "name", ["PNDMScheduler", "DDIMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_stable_diffusion(name: str, guidance: float, pipelines: dict[str, Path], denoisers: Denoisers) -> None:
    pipe, denoiser = pipeline(pipelines["stable"]), with_scheduler(denoisers["stable"], name)
    pipe.scheduler = denoiser.scheduler
    wanted = pixels(stable(pipe, guidance))
    assert (painted(denoiser, guidance) - wanted).abs().max() < HALF
    assert (painted(denoiser, guidance + 3) - wanted).abs().max() > 1


def stable(pipe: Any, guidance: float) -> Any:
    size = {"height": 16, "width": 16}
    chance = {"generator": draws(), "num_inference_steps": STEPS}
    return pipe(PROMPTS, guidance_scale=guidance, output_type="np", **size, **chance)


def test_a_denoiser_without_prompts(pipelines: dict[str, Path], denoisers: Denoisers) -> None:
    own = pipeline(pipelines["ddpm"])
    pipe = diffusers.DDIMPipeline(own.unet, diffusers.DDIMScheduler.from_config(own.scheduler.config))
    pipe.set_progress_bar_config(disable=True)
    wanted = pipe(len(PROMPTS), draws(), num_inference_steps=STEPS, output_type="np")
    assert (painted(denoisers["ddpm"], 1.0) - pixels(wanted)).abs().max() < HALF


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_classes_of_a_dit(guidance: float, pipelines: dict[str, Path], denoisers: Denoisers) -> None:
    labels = [int(label) for label in LABELS]
    pipe = pipeline(pipelines["dit"])
    found = pipe(labels, guidance_scale=guidance, generator=draws(), num_inference_steps=STEPS, output_type="np")
    wanted = pixels(found)
    assert (painted(denoisers["dit"], guidance) - wanted).abs().max() < HALF
    assert (painted(denoisers["dit"], guidance + 3) - wanted).abs().max() > 1


def pixart(pipe: Any, guidance: float) -> Tensor:
    """A PixArt pipeline without a VAE takes its picture for latents."""
    found = pipe(
        PROMPTS, negative_prompt="", num_inference_steps=STEPS, guidance_scale=guidance, generator=draws(), height=64,
        width=64, clean_caption=False, use_resolution_binning=False, max_sequence_length=16, output_type="latent",
    )  # fmt: skip
    return 255 * (found.images / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "DDIMScheduler"])
def test_prompts_of_a_pixart(name: str, guidance: float, pipelines: dict[str, Path], denoisers: Denoisers) -> None:
    pipe, denoiser = pipeline(pipelines["pixart"], vae=None), with_scheduler(denoisers["pixart"], name)
    pipe.scheduler = denoiser.scheduler
    wanted = pixart(pipe, guidance)
    assert (painted(denoiser, guidance) - wanted).abs().max() < HALF
    assert (painted(denoiser, guidance + 3) - wanted).abs().max() > 1


# ---- bundles


def bundled(denoiser: DiffusionBackbone, folder: Path) -> Tree:
    """An adapter that changes something, saved as a bundle."""
    draw = torch.Generator().manual_seed(5)
    tree = lora.fresh(lora.targets(denoiser.network, denoiser.targets), 4, draw)
    tree = {key: value + 0.3 * torch.randn(value.shape, generator=draw) for key, value in tree.items()}
    card = Card(kind=denoiser.kind, backbone=denoiser.name, targets=tuple(denoiser.targets))
    save_bundle(folder, tree, card, component=denoiser.component)
    return tree


def under(denoiser: DiffusionBackbone, tree: Tree) -> Tensor:
    """What the denoiser paints with the adapter in a bank."""
    with Bank(denoiser.network, denoiser.targets, 4, slots=1) as bank:
        bank.write(1, tree)
        with bank.rows(torch.tensor([1])):
            return painted(denoiser, 3.0)


def test_stable_diffusion_with_a_bundle(pipelines: dict[str, Path], denoisers: Denoisers, tmp_path: Path) -> None:
    denoiser, pipe = denoisers["stable"], pipeline(pipelines["stable"])
    tree = bundled(denoiser, tmp_path / "bundle")
    bare = pixels(stable(pipe, 3.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe.load_lora_weights(str(tmp_path / "bundle"))
    wanted = pixels(stable(pipe, 3.0))
    assert (under(denoiser, tree) - wanted).abs().max() < HALF
    assert (wanted - bare).abs().max() > 5


def test_a_pixart_with_a_bundle(pipelines: dict[str, Path], denoisers: Denoisers, tmp_path: Path) -> None:
    """Of transformers like this one, adapters are loaded by PEFT."""
    denoiser, pipe = denoisers["pixart"], pipeline(pipelines["pixart"], vae=None)
    tree = bundled(denoiser, tmp_path / "bundle")
    bare = pixart(pipe, 3.0)
    pipe.transformer = PeftModel.from_pretrained(pipe.transformer, str(tmp_path / "bundle")).base_model.model
    wanted = pixart(pipe, 3.0)
    assert (under(denoiser, tree) - wanted).abs().max() < HALF
    assert (wanted - bare).abs().max() > 5
