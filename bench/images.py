"""Pictures and training steps a second: many adapters through the bank, against merged weights and diffusers with PEFT.

    python bench/images.py [--repeats 5] [--quick]

Two denoisers: the embedded one, and a UNet with the parts of Stable Diffusion's, at random, on latents of 16 by 16.
What is compared must come to the same pictures and the same adapters first, or nothing is measured. Each repeat runs
all ways in turn, and ratios are taken repeat by repeat, so they hold on a machine whose speed drifts.
"""

import argparse
import copy
import json
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import diffusers
import torch
from diffusers.utils import set_weights_and_activate_adapters
from machine import about, keep
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from fedgen import lora, seeds
from fedgen.backbones import Diffusion, DiffusionBackbone
from fedgen.backbones.conditions import CALLS, Prompts
from fedgen.backbones.schedule import schedule_of
from fedgen.bank import Bank
from fedgen.client import Job, Start, Training, order, train
from fedgen.data.deal import count, take
from fedgen.data.glyphs import prompt_of
from fedgen.records import Document, Rows, Tree

SEED, ROWS, RANK, BATCH, COHORT = 0, 8, 4, 8, 4
SAME, SEEN = 2, 8  # levels of 255: pictures no further apart are the same, adapters no nearer are different
CLOSE = 1e-2  # of the way a turn goes: adapters that end no further apart are the same
WIDTH = 128  # of the text that the UNet reads


@dataclass(frozen=True)
class Lengths:
    """How long everything is: steps of a picture, steps of a turn, repeats."""

    picture: int = 20
    turn: int = 4
    repeats: int = 5


def unet(settings: Diffusion, tokenizer: Any) -> DiffusionBackbone:
    """A small UNet with cross-attention and its text encoder, both at random, with Stable Diffusion 2's noise."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        network = diffusers.UNet2DConditionModel(
            sample_size=16, block_out_channels=(64, 128), cross_attention_dim=WIDTH, attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
        encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=tokenizer.model_max_length,
                bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            )
        )  # fmt: skip
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    schedule = schedule_of(scheduler, settings.weighting, settings.gamma)
    told = Prompts(tokenizer, encoder.eval(), masked=False, long="error")
    return DiffusionBackbone("unet", "", "unet", network.eval(), scheduler, schedule, told, None, settings)


def adapter(layers: Mapping[str, nn.Module], at: int) -> Tree:
    """An adapter that changes what is drawn."""
    draw = torch.Generator().manual_seed(at)
    tree = lora.fresh(layers, RANK, draw)
    return {key: value + 0.05 * torch.randn(value.shape, generator=draw) for key, value in tree.items()}


def wrapped(backbone: DiffusionBackbone, adapters: Sequence[Tree]) -> Any:
    """PEFT's own model of a copy of the network, with these adapters in it."""
    config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=list(backbone.targets))
    model: Any = get_peft_model(copy.deepcopy(backbone.network), config, adapter_name="0")
    for at, tree in enumerate(adapters):
        if at:
            model.add_adapter(str(at), config)
        set_peft_model_state_dict(model, tree, adapter_name=str(at))
    return model.eval()


