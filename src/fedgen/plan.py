"""A plan is one TOML file: everything a run depends on. Read strictly, refused with a reason, written back resolved."""

import dataclasses
import json
import math
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import nn

from fedgen.aggregate import AGGREGATES, ANEW, FLAT, Aggregate, Average, takes, widest
from fedgen.backbones import BACKBONES, Diffusion, Language, Model
from fedgen.bank import Bank
from fedgen.client import Training
from fedgen.cluster import CLUSTERS, Clustering, Nothing
from fedgen.cohort import COHORTS, Cohort, Uniform
from fedgen.data import PARTITIONS, SOURCES, ByField, Deal, Partition, Source, Stdlib
from fedgen.encode import ENCODERS, Encoder, Profile, Silent
from fedgen.errors import FedgenError, PlanError
from fedgen.exchange import EXCHANGES, Alone, Exchange, Neighbours, Toward
from fedgen.groups import Hierarchy
from fedgen.outer import OUTERS, Outer, Plain
from fedgen.personal import PERSONALS, Added, Beside, FineTune, Personal
from fedgen.records import Range
from fedgen.share import SHARES, Halves, Share
from fedgen.weights import AnyBank, Weights


@dataclass(frozen=True)
class Adapter:
    """The federated adapter: pairs of factors of this rank on the layers named (none: the backbone's own choice).

    Devices that carry less have `ranks` of their own, dealt out in turn by name; an adapter is cut to them.

    `of = "weights"` is the full model instead: every weight is trained and sent, as its change from the backbone, which
    `training.decay` pulls to zero; it has no rank, and no layers to name.
    """

    rank: Annotated[int, Range(1)] = 4
    targets: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    of: Literal["pairs", "weights"] = "pairs"

    def bank(self, network: nn.Module, rank: int) -> AnyBank:
        """The bank of such adapters on a network, the widest of this rank."""
        return Weights(network) if self.of == "weights" else Bank(network, self.targets, rank)


@dataclass(frozen=True)
class Measure:
    """What is measured: validation rows of `clients` every so many rounds (0: never), `rows` at most each (0: all).

    `keep` is after how many rounds the shared adapters are kept as bundles CLUSTER@round-N (0: only the last ones).
    """

    every: Annotated[int, Range(0)] = 1
    clients: Annotated[int, Range(1)] = 16
    rows: Annotated[int, Range(0)] = 0
    keep: Annotated[int, Range(0)] = 0


@dataclass(frozen=True)
class Quality:
    """What is drawn once the rounds of images are over: `pictures` by each adapter of `clients` clients (0: none).

    Each takes `steps` of denoising, with `guidance` towards its prompt. Distances are measured on the `features` of a
    network, whose `weights` are a file; prompts are held against pictures by the CLIP folder `clip`.
    """

    pictures: Annotated[int, Range(0)] = 0
    clients: Annotated[int, Range(1)] = 8
    steps: Annotated[int, Range(1)] = 20
    guidance: Annotated[float, Range(0)] = 2.0
    features: Literal["none", "judge", "resnet", "inception"] = "none"
    weights: str = ""
    clip: str = ""


@dataclass(frozen=True)
class Plan:
    """Everything a run depends on: one part a section."""

    name: str = "run"
    seed: Annotated[int, Range(0)] = 0
    rounds: Annotated[int, Range(1)] = 10
    place: Literal["inprocess"] = "inprocess"
    backbone: Model = field(default_factory=Language)
    adapter: Adapter = field(default_factory=Adapter)
    data: Source = field(default_factory=Stdlib)
    partition: Partition = field(default_factory=ByField)
    deal: Deal = field(default_factory=Deal)
    training: Training = field(default_factory=Training)
    encode: Encoder = field(default_factory=Silent)
    profile: Profile = field(default_factory=Profile)
    cluster: Clustering = field(default_factory=Nothing)
    hierarchy: Hierarchy = field(default_factory=Hierarchy)
    exchange: Exchange = field(default_factory=Alone)
    cohort: Cohort = field(default_factory=Uniform)
    share: Share = field(default_factory=Halves)
    aggregate: Aggregate = field(default_factory=Average)
    outer: Outer = field(default_factory=Plain)
    personal: Personal = field(default_factory=FineTune)
    evaluate: Measure = field(default_factory=Measure)
    quality: Quality = field(default_factory=Quality)

    @property
    def width(self) -> int:
        """The widest rank that training or serving takes."""
        rank = self.adapter.rank
        served, trained = self.share.ranks(widest(self.aggregate, rank), rank)
        return max(trained, self.personal.rank(served))


