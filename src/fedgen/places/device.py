"""A device's own word, its `node.toml`: what it holds, what it can carry, what it consents to. No plan widens it."""

import dataclasses
import math
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from fedgen.backbones import Backbone, Model
from fedgen.client import Training, width
from fedgen.data import SOURCES, Source
from fedgen.devices import CLASSES, Unknown
from fedgen.encode import Encoder, Folder
from fedgen.errors import BackboneError, ClientError, DataError, PlanError
from fedgen.places import inprocess
from fedgen.plan import Plan, load, part_of, toml_of, value_of
from fedgen.records import Document, Range

NODE = "node.toml"
KEYS = ("name", "class", "data", "limits", "consent", "backbones")
USES = ("train", "check", "score", "encode", "label")
NMCLI = ("nmcli", "-t", "-f", "GENERAL.METERED", "device", "show")
HUB = re.compile(r"hub:[a-z0-9][\w.-]{0,95}(/[a-z0-9][\w.-]{0,95})?", re.ASCII | re.IGNORECASE)  # leads to no folder
MEGABYTE = 2**20


@dataclass(frozen=True)
class Form:
    """What a value looks like, beyond its type: a test, and that in words."""

    takes: Callable[[Any], bool]
    said: str

    def __contains__(self, value: object) -> bool:
        return self.takes(value)

    def __str__(self) -> str:
        return self.said