class Pictures:
    """Eight rows, each asked under an adapter of its own, drawn three ways."""

    def __init__(self, backbone: DiffusionBackbone, adapters: Sequence[Tree], steps: int) -> None:
        self.backbone, self.steps = backbone, steps
        self.asked = [Document("", "", prompt_of("ABCDEFGH"[at])) for at in range(ROWS)]
        self.merged = replace(backbone, network=wrapped(backbone, adapters[:1]).merge_and_unload())
        self.peft = wrapped(backbone, adapters).base_model.model
        self.scheduler = type(backbone.scheduler).from_config(backbone.scheduler.config)

    def draws(self) -> list[torch.Generator]:
        return [seeds.generator(SEED, -1, str(at), "sample") for at in range(ROWS)]

    def by_bank(self, bank: Bank, lines: Tensor) -> Tensor:
        """Each row under its own adapter, all in one batch."""
        with bank.carry(lines):
            return self.backbone.paint(self.asked, self.draws(), steps=self.steps)

    def by_merged(self) -> Tensor:
        """All rows under the first adapter, which is merged into the weights: the fastest there can be."""
        return self.merged.paint(self.asked, self.draws(), steps=self.steps)

    @torch.no_grad()
    def by_peft(self) -> Tensor:
        """Row after row, with diffusers' own switch of adapters before each."""
        told = self.backbone.condition.rows(self.asked)
        made = []
        for at, draw in enumerate(self.draws()):
            set_weights_and_activate_adapters(self.peft, [str(at)], [1.0])
            made.append(self._denoised(torch.randn(1, *self.backbone.shape, generator=draw), _row(told, at)))
        return ((torch.cat(made) / 2 + 0.5).clamp(0, 1) * 255).round().byte()

    def _denoised(self, made: Tensor, told: Rows) -> Tensor:
        """The loop of every pipeline of diffusers, without what else they do."""
        self.scheduler.set_timesteps(self.steps)
        made = made * self.scheduler.init_noise_sigma
        for at in self.scheduler.timesteps:
            said = _called(self.peft, self.scheduler.scale_model_input(made, at), at.expand(1), told)
            made = self.scheduler.step(said, at, made).prev_sample
        return made

    def check(self, bank: Bank, lines: Tensor) -> dict[str, int]:
        """How many levels the other ways are from the bank, and how far its adapters take it from the backbone."""
        drawn, bare = self.by_bank(bank, lines), self.by_bank(bank, torch.zeros_like(lines))
        apart = {
            "merged": _levels(drawn[:1], self.by_merged()[:1]),
            "peft": _levels(drawn, self.by_peft()),
            "backbone": min(_levels(one, other) for one, other in zip(drawn, bare, strict=True)),
        }
        if max(apart["merged"], apart["peft"]) > SAME or apart["backbone"] < SEEN:
            raise SystemExit(f"pictures: wanted the same of all ways, and others of the backbone, came {apart} levels")
        return apart


class Turns:
    """A client's turn, alone, four at once, and as a plain loop."""

    def __init__(self, backbone: DiffusionBackbone, adapters: Sequence[Tree], steps: int) -> None:
        self.backbone, self.training = backbone, Training(batch=BATCH, steps=steps)
        self.jobs = [
            Job(str(at), Start(adapters[0]), self._rows(at), partial(seeds.generator, SEED, 1, str(at)))
            for at in range(COHORT)
        ]
        self.peft = wrapped(backbone, adapters[:1])
        self.noise = diffusers.DDPMScheduler.from_config(backbone.scheduler.config)

    def _rows(self, at: int) -> Rows:
        """As many rows as a turn takes, of any picture at all."""
        draw = torch.Generator().manual_seed(at)
        pictures = torch.randint(
            256, (BATCH * self.training.steps, *self.backbone.picture), dtype=torch.uint8, generator=draw
        )
        return self.backbone.encode([Document("", "", prompt_of("A"), picture=picture) for picture in pictures])

    def by_bank(self, bank: Bank, wide: int) -> Tree:
        """So many clients' turns in one pass a step; the first one's adapter."""
        return train(self.training, self.backbone, bank, self.jobs[:wide])[0].adapter

    def by_peft(self) -> Tree:
        """The first client's turn as one would write it with diffusers, PEFT and torch.optim for a single machine."""
        job, network = self.jobs[0], self.peft.base_model.model
        set_peft_model_state_dict(self.peft, job.start, adapter_name="0")
        trained = [weight for weight in network.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.training.lr, weight_decay=self.training.decay)
        draw = job.draw("noise")
        for picks in order(self.training, count(job.rows), job.draw("order")):
            rows = self.backbone.draw(take(job.rows, picks), draw)
            course = rows["picture"], rows["noise"], rows["time"]
            said = _called(network, self.noise.add_noise(*course), rows["time"], rows)
            F.mse_loss(said, self.noise.get_velocity(*course)).backward()
            torch.nn.utils.clip_grad_norm_(trained, self.training.clip)
            optimizer.step()
            optimizer.zero_grad()
        return dict(get_peft_model_state_dict(self.peft, adapter_name="0"))

    def check(self, bank: Bank) -> dict[str, float]:
        """How far from the plain loop's adapter the others end, as a share of the way that it went."""
        start, wanted = (bank.layout.vector(tree) for tree in (self.jobs[0].start, self.by_peft()))
        ends = {"one": self.by_bank(bank, 1), "cohort": self.by_bank(bank, COHORT)}
        way = (wanted - start).norm()
        apart = {name: float((bank.layout.vector(end) - wanted).norm() / way) for name, end in ends.items()}
        if max(apart.values()) > CLOSE:
            raise SystemExit(f"turns: wanted the same adapter of all ways, came {apart} of the way apart")
        return {name: float(f"{share:.1e}") for name, share in apart.items()}


def _called(network: nn.Module, noisy: Tensor, at: Tensor, told: Rows) -> Tensor:
    return CALLS[type(network).__name__](network, noisy, at, told)


