"""The backbone of experiments/cifar.py: a small denoiser of pixels, told a class, that has seen vehicles alone."""

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel
from torch import Tensor, nn

from fedgen import seeds
from fedgen.backbones import Diffusion, DiffusionBackbone
from fedgen.data.arrays import CLASSES
from fedgen.data.deal import take
from fedgen.records import Document, Rows
from fedgen.store import write_whole

VEHICLES, ANIMALS = ("0", "1", "8", "9"), ("2", "3", "4", "5", "6", "7")
# A class reaches a DiT only through norm1.linear, which reads the class's embedding and the time. So that layer is
# adapted beside attention and feed-forward: nothing else can tell animals apart, none of which the backbone has seen.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "norm1.linear")
SEED, EMPTY, FOREIGN = 0, 0.1, 0.1
RECORD = "training.json"
INDEX = {
    "_class_name": "DiTPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "transformer": ["diffusers", "DiTTransformer2DModel"],
    "vae": [None, None],
}


@dataclass(frozen=True)
class Recipe:
    """How large the denoiser is, and for how long it learns."""

    width: int
    depth: int
    patch: int
    minutes: float
    batch: int = 64
    rate: float = 2e-3


def loaded(folder: Path) -> DiffusionBackbone:
    """The denoiser of a folder; a share of the labels it learns from is left out, so that guidance works."""
    return Diffusion(str(folder), drop=EMPTY, dtype="float32").load()


def untrained(recipe: Recipe, folder: Path) -> DiffusionBackbone:
    """A new denoiser as a diffusers folder."""
    torch.manual_seed(SEED)  # diffusers draws weights from nothing else
    heads = max(recipe.width // 64, 1)
    network = DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=recipe.width // heads, num_layers=recipe.depth, in_channels=3,
        out_channels=3, sample_size=32, patch_size=recipe.patch, num_embeds_ada_norm=len(CLASSES),
    )  # fmt: skip
    for block in network.transformer_blocks:  # as DiT was trained: a block begins as nothing, which learns far faster
        still(block.norm1.linear)
    still(network.proj_out_1)
    still(network.proj_out_2)
    course = {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "trailing"}
    network.save_pretrained(folder / "transformer")
    DDIMScheduler(prediction_type="v_prediction", **course).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    return loaded(folder)


def still(layer: nn.Linear) -> None:
    """Let a layer begin at zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def pretrain(recipe: Recipe, folder: Path, documents: Sequence[Document]) -> None:
    """Learn to take the noise out of pictures; the folder keeps the running mean of the weights and what was done."""
    backbone = untrained(recipe, folder)
    rows, network = backbone.encode(documents), backbone.network.requires_grad_(True)
    mean = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.01)
    draw, begin, step = seeds.generator(SEED, -1, "", "pretrain"), time.monotonic(), 0
    while (done := (time.monotonic() - begin) / (60 * recipe.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * min(1, (step + 1) / 200) * min(1, (1 - done) / 0.6 + 0.01)
        batch = altered(take(rows, torch.randint(len(documents), (recipe.batch,), generator=draw)), draw)
        with torch.autocast(backbone.device.type, torch.bfloat16):
            loss = backbone.losses(backbone.draw(batch, draw))[0].mean()
        descend(loss, network, optimizer)
        step += 1
        torch._foreach_lerp_(list(mean.parameters()), list(network.parameters()), 1 - min(0.998, step / (step + 20)))
        if step % 100 == 0:
            print(f"pre-training, step {step}  {done:.0%}  loss {loss.item():.4f}", flush=True)
    mean.save_pretrained(folder / "transformer")
    record = asdict(recipe) | {"classes": VEHICLES, "pictures": len(documents), "steps": step}
    record |= {"labels_left_out": EMPTY, "labels_of_animals": FOREIGN}
    write_whole(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())


def altered(rows: Rows, draw: torch.Generator) -> Rows:
    """Half of the pictures mirrored, and some told an animal: so a class without pictures comes to mean any picture."""
    pictures, told = rows["picture"], rows["class"]
    mirrored = torch.rand(len(pictures), generator=draw) < 0.5
    animals = torch.tensor([int(label) for label in ANIMALS])
    foreign = animals[torch.randint(len(animals), told.shape, generator=draw)]
    return {
        "picture": torch.where(mirrored[:, None, None, None], pictures.flip(3), pictures),
        "class": torch.where(torch.rand(len(told), generator=draw) < FOREIGN, foreign, told),
    }


def descend(loss: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One step down a gradient that is at most 1 long."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
