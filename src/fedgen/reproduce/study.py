"""A study: one TOML that says which methods meet in which worlds, read strictly and spread out into runs.

The head of `ptb.toml` says what its keys are. Runs come in the order of their parts, and what a part needs to have its
learning rates chosen comes right before it, so that an interrupted study has its first parts whole.
"""

import hashlib
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fedgen import plan as plans
from fedgen.errors import PlanError
from fedgen.methods import METHODS
from fedgen.plan import Plan

Value = str | int | float | None
RULES = 1  # to be counted up when what a plan comes to changes, so that old results are not taken for new ones
TRIAL = "trial"  # what `{seed}` is called where learning rates are chosen
QUICK = ("plan", "minutes", "rates", "trial", "part")  # what a quick version may say otherwise


@dataclass(frozen=True)
class Trial:
    """How learning rates are chosen: in these worlds, each for those that follow it, with these settings on top."""

    worlds: tuple[str, ...]
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """Some of the runs: these methods in these worlds from these seeds; in a sweep, with each value of a key."""

    worlds: tuple[str, ...]
    methods: tuple[str, ...] = tuple(METHODS)
    seeds: tuple[int, ...] = (0,)
    optimizer: str = "adamw"
    sweep: str = ""
    key: str = ""
    values: tuple[Value, ...] = (None,)
    settings: tuple[str, ...] = ()
    drift: bool = False
    frechet: tuple[int, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run that is wanted; without a rate, it takes the one that trials choose."""

    part: Part
    method: str
    world: str
    seed: int | str
    value: Value = None
    rate: float | None = None


@dataclass(frozen=True)
class Job:
    """One run with all that it depends on: a plan in which folders are still to be filled in, and a key of all that."""

    cell: Cell
    rate: float
    plan: Plan
    key: str

    def resolved(self, data: Path, work: Path) -> Plan:
        """The plan with the folders filled in."""
        return plans.read(_filled(tomllib.loads(plans.write(self.plan)), {"{data}": str(data), "{work}": str(work)}))


@dataclass(frozen=True)
class Study:
    """What is to be played; `rates` are by optimizer and by the methods' group, `other` for those not named.

    A last fine-tuning for the client itself takes a share `last` of the rate: nothing evens it out after it.
    """

    name: str
    title: str
    prepare: str
    minutes: float
    last: float
    plan: Mapping[str, Any]
    worlds: Mapping[str, tuple[str, ...]]
    rates: Mapping[str, Mapping[str, tuple[float, ...]]]
    trial: Trial
    parts: tuple[Part, ...]

    def cells(self) -> Iterator[Cell]:
        """All runs, in the order of work; those that choose rates come once, before the first that wants them."""
        tried = set()
        for part in self.parts:
            for cell in _spread(part):
                for trial in self.trials(cell):
                    if trial_name(trial) not in tried:
                        tried.add(trial_name(trial))
                        yield trial
            yield from _spread(part)

    def trials(self, cell: Cell) -> list[Cell]:
        """The runs by which this one's rate is chosen."""
        world = cell.world if cell.world in self.trial.worlds else self.trial.worlds[0]
        part = Part((world,), optimizer=cell.part.optimizer)
        return [Cell(part, cell.method, world, TRIAL, rate=rate) for rate in self.tried(cell)]

    def tried(self, cell: Cell) -> tuple[float, ...]:
        """The learning rates that its method may take."""
        by_group = self.rates[cell.part.optimizer]
        return by_group.get(METHODS[cell.method].group, by_group["other"])

    def job(self, cell: Cell, rate: float, salt: str = "") -> Job:
        """The run at this rate. Its key changes with all that its result depends on; `salt` is what no plan says.

        Settings at their default are left out, so that a new kind of setting makes no run a new one; what changes the
        results of old plans is told by RULES.
        """
        part, is_trial = cell.part, cell.seed == TRIAL
        settings = (
            *self.worlds[cell.world],
            *([] if is_trial else [f"seed={cell.seed}"]),
            f"training.optimizer={part.optimizer}",
            f"training.lr={rate}",
            *part.settings,
            *([f"{part.key}={cell.value}"] if part.key else []),
            *(self.trial.settings if is_trial else ()),
        )
        base: Mapping[str, Any] = _filled(self.plan, {"{seed}": str(cell.seed)})
        plan = METHODS[cell.method].over(
            plans.read(base, [line.replace("{seed}", str(cell.seed)) for line in settings])
        )
        if "seed" in {spot.name for spot in fields(plan.share)} and not is_trial:  # type: ignore[arg-type]
            plan = plans.read(plan, [f"share.seed={cell.seed}"])
        if "lr" in {spot.name for spot in fields(plan.personal)}:  # type: ignore[arg-type]
            plan = plans.read(plan, [f"personal.lr={rate if plan.personal.each_round else self.last * rate}"])
        said = f"{RULES}{_chosen(plan)}{part.drift}{part.frechet}{salt}"
        return Job(cell, rate, plan, hashlib.sha256(said.encode()).hexdigest()[:12])


def _chosen(plan: Plan) -> dict[str, Any]:
    """What a plan says that is not a default, by section."""
    found: dict[str, Any] = {name: getattr(plan, name) for name in ("seed", "rounds")}
    for section in [*plans.TABLES, *plans.SECTIONS]:
        part = getattr(plan, section)
        said = {spot.name: value for spot in fields(part) if (value := getattr(part, spot.name)) != spot.default}
        found[section] = [type(part).__name__, said]
    return found


def trial_name(trial: Cell) -> tuple[str, str, str, float | None]:
    """What tells one trial from another."""
    return trial.part.optimizer, trial.world, trial.method, trial.rate


def _spread(part: Part) -> Iterator[Cell]:
    for seed in part.seeds:
        for world in part.worlds:
            for value in part.values:
                for method in part.methods:
                    yield Cell(part, method, world, seed, value)


def _filled(said: Any, words: Mapping[str, str]) -> Any:
    if isinstance(said, Mapping):
        return {key: _filled(value, words) for key, value in said.items()}
    for word, meant in words.items() if isinstance(said, str) else ():
        said = said.replace(word, meant)
    return said


# ---- reading


def read(name: str, *, quick: bool = False) -> Study:
    """A study by its name, or from the path of a TOML file; all of its runs' plans are looked at."""
    path = Path(name) if name.endswith(".toml") else Path(__file__).parent / f"{name}.toml"
    if not path.exists():
        known = ", ".join(sorted(found.stem for found in Path(__file__).parent.glob("*.toml")))
        raise PlanError(f"reproduce: '{name}' is no study; there are {known}, or give the path of a .toml file")
    try:
        said = tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"study '{path}': is not TOML that can be read: {error}") from error
    study = _study(path.stem, said, quick)
    for cell in study.cells():
        study.job(cell, cell.rate or study.tried(cell)[0])
    return study


