"""A network that reads tokens of many rows in one pass, each behind what it has read of the same row before."""

import inspect
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer

from fedgen.backbones import LanguageBackbone
from fedgen.errors import BackboneError
from fedgen.serve.engine.slab import Pair, Slab

ORDINARY = (DynamicLayer, DynamicSlidingWindowLayer)  # layers that keep keys and values of each token, and no more
TRIAL = 6  # tokens that are read in one go and in parts, to see that it comes to the same
OFF = 0.05  # of the length of the logits these may differ by: more than 16 bits lose, and far less than an error makes


class Reader:
    """A backbone with room for so many rows of so many tokens; one that cannot read so is refused."""

    def __init__(self, backbone: LanguageBackbone, rows: int, length: int) -> None:
        self.backbone = backbone
        self._network: Any = backbone.network
        self._keeps = "logits_to_keep" in inspect.signature(self._network.forward).parameters
        self.length = _length(backbone, length)
        like = _kept(backbone)
        self.slab = _room(like, rows, self.length)
        self._device, self._dtype = like[0][0].device, like[0][0].dtype
        self._places = torch.arange(self.length, device=self._device)
        self._try()

    @torch.no_grad()
    def read(self, rows: slice | list[int], given: Sequence[Tensor] | Tensor, starts: Sequence[int]) -> Tensor:
        """Each row's logits behind its last token; a row's tokens, or its states, lie from its start on."""
        counts = [given.shape[1]] * len(given) if isinstance(given, Tensor) else [len(one) for one in given]
        ends = [start + count for start, count in zip(starts, counts, strict=True)]
        numbers = range(self.slab.rows)[rows] if isinstance(rows, slice) else rows
        tokens = given if isinstance(given, Tensor) else pad_sequence(list(given), batch_first=True)
        places = self._column(starts) + self._places[: tokens.shape[1]]
        self.slab.aim(rows, self._column(numbers), places, self._column(ends), seen=max(ends))
        places = places.clamp(max=self.length - 1)  # of what fills up a row, and is read for nothing
        return self._passed(tokens, places, max(ends), [count - 1 for count in counts])

    def _passed(self, tokens: Tensor, places: Tensor, seen: int, lasts: list[int]) -> Tensor:
        later = (self._places[:seen] > places[..., None])[:, None]
        mask = torch.zeros(later.shape, dtype=self._dtype, device=self._device)
        mask.masked_fill_(later, torch.finfo(self._dtype).min)
        kept, keep = sorted(set(lasts)), {}
        if self._keeps:
            keep["logits_to_keep"] = torch.tensor(kept, device=self._device)
            lasts = [kept.index(last) for last in lasts]
        logits: Tensor = self._network(
            **{"input_ids" if tokens.dim() == 2 else "inputs_embeds": tokens}, **keep,
            position_ids=places, attention_mask=mask, past_key_values=self.slab, use_cache=True,
        ).logits  # fmt: skip
        return (logits[:, 0] if logits.shape[1] == 1 else logits[torch.arange(len(lasts)), lasts]).float()

    def _column(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, device=self._device)[:, None]

    def _try(self) -> None:
        """See that reading in parts, beside a shorter row, is reading in one go."""
        count = min(TRIAL, self.length)
        ids = torch.arange(1, count + 1, device=self._device) % self._network.config.vocab_size
        row, beside = self.slab.rows - 1, [0] * (self.slab.rows > 1)
        try:
            wanted = self._network(input_ids=ids[None], use_cache=False).logits[0, -1].float()
            self.read([row], [ids[:2]], [0])
            self.read([row, *beside], [ids[2:-1], *[ids[:1] for _ in beside]], [2, *beside])
            found = self.read([row], [ids[-1:]], [count - 1])[0]
        except Exception as error:  # each family has its own way of not knowing what it is given
            raise BackboneError(_odd(self.backbone, str(error).splitlines()[0])) from error
        if not (found - wanted).norm() <= OFF * wanted.norm():
            raise BackboneError(_odd(self.backbone, "what it reads in parts comes to something else"))
        self.slab.clear(row, count)
        self.slab.clear(0, 1)


@torch.no_grad()
def _kept(backbone: LanguageBackbone) -> list[Pair]:
    """What each layer keeps of one token."""
    network: Any = backbone.network
    found = getattr(network(input_ids=backbone.given("")[None], use_cache=True), "past_key_values", None)
    layers = found.layers if isinstance(found, Cache) else []
    if not layers or any(type(layer) not in ORDINARY or layer.keys.dim() != 4 for layer in layers):
        names = sorted({type(layer).__name__ for layer in layers}) or [type(found).__name__]
        raise BackboneError(_odd(backbone, f"it keeps {', '.join(names)}"))
    return [(layer.keys, layer.values) for layer in layers]


def _odd(backbone: LanguageBackbone, came: str) -> str:
    wish = "wanted keys and values of each token, and places that can be told"
    return f"serve: '{backbone.name}' cannot share its passes between rows: {wish}, came: {came}; serve another one"


def _length(backbone: LanguageBackbone, wished: int) -> int:
    """What is wished, or else all that it reads: no more than the layer sees that looks back least."""
    config: Any = backbone.network.config
    windows = [getattr(config, name, None) or sys.maxsize for name in ("sliding_window", "attention_chunk_size")]
    length = min(backbone.reach, *windows, wished or sys.maxsize)
    if length == sys.maxsize:
        raise BackboneError(f"serve: '{backbone.name}' knows no bound of what it reads; say how long a row may be")
    return length


def _room(like: Sequence[Pair], rows: int, length: int) -> Slab:
    size = sum(part[:, :, 0].nbytes for two in like for part in two) * rows * length
    try:
        return Slab(like, rows, length)
    except RuntimeError as error:  # torch's word for no memory, on every device
        asked = f"{rows} rows of {length} tokens take {size / 2**30:.1f} GiB"
        raise BackboneError(f"serve: {asked}, more than there is; serve fewer rows, or shorter ones") from error