def _pair(text: str, mark: str) -> tuple[int, int]:
    """The numbers of "22-6" or "1/3"; of anything else two zeros."""
    found = re.fullmatch(rf"([0-9]{{1,9}}){mark}([0-9]{{1,9}})", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _are_hours(text: str) -> bool:
    start, end = _pair(text, "-")
    return not text or (start < 24 and end <= 24 and start != end)


def _is_share(text: str) -> bool:
    first, every = _pair(text, "/")
    return not text or 1 <= first <= every


SAID = Annotated[str, Form(lambda text: bool(text.strip()) and text.isprintable(), "of one line that is not empty")]
HOURS = Form(_are_hours, "such as '22-6', from an hour below 24 until another up to 24, or '' for always")
SHARE = Form(_is_share, "such as '1/3', the first of every three, or '' for all")
CLASS = Form(("", *CLASSES).__contains__, f"out of {', '.join(CLASSES)}, or '' to be measured")
ASKED = Form(set(USES).issuperset, f"out of {', '.join(USES)}")


@dataclass(frozen=True)
class Limits:
    """What a device can carry: MB and threads that a turn takes, hours of local time, and whether on metered networks.

    No `memory` is what is free, no `threads` are all, no `hours` are always.
    """

    memory: Annotated[int, Range(0)] = 0
    threads: Annotated[int, Range(0)] = 0
    hours: Annotated[str, HOURS] = ""
    metered: bool = True


@dataclass(frozen=True)
class Consent:
    """What a device may be asked, and whether it takes data by the server's word (`share` of its clients) or a hub's.

    To `label` is to tell the one label of its data.
    """

    uses: Annotated[tuple[str, ...], ASKED] = ("train", "check", "score", "encode")
    plan_data: bool = False
    share: Annotated[str, SHARE] = ""
    hub: bool = False

    def __post_init__(self) -> None:
        if self.share and not self.plan_data:
            raise PlanError(f"share: wanted with plan_data = true alone, came {self.share!r}; take it out")


@dataclass(frozen=True)
class Device:
    """A device's name, which is its client's for ever, its data, limits and consent, and where its models lie.

    Without data of its own it is for trials: the server's plan says what it reads. `kind` is the class of devices that
    its owner says it is; none is to be measured.
    """

    name: str
    data: Source | None = None
    limits: Limits = field(default_factory=Limits)
    consent: Consent = field(default_factory=Consent)
    backbones: Mapping[str, str] = field(default_factory=dict)
    kind: str = ""

    def __post_init__(self) -> None:
        if self.data is None and not self.consent.plan_data:
            raise PlanError("data: is missing; write [data], its kind and its keys (or consent.plan_data for a trial)")
        if self.data is not None and self.consent.plan_data:
            raise PlanError("consent.plan_data: wanted false beside [data], came true; take one of them out")


# ---- node.toml, read and made


def read(folder: Path) -> Device:
    """The device whose `node.toml` is in this folder; paths in it begin there."""
    path = folder / NODE
    keys = load(path, "node")
    try:
        return _device(keys, folder)
    except PlanError as error:
        raise PlanError(f"node '{path}': {error}") from error


def _device(keys: Mapping[str, Any], folder: Path) -> Device:
    for key, value in keys.items():
        if key not in KEYS:
            raise PlanError(f"'{key}' is not one of {', '.join(KEYS)}")
        if key not in ("name", "class") and not isinstance(value, dict):
            raise PlanError(f"'{key}' is a section, came {value!r}; write [{key}] and its keys below it")
    return Device(
        value_of("name", keys.get("name", ""), SAID),
        _source(keys["data"], folder) if "data" in keys else None,
        part_of("limits", Limits, keys.get("limits", {})),
        part_of("consent", Consent, keys.get("consent", {})),
        {name: _model(name, where, folder) for name, where in keys.get("backbones", {}).items()},
        value_of("class", keys.get("class", ""), Annotated[str, CLASS]),
    )


def _source(keys: Mapping[str, Any], folder: Path) -> Source:
    kind = keys.get("kind", "")
    if not isinstance(kind, str) or kind not in SOURCES:
        raise PlanError(f"data.kind: {kind!r} is not one of {', '.join(SOURCES)}")
    found: Any = part_of("data", SOURCES[kind], {key: value for key, value in keys.items() if key != "kind"})
    said: Source = dataclasses.replace(found, path=_from(folder, found.path)) if "path" in keys else found
    return said


def _model(name: str, where: Any, folder: Path) -> str:
    said = str(value_of(f"backbones.{toml_of(name)}", where, SAID))
    return said if said == "embedded" or said.startswith("hub:") else _from(folder, said)


def _from(folder: Path, path: str) -> str:
    return str((folder / Path(path).expanduser()).absolute())


def sample(name: str, share: str = "") -> str:
    """A newcomer's `node.toml`: with a share for a trial on the plan's data, else for a folder of texts beside it."""
    limits, consent = Limits(), Consent(plan_data=bool(share), share=share)
    data = f"""
[data]  # what this device learns from, all of it one client's; keys as in a plan
kind = "folder"  # or {", ".join(kind for kind in SOURCES if kind != "folder")}
path = "data"  # a folder of text files; a path begins at the folder of this file
"""
    return f"""\
# What this device holds, what it can carry, and what it consents to. No server's plan widens any of it.
name = {toml_of(name)}  # the client's id, the same for ever
class = ""  # what device it is: {", ".join(CLASSES)}; empty: it measures itself
{"" if share else data}
[limits]
memory = {limits.memory}  # MB that a turn may take; 0: what is free
threads = {limits.threads}  # of the processor; 0: all
hours = {toml_of(limits.hours)}  # local time in which turns run, such as "22-6"; empty: always
metered = {toml_of(limits.metered)}  # whether turns run while the network is metered

[consent]
uses = {toml_of(consent.uses)}  # what it may be asked; "label" tells the label of its data
plan_data = {toml_of(consent.plan_data)}  # whether it reads whatever the server's plan names, for trials alone
share = {toml_of(consent.share)}  # with plan_data: "1/3" plays every third client by name, from the first
hub = {toml_of(consent.hub)}  # whether a backbone may be fetched from a hub

[backbones]  # where this device has a model that a plan names otherwise
# "/srv/models/gpt2" = "/home/ada/models/gpt2"
"""


# ---- whether it answers


def refusal(device: Device, use: str, now: datetime) -> str:
    """Why the device does not do this now; nothing if it does."""
    uses = device.consent.uses
    if use not in uses:
        return f"its consent is to {', '.join(uses) or 'nothing'}, not to {use}"
    return closed(device, now)


def closed(device: Device, now: datetime) -> str:
    """Why the device does nothing at all now: the hour, or the network."""
    limits = device.limits
    if not is_open(limits.hours, now):
        return f"turns run here in the hours {limits.hours} only"
    paid = False if limits.metered else metered()
    if paid is None:
        return "it refuses metered networks, and whether this is one cannot be told"
    return "its network is metered" if paid else ""


def is_open(hours: str, now: datetime) -> bool:
    """Whether a moment lies in hours such as "22-6"; every one does in none."""
    start, end = _pair(hours, "-")
    after, before = start <= now.hour, now.hour < end
    return not hours or (after and before if start < end else after or before)


def hours_of(text: str) -> tuple[float, float]:
    """Hours such as "22-6" as the two of a device; all of the day if there are none."""
    begin, end = _pair(text, "-") if text else (0, 24)
    return float(begin), float(end)


def metered(command: Sequence[str] = NMCLI) -> bool | None:
    """Whether a network in use is metered, as NetworkManager knows or guesses; None where nobody can tell."""
    plain = os.environ | {"LC_ALL": "C"}
    try:
        ran = subprocess.run(command, env=plain, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    said = {line.partition(":")[2].strip().partition(" ")[0] for line in ran.stdout.splitlines()}
    return True if "yes" in said else False if "no" in said else None  # devices not in use are "unknown"


# ---- a plan as this device plays it


def plan_of(device: Device, plan: Plan) -> Plan:
    """The plan with this device's own data, its own places of models, and no more rows in memory than it carries."""
    most = device.limits.memory or plan.deal.memory
    return dataclasses.replace(
        plan,
        backbone=backbone_of(device, plan.backbone),
        encode=encoder_of(device, plan.encode),
        data=device.data or plan.data,
        devices=plan.devices if device.consent.plan_data else Unknown(),  # it names a file, and knows none of ours
        deal=dataclasses.replace(plan.deal, memory=min(plan.deal.memory, most)),
    )


def backbone_of(device: Device, model: Model) -> Model:
    """The plan's backbone as this device may load it: a path only if its `node.toml` names it."""
    source = model.source
    is_path = source != "embedded" and not source.startswith("hub:")
    if is_path or source in device.backbones:
        source = _place(device, source, "backbone")
    if source.startswith("hub:"):
        _refuse_to_fetch(device, source)
    part: Any = model
    found: Model = dataclasses.replace(part, source=source)
    return found


def encoder_of(device: Device, encoder: Encoder) -> Encoder:
    """The plan's encoder, of which the same holds."""
    if not isinstance(encoder, Folder):
        return encoder
    return Folder(_place(device, encoder.path, "encode.path"))


def _refuse_to_fetch(device: Device, source: str) -> None:
    where = f"backbone: wanted a model that this device has, came {toml_of(source)}"
    if not device.consent.hub:
        raise BackboneError(f"{where}; set consent.hub = true in its {NODE}, or add {_line(source)}")
    if not HUB.fullmatch(source) or Path(source.removeprefix("hub:")).exists():  # a folder here would be read instead
        raise BackboneError(f"{where}, which is no 'hub:owner/name'; add {_line(source)} to its {NODE}")


def _place(device: Device, path: str, where: str) -> str:
    if path in device.backbones:
        return device.backbones[path]
    if device.consent.plan_data:
        return path
    wish = f"wanted a model that this device's {NODE} names, came {toml_of(path)}"
    raise BackboneError(f"{where}: {wish}; add {_line(path)} there")


def _line(source: str) -> str:
    return f'the line {toml_of(source)} = "where it lies here" under [backbones]'


def holdings_of(device: Device, plan: Plan) -> tuple[list[Document], dict[str, list[int]]]:
    """The documents here, and which of them each client holds: the device all of its own, or clients of the plan."""
    if device.data is not None:
        documents = device.data.read()
        return documents, {device.name: list(range(len(documents)))}
    documents, shares = inprocess.shared_out(plan)
    first, every = _pair(device.consent.share or "1/1", "/")
    names = sorted(shares)[first - 1 :: every]
    if not names:
        came = f"'{device.consent.share}' of {len(shares)}"
        raise DataError(f"consent.share: wanted at least one of the plan's clients, came {came}; choose a larger share")
    return documents, {name: shares[name] for name in names}


def width_of(device: Device, training: Training, backbone: Backbone) -> int:
    """How many clients share a pass: as the plan says, if the device's memory carries as many."""
    rows = training.rows_a_pass
    need = 2 * rows * backbone.row_bytes(anew=training.checkpoint)  # as much again is left to all that is not a pass
    limit, free = device.limits.memory * MEGABYTE, inprocess.free_memory()
    if 0 < limit < need:
        wish = f"wanted at least {math.ceil(need / MEGABYTE)} MB for a pass of {rows} rows"
        raise ClientError(f"limits.memory: {wish} of '{backbone.name}', came {device.limits.memory}; raise it")
    room = min(limit, free) if limit else free
    return max(1, min(width(training, backbone, room), room // need))
