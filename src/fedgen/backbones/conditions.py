"""What a denoiser is told beside the noisy picture: a prompt, a class, or nothing; and how each network is told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from fedgen.backbones.spelling import LETTERS
from fedgen.errors import BackboneError, DataError
from fedgen.records import Document, Rows

READING = Lock()  # a tokenizer is set to cut or not for all threads at once
DIGITS = 18  # of a label that is read as a number
MOST_TOKENS = 120  # of an encoder that knows no bound of its own, as PixArt takes from T5


class Condition(Protocol):
    """One way to tell a denoiser what is wanted."""

    def check(self, documents: Sequence[Document]) -> None:
        """Refuse what cannot be asked for; from any thread, and at little cost."""

    def rows(self, documents: Sequence[Document]) -> Rows:
        """What the documents ask for, a row each."""

    def empty(self) -> Rows | None:
        """One row that asks for nothing; None where the network knows no such thing."""


@dataclass(frozen=True)
class Prompts:
    """The prompt, as a text encoder reads it; with `masked` the padding is not looked at."""

    tokenizer: Any
    encoder: nn.Module
    masked: bool
    long: Literal["error", "cut"]

    def check(self, documents: Sequence[Document]) -> None:
        """Refuse a prompt that is too long; one that is far too long is refused unread, even where others are cut."""
        prompts, most = [document.prompt for document in documents], self.length * LETTERS
        for prompt in prompts:
            if len(prompt) > most:
                wish = f"wanted at most {most} characters, came {len(prompt)}"
                raise DataError(f"prompt '{prompt[:40]}...': {wish}; shorten it")
        if self.long == "error":
            with READING:
                self._refuse_long(prompts)

    def rows(self, documents: Sequence[Document]) -> Rows:
        """Each different prompt is encoded once."""
        prompts = [document.prompt for document in documents]
        each = list(dict.fromkeys(prompts))
        found = [self._read(each[at : at + 64]) for at in range(0, len(each), 64)]
        place = {prompt: at for at, prompt in enumerate(each)}
        where = torch.tensor([place[prompt] for prompt in prompts], dtype=torch.long)
        return {key: torch.cat([rows[key] for rows in found])[where] for key in found[0]} if found else {}

    def empty(self) -> Rows:
        """The empty prompt."""
        return self._read([""])

    @property
    def length(self) -> int:
        """How many tokens the encoder takes."""
        config: Any = self.encoder.config
        places = getattr(config, "max_position_embeddings", None) or MOST_TOKENS  # T5 has none
        return int(min(self.tokenizer.model_max_length, places))

    @torch.no_grad()
    def _read(self, prompts: list[str]) -> Rows:
        with READING:
            if self.long == "error":
                self._refuse_long(prompts)
            given = self.tokenizer(
                prompts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
            )
        device = next(self.encoder.parameters()).device
        seen = given["attention_mask"]
        mask = {"attention_mask": seen.to(device)} if self.masked else {}
        text = self.encoder(input_ids=given["input_ids"].to(device), **mask)[0].float().cpu()
        if not text.isfinite().all():
            raise BackboneError("text encoder: gives numbers that are not finite; load it with dtype = 'float32'")
        return {"text": text, "seen": seen} if self.masked else {"text": text}

    def _refuse_long(self, prompts: list[str]) -> None:
        for prompt in prompts:
            count = len(self.tokenizer(prompt, verbose=False)["input_ids"])
            if count > self.length:
                raise DataError(
                    f"prompt '{prompt[:40]}...': wanted at most {self.length} tokens, came {count}; shorten it, or set "
                    "backbone.long = 'cut'"
                )


@dataclass(frozen=True)
class Classes:
    """The number of a class, from the document's label; the one behind the last is `nothing`, where there is one."""

    count: int
    nothing: bool

    def check(self, documents: Sequence[Document]) -> None:
        """Refuse a label that is no class."""
        self.rows(documents)

    def rows(self, documents: Sequence[Document]) -> Rows:
        """Labels as numbers."""
        return {"class": torch.tensor([self._number(document.label) for document in documents], dtype=torch.long)}

    def empty(self) -> Rows | None:
        """The class of no class."""
        return {"class": torch.tensor([self.count])} if self.nothing else None

    def _number(self, label: str) -> int:
        if not (label.isascii() and label.isdigit() and len(label) <= DIGITS) or int(label) >= self.count:
            wish = f"wanted the number of a class, 0 to {self.count - 1}; name such a label"
            raise DataError(f"label '{label[:40]}': {wish}")
        return int(label)


@dataclass(frozen=True)
class Unasked:
    """Nothing is told: the pictures say it all."""

    def check(self, documents: Sequence[Document]) -> None:
        """There is nothing that could be wrong."""

    def rows(self, documents: Sequence[Document]) -> Rows:
        """No column."""
        return {}

    def empty(self) -> Rows | None:
        """There is nothing to leave out."""
        return None


# ---- how each network is called

Call = Callable[[nn.Module, Tensor, Tensor, Rows], Tensor]


def _unet(network: nn.Module, noisy: Tensor, time: Tensor, told: Rows) -> Tensor:
    out: Tensor = network(noisy, time, class_labels=told.get("class")).sample
    return out


def _unet_text(network: nn.Module, noisy: Tensor, time: Tensor, told: Rows) -> Tensor:
    out: Tensor = network(noisy, time, encoder_hidden_states=told["text"]).sample
    return out


def _dit(network: nn.Module, noisy: Tensor, time: Tensor, told: Rows) -> Tensor:
    out: Tensor = network(noisy, timestep=time, class_labels=told["class"]).sample
    return out


def _pixart(network: nn.Module, noisy: Tensor, time: Tensor, told: Rows) -> Tensor:
    more: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
    if network.use_additional_conditions:  # the largest PixArt is told the picture's size and shape in pixels
        high, wide = noisy.shape[-2] * 8, noisy.shape[-1] * 8
        more["resolution"] = noisy.new_tensor([[high, wide]]).expand(len(noisy), 2)
        more["aspect_ratio"] = noisy.new_tensor([[high / wide]]).expand(len(noisy), 1)
    text = {"encoder_hidden_states": told["text"], "encoder_attention_mask": told["seen"]}
    out: Tensor = network(noisy, timestep=time, added_cond_kwargs=more, **text).sample
    return out


CALLS: dict[str, Call] = {
    "UNet2DModel": _unet,
    "UNet2DConditionModel": _unet_text,
    "DiTTransformer2DModel": _dit,
    "PixArtTransformer2DModel": _pixart,
}
"""The denoisers of diffusers that are known here, by class."""


def condition_of(network: Any, tokenizer: Any, encoder: Any, long: Literal["error", "cut"]) -> Condition:
    """What this network is told, and a refusal of a text encoder that does not fit it."""
    config, kind = network.config, type(network).__name__
    if kind == "UNet2DModel":
        return Classes(config.num_class_embeds, nothing=False) if config.num_class_embeds else Unasked()
    if kind == "DiTTransformer2DModel":
        return Classes(config.num_embeds_ada_norm, nothing=True)
    if tokenizer is None or encoder is None:
        raise BackboneError(f"backbone: {kind} reads prompts, but the folder has no tokenizer and text_encoder")
    wanted = config.caption_channels if kind == "PixArtTransformer2DModel" else config.cross_attention_dim
    came = encoder.config.hidden_size
    if wanted != came:
        raise BackboneError(
            f"backbone: the denoiser reads text of width {wanted}, the text encoder writes {came}; fetch them anew"
        )
    return Prompts(tokenizer, encoder, kind == "PixArtTransformer2DModel", long)
