"""What adapters make: a run's backbone with its adapters, or mixtures of them, continuing a prompt or drawing pictures.

An adapter is said by its name; as a mixture, `bold=0.7,slanted=0.7`; or, for pictures, as stages that take turns
between the steps of denoising: `bold until 0.4 then slanted=0.5,global=0.5`.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from fedgen import lora, seeds
from fedgen.backbones import Backbone, DiffusionBackbone, LanguageBackbone
from fedgen.bank import abreast
from fedgen.errors import ServeError, StoreError
from fedgen.records import Document, Rows, Tree
from fedgen.roster import CENTROIDS
from fedgen.run import Run
from fedgen.store import Card, read_bytes
from fedgen.tree import unpack
from fedgen.weights import AnyBank

BARE = "backbone"  # the name of no adapter at all
CROWD = 32  # pictures drawn at once, each under its own adapter
PART = re.compile(r"(.+?)=([^=,]*)(?:,|$)")  # a name may hold a comma, or an = if a weight follows

Mixture = Mapping[str, float]  # adapters by name, and how much of each
Stages = list[tuple[float, Mixture]]  # mixtures in turn, and until which share of the steps each is used


@dataclass(frozen=True)
class Wish:
    """One picture: under which adapter, mixture or stages, of which prompt, sealed prompt or label, from which draw."""

    adapter: str
    asked: Document | Rows
    seed: int
    use: str = "sample"


@dataclass(frozen=True)
class Sampler:
    """A run's backbone, ready to write or to draw under any of its adapters."""

    run: Run
    backbone: Backbone
    bank: AnyBank
    known: dict[str, Tensor] = field(default_factory=dict)

    def line(self, adapter: str) -> Tensor:
        """An adapter as a line of the bank; `backbone` is zeros."""
        if adapter == BARE:
            return self.bank.lines[0]
        if adapter not in self.known:
            found, _ = self.run.adapter(adapter)
            self.known[adapter] = self.bank.layout.vector(found).to(self.bank.lines)
        return self.known[adapter]

    def under(self, mixtures: Sequence[Mixture]) -> AbstractContextManager[None]:
        """Give each of so many equal groups of a batch's rows its own mixture, for as long as the context lasts.

        Where a pass carries one, it is that of the first group, which is that of all.
        """
        parts = [[(self.line(name), weight) for name, weight in one.items()] for one in mixtures[: self.bank.at_once]]
        lines, weights = abreast(parts, self.bank.lines[0])
        return self.bank.carry(lines, weights=weights)

    def encode(self, prompt: str) -> Tensor:
        """The prompt as clients encode theirs, to be routed by; without noise, as it does not leave this machine."""
        plan = self.run.plan
        centroids(self.run)  # a run that has none is told before anything is encoded
        return plan.profile.narrow(plan.encode.read([prompt], self.backbone))[0]

    def write(
        self, prompt: str | Rows, *, adapter: str = "global", tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[str]:
        """Continue the prompt, plain or sealed, piece by piece; temperature 0 takes the likeliest token each time."""
        if not isinstance(self.backbone, LanguageBackbone):
            raise StoreError(f"run '{self.run.folder}': its backbone draws pictures and writes no text; use paint")
        draw = seeds.generator(seed, -1, "", "sample")
        with self.under([one_mixture(self.run, adapter)]):
            yield from self.backbone.write(prompt, tokens=tokens, temperature=temperature, draw=draw)

    def paint(self, wishes: Sequence[Wish], *, steps: int, guidance: float) -> Iterator[Tensor]:
        """Every wish's picture in bytes, in order; wishes of different adapters share the passes."""
        if not isinstance(self.backbone, DiffusionBackbone):
            raise StoreError(f"run '{self.run.folder}': its backbone writes text and draws no pictures; use write")
        said = [said_by(self.run, wish.adapter) for wish in wishes]
        for name in {name for stages in said for _, mixed in stages for name in mixed}:
            self.line(name)  # one that is not there is told before anything is drawn
        for part in self.bank.passes(said, CROWD):
            yield from self._painted(self.backbone, wishes[part], said[part], steps, guidance)

    def _painted(
        self, backbone: DiffusionBackbone, crowd: Sequence[Wish], said: Sequence[Stages], steps: int, guidance: float
    ) -> Tensor:
        """The pictures of one crowd, whose rows change their mixtures between two steps."""
        draws = [seeds.generator(wish.seed, -1, "", wish.use) for wish in crowd]
        now: list[Mixture] = []
        with ExitStack() as laid:

            def lay(done: int, total: int) -> None:
                nonlocal now
                turns = [turn(stages, done / total) for stages in said]
                if turns != now:
                    laid.close()
                    laid.enter_context(self.under(turns))
                    now = turns

            lay(0, steps)
            asked = [wish.asked for wish in crowd]
            return backbone.paint(asked, draws, steps=steps, guidance=guidance, told=lay)


def sampler(run: Run) -> Sampler:
    """Load a run's backbone and make room for its adapters."""
    plan = run.plan
    backbone = plan.backbone.load()
    return Sampler(run, backbone, plan.adapter.bank(backbone.network, plan.width))


# ---- what is said of adapters in words


def mixture(text: str) -> dict[str, float]:
    """The adapters and weights that a text names: `bold=0.7,slanted=0.7`; a plain name has weight 1."""
    if "=" not in text:
        return {text: 1.0}
    found: dict[str, float] = {}
    parts = list(PART.finditer(text))
    rest = text[parts[-1].end() :] if parts else text
    for name, weight in [(part[1].strip(), _number(part[2])) for part in parts] + [(rest, math.nan)] * bool(rest):
        if not math.isfinite(weight):
            raise ServeError(f"mixture '{text}': wanted NAME=WEIGHT,NAME=WEIGHT, came no finite weight of '{name}'")
        if name in found:
            raise ServeError(f"mixture '{text}': names '{name}' twice; name it once, with the sum of its weights")
        found[name] = weight
    return found


def stages(text: str) -> Stages:
    """The mixtures that a text lets take turns: `bold until 0.4 then slanted`; one alone is used throughout."""
    *early, last = text.split(" then ")
    found: Stages = []
    for stage in early:
        said, _, until = stage.rpartition(" until ")
        end, begin = _number(until), found[-1][0] if found else 0.0
        if not said or not begin <= end <= 1:
            raise ServeError(f"stages '{text}': wanted 'A until 0.5 then B', shares rising from 0 to 1, came '{stage}'")
        found.append((end, mixture(said)))
    return [*found, (1.0, mixture(last))]


def turn(stages: Stages, share: float) -> Mixture:
    """Whose turn it is after this share of the steps."""
    return next((mixed for until, mixed in stages if share < until), stages[-1][1])


def said_by(run: Run, text: str) -> Stages:
    """As `stages`, unless the text is the name of an adapter, however odd."""
    odd = "=" in text or " then " in text
    return [(1.0, {text: 1.0})] if odd and text in run.adapters() else stages(text)


def one_mixture(run: Run, text: str) -> Mixture:
    """As `said_by`, where nothing can take turns."""
    found = said_by(run, text)
    if len(found) > 1:
        raise ServeError(f"stages '{text}': take turns between the steps of a picture alone; name one mixture here")
    return found[0][1]


def spelled(parts: Mixture) -> str:
    """The text that `mixture` reads."""
    return ",".join(f"{name}={weight:.4g}" for name, weight in parts.items())


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


# ---- mixtures chosen and made small


def centroids(run: Run) -> Tree:
    """The middle of each cluster's profiles, as a vector of length 1."""
    path = run.folder / CENTROIDS
    if not path.is_file():
        raise ServeError(f"run '{run.folder}': has no {CENTROIDS} to route by; no clusters were formed by profiles")
    return unpack(read_bytes(path), str(path))[0]


def route(run: Run, vector: Tensor, *, top: int = 2, temperature: float = 0.1, gain: float = 1.0) -> dict[str, float]:
    """The mixture for an encoded prompt: the clusters nearest to it, the nearest first, with weights of sum `gain`.

    Two halves make a mean of two styles; two wholes, a gain of 2 at even likeness, add them up.
    """
    if top < 1 or not temperature > 0 or not math.isfinite(gain):
        wish = "wanted 1 cluster or more, a temperature above 0 and a finite gain"
        raise ServeError(f"route: {wish}, came {top}, {temperature} and {gain}")
    centres = centroids(run)
    names = sorted(centres)
    table = torch.stack([centres[name] for name in names]).double()
    if vector.shape != table.shape[1:] or not vector.isfinite().all():
        came = f"{tuple(vector.shape)}" + ("" if vector.isfinite().all() else " with NaN or infinity")
        raise ServeError(f"route: wanted {table.shape[1]} finite numbers as the run's own encoder gives, came {came}")
    likeness = table @ F.normalize(vector.detach().cpu().double(), dim=0)
    near = sorted(range(len(names)), key=lambda at: (-float(likeness[at]), names[at]))[:top]
    weights = (gain * (likeness[near] / temperature).softmax(0)).tolist()
    return {names[at]: weight for at, weight in zip(near, weights, strict=True)}


def compact(run: Run, parts: Mixture, rank: int = 0) -> tuple[Tree, Card, float]:
    """A mixture as one adapter of this rank (0: as wide as it takes), its card, and the share of energy it loses."""
    found = {name: run.adapter(name) for name in parts if name != BARE}  # the backbone adds nothing
    if not found:
        raise ServeError(f"mixture '{spelled(parts)}': has no adapter in it; name one of the run's")
    if whole_models := [name for name, (_, card) in found.items() if not card.rank]:
        which = f"'{whole_models[0]}' is the change of a full model"
        raise ServeError(f"adapter: {which}, and a bundle holds pairs of factors; use it as the run keeps it")
    shares = [(parts[name], tree) for name, (tree, _) in found.items()]
    whole = sum(lora.rank(tree) for _, tree in shares)
    first, card = next(iter(found.values()))
    if list(parts.values()) == [1.0] and rank in (0, whole):
        return first, card, 0.0
    made, lost = lora.compact(shares, rank or whole)
    parents = ",".join(card.hash for _, card in found.values())
    return made, dataclasses.replace(card, cluster=spelled(parts), client="", parent=parents, metrics={}), lost
