"""Train the glyph judge on real glyphs of every style; write its weights and its own accuracy beside them.

    python experiments/train_judge.py OUT [--epochs 6]

A little noise and blur is laid over the drawings it learns from, so that it does not judge by single pixels.
"""

import argparse
import json
import platform
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from fedgen.data.glyphs import CHARACTERS, STYLES, drawings, has
from fedgen.quality.judge import SIDE, Eye
from fedgen.store import write_whole
from fedgen.tree import pack

SEED, BATCH, RATE, DRAWN, HELD = 0, 256, 2e-3, 32, 4


def rendered(copies: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Drawings of every character in every style, with the numbers of both."""
    draw = torch.Generator().manual_seed(seed)
    made = [
        (picture, style, letter)
        for style, name in enumerate(STYLES)
        for letter, character in enumerate(CHARACTERS)
        if has(name, character)
        for picture in drawings(name, character, copies, SIDE, draw)
    ]
    pictures, styles, letters = zip(*made, strict=True)
    return torch.stack(pictures), torch.tensor(styles), torch.tensor(letters)


def worn(pictures: Tensor, draw: torch.Generator) -> Tensor:
    """Pictures with noise over all of them and blur over half."""
    blurred = F.avg_pool2d(pictures.float(), 3, 1, 1)
    share = torch.rand(len(pictures), 1, 1, 1, generator=draw) * (
        torch.rand(len(pictures), 1, 1, 1, generator=draw) < 0.5
    )
    noise = 24 * torch.rand(len(pictures), 1, 1, 1, generator=draw) * torch.randn(pictures.shape, generator=draw)
    return (pictures * (1 - 0.6 * share) + blurred * 0.6 * share + noise).clamp(0, 255)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=6)
    args = parser.parse_args()
    torch.manual_seed(SEED)
    pictures, styles, letters = rendered(DRAWN, SEED)
    draw, eye, began = torch.Generator().manual_seed(SEED), Eye(), time.monotonic()
    optimizer = torch.optim.AdamW(eye.parameters(), lr=RATE)
    steps = args.epochs * (len(pictures) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1)
    for epoch in range(args.epochs):
        for at in torch.randperm(len(pictures), generator=draw).split(BATCH)[: len(pictures) // BATCH]:
            seen = eye(worn(pictures[at], draw))
            loss = F.cross_entropy(eye.styles(seen), styles[at]) + F.cross_entropy(eye.letters(seen), letters[at])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}  loss {loss.item():.3f}  {time.monotonic() - began:.0f} s", flush=True)
    write_whole(args.out, pack({key: value.half() for key, value in eye.state_dict().items()}))
    eye.load_state_dict({key: value.half().float() for key, value in eye.state_dict().items()})
    record = {"made": datetime.now(UTC).strftime("%Y-%m-%d")} | accuracy(eye, *rendered(HELD, SEED + 1))
    record |= {"pictures": len(pictures), "epochs": args.epochs, "seed": SEED}
    record |= {"torch": torch.__version__, "python": platform.python_version()}
    write_whole(args.out.with_suffix(".json"), (json.dumps(record, indent=1) + "\n").encode())
    print(json.dumps(record))


@torch.no_grad()
def accuracy(eye: Eye, pictures: Tensor, styles: Tensor, letters: Tensor) -> dict[str, float]:
    """How often it is right on glyphs it has not seen: among all styles, and among the few of the demo."""
    seen = torch.cat([eye(part) for part in pictures.split(1024)])
    few = [
        list(STYLES).index(name) for name in ("plain", "bold", "slanted", "serif", "typewriter", "gothic", "outline")
    ]
    small = [at for at, character in enumerate(CHARACTERS) if character.islower()]
    demo = torch.isin(styles, torch.tensor(few)) & torch.isin(letters, torch.tensor(small))
    said = torch.tensor(few)[eye.styles(seen)[demo][:, few].argmax(1)]
    read = torch.tensor(small)[eye.letters(seen)[demo][:, small].argmax(1)]
    return {
        "held_out_pictures": len(pictures),
        "styles_right": round((eye.styles(seen).argmax(1) == styles).double().mean().item(), 4),
        "letters_right": round((eye.letters(seen).argmax(1) == letters).double().mean().item(), 4),
        "demo_pictures": int(demo.sum()),
        "demo_styles_right": round((said == styles[demo]).double().mean().item(), 4),
        "demo_letters_right": round((read == letters[demo]).double().mean().item(), 4),
    }


if __name__ == "__main__":
    main()
