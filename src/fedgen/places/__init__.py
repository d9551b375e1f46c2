"""Where clients run. A place turns a plan into clients to ask; the run does not know which it is."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedgen import plan as plans
from fedgen.backbones import Backbone, LanguageBackbone
from fedgen.cohort import wanted
from fedgen.cost import Cost, cost_of
from fedgen.errors import FedgenError, StoreError
from fedgen.exhibit import QUALITY, exhibit, ready
from fedgen.groups import refuse
from fedgen.journal import held, hold
from fedgen.places import fleet, inprocess
from fedgen.places.flower.app import app_of
from fedgen.places.flower.fleet import Fleet, reach, standing, stop, submit
from fedgen.places.flower.quiet import flower
from fedgen.places.flower.simulation import simulated
from fedgen.places.roll import Noticed
from fedgen.plan import Plan
from fedgen.run import PLAN, SHELF, Finished, Place, Run, Tell, go, rules_of
from fedgen.sample import sampler
from fedgen.store import write_whole


def silent(event: object) -> None:
    """Tell nobody."""


def run(
    plan: Plan | Path | str | Mapping[str, Any],
    folder: Path | str | None = None,
    *,
    settings: Sequence[str] = (),
    tell: Tell = silent,
) -> Run:
    """Run a plan to its end in a new folder; `tell` hears every reply and report."""
    plan = plans.read(plan, settings)
    where = Path(folder) if folder else Path("runs") / f"{plan.name}-{time.strftime('%Y%m%d-%H%M%S')}"
    _refuse_a_run(where)
    if plan.place != "inprocess":
        flower()
    backbone = plan.backbone.load()
    settled = inprocess.settle(plan, backbone)
    ready(settled, backbone)
    if settled.place == "fleet":
        del backbone  # the fleet's server has its own
        return _sent(where, settled, tell)
    place = inprocess.place(settled, backbone, where / SHELF, tell, weighed=False)
    wanted(settled.cohort, len(place.sizes))  # refuses more than there are, before anything is written
    refuse(rules_of(settled, place), sorted(place.sizes))
    with hold(where):
        _write_plan(where, settled)
        return _shown(_gone(where, settled, place, tell), tell)


def _write_plan(folder: Path, settled: Plan) -> None:
    _refuse_a_run(folder)  # another process may have been faster
    write_whole(folder / PLAN, plans.write(settled).encode())


def _gone(folder: Path, settled: Plan, place: Place, tell: Tell) -> Run:
    """The run, played where the plan says."""
    if settled.place == "ray":
        with simulated(settled, folder, tell) as ask:
            facts = {**place.facts, "where": "the actors of Ray"}
            return go(folder, settled, replace(place, ask=ask, facts=facts), tell)
    return go(folder, settled, place, tell)


def _sent(folder: Path, settled: Plan, tell: Tell) -> Run:
    """The run, begun on a fleet and followed to its end."""
    chosen = Fleet(Path(settled.fleet.folder))
    reach(chosen.near, chosen.ca)  # before anything is written
    with hold(folder):
        _write_plan(folder, settled)
    return _followed(folder, chosen, tell)


def _followed(folder: Path, chosen: Fleet, tell: Tell) -> Run:
    """The run on its fleet: played by it already, or from now on; Ctrl-C stops it there."""
    fleet.name(folder)
    served, job = held(folder), ""
    try:
        if not served:
            job = submit(chosen, app_of(folder))
            tell(Noticed(f"given to the fleet at {chosen.near}, which starts its server"))
        found = fleet.follow(folder, lambda: _standing(chosen, folder), tell, begun=served)
    except KeyboardInterrupt:
        if job := job or fleet.job(folder):
            tell(Noticed("stopping the run on its fleet ..."))
            stop(chosen, job)
        raise
    tell(Finished(folder))
    return found


def _standing(chosen: Fleet, folder: Path) -> str:
    """Flower's word on a run's server, or why there is none."""
    try:
        return standing(chosen, fleet.job(folder))
    except FedgenError as error:
        return str(error)


def _refuse_a_run(folder: Path) -> None:
    if (folder / PLAN).exists():
        remedy = f"go on with `fedgen resume {folder}`, or name another folder"
        raise StoreError(f"run '{folder}': holds a run already; {remedy}")
    if others := sorted(path.name for path in folder.glob("[!.]*") if path.name != "lock"):
        raise StoreError(f"run '{folder}': holds other files (first '{others[0]}'); name a new folder for the run")


def resume(folder: Path | str, *, tell: Tell = silent) -> Run:
    """Go on with a run from its last finished round; the end is that of an uninterrupted run."""
    found = Run(Path(folder))
    settled = found.plan
    if settled.place == "fleet" and not found.finished:
        return _followed(found.folder, Fleet(Path(settled.fleet.folder)), tell)
    with hold(found.folder):
        if found.finished:
            return _shown(found, tell) if _undrawn(found) else found
        place = inprocess.place(settled, settled.backbone.load(), found.folder / SHELF, tell, weighed=False)
        return _shown(_gone(found.folder, settled, place, tell), tell)


def _undrawn(run: Run) -> bool:
    return bool(run.plan.quality.pictures) and not (run.folder / QUALITY).exists()


def _shown(run: Run, tell: Tell) -> Run:
    """The finished run, with what its plan wants drawn."""
    if _undrawn(run):
        exhibit(run, sampler(run), inprocess.holdings(run.plan), tell)
    tell(Finished(run.folder))
    return run


def cost(plan: Plan | Path | str | Mapping[str, Any], *, settings: Sequence[str] = ()) -> tuple[Plan, Cost]:
    """The resolved plan and what it would cost; nothing is run or written."""
    plan = plans.read(plan, settings)
    backbone = plan.backbone.load()
    settled = inprocess.settle(plan, backbone)
    return settled, cost_of(settled, inprocess.place(settled, backbone, None, silent))


def held_out_prompt(plan: Plan, backbone: Backbone, client: str, tokens: int = 24) -> str:
    """The opening of a client's first test row: text that no adapter was trained on."""
    if not isinstance(backbone, LanguageBackbone):
        raise StoreError(f"client '{client}': holds pictures, and no text that could be continued")
    held, _ = inprocess.hold_data(plan, backbone)
    ids = held[client].test["ids"][0, :tokens].tolist()
    return str(backbone.tokenizer.decode([token for token in ids if token != backbone.end]))
