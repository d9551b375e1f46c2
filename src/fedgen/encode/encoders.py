"""The ways to turn texts into vectors: by the backbone, by another model, or by hashed grams."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, AutoTokenizer

from fedgen.backbones import Backbone, DiffusionBackbone, LanguageBackbone
from fedgen.backbones.conditions import Prompts
from fedgen.backbones.quiet import silence
from fedgen.data.files import reading
from fedgen.errors import BackboneError, DataError, PlanError
from fedgen.records import Range

BATCH = 32  # texts that are read at once
LONGEST = 512  # tokens of one text that are read, by an encoder that could read more
NEEDED = {"a config.json": ("config.json",), "a tokenizer": ("tokenizer.json", "vocab.*", "*.model")}
REMEDY = "give the path of a CLIP, or of a sentence-transformers model"
PROJECTED = {"CLIPModel", "CLIPTextModelWithProjection"}  # what a folder's network is, if it is a whole CLIP


class Encoder(Protocol):
    """One way to turn texts into vectors."""

    def read(self, texts: Sequence[str], backbone: Backbone) -> Tensor:
        """A vector of length 1 for each text, [n, width]; of a long text its beginning is read."""


# ---- encoders


@dataclass(frozen=True)
class Silent:
    """Nothing is encoded."""

    def read(self, texts: Sequence[str], backbone: Backbone) -> Tensor:
        """It reads nothing, and says so."""
        raise PlanError("encode.kind: 'none' makes no vectors; choose 'ngrams', 'backbone' or 'folder'")


@dataclass(frozen=True)
class Own:
    """The backbone's own reading of a text, averaged over its tokens."""

    def read(self, texts: Sequence[str], backbone: Backbone) -> Tensor:
        """The mean of each text's hidden states."""
        parts = [_mean(*states(part, backbone)) for part in _parts(texts)]
        return _unit(torch.cat(parts), f"backbone '{backbone.name}'")


