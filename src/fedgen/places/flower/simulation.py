"""Ray: clients in the actors of Flower's simulation engine, each with a warm backbone and its own bank."""

import functools
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import TYPE_CHECKING, Any

from fedgen.errors import ClientError
from fedgen.places.asking import NEVER, Asking
from fedgen.places.desk import Desk
from fedgen.places.device import Consent, Device
from fedgen.places.flower.grid import GridPost, packed, unpacked
from fedgen.places.flower.quiet import flower, quiet
from fedgen.places.roll import NAP
from fedgen.places.wire import Errand
from fedgen.plan import Fleet, Plan, Ray, write
from fedgen.records import Ask

if TYPE_CHECKING:
    from flwr.app import Context, Message
    from flwr.serverapp import Grid

SOON = 0.02  # seconds: a look costs no more than a call here
ANY = 2**40  # bytes: an actor is believed, too


@contextmanager
def simulated(plan: Plan, run: Path, tell: Callable[[object], None]) -> Iterator[Ask]:
    """An `ask` whose clients are in Ray's actors, while this lasts."""
    quiet(os.environ)
    flower()
    answer = functools.partial(_answer, str(run.absolute().parent))
    with _engine(plan.ray, answer) as (grid, look):
        post, errand = GridPost(grid), Errand(run.absolute().name, write(plan))
        terms = Fleet(deadline=NEVER, quorum=0.0)
        crowd = Crowd(post.nodes(), look)
        yield Asking(post, errand, terms, crowd, ANY, tell=tell, nap=SOON, guards=plan.passage).ask


class Crowd:
    """Nodes that are all alike: a client is on whichever is next."""

    def __init__(self, nodes: set[int], look: Callable[[], None]) -> None:
        self.online, self.look = nodes, look
        self._next = itertools.cycle(sorted(nodes))

    def at(self, client: str) -> int:
        """The node that takes the client now."""
        return next(self._next)


@contextmanager
def _engine(terms: Ray, answer: Callable[..., "Message"]) -> Iterator[tuple["Grid", Callable[[], None]]]:
    """Flower's engine in a thread, its grid here; and a look whether it still runs."""
    from flwr.clientapp import ClientApp
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.CRITICAL)  # it tells of each message; failures come back as replies
    client, server = ClientApp(), ServerApp()
    for kind in (client.train, client.evaluate, client.query):
        kind()(answer)
    found: Queue[Grid | BaseException] = Queue()
    done, counts = threading.Event(), Queue[int]()

    def wait(grid: "Grid", context: "Context") -> None:
        found.put(grid)
        done.wait()

    def run() -> None:
        try:
            many = _ray(terms)
            counts.put(many)
            resources = {"num_cpus": terms.cpus, "num_gpus": terms.gpus}
            run_simulation(server, client, many, backend_config={"client_resources": resources})
        except BaseException as error:  # noqa: BLE001  it is raised where it is waited for
            done.set()
            found.put(error)

    def look() -> None:
        if not thread.is_alive():
            raise ClientError(f"ray: its engine has stopped ({_last(found)}); the run can be resumed")

    server.main()(wait)
    thread = threading.Thread(target=run, name="ray", daemon=True)
    thread.start()
    grid = found.get()
    if isinstance(grid, BaseException):
        raise ClientError(f"ray: cannot be started ({grid}); look at [ray] in the plan") from grid
    many = counts.get()
    while len(set(grid.get_node_ids())) < many:  # it hands its grid out before its nodes are there
        look()
        time.sleep(NAP)
    try:
        yield grid, look
    finally:
        done.set()
        thread.join()


def _last(found: "Queue[Any]") -> object:
    return found.get() if not found.empty() else "without a word"


def _ray(terms: Ray) -> int:
    """Start Ray, or reach the one at the address; how many actors it carries."""
    import ray

    cores = terms.actors * terms.cpus or None
    where: dict[str, Any] = {"address": terms.address} if terms.address else {"num_cpus": cores}
    ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False, **where)
    there = ray.cluster_resources()
    fits = int(there.get("CPU", 0) // terms.cpus)
    fits = min(fits, int(there.get("GPU", 0) // terms.gpus)) if terms.gpus else fits
    if not fits:
        ray.shutdown()
        raise ClientError(f"wanted {terms.cpus} CPUs and {terms.gpus:g} GPUs an actor, came {there}")
    return min(terms.actors or fits, fits)


def _answer(folder: str, message: "Message", context: "Context") -> "Message":
    """An actor's answer to a message: what Flower's ClientApp does."""
    from flwr.app import Message

    parcel = unpacked(message.content)
    if parcel is None:
        raise ClientError("message: wanted a parcel, came something else")
    return Message(packed(desk(folder).answer(parcel)), reply_to=message)


@functools.cache
def desk(folder: str) -> Desk:
    """This process's own desk, made once; it plays any client of the plan's data."""
    return Desk(Device("ray", consent=Consent(plan_data=True)), Path(folder))