Table = Mapping[str, type[Any]]
TABLES: dict[str, Table] = {
    "backbone": BACKBONES,
    "data": SOURCES,
    "partition": PARTITIONS,
    "encode": ENCODERS,
    "cluster": CLUSTERS,
    "exchange": EXCHANGES,
    "cohort": COHORTS,
    "share": SHARES,
    "aggregate": AGGREGATES,
    "outer": OUTERS,
    "personal": PERSONALS,
}
SECTIONS: dict[str, type[Any]] = {
    "adapter": Adapter,
    "deal": Deal,
    "training": Training,
    "profile": Profile,
    "hierarchy": Hierarchy,
    "evaluate": Measure,
    "quality": Quality,
}


def read(source: Plan | Path | str | Mapping[str, Any], settings: Sequence[str] = ()) -> Plan:
    """A plan from a file, a dict or another plan, with `section.key=value` settings laid over it."""
    if isinstance(source, Plan):  # made in Python, where nothing has looked at it yet
        source = tomllib.loads(write(source))
    keys = source if isinstance(source, Mapping) else _load(Path(source))
    keys = {key: dict(value) if isinstance(value, Mapping) else value for key, value in keys.items()}
    for setting in sorted(settings, key=lambda setting: ".kind" not in setting.partition("=")[0]):  # kinds come first
        _lay(keys, setting)
    plan = _plan(keys)
    agree(plan)
    return plan


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise PlanError(f"plan '{path}': cannot be read ({error.strerror}); wanted a TOML file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"plan '{path}': is not TOML: {error}") from error


def _lay(keys: dict[str, Any], setting: str) -> None:
    name, equals, raw = setting.partition("=")
    section, dot, key = name.strip().rpartition(".")
    if not equals or not key:
        raise PlanError(f"--set {setting}: wanted section.key=value, such as training.epochs=2")
    try:
        value = tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    place = keys.setdefault(section, {}) if dot else keys
    if not isinstance(place, dict):
        raise PlanError(f"--set {setting}: '{section}' is a value, not a section")
    if key == "kind" and isinstance(value, str) and value in TABLES.get(section, {}):
        known = {spot.name for spot in dataclasses.fields(TABLES[section][value])}
        keys[section] = place = {name: old for name, old in place.items() if name in known}  # the old kind's others go
    place[key] = value


def _plan(keys: Mapping[str, Any]) -> Plan:
    hints = typing.get_type_hints(Plan, include_extras=True)
    known = [name for name in hints if name not in TABLES and name not in SECTIONS]
    parts: dict[str, Any] = {}
    for key, value in keys.items():
        if key not in hints:
            raise PlanError(f"plan: '{key}' is not one of {', '.join(hints)}")
        if key in known:
            parts[key] = _value(key, value, hints[key])
        elif not isinstance(value, dict):
            raise PlanError(f"plan: '{key}' is a section, came {value!r}; write [{key}] and its keys below it")
        else:
            parts[key] = _section(key, value)
    return Plan(**parts)


def _section(section: str, keys: Mapping[str, Any]) -> Any:
    keys = dict(keys)
    if section in SECTIONS:
        return _part(section, SECTIONS[section], keys)
    table = TABLES[section]
    default = type(getattr(Plan(), section))
    kind = keys.pop("kind", next(name for name, part in table.items() if part is default))
    if not isinstance(kind, str) or kind not in table:
        raise PlanError(f"{section}.kind: {kind!r} is not one of {', '.join(table)}")
    return _part(section, table[kind], keys)


def _part(section: str, part: type[Any], keys: Mapping[str, Any]) -> Any:
    said = typing.get_type_hints(part, include_extras=True)
    hints = {spot.name: said[spot.name] for spot in dataclasses.fields(part)}
    for key in keys:
        if key not in hints:
            wanted = ", ".join(hints) or "no keys but kind"
            raise PlanError(f"{section}.{key}: no such key; {part.__name__} has {wanted}")
    for spot in dataclasses.fields(part):
        needed = spot.default is dataclasses.MISSING and spot.default_factory is dataclasses.MISSING
        if needed and spot.name not in keys:
            raise PlanError(f"{section}.{spot.name}: is missing; {part.__name__} wants {_wish(hints[spot.name])}")
    values = {key: _value(f"{section}.{key}", value, hints[key]) for key, value in keys.items()}
    try:
        return part(**values)
    except FedgenError as error:  # keys that are right alone and wrong together
        raise PlanError(f"{section}: {error}") from error


def _value(where: str, value: Any, hint: Any) -> Any:
    """The value as the hint wants it, or one clear line."""
    base, *marks = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    if typing.get_origin(base) is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in typing.get_args(base)):
            raise PlanError(f"{where}: {value!r} is not one of {', '.join(map(str, typing.get_args(base)))}")
        return value
    if typing.get_origin(base) is tuple and isinstance(value, list | tuple):
        item = typing.get_args(base)[0]
        if all(type(each) is item and (item is not str or _is_writable(each)) for each in value):
            return tuple(value)
    if base is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not base or not _is_writable(value) or not all(value in mark for mark in marks):
        raise PlanError(f"{where}: wanted {_wish(hint)}, came {value!r}")
    return value


