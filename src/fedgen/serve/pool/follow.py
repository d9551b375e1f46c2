"""A run's adapters under their names, as the server starts and as rounds are played."""

import logging
import threading
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fedgen import lora, tree
from fedgen.errors import FedgenError, ServeError
from fedgen.journal import load_checkpoint
from fedgen.records import GLOBAL, State, Tree
from fedgen.run import ADAPTERS, CHECKPOINT, KEPT, SHELF, Run
from fedgen.serve.keys import ALL, Who
from fedgen.serve.pool.adapter import Adapter
from fedgen.serve.pool.bundle import bundle
from fedgen.serve.pool.catalogue import Catalogue
from fedgen.serve.pool.entries import OWN, Verdict
from fedgen.store import Card, Shelf

LOG = logging.getLogger(__name__)
EVERYONE = Who("everyone", frozenset({ALL}))


class Follow:
    """A thread that publishes each new round of a run, and at its end what it leaves.

    What goes wrong is a verdict, said once; what was published stays, and the next round is looked at all the same.
    """

    def __init__(self, run: Run, catalogue: Catalogue, handed: Sequence[str] = (), seconds: float = 1.0) -> None:
        self.run, self.catalogue, self.handed = run, catalogue, handed
        self.over = False
        self._seconds = seconds
        self._seen: tuple[int, int] | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"fedgen follow {run.folder.name}", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._stop.set()
        if self._thread.ident:
            self._thread.join()

    def look(self) -> None:
        """Look once: a round that is new, or the end."""
        with _noted(self.catalogue, self.run, _name(self.run)):
            if self.run.finished:
                fill(self.catalogue, self.run, self.handed)
                self.over = True
            elif (now := _stamp(self.run.folder / CHECKPOINT)) != self._seen:
                state = load_checkpoint(self.run.folder / CHECKPOINT)
                if state is not None:
                    _publish(self.catalogue, self.run, state)
                self._seen = now  # not before: what could not be read is read again

    def _watch(self) -> None:
        self.look()
        while not self.over and not self._stop.wait(self._seconds):
            self.look()


def fill(catalogue: Catalogue, run: Run, handed: Sequence[str] = ()) -> None:
    """Publish what lies in a run's folder, and the personal adapters that their owners have handed over.

    A run that is under way has no more than the versions that it keeps; its rounds are published by `Follow`.
    """
    names = _bundles(run)
    measures: Mapping[str, float] = {}
    with _noted(catalogue, run, _name(run)):
        measures = _measures(run)
    for name in names:
        with _noted(catalogue, run, name):
            _lay(catalogue, run, name, measures.get(name))
    if run.finished:
        with _noted(catalogue, run, _name(run)):
            uses = run.clusters.get("uses", {})
            catalogue.place(uses)
            _retire(catalogue, names)
            _hand(catalogue, run, handed, uses)


def _publish(catalogue: Catalogue, run: Run, state: State) -> None:
    """Publish a state's adapters, which stay in memory as they are: the next round takes their file's place."""
    measures = _measures(run, state.round)
    for cluster, adapter in state.adapters.items():
        with _noted(catalogue, run, cluster, turn=state.round):
            measure = measures.get(cluster)
            card = _card(run, cluster, state.round, adapter, measure)
            found = Adapter(card, adapter.copy)
            catalogue.publish(cluster, found, kind=_kind(cluster), round=state.round, measure=measure)
    for name in _bundles(run):
        if name.endswith(f"{KEPT}{state.round}"):
            with _noted(catalogue, run, name, turn=state.round):
                _lay(catalogue, run, name, None)
    catalogue.place(state.where)
    _retire(catalogue, state.adapters)