def _study(name: str, said: dict[str, Any], quick: bool) -> Study:
    fast = said.pop("quick", {})
    _known("[quick]", fast, QUICK)
    if quick:
        said |= {key: value for key, value in fast.items() if key != "plan"}
    _known(f"study '{name}'", said, ("title", "prepare", "minutes", "last", "plan", "worlds", "rates", "trial", "part"))
    for key in ("plan", "worlds", "rates", "trial", "part"):
        if key not in said:
            raise PlanError(f"study '{name}': [{key}] is missing; see the head of ptb.toml for what a study says")
    base = tomllib.loads(plans.write(plans.read(said["plan"], fast.get("plan", []) if quick else [])))
    study = Study(
        name=name,
        title=str(said.get("title", name)),
        prepare=str(said.get("prepare", "")),
        minutes=float(said.get("minutes", 0)),
        last=float(said.get("last", 1)),
        plan=base,
        worlds={world: tuple(lines) for world, lines in said["worlds"].items()},
        rates={kind: {name: tuple(map(float, own)) for name, own in by.items()} for kind, by in said["rates"].items()},
        trial=_record(Trial, "[trial]", said["trial"]),
        parts=tuple(_record(Part, f"[[part]] {number}", part) for number, part in enumerate(said["part"], 1)),
    )
    _agree(study)
    return study


Record = typing.TypeVar("Record", Trial, Part)


def _record(kind: type[Record], where: str, said: Mapping[str, Any]) -> Record:
    """A record from its table: no key that it does not have, each of the type of its default."""
    hints = typing.get_type_hints(kind)
    _known(where, said, tuple(hints))
    if "worlds" not in said:
        raise PlanError(f"{where}: worlds are missing; name at least one")
    made: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in said.items()}
    for key, value in made.items():
        wanted = typing.get_origin(hints[key]) or hints[key]
        if not isinstance(value, wanted):
            raise PlanError(
                f"{where}: '{key}' wanted {'a list' if wanted is tuple else wanted.__name__}, came {value!r}"
            )
    return kind(**made)


def _known(where: str, said: Mapping[str, Any], wanted: tuple[str, ...]) -> None:
    for key in said:
        if key not in wanted:
            raise PlanError(f"{where}: '{key}' is not one of {', '.join(wanted)}")


def _agree(study: Study) -> None:
    for number, part in enumerate(study.parts, 1):
        _all(f"[[part]] {number}: world", part.worlds, study.worlds)
        _all(f"[[part]] {number}: method", part.methods, METHODS)
        _all(f"[[part]] {number}: the rates of optimizer", (part.optimizer,), study.rates)
        if bool(part.sweep) != bool(part.key) or (part.key and part.values == (None,)):
            raise PlanError(f"[[part]] {number}: a sweep wants its name, a key and values, or else none of them")
    _all("[trial]: world", study.trial.worlds, study.worlds)
    for optimizer, groups in study.rates.items():
        if "other" not in groups or not all(groups.values()):
            raise PlanError(f"[rates.{optimizer}]: wanted rates for every group it names and for 'other'")


def _all(where: str, found: tuple[str, ...], known: Mapping[str, Any]) -> None:
    for name in found:
        if name not in known:
            raise PlanError(f"{where} '{name}' is not one of {', '.join(known)}")
