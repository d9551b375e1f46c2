"""What a curious server reads out of encoded prompts, with and without noise, and what the noise costs.

    python experiments/privacy.py [--data DATA] [--out OUT]

The server does all it is asked to, knows the encoder, and has a list of candidates that holds every prompt there is:
all of the data set. From a pooled profile it takes the candidates that lie nearest, or solves for the few whose mean
the profile is. From a prompt sent in full, a vector for each token, it takes the nearest candidate of as many tokens;
where the vectors are the language model's input, the nearest row of its table gives each token, and no list is needed.
DATA as in prompts.py. Written are OUT.json and OUT.png.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from prompts import grouped
from prompts_data import (
    DATA,
    EPSILONS,
    HAND,
    PROFILES,
    SEEDS,
    Hand,
    Remembered,
    backbones,
    encoders,
    hands,
    keep,
    profiles,
    worlds,
)
from prompts_figures import recovery

from fedgen import seeds
from fedgen.backbones import Backbone, LanguageBackbone
from fedgen.encode import Profile, noise, states

SINGLES = 200  # clients with one prompt, and prompts sent in full, a seed
LONGEST = 48  # tokens of a prompt sent in full; the few longer ones are no candidates

# ---- from pooled profiles


def nearest(profile: Tensor, candidates: Tensor, count: int) -> list[int]:
    """The candidates that are most like it."""
    return (candidates @ profile).topk(count).indices.tolist()


def solved(profile: Tensor, candidates: Tensor, count: int) -> list[int]:
    """So many candidates whose weighted sum is the profile, as nearly as can be found: orthogonal matching pursuit."""
    found: list[int] = []
    rest = profile
    for _ in range(count):
        likeness = candidates @ rest
        likeness[found] = -torch.inf
        found.append(int(likeness.argmax()))
        own = candidates[found].T
        rest = profile - own @ (torch.linalg.pinv(own) @ profile)
    return found


def share(held: Sequence[Hand], guessed: Sequence[Sequence[int]], candidates: Sequence[str]) -> float:
    """How many of the clients' prompts are among those that the server names."""
    pairs = list(zip(held, guessed, strict=True))
    right = sum(len({candidates[at] for at in guess} & set(hand.prompts)) for hand, guess in pairs)
    return round(right / sum(len(hand.prompts) for hand, _ in pairs), 3)


def pooled(
    world: Mapping[str, str], profile: Profile, encoder: Remembered, backbone: Backbone
) -> dict[str, list[float]]:
    """What the server finds, a number a seed, of clients with many prompts and of those with one."""
    candidates = list(world)
    known = profile.narrow(encoder.read(candidates, backbone))
    found: dict[str, list[float]] = {"one": [], "nearest": [], "nearest_ten": [], "solved": []}
    for seed in SEEDS:
        ones = [Hand(prompt, "", (prompt,)) for prompt in chosen(candidates, seed)]
        sent = profiles(ones, profile, encoder, backbone, seed)
        found["one"].append(share(ones, [nearest(each, known, 1) for each in sent], candidates))
        held = hands(world, seed)
        sent = profiles(held, profile, encoder, backbone, seed)
        for name, count in (("nearest", HAND), ("nearest_ten", 10 * HAND)):
            found[name].append(share(held, [nearest(each, known, count) for each in sent], candidates))
        found["solved"].append(share(held, [solved(each, known, HAND) for each in sent], candidates))
    return found


def chosen(candidates: Sequence[str], seed: int) -> list[str]:
    """Prompts that are asked about."""
    draw = seeds.generator(seed, -1, "", "singles")
    return [candidates[at] for at in torch.randperm(len(candidates), generator=draw)[:SINGLES].tolist()]


# ---- from prompts in full

Full = Callable[[Sequence[str], Backbone], tuple[Tensor, Tensor]]