def _lay(catalogue: Catalogue, run: Run, name: str, measure: float | None) -> None:
    """Publish a bundle of a run's, or know it as a round's version."""
    cluster, kept, _ = name.partition(KEPT)
    found = bundle(run.folder / ADAPTERS / name, f"{_name(run)}/{ADAPTERS}/{name}")
    kind, turn = _kind(cluster), found.card.round
    if kept:
        catalogue.keep(cluster, found, kind=kind, turn=turn)
    else:
        catalogue.publish(cluster, found, kind=kind, round=turn, measure=measure)


def _hand(catalogue: Catalogue, run: Run, handed: Sequence[str], uses: Mapping[str, str]) -> None:
    """Publish what clients have handed over; it is read from the shelf whenever it is wanted."""
    shelf, lock, turn = Shelf(run.folder / SHELF, limit=0), threading.Lock(), run.plan.rounds
    for client in handed:
        with _noted(catalogue, run, OWN + client, client):
            own = partial(_own, shelf, lock, client)
            card = _card(run, uses.get(client, GLOBAL), turn, own(), None, client=client)
            catalogue.publish(OWN + client, Adapter(card, own), kind="personal", owner=client, round=turn)


def _own(shelf: Shelf, lock: threading.Lock, client: str) -> Tree:
    with lock:
        found = shelf.get(client)
    if found is None:
        raise ServeError(f"client '{client}': has no adapter of its own in this run")
    return found


def _retire(catalogue: Catalogue, names: Container[str]) -> None:
    """Forget clusters that have merged or are gone."""
    for entry in catalogue.visible(EVERYONE):
        if entry.kind == "cluster" and KEPT not in entry.name and entry.name not in names:
            catalogue.remove(entry.name)
            catalogue.note(Verdict(entry.name, entry.round, False, "its cluster is no more; rows at work go on"))


def _measures(run: Run, turn: int = 0) -> dict[str, float]:
    """What each adapter was measured at on validation rows in a round, or in the last; over all for the global one."""
    lines = [line for line in run.journal if not turn or line["round"] == turn]
    line = lines[-1] if lines else {}
    found: dict[str, float] = dict(line.get("clusters", {}).get("measure", {}))
    overall = line.get("metrics", {}).get(run.yardstick.key)
    return found if overall is None else {**found, GLOBAL: overall}


def _card(
    run: Run, cluster: str, turn: int, adapter: Tree, measure: float | None, *, client: str = ""
) -> Card:  # fmt: skip
    """The card of what has no bundle."""
    facts: Mapping[str, Any] = run.facts
    return Card(
        kind=facts["kind"],
        backbone=facts["backbone"],
        backbone_hash=facts["backbone_hash"],
        hash=tree.digest(adapter),
        run=_name(run),
        round=turn,
        cluster=cluster,
        client=client,
        rank=0 if facts["of"] == "weights" else lora.rank(adapter),
        targets=tuple(facts["targets"]),
        fan_in_fan_out=facts["fan_in_fan_out"],
        metrics={} if measure is None else {run.yardstick.key: measure},
    )


def _bundles(run: Run) -> list[str]:
    """The names of a run's bundles."""
    return sorted(path.name for path in (run.folder / ADAPTERS).glob("[!.]*") if path.is_dir())


def _kind(cluster: str) -> str:
    return "global" if cluster == GLOBAL else "cluster"


def _name(run: Run) -> str:
    """What a run is called to those who ask: never a path of this machine."""
    return run.folder.resolve().name


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes with a file's content."""
    if not path.exists():
        return None
    seen = path.stat()
    return seen.st_mtime_ns, seen.st_ino


@contextmanager
def _noted(catalogue: Catalogue, run: Run, name: str, owner: str = "", *, turn: int = 0) -> Iterator[None]:
    """Make what goes wrong a verdict, so that the rest goes on."""
    try:
        yield
    except Exception as error:
        ours = isinstance(error, FedgenError)
        said = ("" if ours else f"{type(error).__name__}: ") + str(error).replace(str(run.folder), _name(run))
        if catalogue.note(Verdict(name, turn, False, said, owner)) and not ours:
            LOG.exception("run '%s': '%s' cannot be published", run.folder, name)
