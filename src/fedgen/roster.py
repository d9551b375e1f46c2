"""What a finished run writes down of its clusters: who is where, what each client uses, how good the groups are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fedgen import tree
from fedgen.cluster import ari, nmi, plane, silhouette
from fedgen.groups import middles
from fedgen.records import State
from fedgen.store import write_whole

CLUSTERS, CENTROIDS = "clusters.json", "centroids.safetensors"
DRAWN = 2000  # so many clients' profiles are put on a plane to be looked at


def write(folder: Path, state: State, labels: Mapping[str, str], uses: Mapping[str, str]) -> None:
    """Write `clusters.json`, and the centroids that a prompt can be routed by."""
    content: dict[str, Any] = {
        "where": dict(sorted(state.where.items())),
        "uses": dict(sorted(uses.items())),
        "labels": dict(sorted(labels.items())),
        **_drawn(state),
        "quality": quality(state, labels),
    }
    if state.profiles:
        clusters, centres = middles(state)
        write_whole(folder / CENTROIDS, tree.pack(dict(zip(clusters, centres, strict=True))))
    write_whole(folder / CLUSTERS, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def _drawn(state: State) -> dict[str, Any]:
    """The profiles on a plane, and how much of their spread it keeps."""
    names = sorted(state.profiles)
    if not names:
        return {"points": {}, "kept": 0.0}
    flat, kept = plane(torch.stack([state.profiles[name][0] for name in names]))
    return {"points": dict(zip(names[:DRAWN], flat[:DRAWN].tolist(), strict=True)), "kept": kept}


def quality(state: State, labels: Mapping[str, str]) -> dict[str, float]:
    """How far apart the clusters are, and where the true groups are known, how near to those."""
    names = sorted(name for name in state.where if name in state.profiles)
    found: dict[str, float | None] = {}
    if names:
        points = torch.stack([state.profiles[name][0] for name in names])
        found["silhouette"] = silhouette(points, _numbers(names, state.where))
    placed = sorted(state.where)
    if all(labels.get(name) for name in placed):
        own, true = _numbers(placed, state.where), _numbers(placed, labels)
        found |= {"ari": ari(own, true), "nmi": nmi(own, true)}
    return {name: value for name, value in found.items() if value is not None}


def _numbers(names: list[str], groups: Mapping[str, str]) -> torch.Tensor:
    known = {group: at for at, group in enumerate(sorted({groups[name] for name in names}))}
    return torch.tensor([known[groups[name]] for name in names])
