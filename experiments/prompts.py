"""Clients made by category from public prompts, grouped by what they send: how well, by encoder and by noise.

    python experiments/prompts.py [--data DATA] [--out OUT]

DATA holds `prompts` and `dolly`; without the option it is the folder that FEDGEN_DATA names, or ../shared/data. Each
client holds twelve prompts of one category, and no prompt has two holders. The server is told how many categories there
are, and groups what it was sent by spherical k-means. Written are OUT.json with every seed's numbers, and OUT.png.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
from prompts_data import (
    DATA,
    HAND,
    MOST,
    PROFILES,
    SEEDS,
    Remembered,
    backbones,
    encoders,
    hands,
    keep,
    profiles,
    worlds,
)
from prompts_figures import grouping

from fedgen import seeds
from fedgen.backbones import Backbone
from fedgen.cluster import KMeans, ari, nmi
from fedgen.encode import Profile


def grouped(world: Mapping[str, str], profile: Profile, encoder: Remembered, backbone: Backbone) -> dict[str, Any]:
    """ARI and NMI of the groups found against the categories, a number a seed; and the bytes that a client sends."""
    found: dict[str, Any] = {"ari": [], "nmi": []}
    for seed in SEEDS:
        held = hands(world, seed)
        kinds = sorted({hand.category for hand in held})
        truth = torch.tensor([kinds.index(hand.category) for hand in held])
        points = profiles(held, profile, encoder, backbone, seed)
        labels = KMeans(count=len(kinds)).group(points, seeds.generator(seed, -1, "", "cluster"))
        found["ari"].append(round(ari(labels, truth) or 0.0, 3))
        found["nmi"].append(round(nmi(labels, truth) or 0.0, 3))
    return found | {"bytes": points[0].nbytes}


def experiment(data: Path) -> dict[str, Any]:
    """Every world under every encoder and every profile."""
    text, image = backbones()
    known = worlds(data)
    encoded = encoders(list(dict.fromkeys(prompt for world in known.values() for prompt in world)), text, image)
    result: dict[str, Any] = {}
    for name, world in known.items():
        held = hands(world, 0)
        kinds = sorted({hand.category for hand in held})
        result[name] = {"prompts": len(world), "clients": len(held), "categories": kinds, "encoders": {}}
        for kind, encoder in encoded.items():
            found = {said: grouped(world, profile, encoder, text) for said, profile in PROFILES.items()}
            result[name]["encoders"][kind] = found
            print(
                f"{name}, {kind}: ARI " + ", ".join(f"{said} {row['ari']}" for said, row in found.items()), flush=True
            )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder with `prompts` and `dolly`")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "prompts")
    args = parser.parse_args()
    began = time.monotonic()
    settings = {"seeds": SEEDS, "prompts_a_client": HAND, "clients_a_category": MOST}
    keep(args.out, began, {"settings": settings, "worlds": experiment(args.data)}, grouping)


if __name__ == "__main__":
    main()