def _is_writable(value: Any) -> bool:
    """Whether a plan's file can say it and mean something: no NaN, no infinity, no half of a character."""
    if isinstance(value, float):
        return math.isfinite(value)
    return not (isinstance(value, str) and any("\ud800" <= char <= "\udfff" for char in value))


def _wish(hint: Any) -> str:
    base, *marks = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    lists = {tuple[str, ...]: "a list of texts", tuple[int, ...]: "a list of whole numbers"}
    named = names.get(base) or lists.get(base) or str(base)
    return " ".join([named, *map(str, marks)])


def agree(plan: Plan) -> None:
    """Refuse parts that disagree, with the reason."""
    if not plan.name or "/" in plan.name or not plan.name.isprintable():
        raise PlanError(f"name: wanted a name that a folder can have, came {plan.name!r}")
    kind = kind_of("aggregate", plan.aggregate)
    if isinstance(plan.aggregate, ANEW) and plan.outer != Plain():
        raise PlanError(
            f"aggregate and outer disagree: '{kind}' is factored anew each round, so there is no straight way from the "
            "old factors to the new; use outer.kind = 'plain' with lr = 1, or aggregate.kind = 'average'"
        )
    if isinstance(plan.aggregate, FLAT) and plan.cluster.evidence != "none":
        raise PlanError(
            f"aggregate and cluster disagree: updates of '{kind}' begin at the one adapter of all, so the adapters of "
            "clusters have no mean by it; use cluster.kind = 'none', or aggregate.kind = 'exact'"
        )
    if plan.training.momentum and plan.training.optimizer != "sgd":
        raise PlanError("training.momentum: AdamW has its own; set training.optimizer = 'sgd', or momentum = 0")
    if plan.quality.features in ("resnet", "inception") and not plan.quality.weights:
        raise PlanError(f"quality.weights: {plan.quality.features} wants the file of its weights, came none")
    if plan.quality.pictures and not isinstance(plan.backbone, Diffusion):
        raise PlanError("quality.pictures: only a backbone of kind 'diffusion' draws any; set it to 0")

    _agree_on_clusters(plan)
    _agree_on_share(plan)
    if plan.adapter.of == "weights":
        _agree_on_weights(plan)


def _agree_on_share(plan: Plan) -> None:
    share, aggregate = plan.share, kind_of("aggregate", plan.aggregate)
    if not takes(type(plan.aggregate), share.sends):
        kind, others = kind_of("share", share), [name for name, rule in AGGREGATES.items() if takes(rule, share.sends)]
        raise PlanError(
            f"share and aggregate: what share.kind = '{kind}' sends so is not for aggregate.kind = '{aggregate}'; "
            f"choose {' or '.join(others)}"
        )
    if not isinstance(share, Halves) and plan.outer != Plain():
        raise PlanError("share and outer: what is sent is no whole adapter; use outer.kind = 'plain' with lr = 1")
    if share != Halves() and plan.cluster.evidence != "none":
        raise PlanError("share and cluster: clusters exchange whole adapters; let share.kind = 'halves' send both")
    if share.keep and plan.personal.each_round:
        raise PlanError("share.keep and personal: both keep an own adapter; use personal.kind = 'finetune' or 'none'")
    if plan.adapter.ranks:
        _agree_on_ranks(plan, aggregate)


