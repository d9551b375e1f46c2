"""A device's own adapters, taken out of its node's folder as bundles that other tools read."""

import json
from pathlib import Path

from fedgen import lora
from fedgen.errors import StoreError
from fedgen.places.node import RUNS
from fedgen.run import FACTS, SHELF
from fedgen.store import Card, Shelf, save_bundle


def take(home: Path, to: Path, run: str = "", client: str = "") -> Card:
    """Write a client's newest adapter of a run as a bundle; the last run and the one client, if none is named."""
    runs = sorted(home.glob(f"{RUNS}/*/{FACTS}"), key=lambda path: path.stat().st_mtime)
    known = [path.parent.name for path in runs]
    if not known or (run and run not in known):
        came = f"'{run}'; it has {', '.join(known) or 'none'}" if run else "none"
        raise StoreError(f"node '{home}': wanted a run that it took part in, came {came}")
    name = run or known[-1]
    shelf = Shelf(home / RUNS / name / SHELF)
    clients = shelf.clients()
    if client not in clients and (client or len(clients) != 1):
        raise StoreError(
            f"node '{home}': wanted one of the clients {', '.join(clients) or '(none yet)'}, came '{client}'"
        )
    own = client or clients[0]
    adapter, facts = shelf.get(own), json.loads((home / RUNS / name / FACTS).read_text("utf-8"))
    if adapter is None or facts["of"] != "pairs":
        raise StoreError(f"node '{home}': run '{name}' trains whole models, of which there is no adapter to take")
    card = Card(
        kind=facts["kind"],
        backbone=facts["backbone"],
        backbone_hash=facts["backbone_hash"],
        run=name,
        round=shelf.round_of(own) or 0,
        client=own,
        rank=lora.rank(adapter),
        targets=tuple(facts["targets"]),
        fan_in_fan_out=facts["fan_in_fan_out"],
    )
    return save_bundle(to, adapter, card, component=facts["component"])