def _row(rows: Rows, at: int) -> Rows:
    return {key: value[at : at + 1] for key, value in rows.items()}


def _levels(one: Tensor, other: Tensor) -> int:
    return int((one.int() - other.int()).abs().max())


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"min": round(min(values), 3), "median": round(statistics.median(values), 3), "max": round(max(values), 3)}


def timed(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def compared(
    ways: Mapping[str, tuple[int, Callable[[], object]]], ratios: Sequence[tuple[str, str]], repeats: int
) -> dict[str, Any]:
    """How many a second each way makes, and the ratio of these pairs, repeat by repeat."""
    taken = [{way: made / timed(act) for way, (made, act) in ways.items()} for _ in range(repeats)]
    pairs = {f"{one} over {other}": [each[one] / each[other] for each in taken] for one, other in ratios}
    return {
        "a_second": {way: spread([each[way] for each in taken]) for way in ways},
        "a_second_each": {way: [round(each[way], 3) for each in taken] for way in ways},
        "ratio": {name: spread(values) for name, values in pairs.items()},
        "ratio_each": {name: [round(value, 3) for value in values] for name, values in pairs.items()},
    }


def measured(backbone: DiffusionBackbone, lengths: Lengths) -> dict[str, Any]:
    """One network's pictures and turns."""
    layers = lora.targets(backbone.network, backbone.targets)
    adapters = [adapter(layers, at) for at in range(ROWS)]
    pictures, turns = Pictures(backbone, adapters, lengths.picture), Turns(backbone, adapters, lengths.turn)
    weights = sum(weight.numel() for weight in backbone.network.parameters())
    with Bank(backbone.network, backbone.targets, RANK) as bank:  # last: from here on the network's layers are lanes
        lines = torch.stack([bank.layout.vector(tree) for tree in adapters])
        shape = {"picture": backbone.picture, "targets": backbone.targets, "layers": len(layers)}
        shape |= {"weights": weights, "adapter_numbers": bank.layout.width}
        same = {"levels_apart": pictures.check(bank, lines), "adapters_apart": turns.check(bank)}
        drawn = {
            "bank": (ROWS, partial(pictures.by_bank, bank, lines)),
            "merged": (ROWS, pictures.by_merged),
            "peft": (ROWS, pictures.by_peft),
        }
        trained = {
            "cohort": (COHORT * lengths.turn, partial(turns.by_bank, bank, COHORT)),
            "one": (lengths.turn, partial(turns.by_bank, bank, 1)),
            "peft": (lengths.turn, turns.by_peft),
        }
        return {
            "network": shape,
            "same": same,
            "pictures": compared(drawn, [("bank", "merged"), ("bank", "peft")], lengths.repeats),
            "training_steps": compared(trained, [("cohort", "peft"), ("one", "peft")], lengths.repeats),
        }


def table(networks: Mapping[str, Any]) -> str:
    """Medians, with the range behind."""
    lines = []
    for name, found in networks.items():
        for what, made in (("pictures", "pictures"), ("training", "training_steps")):
            ways = {f"{way}, a second": seen for way, seen in found[made]["a_second"].items()}
            for way, seen in (ways | found[made]["ratio"]).items():
                said = f"{seen['median']:8.2f}   ({seen['min']:.2f} to {seen['max']:.2f})"
                lines.append(f"{name:12}{what:12}{way:20}{said}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=Lengths.repeats)
    parser.add_argument("--source", default="embedded", help="another folder in place of the embedded backbone")
    parser.add_argument("--quick", action="store_true", help="only see that it works; nothing is kept")
    asked = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)  # PEFT asks a transformers model by an old name
    lengths = Lengths(4, 2, 1) if asked.quick else Lengths(repeats=asked.repeats)
    small = Diffusion(asked.source, drop=0.0, device="cpu").load()  # every prompt is seen, as in the plain loop
    networks = {"embedded": small, "unet": unet(small.settings, small.condition.tokenizer)}
    found = {name: measured(backbone, lengths) for name, backbone in networks.items()}
    facts = {"seed": SEED, "rank": RANK, "rows": ROWS, "picture_steps": lengths.picture, "guidance": 1.0}
    facts |= {"turn_steps": lengths.turn, "batch": BATCH, "cohort": COHORT, "repeats": lengths.repeats}
    facts |= {"versions": about()["versions"] | {"diffusers": diffusers.__version__}, "networks": found}
    if asked.quick:
        print(json.dumps(about() | facts, indent=1))
    else:
        keep("images", facts)
    print(table(found))


if __name__ == "__main__":
    main()
