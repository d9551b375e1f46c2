"""Diffusion models as frozen backbones: any diffusers folder with a UNet or a transformer that is known here."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from fedgen.backbones.anew import Kept, denoiser_anew
from fedgen.backbones.canvas import Canvas, advance, begun, doubled, sampler
from fedgen.backbones.conditions import CALLS, Condition, Prompts, condition_of
from fedgen.backbones.folder import Reader, hash_of, index_of, located, named
from fedgen.backbones.language import device_of, name_of
from fedgen.backbones.schedule import Schedule, Weighting, schedule_of
from fedgen.errors import BackboneError, DataError
from fedgen.lora import is_called
from fedgen.records import Document, Range, Rows
from fedgen.tree import is_finite

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2")
LITTLE = 0.1  # a network with a smaller share of its weights in TARGETS adapts its convolutions too
AT_ONCE = 16  # pictures through the VAE


@dataclass(frozen=True)
class Diffusion:
    """Which diffusion model: `embedded`, a diffusers folder, or `hub:owner/name`; `size` is in pixels (0: its own).

    In training a share `drop` of the prompts is left empty, so that guidance works, and a miss counts by `weighting`.
    A held-out picture is measured under `looks` noises. A prompt that is too `long` is an error or cut.
    """

    source: str = "embedded"
    size: Annotated[int, Range(0)] = 0
    drop: Annotated[float, Range(0, 1)] = 0.1
    weighting: Weighting = "own"
    gamma: Annotated[float, Range(0, open=True)] = 5.0
    looks: Annotated[int, Range(1)] = 4
    long: Literal["error", "cut"] = "error"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"

    def load(self) -> "DiffusionBackbone":
        """The frozen network with its schedule, its text encoder and its VAE, as far as it has them."""
        folder = located(self.source)
        index = index_of(folder)
        component = next((part for part in ("transformer", "unet") if named(index, part)[0]), "")
        _, known = named(index, component)
        if known not in CALLS:
            raise BackboneError(
                f"backbone: '{self.source}' has a denoiser of type {known or 'none'}; wanted one of {', '.join(CALLS)}"
            )
        read = Reader(self.source, folder, index, self.dtype, device_of(self.device))
        network, scheduler = read.module(component), read.part("scheduler")
        if scheduler is None:
            raise BackboneError(f"backbone: '{self.source}' has no scheduler; get it whole")
        condition = condition_of(network, read.part("tokenizer"), read.module("text_encoder"), self.long)
        schedule = schedule_of(scheduler, self.weighting, self.gamma)
        parts = [part for part in (component, "scheduler", "text_encoder", "vae") if named(index, part)[0]]
        identity = hash_of(folder, parts)
        vae = read.module("vae")
        return DiffusionBackbone(
            name_of(self.source), identity, component, network, scheduler, schedule, condition, vae, self
        )


@dataclass(frozen=True)
class DiffusionBackbone:
    """A frozen denoiser: pictures become rows, rows get their noise, and what the network misses is the loss."""

    name: str
    hash: str
    component: str
    network: nn.Module
    scheduler: Any
    schedule: Schedule
    condition: Condition
    vae: Any
    settings: Diffusion

    @property
    def kind(self) -> str:
        """What it makes."""
        return "image"

    @property
    def looks(self) -> int:
        """Under how many noises a held-out picture is measured."""
        return self.settings.looks

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """Attention and feed-forward projections, and the convolutions of a network that has little of those."""
        modules = dict(self.network.named_modules())
        found = {name: [layer for path, layer in modules.items() if is_called(path, name)] for name in TARGETS}
        held = sum(layer.weight.numel() for layers in found.values() for layer in layers)
        little = held < LITTLE * sum(weight.numel() for weight in self.network.parameters())
        more = [name for name in CONVOLUTIONS if little and any(is_called(path, name) for path in modules)]
        return (*(name for name, layers in found.items() if layers), *more)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of what the denoiser sees: pixels, or latents."""
        config: Any = self.network.config
        size = self.settings.size
        if size % self.shrink:
            raise BackboneError(f"backbone.size: wanted a multiple of {self.shrink} pixels for this VAE, came {size}")
        own = size // self.shrink or config.sample_size
        if not own:
            raise BackboneError(f"backbone: '{self.name}' does not say for which size it is made; set backbone.size")
        high, wide = own if isinstance(own, list | tuple) else (own, own)
        return int(config.in_channels), int(high), int(wide)

    @property
    def shrink(self) -> int:
        """How many pixels one latent stands for, across and down."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1) if self.vae is not None else 1

    @property
    def picture(self) -> tuple[int, int, int]:
        """Channels, height and width of a picture."""
        channels, high, wide = self.shape
        colours = self.vae.config.in_channels if self.vae is not None else channels
        return int(colours), high * self.shrink, wide * self.shrink

    @property
    def length(self) -> int:
        """Places of one row: patches of a transformer, and of a UNet about as many as cost the same."""
        config: Any = self.network.config
        _, high, wide = self.shape
        return high * wide // int(config.get("patch_size") or 2) ** 2

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    # ---- rows

    def encode(self, documents: Sequence[Document]) -> Rows:
        """Pictures in the denoiser's own space and what they are asked by, both reckoned once."""
        if not documents:
            return {}
        pictures = torch.stack([self._checked(document) for document in documents])
        seen = [self._seen(part) for part in pictures.split(AT_ONCE)]
        return {"picture": torch.cat(seen)} | self.condition.rows(documents)

    def _checked(self, document: Document) -> Tensor:
        came = tuple(document.picture.shape) if document.picture is not None else "no picture"
        if document.picture is None or came != self.picture:
            said = f"'{document.prompt[:40]}' of '{document.owner}'"
            raise DataError(
                f"picture {said}: wanted {self.picture} (channels, height, width) for '{self.name}', came {came}; set "
                "size and mode of the data, or backbone.size"
            )
        return document.picture

    @torch.no_grad()
    def _seen(self, pictures: Tensor) -> Tensor:
        clean = pictures.float() / 127.5 - 1
        if self.vae is None:
            return clean
        weight = next(self.vae.parameters())
        latents: Tensor = self.vae.encode(clean.to(weight)).latent_dist.mode().float().cpu()
        self._refuse_broken(latents)
        config = self.vae.config
        return (latents - (config.get("shift_factor") or 0.0)) * float(config.scaling_factor)

    def _refuse_broken(self, made: Tensor) -> None:
        if not made.isfinite().all():
            kind = str(next(self.vae.parameters()).dtype).removeprefix("torch.")
            raise BackboneError(f"backbone: the VAE gives NaN or infinity in {kind}; set backbone.dtype = 'float32'")

    def draw(self, rows: Rows, draw: torch.Generator) -> Rows:
        """Each row's time, its noise, and whether its prompt is seen; row by row, so that batches leave no trace."""
        steps, shape = len(self.schedule.time), rows["picture"].shape[1:]
        time, kept, noise = [], [], []
        for _ in range(len(rows["picture"])):
            time.append(torch.randint(steps, (), generator=draw))
            kept.append(torch.rand((), generator=draw) >= self.settings.drop)
            noise.append(torch.randn(shape, generator=draw))
        return rows | {"time": torch.stack(time), "kept": torch.stack(kept), "noise": torch.stack(noise)}

    def losses(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Each row's mean squared miss, weighted by its time; a row is one term."""
        rows = {key: value.to(self.device) for key, value in rows.items()}
        noisy, wanted = self.schedule.noised(rows["picture"], rows["noise"], rows["time"])
        said = self._say(noisy, self.schedule.time.to(noisy)[rows["time"]], self._told(rows))
        missed = (said - wanted).square().flatten(1).mean(1)
        return missed * self.schedule.weight.to(missed)[rows["time"]], torch.ones_like(rows["time"])

    def _told(self, rows: Rows) -> Rows:
        """What each row's network is told: its own, or that of the empty prompt."""
        own: Rows = {key: rows[key] for key in ("text", "seen", "class") if key in rows}
        empty = self._empty
        if empty is None or not self.settings.drop:
            return own
        kept = rows["kept"]
        return {
            key: torch.where(kept.view(-1, *[1] * (value.dim() - 1)), value, empty[key].to(value))
            for key, value in own.items()
        }

    def _say(self, noisy: Tensor, time: Tensor, told: Rows) -> Tensor:
        """What the network says, in full precision; of a network that guesses variances too, the first half."""
        dtype = next(self.network.parameters()).dtype
        told = {key: value.to(dtype) if value.is_floating_point() else value for key, value in told.items()}
        said = CALLS[type(self.network).__name__](self.network, noisy.to(dtype), time, told)
        return said[:, : noisy.shape[1]].float()

    @cached_property
    def _empty(self) -> Rows | None:
        return self.condition.empty()

    @cached_property
    def _kept(self) -> tuple[int, int]:
        """Measured: what one row's forward pass keeps for the backward one, plainly and anew."""
        kept = Kept(list(self.network.parameters()))
        told = self.condition.rows([Document("", "", label="0")])
        told = {key: value.to(self.device) for key, value in told.items()}
        noisy = torch.zeros(1, *self.shape, device=self.device, requires_grad=True)
        with torch.enable_grad(), denoiser_anew(self.network, kept.run), kept.seen(kept.rest):
            self._say(noisy, torch.ones(1, device=self.device), told)
        return kept.whole, kept.least

    def row_bytes(self, *, anew: bool = False) -> int:
        """About how much memory one row's forward and backward pass takes."""
        return self._kept[anew]

    def anew(self) -> AbstractContextManager[None]:
        """While it lasts, a block keeps its input alone for the backward pass."""
        return denoiser_anew(self.network)

    # ---- pictures

    def seal(self, prompt: str) -> Rows:
        """What a device sends in place of a prompt: what the text encoder makes of it."""
        if not isinstance(self.condition, Prompts):
            raise BackboneError(f"sealed prompt: '{self.name}' reads no prompts; ask by a class")
        return self.condition.rows([Document("", "", prompt)])

    def _asked(self, asked: Sequence[Document | Rows]) -> Rows:
        """What the network is told of each: a sealed prompt as it is, the others read now."""
        plain = [one for one in asked if isinstance(one, Document)]
        if len(plain) == len(asked):
            return self.condition.rows(plain)
        each = [self.condition.rows([one]) if isinstance(one, Document) else self._opened(one) for one in asked]
        return {key: torch.cat([rows[key] for rows in each]) for key in each[0]}

    def _opened(self, sealed: Rows) -> Rows:
        """A sealed prompt, if this network can be told it."""
        like = (self._empty if isinstance(self.condition, Prompts) else None) or {}
        came, wish = ({key: tuple(value.shape) for key, value in one.items()} for one in (sealed, like))
        if not like or came != wish or not is_finite(sealed):
            said = f"wanted finite {wish or 'a class'}, came {came}"
            raise BackboneError(f"sealed prompt: {said}; seal it for this backbone")
        return {key: value.to(like[key]) for key, value in sealed.items()}

    def begin(
        self, asked: Sequence[Document | Rows], draws: Sequence[torch.Generator], *, steps: int, guidance: float = 1.0
    ) -> Canvas:
        """Pictures of so many steps that are still noise, each from its own draw, of a prompt or label, sealed or not.

        With a guidance other than 1 every row is seen twice, side by side; so the rows of one adapter stay together.
        """
        scheduler = sampler(self.scheduler, steps)
        told = {key: value.to(self.device) for key, value in self._asked(asked).items()}
        empty = self._empty if guidance != 1 else None
        told = told if empty is None else doubled(told, empty)
        noise = torch.stack([torch.randn(self.shape, generator=draw) for draw in draws]).to(self.device)
        return begun(scheduler, draws, told, noise, 1.0 if empty is None else guidance)

    @torch.no_grad()
    def advance(self, canvases: Sequence[Canvas]) -> None:
        """A step for all of them, in one pass."""
        advance(self._say, canvases)

    def paint(
        self, asked: Sequence[Document | Rows], draws: Sequence[torch.Generator], *, steps: int, guidance: float = 1.0,
        told: Callable[[int, int], None] = lambda done, steps: None,
    ) -> Tensor:  # fmt: skip
        """As `begin`, and drawn to the end; `told` hears each step."""
        canvas = self.begin(asked, draws, steps=steps, guidance=guidance)
        while canvas.done < canvas.steps:
            self.advance([canvas])
            told(canvas.done, canvas.steps)
        return self.shown(canvas.made)

    def check(self, asked: Document | Rows) -> None:
        """Refuse what can never be drawn; nothing is encoded for it."""
        if isinstance(asked, Document):
            self.condition.check([asked])
        else:
            self._opened(asked)

    def sketch(self, canvas: Canvas) -> Tensor:
        """Pictures on the way as they would be if the network's last word were the truth, in bytes."""
        return self.shown(self.schedule.cleaned(*canvas.heard) if canvas.heard else canvas.made)

    @torch.no_grad()
    def shown(self, made: Tensor) -> Tensor:
        """What the denoiser has made, as pictures in bytes."""
        if self.vae is not None:
            config, weight = self.vae.config, next(self.vae.parameters())
            latents = made / config.scaling_factor + (config.get("shift_factor") or 0.0)
            made = torch.cat([self.vae.decode(part.to(weight)).sample.float() for part in latents.split(AT_ONCE)])
            self._refuse_broken(made)
        return ((made / 2 + 0.5).clamp(0, 1) * 255).round().byte().cpu()
