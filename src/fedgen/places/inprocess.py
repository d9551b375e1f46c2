"""Clients in this process: offers are taken a cohort at a time, and every message is weighed as for a wire."""

import dataclasses
import functools
import itertools
import json
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from fedgen import factors, lora, seeds, tree
from fedgen.backbones import Backbone
from fedgen.client import width
from fedgen.data import clients
from fedgen.data.deal import count
from fedgen.devices import Hardware, Load, Messages, load_of
from fedgen.guards import Guards
from fedgen.places.clock import Clock, Unheard
from fedgen.places.pace import Pace
from fedgen.plan import Plan
from fedgen.records import Ask, Client, Document, Offer, Reply, Tree, Update
from fedgen.run import Place
from fedgen.store import Shelf
from fedgen.turns import Site, head, turns
from fedgen.weights import AnyBank

TREES = ("adapter", "beside", "profile", "up", "down")  # fields of a message that are trees, or not sent
SHELF_MEMORY = 2**28  # bytes of clients' own adapters kept in memory
SHAPES = 1000  # so many offers' sizes are kept


def settle(plan: Plan, backbone: Backbone) -> Plan:
    """The plan with all said that this machine decides, paths made whole: a resumed run decides nothing again."""
    whole_models = plan.adapter.of == "weights"
    wide = 1 if whole_models else width(plan.training, backbone, free_memory())
    targets = () if whole_models else plan.adapter.targets or tuple(backbone.targets)
    if plan.adapter.last < 1:
        targets = last_of(backbone, targets, plan.adapter.last)
    adapter = dataclasses.replace(plan.adapter, targets=targets, last=1.0)
    training = dataclasses.replace(plan.training, cohort=wide)
    reads = ("backbone", "data", "devices", "quality", *(["fleet"] if plan.place == "fleet" else []))
    places = {section: whole(getattr(plan, section)) for section in reads}
    return dataclasses.replace(plan, **places, adapter=adapter, training=training)


def last_of(backbone: Backbone, targets: Sequence[str], share: float) -> tuple[str, ...]:
    """The last share of the layers that these names mean, each by its full path; one at least."""
    paths = lora.targets(backbone.network, targets)
    return tuple(lora.last(paths, max(share, 1 / len(paths))))


def whole(part: Any) -> Any:
    """A part with the path it reads from made absolute, so that a run can be resumed from any folder."""
    said = {spot.name: getattr(part, spot.name) for spot in dataclasses.fields(part)}
    paths = {key: said[key] for key in ("path", "source", "weights", "clip", "folder", "file") if said.get(key)}
    local = {key: path for key, path in paths.items() if path != "embedded" and not path.startswith("hub:")}
    return dataclasses.replace(part, **{key: str(Path(path).expanduser().absolute()) for key, path in local.items()})


def place(
    plan: Plan, backbone: Backbone, shelf: Path | None, tell: Callable[[object], None], *, weighed: bool = True
) -> Place:
    """This process as a place for a settled plan; a turn is weighed on request, and where devices are known."""
    documents, shares = shared_out(plan)
    held, dropped = hold(plan, backbone, documents, shares)
    labels = known(labels_of(held, documents, shares))
    facts = facts_of(plan, backbone)
    bank = plan.adapter.bank(backbone.network, plan.width)
    own = Shelf(shelf, SHELF_MEMORY)
    site = site_of(plan, backbone, bank, held, own)
    start, hardware = start_of(plan, bank), plan.devices.of(held, plan.seed)
    load = load_on(plan, backbone, bank, start) if weighed or hardware else None
    sizes = {name: count(client.train) for name, client in held.items()}
    counts = {"clients": len(held), "dropped": list(dropped), "rows": sum(sizes.values())}
    facts = facts | counts | kinds_of(hardware)
    pace = Pace(hardware, load, sizes, plan.seed, sizes_of(plan.passage)) if load and plan.clocked else None
    clock = clock_of(plan, site, pace, tell) if pace else None
    ask = clock.ask if clock else asker(site, tell)
    return Place(sizes, ask, start, own, facts, labels, hardware, load, clock)


