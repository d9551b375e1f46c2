"""All that one server serves: runs with their backbones, names, slots and engines, and the way from a name to a row."""

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from torch import Tensor

from fedgen import sample
from fedgen.backbones import Backbone, DiffusionBackbone, LanguageBackbone
from fedgen.bank import Bank
from fedgen.errors import ClosedError, ServeError, UnknownError
from fedgen.run import Run
from fedgen.serve.engine.drawing import Drawing
from fedgen.serve.engine.loop import Batch, Engine
from fedgen.serve.engine.writing import Writing
from fedgen.serve.keys import Who
from fedgen.serve.pool import Adapter, Catalogue, Course, Entry, Follow, Mixture, Slots, fill

MOST = 4  # adapters in one mixture
ELSEWHERE = {"text": "/v1/completions", "image": "/v1/images/generations"}


@dataclass(frozen=True)
class Limits:
    """What the server holds at most, all of it reserved or counted from the start.

    `rank` 0 is the run's own; `length` 0 is all that the model reads; a round that is worse than the last by more than
    the share `margin` is held back; `places` is the queue's, of each run.
    """

    texts: int = 16
    pictures: int = 8
    places: int = 64
    slots: int = 64
    rank: int = 0
    length: int = 0
    prefix_bytes: int = 64 << 20
    margin: float = 0.05


@dataclass(frozen=True)
class Taken:
    """What a model's name came to: the course of mixtures, how it is spelled, its entries, and what has to be said.

    `before` is its run's name with a colon, where that has to be said to ask for it again.
    """

    course: Course
    model: str
    entries: tuple[Entry, ...]
    note: str = ""
    before: str = ""

    @property
    def id(self) -> str:
        """What can be asked for again."""
        return self.before + self.model


@dataclass(frozen=True)
class Stand:
    """One run, served."""

    name: str
    run: Run
    backbone: Backbone
    catalogue: Catalogue
    slots: Slots
    engine: Engine
    follow: Follow

    @property
    def kind(self) -> str:
        """What it makes: text, or image."""
        return self.backbone.kind

    @property
    def nbytes(self) -> int:
        """What rows, slots and caches may take in memory, beside the backbone."""
        return self.engine.batch.nbytes + self.slots.bank.lines.nbytes

    def take(self, model: str, who: Who, *, fallback: bool = False, mix: Mapping[str, float] | None = None) -> Taken:
        """The adapters that a name, a mixture or stages mean now; with `fallback` the next best of a missing one."""
        note = ""
        said: sample.Stages = [(1.0, dict(mix))] if mix else self._said(model, who)
        if fallback and said == [(1.0, {model: 1.0})]:  # of a mixture none can stand in for one
            model, note = self._next_best(model, who)
            said = [(1.0, {model: 1.0})]
        if len(said) > 1 and self.kind == "text":
            raise ServeError(
                f"model '{model:.200}': adapters take turns between the steps of a picture alone; name a mixture"
            )
        names = dict.fromkeys(name for _, mixed in said for name in mixed)
        if len(names) > MOST:
            raise ServeError(f"model '{model:.200}': wanted at most {MOST} adapters in one answer, came {len(names)}")
        entries = {name: self.catalogue.find(name, who) for name in names}
        course = [(until, _summed(entries, mixed)) for until, mixed in said]
        return Taken(course, sample.spelled(mix) if mix else model, tuple(entries.values()), note)

    def _said(self, model: str, who: Who) -> sample.Stages:
        """As `sample.stages`, unless it is the name of an adapter, however odd."""
        odd = "=" in model or " then " in model
        if odd and any(entry.name == model for entry in self.catalogue.visible(who)):
            return [(1.0, {model: 1.0})]
        return sample.stages(model)

    def _next_best(self, model: str, who: Who) -> tuple[str, str]:
        """The first of a name and its stand-ins that is there, and what is to be said of it."""
        used = self.catalogue.chain(model, who)[0]
        return used, "" if used == model else f"'{model}' is not here; answered under '{used}'"

    def local(self, model: str) -> str:
        """What is said of this run's adapters, without the run's own name before each of them."""
        return re.sub(rf"(^|, *| then +){re.escape(self.name)}:", r"\1", model)

    def encode(self, prompt: str) -> "Future[Tensor]":
        """The prompt as clients encode theirs, to be routed by; read by the engine's thread under the bare backbone."""
        plan = self.run.plan
        sample.centroids(self.run)  # a run that has none is told before anything is encoded
        return self.engine.call(lambda: plan.profile.narrow(plan.encode.read([prompt], self.backbone))[0])

    def route(self, vector: Tensor, who: Who, *, top: int = 2, spread: float = 0.1, gain: float = 1.0) -> str:
        """The mixture of the clusters nearest to an encoded prompt, as a model's name."""
        found = sample.route(self.run, vector, top=min(top, MOST), temperature=spread, gain=gain)
        for name in found:
            self.catalogue.find(name, who)
        return sample.spelled(found)


def _summed(entries: Mapping[str, Entry], mixed: sample.Mixture) -> Mixture:
    """The contents of a mixture of names; two names may mean one content."""
    found: dict[Adapter, float] = {}
    for name, weight in mixed.items():
        adapter = entries[name].adapter
        found[adapter] = found.get(adapter, 0.0) + weight
    return found


