"""CIFAR-10: a backbone of vehicles, animals federated over skewed clients, by adapters and by full-model FedAvg.

    python experiments/cifar.py DATA --features resnet20-12fca82f.th [--scale small|serious|try] [--out OUT]

DATA holds cifar10_train10k.npz and cifar10_test2k.npz. The two plans differ in `[adapter]` and in the learning rate
alone; each has as many of those tried, and takes the one with the lowest validation loss.
Written are OUT.json with all numbers, OUT.png with the curves and OUT-samples.png.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
import cifar_figures
from cifar_backbone import ANIMALS, EMPTY, RECORD, SEED, TARGETS, VEHICLES, Recipe, loaded, pretrain

import fedgen
from fedgen import Bank, seeds
from fedgen import plan as plans
from fedgen.backbones import DiffusionBackbone
from fedgen.data.arrays import CLASSES, Npz
from fedgen.data.deal import count
from fedgen.evaluate import YARDSTICKS, Score, score, total
from fedgen.places import inprocess
from fedgen.plan import Plan
from fedgen.quality import Moments, ResNet, called, extract, frechet, moments
from fedgen.records import GLOBAL, Document, Report, Rows
from fedgen.run import Run
from fedgen.sample import sampler
from fedgen.store import write_whole

CROWD = 64  # pictures drawn at once
YARDSTICK = YARDSTICKS["image"]
WAYS = ("adapters", "full model")


@dataclass(frozen=True)
class Scale:
    """How much of everything; `trial` is for how many rounds a learning rate is tried."""

    recipe: Recipe
    rank: int
    clients: int
    rounds: int
    steps: int
    rates: dict[str, tuple[float, ...]]
    trial: int
    drawn: int
    sampling: int
    batch: int = 16
    alpha: float = 0.3
    fraction: float = 0.5


SCALES = {
    "try": Scale(
        Recipe(48, 2, 4, minutes=0.2), rank=4, clients=6, rounds=2, steps=3, trial=1, drawn=72, sampling=4,
        rates={"adapters": (1e-2, 3e-3), "full model": (1e-3, 3e-4)},
    ),
    "small": Scale(
        Recipe(192, 4, 4, minutes=5.5), rank=8, clients=20, rounds=6, steps=20, trial=1, drawn=384, sampling=12,
        rates={"adapters": (1e-2, 3e-3), "full model": (1e-3, 3e-4)},
    ),
    "serious": Scale(
        Recipe(512, 8, 2, minutes=60, batch=256, rate=5e-4), rank=16, clients=50, rounds=50, steps=50, trial=10,
        drawn=3000, sampling=50, rates={"adapters": (3e-3, 1e-3, 3e-4), "full model": (3e-4, 1e-4, 3e-5)},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Site:
    """The two federations of one backbone folder: their plans, and a place for what runs leave."""

    scale: Scale
    backbone: Path
    work: Path

    def plan(self, way: str, rate: float, rounds: int) -> Plan:
        """The federation of adapters, or of the full model."""
        scale = self.scale
        adapter = {"rank": scale.rank, "targets": list(TARGETS)} if way == "adapters" else {"of": "weights"}
        return plans.read(
            {
                "name": "cifar",
                "seed": SEED,
                "rounds": rounds,
                "backbone": {"kind": "diffusion", "source": str(self.backbone), "drop": EMPTY, "dtype": "float32"},
                "adapter": adapter,
                "data": {"kind": "npz", "path": str(self.work / "animals.npz")},
                "partition": {"kind": "dirichlet", "clients": scale.clients, "alpha": scale.alpha},
                "deal": {"valid": 0.06, "test": 0.06, "least": scale.batch, "small": "drop"},
                "training": {"lr": rate, "steps": scale.steps, "batch": scale.batch},
                "cohort": {"fraction": scale.fraction},
                "personal": {"kind": "none"},
                "evaluate": {"clients": scale.clients, "keep": 1},
            }
        )


# ---- what is measured


@dataclass(frozen=True)
class Judge:
    """Draws animals, every class as often and each from the same noise; says how far they are from real ones."""

    scale: Scale
    features: ResNet
    real: Moments

    def drawn(self, backbone: DiffusionBackbone) -> Tensor:
        """Pictures of a network as it is; the classes take turns."""
        asked = [Document("", "", label=ANIMALS[at % len(ANIMALS)]) for at in range(self.scale.drawn)]
        draws = [seeds.generator(SEED, -1, str(at), "drawn") for at in range(self.scale.drawn)]
        parts = [slice(at, at + CROWD) for at in range(0, self.scale.drawn, CROWD)]
        return torch.cat([backbone.paint(asked[at], draws[at], steps=self.scale.sampling) for at in parts])

    def distance(self, pictures: Tensor) -> float:
        """The Fréchet distance to the real pictures."""
        return round(frechet(moments(extract(self.features, pictures)), self.real), 4)


def follow(way: str, run: Run, judge: Judge, first: float) -> tuple[dict[str, Any], Tensor]:
    """A federation, measured after each round, with the pictures of the last; round 0 is the backbone, as known."""
    drawn, found, pictures = sampler(run), [first], torch.empty(0)
    for turn in range(1, run.plan.rounds + 1):
        adapter, _ = run.adapter(f"{GLOBAL}@round-{turn}")
        with drawn.bank.carry(drawn.bank.layout.vector(adapter).to(drawn.bank.lines)[None]):
            pictures = judge.drawn(drawn.backbone)
        found.append(said(way, turn, judge.distance(pictures)))
    test = mean_loss(total(scores[GLOBAL] for scores in run.scores.values()))
    return course(found, run.journal) | {"test_loss": test}, pictures


def missed(backbone: DiffusionBackbone, tables: Iterable[Rows]) -> Score:
    """How a network as it is does on rows that it has not learnt, as the engine scores adapters."""
    with Bank(backbone.network, TARGETS, 1) as bank:
        return total(score(backbone, bank, [(bank.lines[0], rows) for rows in tables]))


def mean_loss(found: Score) -> float:
    """The denoising loss, rounded for a record."""
    return round(YARDSTICK.of(found), 5)


def course(found: list[float], rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A federation round by round; distances and bytes (as serialised, all so far) begin with round 0."""
    return {
        "frechet": found,
        "validation_loss": [round(each["metrics"][YARDSTICK.key], 5) for each in rounds],
        "bytes_up": [0, *accumulate(each["up"] for each in rounds)],
        "bytes_down": [0, *accumulate(each["down"] for each in rounds)],
    }


