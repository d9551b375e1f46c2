"""Pre-train the embedded text backbone on the public part of the embedded corpus; write it as a Hugging Face folder.

    python experiments/pretrain_text.py OUT [--minutes 45]

One document in twenty is held out whole; the folder keeps the weights with the best held-out loss, in half precision,
and a record of what was done. The learning rate follows the time that is left: the budget is a plain number of minutes.
"""

import argparse
import copy
import hashlib
import json
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from fedgen.data.stdlib import public

VOCABULARY, CONTEXT, BATCH, RATE, SEED = 4096, 256, 32, 2e-3, 0
END = "<|end|>"


def learn_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text at all can be written in it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=END)


def stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """All texts as one line of tokens, each opened by the end mark."""
    end = tokenizer.eos_token_id
    return torch.tensor([i for text in texts for i in [end, *tokenizer(text)["input_ids"]]])


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, tokens: torch.Tensor) -> float:
    rows = tokens[: len(tokens) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    parts = rows.split(BATCH)
    return sum(loss_of(model, part).item() * len(part) for part in parts) / len(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=45)
    args = parser.parse_args()
    torch.manual_seed(SEED)
    documents = [text for _, text in public()]
    held = [text for i, text in enumerate(documents) if i % 20 == 7]
    kept = [text for i, text in enumerate(documents) if i % 20 != 7]
    tokenizer = learn_tokenizer(kept)
    train, valid = stream(tokenizer, kept), stream(tokenizer, held)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=6,
        num_key_value_heads=6, max_position_embeddings=512, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    draw = torch.Generator().manual_seed(SEED)
    print(f"{len(train)} tokens to learn, {len(valid)} held out, {model.num_parameters()} parameters", flush=True)
    start, step, best, best_step = time.monotonic(), 0, float("inf"), 0
    while (done := (time.monotonic() - start) / (60 * args.minutes)) < 1:
        at = torch.randint(len(train) - CONTEXT - 1, (BATCH,), generator=draw)
        ids = train[at[:, None] + torch.arange(CONTEXT + 1)]
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 100) * min(1, (1 - done) / 0.6 + 0.02)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step % 100 == 0 or (step % 25 == 0 and done > 0.97):
            current = held_out_loss(model, valid)
            print(f"step {step}  {done:.0%}  train {loss.item():.3f}  held out {current:.4f}", flush=True)
            if current < best:
                best, best_step = current, step
                copy.deepcopy(model).half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    digest = hashlib.sha256("\0".join(documents).encode()).hexdigest()
    card = {
        "data": "fedgen.data.stdlib.public: public modules of Python's standard library, its documentation topics",
        "python": platform.python_version(), "data_sha256": digest, "documents": len(documents),
        "train_tokens": len(train), "held_out_tokens": len(valid), "parameters": model.num_parameters(),
        "steps": step, "kept_step": best_step, "tokens_a_step": BATCH * CONTEXT, "seed": SEED,
        "minutes": args.minutes, "held_out_loss": round(best, 4), "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    (args.out / "training.json").write_text(json.dumps(card, indent=1) + "\n")
    print(json.dumps(card, indent=1))


if __name__ == "__main__":
    main()
