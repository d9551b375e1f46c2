"""Public prompts as clients hold them: read by category, dealt, and encoded once for all that is measured."""

import csv
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgen import seeds
from fedgen.backbones import Backbone, Diffusion, Language
from fedgen.encode import Encoder, Ngrams, Own, Profile
from fedgen.store import write_whole

DATA = Path(os.environ.get("FEDGEN_DATA") or Path(__file__).parents[2] / "shared" / "data")
SEEDS = 0, 1, 2
HAND, MOST = 12, 10  # prompts of a client, and the most clients of a category
NARROW = 64  # numbers of a narrow profile; noise is measured on these, as wider ones need more of it
EPSILONS = 300.0, 100.0, 30.0
PROFILES: dict[str, Profile] = {
    "as encoded": Profile(),
    f"{NARROW} numbers": Profile(width=NARROW),
    **{f"epsilon {epsilon:g}": Profile(width=NARROW, epsilon=epsilon) for epsilon in EPSILONS},
}
"""What a client may send, from all to little."""


@dataclass(frozen=True)
class Hand:
    """One client: its category and its prompts, which no other client holds."""

    name: str
    category: str
    prompts: tuple[str, ...]


def worlds(data: Path) -> dict[str, dict[str, str]]:
    """By world, the category of every prompt; in the third it is the set that a prompt comes from."""
    prompts = data / "prompts"
    with (prompts / "partiprompts" / "PartiPrompts.tsv").open(encoding="utf-8", newline="") as file:
        parti = {row["Prompt"]: row["Category"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)}
    dolly = {row["instruction"]: row["category"] for row in lines(data / "dolly" / "dolly_subset.jsonl")}
    tasks = [row["instruction"] for row in lines(prompts / "self_instruct_seed" / "seed_tasks.jsonl")]
    drawbench = (prompts / "drawbench" / "drawbench.txt").read_text("utf-8").splitlines()
    sets = {"PartiPrompts": parti, "DrawBench": drawbench, "Dolly": dolly, "self-instruct": tasks}
    mixed = {prompt: name for name, found in sets.items() for prompt in found}
    found = {"PartiPrompts": parti, "Dolly": dolly, "which set": mixed}
    return {name: {prompt: kind for prompt, kind in world.items() if prompt.strip()} for name, world in found.items()}


def lines(path: Path) -> list[dict[str, Any]]:
    """A JSON object a line."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def hands(world: Mapping[str, str], seed: int, size: int = HAND, most: int = MOST) -> list[Hand]:
    """Clients of so many prompts each; a category with few prompts has few clients."""
    dealt = []
    for category in sorted(set(world.values())):
        held = [prompt for prompt, kind in world.items() if kind == category]
        draw = seeds.generator(seed, -1, category, "hands")
        held = [held[at] for at in torch.randperm(len(held), generator=draw)]
        for number in range(min(most, len(held) // size)):
            own = tuple(held[number * size : (number + 1) * size])
            dealt.append(Hand(f"{category} {number}", category, own))
    return dealt


@dataclass(frozen=True)
class Remembered:
    """An encoder whose vectors are known already."""

    place: Mapping[str, int]
    vectors: Tensor

    def read(self, texts: Sequence[str], backbone: Backbone) -> Tensor:
        """The known vectors of these texts."""
        return self.vectors[[self.place[text] for text in texts]]


def backbones() -> tuple[Backbone, Backbone]:
    """The two that come with the package."""
    return Language(device="cpu").load(), Diffusion(device="cpu").load()


def encoders(texts: Sequence[str], text: Backbone, image: Backbone) -> dict[str, Remembered]:
    """Every encoder that needs no download, with what it makes of these texts."""
    known: dict[str, tuple[Encoder, Backbone]] = {
        "n-grams": (Ngrams(), text), "text backbone": (Own(), text), "image backbone": (Own(), image)
    }  # fmt: skip
    place = {prompt: at for at, prompt in enumerate(texts)}
    return {name: Remembered(place, part.read(texts, backbone)) for name, (part, backbone) in known.items()}


def profiles(held: Sequence[Hand], profile: Profile, encoder: Encoder, backbone: Backbone, seed: int) -> Tensor:
    """What each client sends, [clients, width]."""
    draws = [seeds.generator(seed, -1, hand.name, "profile") for hand in held]
    each = zip(held, draws, strict=True)
    return torch.cat([profile.of(hand.prompts, encoder, backbone, draw) for hand, draw in each])


def keep(out: Path, began: float, content: Mapping[str, Any], draw: Callable[[Path, dict[str, Any]], None]) -> None:
    """Write OUT.json, the content with date, threads and the time since `began`; and OUT.png as it is drawn of that."""
    minutes = round((time.monotonic() - began) / 60, 1)
    said = {"date": datetime.now(UTC).date().isoformat(), "minutes": minutes}
    said |= {"minutes_of_cpu": round(time.process_time() / 60, 1), "threads": torch.get_num_threads()}
    result = said | dict(content)
    write_whole(out.with_suffix(".json"), (json.dumps(result, indent=1) + "\n").encode())
    draw(out.with_suffix(".png"), result)
    print(f"{out}.json and .png, in {minutes} minutes")
