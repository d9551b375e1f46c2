"""CIFAR-10: a denoiser of pixels that has seen vehicles alone, and the animals that clients hold.

One animal in `TRIAL` is set apart for the clients by whom learning rates are chosen: no client of a table holds any of
those. Pictures that are drawn are measured against the animals of the test set, which no client holds.

A class reaches a DiT only through norm1.linear, which reads the class's embedding and the time. So that layer must be
among those adapted: nothing else can tell animals apart, none of which the backbone has seen.
"""

import copy
import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedgen import seeds
from fedgen.backbones import Diffusion, DiffusionBackbone
from fedgen.backbones.folder import library_of
from fedgen.data.arrays import CLASSES, Npz
from fedgen.data.deal import take
from fedgen.records import Document, Rows
from fedgen.store import write_whole

VEHICLES, ANIMALS = ("0", "1", "8", "9"), ("2", "3", "4", "5", "6", "7")
TRAIN, TEST = "cifar10/cifar10_train10k.npz", "cifar10/cifar10_test2k.npz"
BACKBONE, RECORD = "backbone", "training.json"
CLIENTS, TRIALS, REAL = "clients.npz", "trials.npz", "real.npz"
TRIAL = 6  # one animal in so many is the trials'
SEED, EMPTY, FOREIGN = 0, 0.1, 0.1
Say = Callable[[str], None]
INDEX = {
    "_class_name": "DiTPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "transformer": ["diffusers", "DiTTransformer2DModel"],
    "vae": [None, None],
}


@dataclass(frozen=True)
class Recipe:
    """How large the denoiser is, and how it learns for so many minutes."""

    minutes: float
    width: int = 96
    depth: int = 3
    patch: int = 4
    batch: int = 64
    rate: float = 2e-3


def prepare(data: Path, work: Path, minutes: float, say: Say = print) -> dict[str, Any]:
    """Make the backbone and the archives of animals in `work`, those that are not there; the backbone's record."""
    folder = work / BACKBONE
    if not (folder / RECORD).is_file():
        pretrain(Recipe(minutes), folder, pictures(data / TRAIN, VEHICLES), say)
    if not all((work / name).is_file() for name in (CLIENTS, TRIALS, REAL)):
        animals = sorted(pictures(data / TRAIN, ANIMALS), key=lambda animal: animal.label)
        kept = [animal for number, animal in enumerate(animals) if number % TRIAL]
        for name, held in ((CLIENTS, kept), (TRIALS, animals[::TRIAL]), (REAL, pictures(data / TEST, ANIMALS))):
            write_whole(work / name, packed(held))
    record: dict[str, Any] = json.loads((folder / RECORD).read_text("utf-8"))
    return record


def pictures(path: Path, labels: Sequence[str]) -> list[Document]:
    """The pictures of some classes, in the order of the archive."""
    return [document for document in Npz(str(path)).read() if document.label in labels]


def packed(documents: Sequence[Document]) -> bytes:
    """An archive that `[data] kind = "npz"` reads."""
    shown = [document.picture.permute(1, 2, 0).numpy() for document in documents if document.picture is not None]
    file = io.BytesIO()
    np.savez_compressed(file, x=np.stack(shown), y=np.array([int(document.label) for document in documents]))
    return file.getvalue()


# ---- the backbone


def untrained(recipe: Recipe, folder: Path) -> DiffusionBackbone:
    """A new denoiser as a diffusers folder."""
    library, heads = library_of("diffusers"), max(recipe.width // 48, 1)
    network = library.DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=recipe.width // heads, num_layers=recipe.depth, in_channels=3,
        out_channels=3, sample_size=32, patch_size=recipe.patch, num_embeds_ada_norm=len(CLASSES),
    )  # fmt: skip
    begin(network, seeds.generator(SEED, -1, "", "weights"))
    network.save_pretrained(folder / "transformer")
    scheduler = library.DDIMScheduler(
        prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing"
    )
    scheduler.save_pretrained(folder / "scheduler")
    write_whole(folder / "model_index.json", (json.dumps(INDEX, indent=2) + "\n").encode())
    return Diffusion(str(folder), drop=EMPTY, dtype="float32").load()


@torch.no_grad()
def begin(network: Any, draw: torch.Generator) -> None:
    """The weights that DiT begins with: every block as nothing, which learns far faster."""
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02, generator=draw)
        elif isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.flatten(1), generator=draw)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    still = [network.proj_out_1, network.proj_out_2, *(block.norm1.linear for block in network.transformer_blocks)]
    for layer in still:
        nn.init.zeros_(layer.weight)


def pretrain(recipe: Recipe, folder: Path, documents: Sequence[Document], say: Say) -> None:
    """Learn to take the noise out of pictures; the folder keeps the running mean of the weights and what was done."""
    backbone = untrained(recipe, folder)
    rows, network = backbone.encode(documents), backbone.network.requires_grad_(True)
    mean: Any = copy.deepcopy(network).requires_grad_(False)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.rate, betas=(0.9, 0.99), weight_decay=0.01)
    draw, began, step, loss = seeds.generator(SEED, -1, "", "pretrain"), time.monotonic(), 0, torch.zeros(())
    while (done := (time.monotonic() - began) / (60 * recipe.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * min(1, (step + 1) / 200) * min(1, (1 - done) / 0.6 + 0.01)
        batch = altered(take(rows, torch.randint(len(documents), (recipe.batch,), generator=draw)), draw)
        with torch.autocast(backbone.device.type, torch.bfloat16):
            loss = backbone.losses(backbone.draw(batch, draw))[0].mean()
        descend(loss, network, optimizer)
        step += 1
        torch._foreach_lerp_(list(mean.parameters()), list(network.parameters()), 1 - min(0.998, step / (step + 20)))
        if step % 100 == 0:
            say(f"pre-training, step {step}, {done:.0%}: loss {loss.item():.4f}")
    mean.save_pretrained(folder / "transformer")
    record = asdict(recipe) | {
        "of": [CLASSES[int(label)] for label in VEHICLES],
        "pictures": len(documents),
        "steps": step,
        "last loss": round(loss.item(), 5),
        "parameters": sum(weight.numel() for weight in network.parameters()),
        "labels left out": EMPTY,
        "labels of animals": FOREIGN,
        "threads": torch.get_num_threads(),
    }
    write_whole(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())


def altered(rows: Rows, draw: torch.Generator) -> Rows:
    """Half of the pictures mirrored, and some told an animal: so a class without pictures comes to mean any picture."""
    shown, told = rows["picture"], rows["class"]
    mirrored = torch.rand(len(shown), generator=draw) < 0.5
    animals = torch.tensor([int(label) for label in ANIMALS])
    foreign = animals[torch.randint(len(animals), told.shape, generator=draw)]
    return {
        "picture": torch.where(mirrored[:, None, None, None], shown.flip(3), shown),
        "class": torch.where(torch.rand(len(told), generator=draw) < FOREIGN, foreign, told),
    }


def descend(loss: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One step down a gradient that is at most 1 long."""
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
