"""What is told of runs: how they went, and what each of their adapters is worth."""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from fedgen.backbones import Backbone, DiffusionBackbone
from fedgen.backbones.conditions import Classes, Unasked
from fedgen.plan import kind_of
from fedgen.records import GLOBAL
from fedgen.report import digest
from fedgen.report.digest import BACKBONE, CLUSTER, PERSONAL, Digest
from fedgen.roster import CENTROIDS, CLUSTERS
from fedgen.run import JOURNAL, SCORES
from fedgen.serve.api.answers import Course, Group, Measure, Point, Told, Turn
from fedgen.serve.engine.writing import Writing
from fedgen.serve.house import Stand
from fedgen.serve.keys import Who

SAID = 3  # labels that are told of a cluster
FILES = JOURNAL, SCORES, CLUSTERS  # all that changes while a run is played, or at its end


class Library:
    """Runs as they were last read; a run is read again when a file of it has changed."""

    def __init__(self) -> None:
        self._read: dict[str, tuple[object, Digest]] = {}

    def digest(self, stand: Stand) -> Digest:
        """A run, read."""
        paths = [stand.run.folder / name for name in FILES]
        seen = [(path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else None for path in paths]
        before = self._read.get(stand.name)
        if before is None or before[0] != seen:
            before = self._read[stand.name] = seen, digest.read(stand.run)
        return before[1]


def course(run: Digest, stand: Stand, who: Who, *, plain: bool) -> Course:
    """How a run went, as far as this asker may know."""
    kinds = [kind for kind in run.kinds if kind != BACKBONE]
    batch = stand.engine.batch
    return Course(
        name=stand.name,
        type="image" if stand.kind == "image" else "text",
        asks=asks(stand.backbone),
        plain=plain,
        longest=batch.length if isinstance(batch, Writing) else 0,
        routes=(stand.run.folder / CENTROIDS).is_file(),
        backbone=stand.backbone.name,
        seconds=float(run.sum("seconds")),
        rounds=len(run.journal),
        finished=run.finished,
        curve=[_turn(line, run.yardstick.key) for line in run.journal],
        measure=Measure(name=run.yardstick.name),
        points=_points(run, who),
        clusters=_groups(run),
        saved=run.saved,
        gains={kind: run.gains(kind).mean for kind in kinds},
        verdicts=[
            Told(name=one.name, round=one.round, published=one.published, reason=one.reason)
            for one in stand.catalogue.verdicts
            if who.owns(one.owner)
        ],
        encode=_encoding(stand),
    )


def asks(backbone: Backbone) -> Literal["prompt", "label", "nothing"]:
    """What the backbone is told of a picture; a text is always begun."""
    told = backbone.condition if isinstance(backbone, DiffusionBackbone) else None
    return "label" if isinstance(told, Classes) else "nothing" if isinstance(told, Unasked) else "prompt"


def _turn(line: Mapping[str, Any], key: str) -> Turn:
    found = line["metrics"]
    return Turn(
        round=line["round"], loss=finite(found.get("loss")), measure=finite(found.get(key)), up=line["up"],
        down=line["down"],
    )  # fmt: skip


def _points(run: Digest, who: Who) -> list[Point]:
    where = run.clusters.get("where", {})
    return [
        Point(x=x, y=y, cluster=where.get(name, GLOBAL), own=who.owns(name), name=name if who.owns(name) else "")
        for name, (x, y) in run.clusters.get("points", {}).items()
    ]


def _groups(run: Digest) -> list[Group]:
    last = run.grouped[max(run.grouped)] if run.grouped else {}
    measures = last.get("measure", {})
    return [
        Group(name=name, members=count, labels=labels(run, name), measure=finite(measures.get(name)))
        for name, count in run.members.items()
    ]


def _encoding(stand: Stand) -> dict[str, Any]:
    """How a device is to encode a prompt, to have it routed; the path of a folder is this machine's own affair."""
    plan = stand.run.plan
    kind = kind_of("encode", plan.encode)
    settings = {} if kind == "folder" else dataclasses.asdict(plan.encode)  # type: ignore[call-overload]
    return {"kind": kind, **settings, "profile_width": plan.profile.width}


# ---- of one adapter


def labels(run: Digest, cluster: str) -> list[str]:
    """The labels that most clients of a cluster have; nothing where none are known."""
    said, where = (run.clusters.get(key, {}) for key in ("labels", "where"))
    inside = [said[name] for name, own in where.items() if own == cluster and said.get(name)]
    return [label for label, _ in Counter(inside).most_common(SAID)]


def gain(run: Digest, name: str, kind: str, owner: str) -> float | None:
    """The mean fall of the measure from the backbone's, over the clients that an adapter is for."""
    where = run.clusters.get("where", {})
    if kind == "global":
        return _mean(run, run.scores, GLOBAL)
    if kind == "cluster":
        return _mean(run, [client for client in run.scores if where.get(client) == name], CLUSTER)
    return _mean(run, [owner] if owner in run.scores else [], PERSONAL) if kind == "personal" else None


def _mean(run: Digest, clients: Iterable[str], kind: str) -> float | None:
    falls = [run.fall(client, kind) for client in clients if kind in run.scores[client]]
    return math.fsum(falls) / len(falls) if falls else None


def members(run: Digest, name: str, kind: str) -> int | None:
    """How many clients an adapter is for."""
    return {"global": run.clients or None, "cluster": run.members.get(name), "personal": 1}.get(kind)


def finite(value: object) -> float | None:
    """A number, if it is one that JSON can hold."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
