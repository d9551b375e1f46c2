"""The rounds of a fleet in one process: uninterrupted, or without those whom the fleet did without."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import fedgen
from fedgen import plan as plans
from fedgen.places import inprocess
from fedgen.records import Failure, Offer, Reply
from fedgen.run import PLAN, SHELF, Run, go
from fedgen.store import write_whole


def told(run: Run) -> list[str]:
    """The failures of a run as its journal has them."""
    return [
        f"round {line['round']}: {one['client']}: {one['reason']}" for line in run.journal for one in line["failures"]
    ]


def missing(run: Run) -> dict[int, set[str]]:
    """By round, who was asked and not heard; the last question is that for scores."""
    out = {line["round"]: {one["client"] for one in line["failures"]} for line in run.journal}
    out[len(run.journal) + 1] = {one["client"] for one in run.outcome["failures"]}
    return {turn: names for turn, names in out.items() if names}


def uninterrupted(plan: Mapping[str, Any], folder: Path) -> Run:
    """The plan in one process, from its start to its end; once."""
    return fedgen.resume(folder) if (folder / PLAN).exists() else fedgen.run(plan, folder)


def replayed(plan: Mapping[str, Any], folder: Path, out: Mapping[int, set[str]], *, late: bool) -> Run:
    """The plan in one process without these clients in these rounds; `late` ones take their turn, but nobody hears."""
    settled = plans.read(plan)
    backbone = settled.backbone.load()
    settled = inprocess.settle(settled, backbone)
    place = inprocess.place(settled, backbone, folder / SHELF, lambda event: None)

    def ask(offers: Iterable[Offer]) -> Iterator[Reply]:
        asked = list(offers)
        gone = {offer.client for offer in asked if offer.client in out.get(offer.round, ())}
        yield from (_unheard(offer) for offer in asked if offer.client in gone)
        played = place.ask([offer for offer in asked if late or offer.client not in gone])
        yield from (reply for reply in played if reply.client not in gone)

    write_whole(folder / PLAN, plans.write(settled).encode())
    return go(folder, settled, dataclasses.replace(place, ask=ask), lambda event: None)


def _unheard(offer: Offer) -> Failure:
    return Failure(offer.round, offer.client, offer.cluster, "not heard")


def same_shared(run: Path, other: Path) -> bool:
    """Whether two finished runs have the same shared adapter, bit for bit."""
    mine, theirs = (load_file(next((one / "adapters" / "global").glob("*.safetensors"))) for one in (run, other))
    return mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