def site_of(plan: Plan, backbone: Backbone, bank: AnyBank, held: Mapping[str, Client], shelf: Shelf) -> Site:
    """Where these clients play a plan's turns."""
    parts = plan.training, plan.personal, shelf, plan.evaluate.rows, plan.encode, plan.profile, plan.share, plan.passage
    return Site(plan.seed, backbone, bank, held, *parts)


def clock_of(plan: Plan, site: Site, pace: Pace, tell: Callable[[object], None]) -> Clock:
    """The clock over the site's clients."""

    def unheard() -> Unheard:
        offered = site.guards.offering()
        return lambda offer, reason: dataclasses.replace(offer.failed(reason), down=len(pack(offered(offer))))

    return Clock(asker(site), pace, plan.fleet, unheard, tell)


def kinds_of(hardware: Mapping[str, Hardware]) -> dict[str, Any]:
    """How many clients have a device of each kind, as a fact; none where that is not known."""
    kinds = Counter(device.kind for device in hardware.values())
    return {"devices": dict(sorted(kinds.items()))} if kinds else {}


def load_on(plan: Plan, backbone: Backbone, bank: AnyBank, start: Tree) -> Load:
    """What a turn of the plan asks of a device, of which one pass is trained once."""
    own = [plan.personal.training(plan.training)] if plan.personal.each_round else []
    return load_of([plan.training, *own], backbone, bank, start, messages(plan, start))


def messages(plan: Plan, start: Tree) -> Messages:
    """How many bytes an update and an offer have, by the rank of the adapter that a client is offered."""

    @functools.cache
    def sizes(rank: int) -> tuple[int, int]:
        narrow = plan.adapter.of == "pairs" and 0 < rank < lora.rank(start)
        return plan.passage.sizes(factors.head(start, rank) if narrow else start, rank)

    return sizes


def sizes_of(guards: Guards) -> Callable[[Offer], tuple[int, int]]:
    """How many bytes an offer's update and the offer itself have, layer by layer; reckoned once for all of a shape."""
    known: dict[tuple[int, ...], tuple[int, int]] = {}

    def sized(adapter: Tree, rank: int) -> tuple[int, int]:
        shape = rank, *(adapter[key].numel() for key in sorted(adapter))
        if shape not in known:
            if len(known) == SHAPES:  # shapes by need are others in each round
                known.clear()
            known[shape] = guards.sizes(adapter, rank)
        return known[shape]

    def sizes(offer: Offer) -> tuple[int, int]:
        up, down = sized(offer.adapter, offer.rank)
        return up, down + sum(sized(other, offer.rank)[1] for other in offer.beside.values())

    return sizes


def start_of(plan: Plan, bank: AnyBank) -> Tree:
    """The adapter that all start from."""
    return bank.fresh(seeds.generator(plan.seed, -1, "", "adapter"), plan.adapter.rank)


def hold_data(plan: Plan, backbone: Backbone) -> tuple[dict[str, Client], tuple[str, ...]]:
    """The clients with their encoded rows, and the names of those too small."""
    return hold(plan, backbone, *shared_out(plan))


def hold(
    plan: Plan, backbone: Backbone, documents: Sequence[Document], shares: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Client], tuple[str, ...]]:
    """These clients with their encoded rows, and the names of those too small."""
    draw_of = functools.partial(_draw, plan.seed)
    held, dropped = clients(documents, shares, backbone.encode, plan.deal, draw_of)
    rows = {name: device.rows for name, device in plan.devices.of(held, plan.seed).items() if device.rows}
    kept = {name: dataclasses.replace(held[name], train=head(held[name].train, most)) for name, most in rows.items()}
    return held | kept, dropped


