"""A small language model from nothing: a byte-level BPE and a Llama-shaped network, learnt in so many minutes.

The learning rate follows the time that is left, so any budget ends well; the weights with the best held-out loss stay.
"""

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from fedgen.store import write_whole

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

END = "<|end|>"
EVERY = 100  # steps between two looks at what is held out
SPREAD = 0.02  # of the weights at the start
RECORD = "training.json"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Shape:
    """The network, its tokenizer, and a step of its training."""

    vocabulary: int = 4096
    hidden: int = 192
    inner: int = 512
    layers: int = 4
    heads: int = 6
    reach: int = 512
    context: int = 256
    batch: int = 32
    rate: float = 2e-3


def learn_tokenizer(texts: Sequence[str], vocabulary: int, words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE, so that any text at all can be written in it; `words` are tokens of their own."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary - len(words), special_tokens=[END], initial_alphabet=alphabet)
    bpe.train_from_iterator(texts, trainer)
    bpe.add_tokens([AddedToken(word, lstrip=True, single_word=True) for word in words])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=END)


def stream(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    """All texts as one line of tokens, each opened by the end mark."""
    end = tokenizer.eos_token_id
    found = (tokenizer(text, verbose=False)["input_ids"] for text in texts)
    return torch.tensor([token for text in found for token in (end, *text)])


def network(shape: Shape, tokenizer: PreTrainedTokenizerFast, draw: torch.Generator) -> "LlamaForCausalLM":
    """An untrained network, its weights from the generator alone."""
    from transformers import LlamaConfig, LlamaForCausalLM  # a second to import, which no other command should wait for

    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=shape.hidden, intermediate_size=shape.inner,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
        max_position_embeddings=shape.reach, tie_word_embeddings=True, **ends,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0, SPREAD, generator=draw)
    return model


def loss_of(model: "LlamaForCausalLM", ids: Tensor) -> Tensor:
    """The mean loss of the next token over rows of tokens."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: "LlamaForCausalLM", tokens: Tensor, shape: Shape) -> float:
    """The loss on tokens that are not learnt, in rows of the same length."""
    wide = shape.context + 1
    parts = tokens[: len(tokens) // wide * wide].view(-1, wide).split(shape.batch)
    return sum(loss_of(model, part).item() * len(part) for part in parts) / sum(map(len, parts))


def learn(
    model: "LlamaForCausalLM",
    train: Tensor,
    valid: Tensor,
    shape: Shape,
    *,
    minutes: float,
    draw: torch.Generator,
    say: Say,
) -> dict[str, Any]:
    """Train for so many minutes; the model is left with its best weights. What was done, as a record."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=shape.rate, betas=(0.9, 0.95), weight_decay=0.1)
    start, step, best, kept, weights = time.monotonic(), 0, float("inf"), 0, model.state_dict()
    while (done := (time.monotonic() - start) / (60 * minutes)) < 1 or not kept:
        for group in optimizer.param_groups:
            group["lr"] = shape.rate * min(1, (step + 1) / 100) * max(0.0, min(1, (1 - done) / 0.6 + 0.02))
        loss = _step(model, optimizer, train, shape, draw)
        step += 1
        if step % EVERY == 0 or (step % 25 == 0 and done > 0.97) or done >= 1:
            current = held_out_loss(model, valid, shape)
            say(f"step {step}  {done:.0%}  train {loss:.3f}  held out {current:.4f}")
            if current < best:
                best, kept = current, step
                weights = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    return {"steps": step, "kept_step": kept, "held_out_loss": round(best, 4)}


def _step(
    model: "LlamaForCausalLM", optimizer: torch.optim.Optimizer, train: Tensor, shape: Shape, draw: torch.Generator
) -> float:
    at = torch.randint(len(train) - shape.context - 1, (shape.batch,), generator=draw)
    ids = train[at[:, None] + torch.arange(shape.context + 1)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(model, ids)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def pretrain(
    folder: Path, texts: Sequence[str], shape: Shape, *, minutes: float, seed: int = 0, words: Sequence[str] = (),
    said: dict[str, Any], say: Say = print,
) -> dict[str, Any]:  # fmt: skip
    """A Hugging Face folder with the model, and the record of how it was made: the folder counts once that is there.

    One text in twenty is held out whole. `words` become tokens of their own; `said` opens the record.
    """
    draw = torch.Generator().manual_seed(seed)
    held = [text for number, text in enumerate(texts) if number % 20 == 7]
    kept = [text for number, text in enumerate(texts) if number % 20 != 7]
    tokenizer = learn_tokenizer(kept, shape.vocabulary, words)
    train, valid = stream(tokenizer, kept), stream(tokenizer, held)
    model = network(shape, tokenizer, draw)
    say(f"{len(train)} tokens to learn, {len(valid)} held out, {model.num_parameters()} parameters")
    done = learn(model, train, valid, shape, minutes=minutes, draw=draw, say=say)
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    record = {
        **said, "documents": len(texts), "train_tokens": len(train), "held_out_tokens": len(valid),
        "parameters": model.num_parameters(), **vars(shape), **done, "seed": seed, "minutes": minutes,
        "threads": torch.get_num_threads(), "machine": platform.machine(), "torch": torch.__version__,
        "python": platform.python_version(), "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    write_whole(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    return record
