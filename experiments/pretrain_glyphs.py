"""Pre-train the embedded image backbone on plain upright glyphs; write it as a diffusers folder.

    python experiments/pretrain_glyphs.py OUT [--minutes 40] [--start FOLDER]

A small PixArt transformer learns to take the noise out of letters and digits by their prompt, its text encoder with it.
One prompt in ten is left empty, for guidance; some name a style that is not drawn, so that foreign words do no harm.
The folder keeps the running mean of the weights, in half precision, and a record of what was done; with --start it goes
on from such a folder, at half the rate.
"""

import argparse
import copy
import json
import platform
import random
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from fedgen.data.glyphs import CHARACTERS, PLAIN, STYLES, drawings, prompt_of

SIZE, TOKENS, WIDTH, DEPTH, HEADS, TEXT = 32, 16, 192, 5, 6, 96
BATCH, RATE, SEED, EMPTY, FOREIGN = 64, 1e-3, 0, 0.1, 0.3
START, END = "<|start|>", "<|end|>"
DRAWN = 64  # drawings of each character and face to learn from; 4 others are held out
INDEX = {
    "_class_name": "PixArtAlphaPipeline",
    "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "PixArtTransformer2DModel"],
    "vae": [None, None],
}


def learn_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of the prompts' words: any text at all can be written in it."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    prompts = [prompt_of(character, style) for character in CHARACTERS for style in STYLES]
    trainer = trainers.BpeTrainer(vocab_size=512, special_tokens=[START, END], initial_alphabet=alphabet)
    bpe.train_from_iterator(prompts, trainer)
    marks = [(START, bpe.token_to_id(START)), (END, bpe.token_to_id(END))]
    bpe.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=START, eos_token=END, pad_token=END, model_max_length=TOKENS
    )