def _agree_on_ranks(plan: Plan, aggregate: str) -> None:
    if not all(1 <= rank <= plan.adapter.rank for rank in plan.adapter.ranks):
        odd = next(rank for rank in plan.adapter.ranks if not 1 <= rank <= plan.adapter.rank)
        raise PlanError(f"adapter.ranks: wanted ranks from 1 to adapter.rank = {plan.adapter.rank}, came {odd}")
    if aggregate not in ("exact", "padded", "stack") or plan.cluster.evidence != "none":
        wish = "aggregate.kind = 'exact', 'padded' or 'stack', and no clusters"
        raise PlanError(f"adapter.ranks: several ranks want {wish}")


def _agree_on_clusters(plan: Plan) -> None:
    evidence, hierarchy, rule = plan.cluster.evidence, plan.hierarchy, plan.exchange
    if evidence == "profiles" and isinstance(plan.encode, Silent):
        raise PlanError("cluster: goes by profiles, and encode.kind = 'none' makes none; choose 'ngrams' or another")
    if evidence == "none" and (plan.exchange != Alone() or hierarchy != Hierarchy()):
        what = "hierarchy" if plan.exchange == Alone() else "exchange"
        raise PlanError(f"{what}: is for clusters, and cluster.kind = 'none' makes none; choose another cluster.kind")
    takes = (rule.of, rule.on) if isinstance(rule, Neighbours | Toward) else ("", "")
    if takes[1] == "products" and not isinstance(plan.outer, Plain):
        raise PlanError("exchange and outer: products are factored anew, which an outer step with memory cannot follow")
    if takes == ("steps", "factors") and isinstance(plan.aggregate, ANEW):
        raise PlanError(
            "exchange and aggregate: exact products are factored anew, so factors take no steps; use products"
        )
    if isinstance(plan.personal, Added) and plan.personal.whole and evidence == "none":
        raise PlanError("personal.whole: without clusters the global adapter is all there is below; set it to 0")
    if hierarchy.every and evidence not in ("profiles", "adapters"):
        raise PlanError(f"hierarchy.every: nothing is formed anew by {evidence}; set it to 0")


def _agree_on_weights(plan: Plan) -> None:
    on_pairs = {
        "aggregate": not isinstance(plan.aggregate, Average),
        "exchange": plan.exchange != Alone(),
        "cluster": plan.cluster.evidence == "adapters",
        "hierarchy.merge": plan.hierarchy.merge > 0,
        "hierarchy.split": plan.hierarchy.split != 0,
        "personal": isinstance(plan.personal, Added | Beside),
        "share": plan.share != Halves(),
        "adapter.ranks": bool(plan.adapter.ranks),
        "training.dropout": plan.training.dropout > 0,
    }
    if found := [name for name, wants_pairs in on_pairs.items() if wants_pairs]:
        raise PlanError(
            f"adapter.of and {found[0]}: as set, {found[0]} works on pairs of factors, and 'weights' has none; "
            f"leave {found[0]} at its default, or set adapter.of = 'pairs'"
        )


def kind_of(section: str, part: object) -> str:
    """The name under which a part stands in its table."""
    return next(name for name, kind in TABLES[section].items() if type(part) is kind)


def write(plan: Plan) -> str:
    """The plan as TOML, every key said."""
    top = [f"{key} = {_toml(getattr(plan, key))}" for key in ("name", "seed", "rounds", "place")]
    return "\n".join([*top, *(_written(section, plan) for section in [*TABLES, *SECTIONS])]) + "\n"


def _written(section: str, plan: Plan) -> str:
    part: Any = getattr(plan, section)
    kind = [f'kind = "{kind_of(section, part)}"'] if section in TABLES else []
    keys = [f"{spot.name} = {_toml(getattr(part, spot.name))}" for spot in dataclasses.fields(part)]
    return "\n".join(["", f"[{section}]", *kind, *keys])


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