def fed(texts: Sequence[str], backbone: Backbone) -> tuple[Tensor, Tensor]:
    """The input hidden states of a language model: its table's row for each token."""
    assert isinstance(backbone, LanguageBackbone)
    network: Any = backbone.network
    read = [backbone.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    rows = [network.get_input_embeddings()(torch.tensor(row)).float() for row in read]
    seen = [torch.ones(len(row)) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(rows, True), torch.nn.utils.rnn.pad_sequence(seen, True)


def in_full(texts: Sequence[str], backbone: Backbone, full: Full) -> dict[str, Tensor]:
    """Each text's vectors, a token each, on a scale on which they are 1 long on average."""
    found: dict[str, Tensor] = {}
    for at in range(0, len(texts), 32):
        part = texts[at : at + 32]
        for text, made, seen in zip(part, *full(part, backbone), strict=True):
            if 0 < seen.sum() <= LONGEST:
                found[text] = made[seen.bool()]
    scale = torch.cat(list(found.values())).norm(dim=1).mean()
    return {text: made / scale for text, made in found.items()}


def recovered(known: Mapping[str, Tensor], epsilon: float) -> list[float]:
    """How many prompts the server reads, a number a seed: the nearest of the candidates of as many tokens."""
    by_length: dict[int, list[str]] = {}
    for text, made in known.items():
        by_length.setdefault(len(made), []).append(text)
    stacks = {length: torch.stack([known[text] for text in texts]).flatten(1) for length, texts in by_length.items()}
    found = []
    for seed in SEEDS:
        draw, right = seeds.generator(seed, -1, "", "in full"), 0
        asked = chosen(list(known), seed)
        for text in asked:
            sent = noised(known[text], epsilon, draw)
            nearby = (stacks[len(sent)] - sent.flatten()).norm(dim=1)
            right += by_length[len(sent)][int(nearby.argmin())] == text
        found.append(round(right / len(asked), 3))
    return found


def looked_up(known: Mapping[str, Tensor], table: Tensor, epsilon: float) -> dict[str, list[float]]:
    """Tokens and whole prompts that are read without a list of candidates: the nearest row of the table for each."""
    every = {text for seed in SEEDS for text in chosen(list(known), seed)}
    table = table.unique(dim=0)  # two tokens of one row cannot be told apart, nor need they be
    true = {text: torch.cdist(made, table).argmin(1) for text, made in known.items() if text in every}
    found: dict[str, list[float]] = {"tokens": [], "prompts": []}
    for seed in SEEDS:
        draw, asked = seeds.generator(seed, -1, "", "in full"), chosen(list(known), seed)
        hits = [torch.cdist(noised(known[text], epsilon, draw), table).argmin(1) == true[text] for text in asked]
        found["tokens"].append(round(torch.cat(hits).float().mean().item(), 3))
        found["prompts"].append(round(sum(bool(hit.all()) for hit in hits) / len(hits), 3))
    return found


def noised(made: Tensor, epsilon: float, draw: torch.Generator) -> Tensor:
    """The vectors as they would be sent; every token spends epsilon."""
    return made + noise(made, epsilon, draw) if epsilon else made


# ---- all of it


def from_profiles(data: Path, text: Backbone, image: Backbone) -> dict[str, Any]:
    """What profiles give away, beside what they are good for."""
    known = {name: world for name, world in worlds(data).items() if name in ("PartiPrompts", "Dolly")}
    encoded = encoders([prompt for world in known.values() for prompt in world], text, image)
    result: dict[str, Any] = {}
    for name, world in known.items():
        result[name] = {"candidates": len(world), "encoders": {}}
        for kind, encoder in encoded.items():
            rows = {}
            for said, profile in PROFILES.items():
                useful = grouped(world, profile, encoder, text)
                rows[said] = pooled(world, profile, encoder, text) | {"ari": useful["ari"]}
                print(f"{name}, {kind}, {said}: {rows[said]}", flush=True)
            result[name]["encoders"][kind] = rows
    return result


def from_full(data: Path, text: Backbone, image: Backbone) -> dict[str, Any]:
    """What prompts in full give away: those for pictures to a text encoder, those for text to a language model."""
    assert isinstance(text, LanguageBackbone)
    network: Any = text.network
    known = worlds(data)
    result: dict[str, Any] = {}
    ways: dict[str, tuple[str, Backbone, Full]] = {
        "image backbone": ("PartiPrompts", image, states),
        "text backbone": ("Dolly", text, states),
        "text backbone, input": ("Dolly", text, fed),
    }
    for name, (world, backbone, full) in ways.items():
        found = in_full(list(known[world]), backbone, full)
        rows = {said(epsilon): recovered(found, epsilon) for epsilon in (0.0, *EPSILONS)}
        result[name] = {
            "world": world,
            "candidates": len(found),
            "width": len(next(iter(found.values()))[0]),
            "prompts": rows,
        }
        if full is fed:
            table = network.get_input_embeddings().weight.float()
            scale = fed([next(iter(found))], backbone)[0].norm() / next(iter(found.values())).norm()
            result[name]["table"] = {said(eps): looked_up(found, table / scale, eps) for eps in (0.0, *EPSILONS)}
        print(f"{name}: {result[name]}", flush=True)
    return result


def said(epsilon: float) -> str:
    """The name of a noise."""
    return f"epsilon {epsilon:g}" if epsilon else "no noise"


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder with `prompts` and `dolly`")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "privacy")
    args = parser.parse_args()
    began, (text, image) = time.monotonic(), backbones()
    content = {
        "settings": {"seeds": SEEDS, "prompts_a_client": HAND, "asked_about": SINGLES, "longest": LONGEST},
        "profiles": from_profiles(args.data, text, image),
        "in_full": from_full(args.data, text, image),
    }
    keep(args.out, began, content, recovery)


if __name__ == "__main__":
    main()