class Painter(nn.Module):
    """The denoiser and its text encoder, trained as one."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        marks = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=TEXT, intermediate_size=4 * TEXT, num_hidden_layers=2,
                num_attention_heads=4, max_position_embeddings=TOKENS, pad_token_id=tokenizer.pad_token_id, **marks,
            )
        )  # fmt: skip
        self.transformer = PixArtTransformer2DModel(
            num_attention_heads=HEADS, attention_head_dim=WIDTH // HEADS, in_channels=1, out_channels=1,
            num_layers=DEPTH, cross_attention_dim=WIDTH, sample_size=SIZE, patch_size=4, caption_channels=TEXT,
        )  # fmt: skip

    def forward(self, noisy: Tensor, time: Tensor, ids: Tensor, seen: Tensor) -> Tensor:
        text = self.text_encoder(input_ids=ids, attention_mask=seen).last_hidden_state
        more = {"resolution": None, "aspect_ratio": None}
        return self.transformer(
            noisy, encoder_hidden_states=text, encoder_attention_mask=seen, timestep=time, added_cond_kwargs=more
        ).sample


def rendered(copies: int, seed: int) -> tuple[Tensor, list[str]]:
    """Drawings of every character in every plain face, and which character each is."""
    draw = torch.Generator().manual_seed(seed)
    made = [(p, c) for style in PLAIN for c in CHARACTERS for p in drawings(style, c, copies, SIZE, draw)]
    return torch.stack([picture for picture, _ in made]), [character for _, character in made]


def prompts_for(characters: list[str], chance: random.Random) -> list[str]:
    """Prompts as clients will write them: some empty, some with a style that the picture does not have."""
    named = [prompt_of(c, chance.choice(list(STYLES)) if chance.random() < FOREIGN else "") for c in characters]
    return ["" if chance.random() < EMPTY else prompt for prompt in named]


def loss_of(
    painter: Painter, schedule: Tensor, pictures: Tensor, ids: Tensor, seen: Tensor, draw: torch.Generator
) -> Tensor:
    """How far the predicted velocity is from the true one at a random time each."""
    clean = pictures.float() / 127.5 - 1
    time = torch.randint(len(schedule), (len(clean),), generator=draw)
    noise = torch.randn(clean.shape, generator=draw)
    kept = schedule[time].view(-1, 1, 1, 1)
    noisy, velocity = kept.sqrt() * clean + (1 - kept).sqrt() * noise, kept.sqrt() * noise - (1 - kept).sqrt() * clean
    return (painter(noisy, time, ids, seen).float() - velocity).square().mean()


def save(
    painter: Painter, tokenizer: PreTrainedTokenizerFast, scheduler: DPMSolverMultistepScheduler, out: Path
) -> None:
    half = copy.deepcopy(painter).half()
    half.transformer.save_pretrained(out / "transformer")
    half.text_encoder.save_pretrained(out / "text_encoder")
    tokenizer.save_pretrained(out / "tokenizer")
    scheduler.save_pretrained(out / "scheduler")
    (out / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")


def begun(painter: Painter, folder: Path) -> list[dict[str, float]]:
    """Take over the weights of an earlier training, and say what it did."""
    painter.transformer.load_state_dict(PixArtTransformer2DModel.from_pretrained(folder / "transformer").state_dict())
    painter.text_encoder.load_state_dict(CLIPTextModel.from_pretrained(folder / "text_encoder").state_dict())
    painter.float()
    found: list[dict[str, float]] = json.loads((folder / "training.json").read_text())["trainings"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--start", type=Path)
    args = parser.parse_args()
    torch.manual_seed(SEED)
    tokenizer = learn_tokenizer()
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        lambda_min_clipped=-5.1,
        timestep_spacing="linspace",
    )
    schedule = scheduler.alphas_cumprod
    pictures, characters = rendered(DRAWN, SEED)
    held, held_characters = rendered(4, SEED + 1)
    painter = Painter(tokenizer)
    before, rate = begun(painter, args.start) if args.start else [], RATE / (2 if args.start else 1)
    mean = copy.deepcopy(painter).requires_grad_(False)
    optimizer = torch.optim.AdamW(painter.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    seed = SEED + 100 * len(before)
    draw, chance = torch.Generator().manual_seed(seed), random.Random(seed)
    pad = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    print(
        f"{len(pictures)} pictures, {sum(p.numel() for p in painter.transformer.parameters())} parameters", flush=True
    )
    begin, step, saved = time.monotonic(), 0, 0.0
    while (done := (time.monotonic() - begin) / (60 * args.minutes)) < 1:
        at = torch.randint(len(pictures), (BATCH,), generator=draw)
        asked = tokenizer(prompts_for([characters[i] for i in at], chance), **pad)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 200) * min(1, (1 - done) / 0.6 + 0.01)
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(painter, schedule, pictures[at], asked.input_ids, asked.attention_mask, draw)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(painter.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        keep = min(0.998, step / (step + 20))
        torch._foreach_lerp_(list(mean.parameters()), list(painter.parameters()), 1 - keep)
        if step % 100 == 0:
            print(f"step {step}  {done:.0%}  loss {loss.item():.4f}", flush=True)
        if done - saved > 0.1:
            saved = done
            save(mean, tokenizer, scheduler, args.out)
    save(mean, tokenizer, scheduler, args.out)
    fixed, losses = torch.Generator().manual_seed(SEED + 2), []
    for at in torch.arange(len(held)).split(BATCH):
        asked = tokenizer([prompt_of(held_characters[i]) for i in at], **pad)
        with torch.no_grad():
            losses.append(loss_of(mean, schedule, held[at], asked.input_ids, asked.attention_mask, fixed) * len(at))
    record = {
        "made": datetime.now(UTC).strftime("%Y-%m-%d"),
        "trainings": [*before, {"steps": step, "minutes": args.minutes, "rate": rate}],
        "batch": BATCH,
        "pictures": len(pictures),
        "faces": list(PLAIN),
        "held_out_pictures": len(held),
        "held_out_loss": round(float(sum(losses)) / len(held), 5),
        "parameters": sum(p.numel() for p in mean.transformer.parameters()),
        "text_encoder_parameters": sum(p.numel() for p in mean.text_encoder.parameters()),
        "seed": SEED,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    (args.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
