"""Causal language models: any that transformers loads, from the package, a folder, or the hub if a plan names it."""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from fedgen.backbones.anew import blocks_anew
from fedgen.backbones.quiet import without_bars
from fedgen.backbones.sampling import Taste, choose
from fedgen.backbones.spelling import Spelling
from fedgen.errors import BackboneError
from fedgen.records import Document, Range, Rows

EMBEDDED = Path(__file__).parent / "embedded" / "text"
TARGETS = ("q_proj", "v_proj"), ("c_attn",), ("query_key_value",)  # the first whose names a network has


@dataclass(frozen=True)
class Language:
    """Which language model: `embedded`, a folder, or `hub:owner/name`; `length` is the tokens of one row.

    `device` is one that torch knows; `auto` takes a GPU where there is one. `bits` below 16 loads it quantised.
    """

    source: str = "embedded"
    length: Annotated[int, Range(8)] = 128
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str = "auto"
    bits: Literal[4, 8, 16] = 16

    def load(self) -> "LanguageBackbone":
        """The frozen model and its tokenizer."""
        device = device_of(self.device)
        where, local = locate(self.source)
        tokenizer, network = self._read(where, local, device)
        if self.bits == 16:
            network = moved(network, device)
        identity = hash_of(Path(where)) if local else str(network.config._commit_hash)
        frozen = network.eval().requires_grad_(False)
        loaded = LanguageBackbone(name_of(self.source), identity, frozen, tokenizer, self.length)
        if self.length > loaded.reach:
            raise BackboneError(
                f"backbone.length: wanted at most {loaded.reach}, all that '{self.source}' can read, came {self.length}"
            )
        return loaded

    def _read(self, where: str, local: bool, device: str) -> tuple[Any, Any]:
        """The tokenizer and the whole network, as transformers loads them."""
        auto = torch.float32 if device == "cpu" else torch.bfloat16
        dtype = auto if self.dtype == "auto" else getattr(torch, self.dtype)
        options: dict[str, Any] = {"dtype": dtype, "local_files_only": local, "use_safetensors": True}
        if self.bits < 16:
            options["quantization_config"] = _quantised(self.bits, dtype)
            options["device_map"] = {"": device}
        try:
            with without_bars():
                tokenizer = AutoTokenizer.from_pretrained(where, local_files_only=local)
                network, found = AutoModelForCausalLM.from_pretrained(where, output_loading_info=True, **options)
        except Exception as error:  # transformers raises many kinds for one cause: a folder that is not a model
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if self.bits < 16 and isinstance(error, ImportError):
                wish = f"bits = {self.bits} wants bitsandbytes: pip install fedgen-edge[bits] ({reason})"
            else:
                wish = f"'{self.source}' is not a causal language model that transformers can load: {reason}"
            raise BackboneError(f"backbone: {wish}") from error
        if missing := sorted(found["missing_keys"]):  # transformers would have drawn them at random, anew at each load
            raise BackboneError(
                f"backbone: '{self.source}' lacks {len(missing)} of its weights, first '{missing[0]}'; get it whole"
            )
        if self.bits == 4:
            _keep_trainable(network)
        return tokenizer, network


def _keep_trainable(network: nn.Module) -> None:
    """On a CPU that can, a 4-bit layer packs its weights for inference once it reads without a gradient, for good."""
    kind = import_module("bitsandbytes").nn.Linear4bit
    for layer in network.modules():
        if isinstance(layer, kind):
            layer.__dict__["support_avx512bf16_for_cpu"] = False


def _quantised(bits: int, dtype: torch.dtype) -> BitsAndBytesConfig:
    """How weights are kept in 8 or 4 bits, and multiplied in the model's own numbers."""
    # bitsandbytes holds two 4-bit weights a byte and takes gradients on a CPU and a GPU; of torchao 0.18, int4 wants a
    # GPU's library, and what it has for a CPU keeps each 4-bit weight in a byte of its own.
    return BitsAndBytesConfig(
        load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )


def device_of(name: str) -> str:
    """A device by its name; `auto` is a GPU where there is one."""
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def moved(network: nn.Module, device: str) -> nn.Module:
    """The network on a device, or one clear line."""
    try:
        return network.to(device)
    except (RuntimeError, AssertionError) as error:  # a misspelt one, and one that this torch was built without
        reason = str(error).splitlines()[0]
        raise BackboneError(f"backbone.device: '{device}' cannot be used, try 'auto' or 'cpu' ({reason})") from error