@dataclass(frozen=True)
class Folder:
    """A text model in a Hugging Face folder: a CLIP's own text embedding, or the mean of another's hidden states."""

    path: str

    @torch.no_grad()
    def read(self, texts: Sequence[str], backbone: Backbone) -> Tensor:
        """What the model makes of each text; the backbone is not asked."""
        tokenizer, network = self._loaded
        most = min(tokenizer.model_max_length, network.config.max_position_embeddings, LONGEST)
        found = []
        for part in _parts(texts):
            ids, seen = _ids(tokenizer, part, most)
            made = _hidden(network, ids, seen)
            found.append(made if made.dim() == 2 else _mean(made, seen))  # a CLIP's is of the whole text
        return _unit(torch.cat(found), f"encode.path '{self.path}'")

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The tokenizer and the network."""
        from transformers import CLIPTextModelWithProjection  # two seconds to import, and only a folder needs it

        folder, where = Path(self.path).expanduser(), f"encode.path '{self.path}'"
        wish = "a Hugging Face folder of a text encoder, with a tokenizer and with weights as safetensors"
        with reading(where, wish, REMEDY), silence():
            for part, files in NEEDED.items():  # transformers makes up a tokenizer that is not there: it knows no word
                if not any(found for file in files for found in folder.glob(file)):
                    raise DataError(f"{where}: wanted {wish}, came none with {part}; {REMEDY}")
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            if config.is_encoder_decoder:
                raise DataError(f"{where}: wanted {wish}, came a {config.model_type} with a decoder; {REMEDY}")
            model = CLIPTextModelWithProjection if PROJECTED.intersection(config.architectures or []) else AutoModel
            network, found = model.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
            missing = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))  # not asked here
            if missing:  # they would be drawn at random, anew on each device
                came = f"came one that lacks {len(missing)} weights, first '{missing[0]}'"
                raise DataError(f"{where}: wanted a whole text encoder, {came}; get it again")
        return tokenizer, network.eval()


@dataclass(frozen=True)
class Ngrams:
    """Runs of three and four characters, hashed: no weights, no download, and the same on every machine.

    A gram's hash is a row of signs, which is its row of a fixed random projection.
    """

    width: Annotated[int, Range(8)] = 256

    def read(self, texts: Sequence[str], backbone: Backbone) -> Tensor:
        """The sum over a text's grams, each by the root of how often it stands there; the backbone is not asked."""
        return _unit(torch.cat([self._sums(part) for part in _parts(texts)]), "encode.kind 'ngrams'")

    def _sums(self, texts: Sequence[str]) -> Tensor:
        counts = [_grams(text) for text in texts]
        place = {gram: at for at, gram in enumerate(dict.fromkeys(gram for count in counts for gram in count))}
        weights = np.zeros((len(texts), len(place)), np.float32)
        for row, count in zip(weights, counts, strict=True):
            row[[place[gram] for gram in count]] = np.sqrt(list(count.values()))
        bits = b"".join(
            hashlib.shake_256(gram.encode("utf-8", "replace")).digest(-(-self.width // 8)) for gram in place
        )
        signs = np.unpackbits(np.frombuffer(bits, np.uint8).reshape(len(place), -1), axis=1, count=self.width)
        return torch.from_numpy(weights @ (signs * np.float32(2) - 1))


def _grams(text: str) -> Counter[str]:
    spaced = f" {' '.join(text.lower().split())} "
    return Counter(spaced[at : at + size] for size in (3, 4) for at in range(len(spaced) - size + 1))


# ---- what encoders share


@torch.no_grad()
def states(texts: Sequence[str], backbone: Backbone) -> tuple[Tensor, Tensor]:
    """The backbone's hidden states of texts in full, [n, tokens, width], and which of them are seen (1) or padding (0).

    A prompt of an image is sent as these for inference. Of a language model they are the last ones.
    """
    if isinstance(backbone, LanguageBackbone):
        network: Any = backbone.network
        ids, seen = _ids_after_end(backbone, texts)
        made = _hidden(network.base_model, ids, seen)
        return made[:, 1:], seen[:, 1:]  # the first place is the same before every text
    if isinstance(backbone, DiffusionBackbone) and isinstance(backbone.condition, Prompts):
        ids, seen = _ids(backbone.condition.tokenizer, texts, backbone.condition.length)
        return _hidden(backbone.condition.encoder, ids, seen), seen
    wish = f"'backbone' wants one that reads words, '{backbone.name}' reads none; choose 'ngrams' or 'folder'"
    raise BackboneError(f"encode.kind: {wish}")


def _ids_after_end(backbone: LanguageBackbone, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Tokens as the model learnt them, behind the one that stands between documents; and which are not padding."""
    most = min(backbone.reach, LONGEST)
    rows = [torch.tensor(backbone.ids(text)[:most]) for text in texts]
    seen = [torch.ones_like(row) for row in rows]
    return nn.utils.rnn.pad_sequence(rows, True, backbone.end), nn.utils.rnn.pad_sequence(seen, True)


def _ids(tokenizer: Any, texts: Sequence[str], most: int) -> tuple[Tensor, Tensor]:
    """Tokens as a text encoder wants them, cut at `most`; and which are not padding."""
    read = tokenizer(list(texts), padding=True, truncation=True, max_length=most, return_tensors="pt")
    return read["input_ids"], read["attention_mask"]


def _hidden(network: Any, ids: Tensor, seen: Tensor) -> Tensor:
    device = next(network.parameters()).device
    made: Tensor = network(input_ids=ids.to(device), attention_mask=seen.to(device))[0]
    return made.float().cpu()


def _parts(texts: Sequence[str]) -> list[Sequence[str]]:
    """The texts in batches, or a refusal of those that say nothing."""
    if not texts or not all(text.strip() for text in texts):
        came = "none" if not texts else "a blank one"
        raise DataError(f"encode: wanted texts to read, came {came}; leave out clients and texts that ask for nothing")
    return [texts[at : at + BATCH] for at in range(0, len(texts), BATCH)]


def _mean(made: Tensor, seen: Tensor) -> Tensor:
    return (made * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)


def _unit(vectors: Tensor, where: str) -> Tensor:
    if not vectors.isfinite().all():
        raise BackboneError(f"{where}: gives numbers that are not finite for a text; set backbone.dtype = 'float32'")
    return F.normalize(vectors, dim=-1)


ENCODERS: dict[str, type[Encoder]] = {"none": Silent, "backbone": Own, "folder": Folder, "ngrams": Ngrams}
"""How prompts become vectors; `folder` is a CLIP or a sentence-transformers model."""