@dataclass
class House:
    """What is served, and whether plain prompts are taken."""

    stands: Mapping[str, Stand]
    plain: bool = True
    limits: Limits = field(default_factory=Limits)
    up: bool = False

    @property
    def ready(self) -> bool:
        """Whether it answers: it has begun, is not ending, and no engine has died."""
        return self.up and all(stand.engine.alive for stand in self.stands.values())

    def start(self) -> None:
        """Begin to answer, and to follow the runs."""
        for stand in self.stands.values():
            stand.engine.start()
            stand.follow.start()
        self.up = True

    def close(self, patience: float = 0.0) -> None:
        """Take nothing more, let what is at work finish for so many seconds, and stop."""
        self.up = False
        ending = [threading.Thread(target=stand.engine.close, args=[patience]) for stand in self.stands.values()]
        for thread in ending:
            thread.start()
        for stand in self.stands.values():
            stand.follow.close()
        for thread in ending:
            thread.join()

    def stand(self, kind: str, model: str) -> tuple[Stand, str]:
        """The run that a model's name is of, and its name there; `RUN:NAME` says the run, where several are served."""
        if not self.ready:
            raise ClosedError("the server is starting or stopping; ask it again in a moment")
        run, colon, name = model.partition(":")
        said = colon and run in self.stands
        found, name = ([self.stands[run]], name) if said else (list(self.stands.values()), model)
        able = [stand for stand in found if stand.kind == kind]
        if not able:
            other = found[0]
            raise ServeError(
                f"model '{model:.200}': run '{other.name}' makes {other.kind}, not {kind}; ask {ELSEWHERE[other.kind]}"
            )
        if len(able) > 1:
            names = ", ".join(f"'{stand.name}:{name:.200}'" for stand in able)
            raise UnknownError(f"model '{model:.200}': {len(able)} runs of {kind} are served; name one: {names}")
        return able[0], able[0].local(name)

    def before(self, stand: Stand) -> str:
        """What stands before the names of a run, where several are served."""
        return f"{stand.name}:" if len(self.stands) > 1 else ""


def open_house(
    folders: Sequence[Path], *, handed: Sequence[str] = (), plain: bool = True, limits: Limits | None = None,
    tell: Callable[[str], None] = lambda said: None,
) -> House:  # fmt: skip
    """Load what is to be served; `handed` names the clients whose personal adapters their owners have handed over.

    `tell` hears what is loaded, what is held back, and each round that goes live.
    """
    limits = limits or Limits()
    runs: dict[str, Run] = {}
    for folder in folders:
        run = Run(folder.resolve())
        if run.folder.name in runs:
            raise ServeError(f"serve: two runs are called '{run.folder.name}'; rename one of their folders")
        runs[run.folder.name] = run
    _refuse_unknown(handed, list(runs.values()))
    stands: dict[str, Stand] = {}
    for name, run in runs.items():
        tell(f"loading {name} ...")
        stands[name] = open_stand(name, run, handed, limits, tell)
    return House(stands, plain, limits)


def open_stand(
    name: str, run: Run, handed: Sequence[str], limits: Limits, tell: Callable[[str], None]
) -> Stand:  # fmt: skip
    """Load one run: its backbone, its adapters' names, and room for rows."""
    plan = run.plan
    if plan.adapter.of != "pairs":
        raise ServeError(f"run '{name}': trained whole models, which cannot share a batch; use `fedgen generate`")
    backbone = plan.backbone.load()
    if isinstance(backbone, LanguageBackbone) and limits.length > backbone.reach:
        raise ServeError(f"--length {limits.length}: '{backbone.name}' reads {backbone.reach} tokens; leave it at 0")
    bank = Bank(backbone.network, plan.adapter.targets, limits.rank or plan.width, limits.slots)
    catalogue = Catalogue(bank.layout, backbone.hash, limits.margin)
    slots = Slots(bank, catalogue.pins)
    own = [client for client in handed if not run.finished or client in run.shelf().clients()]
    fill(catalogue, run, own)
    for verdict in catalogue.verdicts:
        if not verdict.published:
            tell(f"{name}: {verdict}")
    catalogue.heard = lambda verdict: tell(f"{name}: {verdict}")
    engine = Engine(batch_of(backbone, slots, limits), limits.places, bank.bare)
    return Stand(name, run, backbone, catalogue, slots, engine, Follow(run, catalogue, own))


def _refuse_unknown(handed: Sequence[str], runs: Sequence[Run]) -> None:
    """Refuse a client that no run knows, unless one is under way and may know it at its end."""
    known = sorted({client for run in runs for client in run.shelf().clients()})
    odd = [client for client in handed if client not in known]
    if odd and all(run.finished for run in runs):
        near = ", ".join(get_close_matches(odd[0], known, 8, 0.0)) or "none"
        raise ServeError(f"serve: client '{odd[0]}' has no adapter of its own in any run here; those who have: {near}")


def batch_of(backbone: Backbone, slots: Slots, limits: Limits) -> Batch:
    """The batch for what a backbone makes."""
    if isinstance(backbone, LanguageBackbone):
        return Writing(backbone, slots, rows=limits.texts, length=limits.length, prefix_bytes=limits.prefix_bytes)
    if isinstance(backbone, DiffusionBackbone):
        return Drawing(backbone, slots, rows=limits.pictures)
    raise ServeError(f"serve: '{backbone.name}' makes {backbone.kind}, which no engine here knows")