def labels_of(
    held: Iterable[str], documents: Sequence[Document], shares: Mapping[str, Sequence[int]]
) -> dict[str, str]:
    """The one label of all of a client's documents, of those who have one."""
    found = {name: {documents[at].label for at in shares[name]} for name in held}
    return {name: next(iter(own)) for name, own in found.items() if len(own) == 1 and own != {""}}


def known(labels: Mapping[str, str]) -> dict[str, str]:
    """The clients' labels, if these make groups: none where no two clients share one."""
    return dict(labels) if max(Counter(labels.values()).values(), default=0) > 1 else {}


def shared_out(plan: Plan) -> tuple[list[Document], dict[str, list[int]]]:
    """All documents, and which of them each client holds."""
    documents = plan.data.read()
    return documents, plan.partition.share(documents, seeds.generator(plan.seed, -1, "", "partition"))


def holdings(plan: Plan) -> dict[str, list[Document]]:
    """Each client's documents, as only a place that has all clients in it can know them."""
    documents, shares = shared_out(plan)
    return {name: [documents[at] for at in own] for name, own in shares.items()}


def _draw(seed: int, client: str) -> torch.Generator:
    return seeds.generator(seed, -1, client, "deal")


def facts_of(plan: Plan, backbone: Backbone) -> dict[str, Any]:
    """What holds for the whole run: the model's size and identity, the machine, the versions."""
    weights = list(backbone.network.parameters())  # a tied weight counts once
    named = plan.adapter.targets
    layers = lora.targets(backbone.network, named) if named else {}
    libraries = ("fedgen-edge", "torch", "transformers", *(["diffusers"] if backbone.kind == "image" else []))
    return {
        "kind": backbone.kind,
        "component": backbone.component,
        "looks": backbone.looks,
        "backbone": backbone.name,
        "backbone_hash": backbone.hash,
        "of": plan.adapter.of,
        "targets": list(named),
        "fan_in_fan_out": any(isinstance(layer, Conv1D) for layer in layers.values()),
        "parameters": sum(weight.numel() for weight in weights),
        "full_bytes": sum(weight.numel() * weight.element_size() for weight in weights),
        "row_bytes": backbone.row_bytes(anew=plan.training.checkpoint),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {weights[0].device.type}",
        "versions": {name: version(name) for name in libraries},
        "python": platform.python_version(),
        "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def free_memory() -> int:
    """Bytes that a pass may count on: the GPU's free memory, or this machine's."""
    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):  # a system that does not say
        return 2**31


def asker(site: Site, tell: Callable[[object], None] = lambda event: None) -> Ask:
    """An `ask` whose clients are the site's, `training.cohort` of them at a time."""

    def ask(offers: Iterable[Offer]) -> Iterator[Reply]:
        waiting, offered = iter(offers), site.guards.offering()
        while part := list(itertools.islice(waiting, site.training.cohort)):
            out = [offered(offer) for offer in part]
            for exact, offer, reply in zip(part, out, turns(site, out), strict=True):
                weighed = site.guards.opened(weigh(offer, reply), exact)
                tell(weighed)
                yield weighed

    return ask


def weigh(offer: Offer, reply: Reply) -> Reply:
    """The reply with the bytes of both directions."""
    down = len(pack(offer))
    if not isinstance(reply, Update):
        return dataclasses.replace(reply, down=down)
    return dataclasses.replace(reply, up=len(pack(reply)), down=down)


def pack(message: Offer | Update) -> bytes:
    """A message as it crosses a wire: its trees and its profile, and all its other fields beside them."""
    trees = dict(message.adapter)
    if isinstance(message, Offer):
        trees |= {f"{name}|{key}": value for name, found in message.beside.items() for key, value in found.items()}
    elif message.profile is not None:
        trees["profile"] = message.profile
    fields = {key: value for key, value in vars(message).items() if key not in TREES}
    return tree.pack(trees, {"message": json.dumps(fields)})