def said(name: str, turn: int, distance: float) -> float:
    """The distance, once it is shown."""
    print(f"{name}, round {turn}: Fréchet distance {distance}", flush=True)
    return distance


# ---- all of it


def read(path: Path, labels: Sequence[str]) -> list[Document]:
    """The pictures of some classes, of which there are as many of each; the classes take turns, as in those drawn."""
    documents = Npz(str(path)).read()
    found = [[document for document in documents if document.label == label] for label in labels]
    return list(chain.from_iterable(zip(*found, strict=True)))


def stack(documents: Sequence[Document]) -> Tensor:
    """The documents' pictures in one tensor."""
    return torch.stack([document.picture for document in documents if document.picture is not None])


def try_rates(site: Site) -> dict[str, dict[float, float]]:
    """The validation loss that each learning rate comes to in a few rounds."""
    found: dict[str, dict[float, float]] = {way: {} for way in WAYS}
    for way in WAYS:
        for rate in site.scale.rates[way]:
            run = fedgen.run(site.plan(way, rate, site.scale.trial), site.work / f"trial of {way} at {rate}")
            found[way][rate] = round(run.journal[-1]["metrics"][YARDSTICK.key], 5)
    print("validation loss by learning rate:", json.dumps(found), flush=True)
    return found


def experiment(data: Path, features: ResNet, site: Site) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Everything, from the pictures to the numbers; and pictures to show, a row each."""
    training, test = data / "cifar10_train10k.npz", data / "cifar10_test2k.npz"
    if not (site.backbone / RECORD).exists():
        pretrain(site.scale.recipe, site.backbone, read(training, VEHICLES))
    animals, real, scale = read(training, ANIMALS), stack(read(test, ANIMALS)), site.scale
    labels = np.array([int(document.label) for document in animals])
    np.savez(site.work / "animals.npz", x=stack(animals).permute(0, 2, 3, 1).numpy(), y=labels)
    judge, bare = Judge(scale, features, moments(extract(features, real))), loaded(site.backbone)
    tried = try_rates(site)
    rates = {name: min(losses, key=losses.__getitem__) for name, losses in tried.items()}
    before = judge.drawn(bare)
    first = said("backbone", 0, judge.distance(before))
    runs = {way: fedgen.run(site.plan(way, rates[way], scale.rounds), site.work / way, tell=tell) for way in WAYS}
    followed = {way: follow(way, run, judge, first) for way, run in runs.items()}
    clients, _ = inprocess.hold_data(runs["adapters"].plan, bare)
    losses = {
        name: mean_loss(missed(bare, [getattr(client, name) for client in clients.values()]))
        for name in ("valid", "test")
    }
    vehicles = mean_loss(missed(bare, [bare.encode(read(test, VEHICLES))]))
    result = {
        "settings": dataclasses.asdict(scale) | {"targets": TARGETS, "guidance": 1, "seed": SEED},
        "pretraining": json.loads((site.backbone / RECORD).read_text()) | {"test_loss": vehicles},
        "clients": {name: count(client.train) for name, client in clients.items()},
        "distance": called(features, min(scale.drawn, len(real))),
        "real_pictures": len(real),
        "drawn_pictures": scale.drawn,
        "frechet_of_real": judge.distance(stack(animals[: scale.drawn])),
        "rates_tried": tried,
        "rates": rates,
        "backbone_losses": losses,
        **{way: found for way, (found, _) in followed.items()},
        **{key: runs["adapters"].facts[key] for key in ("parameters", "machine", "python", "versions")},
    }
    drawn = {way: pictures for way, (_, pictures) in followed.items()}
    return result, {"real": real, "backbone": before} | drawn


def tell(event: object) -> None:
    """A line a round."""
    if isinstance(event, Report):
        print(f"round {event.round}: {event.seconds:.0f} s, loss {event.metrics['loss']:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder with cifar10_train10k.npz and cifar10_test2k.npz")
    parser.add_argument("--features", required=True, help="resnet20-12fca82f.th, the network that the distance is on")
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "cifar")
    parser.add_argument("--backbone", type=Path, help="a folder to keep the backbone in, or to take it from")
    args = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        site = Site(SCALES[args.scale], args.backbone or Path(name) / "backbone", Path(name))
        result, rows = experiment(args.data, ResNet(args.features), site)
    about = {"date": datetime.now(UTC).date().isoformat(), "scale": args.scale, "threads": torch.get_num_threads()}
    result = about | {"minutes": round((time.monotonic() - began) / 60, 1)} | result
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(args.out.with_suffix(".json"), (json.dumps(result, indent=1) + "\n").encode())
    cifar_figures.curves(args.out.with_suffix(".png"), result)
    cifar_figures.samples(args.out.with_name(f"{args.out.name}-samples.png"), rows, [CLASSES[int(a)] for a in ANIMALS])
    print(f"{args.out}.json, .png and -samples.png, in {result['minutes']} minutes")


if __name__ == "__main__":
    main()