def locate(source: str) -> tuple[str, bool]:
    """Where to load from, and whether that is this machine alone."""
    if source.startswith("hub:"):
        return source.removeprefix("hub:"), False
    folder = EMBEDDED if source == "embedded" else Path(source).expanduser()
    if not (folder / "config.json").is_file():
        raise BackboneError(
            f"backbone: no config.json in '{folder}'; wanted 'embedded', a Hugging Face folder, or 'hub:owner/name'"
        )
    return str(folder), True


def name_of(source: str) -> str:
    """What a bundle may call the backbone: never a path of this machine."""
    return source.removeprefix("hub:") if source.startswith("hub:") else Path(source).name


def hash_of(folder: Path) -> str:
    """The content's name of a model folder: its configuration and its weights."""
    content = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with path.open("rb") as file:
            content.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return content.hexdigest()


@dataclass(frozen=True)
class LanguageBackbone:
    """A frozen causal language model with its tokenizer, reading rows of `length` predicted tokens."""

    name: str
    hash: str
    network: nn.Module
    tokenizer: Any
    length: int

    @property
    def kind(self) -> str:
        """It writes text."""
        return "text"

    @property
    def component(self) -> str:
        """It is no part of a pipeline."""
        return ""

    @property
    def looks(self) -> int:
        """Chance has no part in its loss."""
        return 1

    @cached_property
    def targets(self) -> tuple[str, ...]:
        """The layers to adapt when the plan does not say: the attention's."""
        ends = {path.rpartition(".")[2] for path, _ in self.network.named_modules()}
        return next((names for names in TARGETS if ends.issuperset(names)), TARGETS[0])

    @property
    def reach(self) -> int:
        """How many tokens the model can read at once."""
        config: Any = self.network.config
        return getattr(config, "max_position_embeddings", None) or sys.maxsize  # some know no bound

    @property
    def end(self) -> int:
        """The token that stands between documents."""
        found = self.tokenizer.eos_token_id
        return found if found is not None else self.tokenizer.bos_token_id or 0

    def encode(self, documents: Sequence[Document]) -> Rows:
        """Documents without a prompt as one stream cut into rows; of one with a prompt, a row to learn the answer."""
        stream: list[tuple[int, int, int]] = []
        asked: list[Rows] = []
        for document in documents:
            if document.prompt:
                asked.append(self._row(self._pieces(document.prompt), self._pieces(document.text)))
            else:
                stream += [(self.end, 0, 0), *self._pieces(document.text)]
        starts = range(0, max(len(stream) - 1, 0), self.length)
        cut = [stream[at : at + self.length + 1] for at in starts]
        rows = [self._fill(pieces, 0) for pieces in cut] + asked
        if not rows:
            return self._fill([], 0, rows=0)
        return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}

    def _pieces(self, text: str) -> list[tuple[int, int, int]]:
        """Each token with the words that begin and the bytes that lie in it."""
        found = self.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)
        opens = [not char.isspace() and (not at or text[at - 1].isspace()) for at, char in enumerate(text)]
        pieces, done = [], 0
        for token, (_, stop) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            stop = max(stop, done)
            pieces.append((token, sum(opens[done:stop]), len(text[done:stop].encode("utf-8", "replace"))))
            done = stop
        return pieces

    def _row(self, prompt: list[tuple[int, int, int]], answer: list[tuple[int, int, int]]) -> Rows:
        answer = [*answer[: self.length - 1], (self.end, 0, 0)]
        room = self.length + 1 - len(answer)
        prompt = [(self.end, 0, 0), *prompt][-room:]
        return self._fill(prompt + answer, len(prompt) - 1)

    def _fill(self, pieces: list[tuple[int, int, int]], skip: int, rows: int = 1) -> Rows:
        """One row, padded to the full length; the first `skip` predictions are read but not scored."""
        ids = torch.full((rows, self.length + 1), self.end, dtype=torch.int32)
        scored = torch.zeros((rows, self.length), dtype=torch.bool)
        learnt = pieces[skip + 1 :]
        if pieces:
            ids[0, : len(pieces)] = torch.tensor([token for token, _, _ in pieces])
            scored[0, skip : len(pieces) - 1] = True
        words, size = sum(w for _, w, _ in learnt), sum(b for _, _, b in learnt)
        return {
            "ids": ids,
            "scored": scored,
            "words": torch.tensor([words] * rows),
            "bytes": torch.tensor([size] * rows),
        }

    def draw(self, rows: Rows, draw: torch.Generator) -> Rows:
        """Text needs no chance."""
        return rows

    def losses(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Each row's negative log-likelihood in nats, and its number of scored tokens."""
        device = self.network.get_input_embeddings().weight.device  # type: ignore[operator]
        ids, scored = rows["ids"].to(device).long(), rows["scored"].to(device)
        logits = self.network(input_ids=ids[:, :-1], use_cache=False).logits.float()
        wanted = ids[:, 1:].masked_fill(~scored, -100)
        terms = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none", ignore_index=-100)
        return terms.view(wanted.shape).sum(1), scored.sum(1)

    def row_bytes(self, *, anew: bool = False) -> int:
        """Some 24 numbers a token, layer and hidden unit kept for the backward pass, and three copies of the logits.

        Computed `anew`, a layer keeps one number, and only one layer at a time 24.
        """
        config: Any = self.network.config
        layers = config.num_hidden_layers
        body = (layers + 24 if anew else layers * 24) * config.hidden_size
        return int(4 * self.length * (body + 3 * config.vocab_size))

    def anew(self) -> AbstractContextManager[None]:
        """While it lasts, a layer keeps its input alone for the backward pass."""
        return blocks_anew(self.network)

    @torch.no_grad()
    def seal(self, prompt: str) -> Rows:
        """What a device sends in place of a prompt: the states that the model's first layer reads, a row a token."""
        if getattr(self.network.config, "hidden_size_per_layer_input", 0):
            raise BackboneError(f"sealed prompt: every layer of '{self.name}' reads the tokens; send the prompt itself")
        return {"states": self.embedded(self.given(prompt)).cpu()}

    def ids(self, prompt: str) -> list[int]:
        """A prompt's tokens as the model learnt them, behind the one that stands between documents."""
        return [self.end, *self.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]]

    def given(self, prompt: str | Rows) -> Tensor:
        """A prompt as the network takes it, a row a token: the tokens, or the states of a sealed one."""
        if isinstance(prompt, str):
            return torch.tensor(self.ids(prompt), device=next(self.network.parameters()).device)
        return self._opened(prompt)

    @torch.no_grad()
    def embedded(self, ids: Tensor) -> Tensor:
        """Tokens as the states that the first layer reads."""
        found: Tensor = self.network.get_input_embeddings()(ids)  # type: ignore[operator]
        return found

    @torch.no_grad()
    def write(self, prompt: str | Rows, *, tokens: int, temperature: float, draw: torch.Generator) -> Iterator[str]:
        """Continue a prompt, plain or sealed, or as much of its end as leaves room; at 0 the likeliest."""
        kind = "input_ids" if isinstance(prompt, str) else "inputs_embeds"
        given = self.given(prompt)[None, -max(self.reach - tokens, 1) :]
        spelling = Spelling(self.tokenizer, given[0].tolist() if isinstance(prompt, str) else [self.end])
        past, taste = None, Taste(draw, temperature)
        for _ in range(min(tokens, self.reach - given.shape[1])):
            out = self.network(**{kind: given}, past_key_values=past, use_cache=True)
            past, (token,) = out.past_key_values, choose(out.logits[:, -1].float(), [taste])
            if token < 0:
                raise BackboneError(f"text: under this adapter '{self.name}' makes numbers that are not finite")
            if token == self.end:
                break
            if text := spelling.add(token):
                yield text
            kind, given = "input_ids", torch.tensor([[token]], device=given.device)
        if text := spelling.rest():
            yield text

    def _opened(self, sealed: Rows) -> Tensor:
        """The states of a sealed prompt, if this model can read them."""
        like, states = self.embedded(self.given("")), sealed.get("states", torch.empty(0))
        if states.dim() != 2 or not len(states) or states.shape[1] != like.shape[1] or not states.isfinite().all():
            wish = f"a row of {like.shape[1]} finite numbers for each token"
            raise BackboneError(f"sealed prompt: wanted {wish}, came {tuple(states.shape)}; seal it for this backbone")
        return states.to(like)
