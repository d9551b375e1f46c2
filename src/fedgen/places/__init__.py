"""Where clients run. A place turns a plan into clients to ask; the run does not know which it is."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedgen import plan as plans
from fedgen.backbones import Backbone, LanguageBackbone
from fedgen.errors import StoreError
from fedgen.exhibit import QUALITY, exhibit, ready
from fedgen.groups import refuse
from fedgen.journal import hold
from fedgen.places import inprocess
from fedgen.plan import Plan
from fedgen.run import PLAN, SHELF, Cost, Finished, Run, Tell, cost_of, go, rules_of
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
    backbone = plan.backbone.load()
    settled = inprocess.settle(plan, backbone)
    ready(settled, backbone)
    place = inprocess.place(settled, backbone, where / SHELF, tell)
    cost_of(settled, place)  # refuses a cohort larger than the clients, before anything is written
    refuse(rules_of(settled, place), sorted(place.sizes))
    with hold(where):
        _refuse_a_run(where)  # another process may have been faster
        write_whole(where / PLAN, plans.write(settled).encode())
        return _shown(go(where, settled, place, tell), tell)


def _refuse_a_run(folder: Path) -> None:
    if (folder / PLAN).exists():
        remedy = f"go on with `fedgen resume {folder}`, or name another folder"
        raise StoreError(f"run '{folder}': holds a run already; {remedy}")
    if others := sorted(path.name for path in folder.glob("[!.]*") if path.name != "lock"):
        raise StoreError(f"run '{folder}': holds other files (first '{others[0]}'); name a new folder for the run")


def resume(folder: Path | str, *, tell: Tell = silent) -> Run:
    """Go on with a run from its last finished round; the end is that of an uninterrupted run."""
    found = Run(Path(folder))
    with hold(found.folder):
        if found.finished:
            return _shown(found, tell) if _undrawn(found) else found
        settled = found.plan
        place = inprocess.place(settled, settled.backbone.load(), found.folder / SHELF, tell)
        return _shown(go(found.folder, settled, place, tell), tell)


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
