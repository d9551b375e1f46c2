"""The lists: every adapter that the asker may use, and every run."""

import asyncio
from collections.abc import Iterator
from typing import Literal

from fedgen.errors import UnknownError
from fedgen.report.digest import Digest
from fedgen.run import KEPT
from fedgen.sample import BARE
from fedgen.serve.api import runs
from fedgen.serve.api.answers import Card, Course, Model, Models
from fedgen.serve.api.asks import LONG
from fedgen.serve.api.service import Call
from fedgen.serve.house import Stand
from fedgen.serve.pool import Entry

OURS = "fedgen"  # who owns what belongs to nobody


async def list_models(call: Call, ask: None) -> Models:
    """All that the asker may use: the backbone first, then every adapter."""
    return Models(data=await asyncio.to_thread(lambda: [_model(call, *found) for found in _all(call)]))


async def list_adapters(call: Call, ask: None) -> Models:
    """The same, for an admin, without the backbone."""
    found = await list_models(call, ask)
    return Models(data=[model for model in found.data if model.parent is not None])


async def one_model(call: Call, ask: None) -> Model:
    """One of them by its id, also as RUN:NAME."""
    return await asyncio.to_thread(_one, call, call.named["id"])


async def list_runs(call: Call, ask: None) -> list[Course]:
    """How the served runs went, and what they gained."""
    stands = call.house.stands.values()
    library, plain = call.service.library, call.house.plain
    return await asyncio.to_thread(
        lambda: [runs.course(library.digest(one), one, call.who, plain=plain) for one in stands]
    )


def of_name(call: Call, name: str) -> tuple[Stand, str]:
    """The run that a name is of, whatever it makes, and the name there; one that several runs may have says its run."""
    run, colon, rest = name.partition(":")
    stands = call.house.stands
    if colon and run in stands:
        return stands[run], rest
    here = [stand for stand, entry in _all(call) if entry.name == name] if len(stands) > 1 else list(stands.values())
    if len(here) != 1:
        names = ", ".join(f"'{stand}:{name[:LONG]}'" for stand in stands)
        raise UnknownError(f"model '{name[:LONG]}': {len(stands)} runs are served; name one: {names}")
    return here[0], name


def _one(call: Call, name: str) -> Model:
    stand, rest = of_name(call, name)
    return _model(call, stand, stand.catalogue.find(rest, call.who))


def _all(call: Call) -> Iterator[tuple[Stand, Entry]]:
    for stand in call.house.stands.values():
        yield from ((stand, entry) for entry in stand.catalogue.visible(call.who))


def _model(call: Call, stand: Stand, entry: Entry) -> Model:
    run, bare = call.service.library.digest(stand), entry.kind == BARE
    before = call.house.before(stand)
    content = stand.backbone.hash if bare else entry.adapter.hash
    return Model(
        id=before + entry.name,
        created=int(run.began.timestamp()),
        owned_by=entry.owner or OURS,
        root=f"{stand.backbone.name if bare else stand.name}@{content[:12]}",
        parent=None if bare else before + BARE,
        fedgen=_card(run, stand, entry, content),
    )


def _card(run: Digest, stand: Stand, entry: Entry, content: str) -> Card:
    card, live = entry.adapter.card, KEPT not in entry.name
    kind: Literal["text", "image"] = "image" if stand.kind == "image" else "text"
    return Card(
        run=stand.name,
        type=kind,
        kind=entry.kind,
        round=entry.round,
        rank=card.rank,
        hash=content,
        metrics={name: value for name, said in card.metrics.items() if (value := runs.finite(said)) is not None},
        owner=entry.owner,
        pinned=entry.pinned,
        words=runs.labels(run, entry.name.partition(KEPT)[0]),
        gain=runs.gain(run, entry.name, entry.kind, entry.owner) if live else None,
        members=runs.members(run, entry.name, entry.kind) if live else None,
    )
