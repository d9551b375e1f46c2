"""The account of a run: bytes, failures, and how everything was measured."""

from typing import Any

from fedgen import plan as plans
from fedgen.report import markup
from fedgen.report.devices import RECKONED
from fedgen.report.digest import BACKBONE, Digest
from fedgen.report.wording import ABSENT, amount, counted, listed, percent, saving, size


def wire(run: Digest) -> list[str]:
    """What was sent, and what full-model FedAvg would have sent."""
    if not run.journal:
        return []
    ups, downs = run.sum("up"), run.sum("down")
    checks = [int(sum(line["metrics"].get(f"check_{way}", 0) for line in run.journal)) for way in ("up", "down")]
    asked = [sum(line.get("clusters", {}).get(way, 0) for line in run.journal) for way in ("up", "down")]
    sums = ups + checks[0] + asked[0], downs + checks[1] + asked[1]
    full_up, full_down = sum(run.full_up), sum(run.full_down)
    rows = [
        (f"Adapters, {counted(len(run.journal), 'round')}", f"{ups:,}", f"{downs:,}"),
        *([("To form clusters", *(f"{part:,}" for part in asked))] if any(asked) else []),
        ("Validation between rounds", *(f"{check:,}" for check in checks)),
        ("Last question: everyone's scores", *_last(run, "up", "down")),
        ("All of it", *(f"{part + run.outcome.get(key, 0):,}" for part, key in zip(sums, ("up", "down"), strict=True))),
        ("Full-model FedAvg, the same rounds", f"{full_up:,}", f"{full_down:,}"),
        ("Saved in the rounds", saving(1 - ups / full_up), saving(1 - downs / full_down) if full_down else ABSENT),
    ]
    caption = (
        "Bytes as serialised. Up is from clients to the server. Full-model FedAvg is reckoned: the weights' bytes "
        f"({run.facts['full_bytes']:,}, no header) once for each client that answered, and once for each that was asked"
    )
    return [markup.table(caption, ["", "Bytes up", "Bytes down"], rows)]


def _last(run: Digest, *keys: str) -> list[str]:
    return [f"{run.outcome[key]:,}" if run.finished else ABSENT for key in keys]


def failures(run: Digest) -> list[str]:
    """Failures by reason, and the clients that never took part."""
    by_reason: dict[str, list[Any]] = {}
    for failure in run.failures:
        by_reason.setdefault(failure["reason"], []).append(failure)
    rows = [
        (reason, f"{len(found):,}", listed(sorted({failure["client"] for failure in found})))
        for reason, found in sorted(by_reason.items(), key=lambda item: -len(item[1]))
    ]
    table = (
        markup.table("Turns that brought nothing back", ["Reason", "Turns", "Clients"], rows, prose=True)
        if rows
        else ""
    )
    dropped = run.facts.get("dropped", [])
    small = (
        f"Dropped before the first round, because their data was too small: {listed(dropped, 40)}." if dropped else ""
    )
    return [table or markup.words("No client failed."), markup.words(small or "No client was dropped as too small.")]


def measured(run: Digest) -> list[tuple[str, str]]:
    """On what, how and with what everything was measured."""
    plan, facts = run.plan, run.facts
    pairs = [*_held_out(run), *_training(run)]
    pairs.append(("Seed", f"{plan.seed}: one run, so the spread is between clients and says nothing of other seeds"))
    if facts:
        model = (
            f"{facts['backbone']}, {facts['parameters']:,} parameters, {size(facts['full_bytes'])} of weights in memory"
        )
        pairs.append(("Backbone", f"{model}, content hash {facts['backbone_hash'][:16]}"))
        where = f"{facts['where']}; its server: " if "where" in facts else ""
        pairs.append(("Machine", f"{where}{facts['machine']}"))
        versions = {"python": facts["python"]} | facts["versions"]
        pairs.append(("Versions", ", ".join(f"{name} {which}" for name, which in versions.items())))
    if run.finished:
        pairs.append(("Peak memory", f"{size(run.outcome['peak_memory'])}, of the process that ended the run"))
    pairs.append(("Times", "A round's time is from its first offer to the new adapter; validation comes after it"))
    if run.times:
        pairs.append(("Simulated time", RECKONED))
    pairs.append(("Started", f"{run.began:%Y-%m-%d %H:%M} UTC"))
    return pairs


def _held_out(run: Digest) -> list[tuple[str, str]]:
    plan = run.plan
    share = (
        f"a share of {percent(plan.deal.test)} of each client's rows unless the data says otherwise, never trained on"
    )
    most = f"; at most {counted(plan.evaluate.rows, 'row')} a client were scored" if plan.evaluate.rows else ""
    every = f"every {counted(plan.evaluate.every, 'round')}" if plan.evaluate.every > 1 else "every round"
    panel = f"validation rows of the same {counted(min(plan.evaluate.clients, run.clients), 'client')}, {every}"
    pairs = [("Held out", f"{share}{most}"), ("Validation", panel if plan.evaluate.every else "none")]
    if not run.scores:
        return pairs
    pooled, yardstick, looks = run.pooled(BACKBONE), run.yardstick, run.facts.get("looks", 1)
    counts = f"{pooled.terms:,} {yardstick.term}s"
    if pooled.bytes:
        counts += f", {pooled.words:,} words, {pooled.bytes:,} bytes"
    scored = f"{counts} of {counted(len(run.scores), 'client')}"
    if looks > 1:
        scored += f", each looked at {looks:,} times, with the same noise under every adapter"
    measure = f"{yardstick.meaning}; lower is better"
    return [("Scored on", scored), *pairs, (yardstick.name.capitalize(), measure)]


def _training(run: Digest) -> list[tuple[str, str]]:
    plan, rows = run.plan, run.facts.get("rows", 0)
    turn = counted(plan.training.steps, "step") if plan.training.steps else counted(plan.training.epochs, "epoch")
    pairs = plan.adapter.of == "pairs"
    where = f"rank {plan.adapter.rank} on {listed(plan.adapter.targets)}" if pairs else "every weight of the model"
    how = f"{turn} a turn with {plan.training.optimizer}, batches of {counted(plan.training.batch, 'row')}, {where}"
    start = "the cluster's adapter" if run.grouped else "the global adapter"
    own = {
        "none": "none",
        "finetune": f"{start}, fine-tuned by each client after the last round",
        "added": f"{start}, left as it is, and each client's own on top of it, trained after the last round",
    }
    kept = "each client's own, kept and trained beside the shared one in every turn"
    kind = plans.kind_of("personal", plan.personal)
    return [("Training", f"{amount(rows)} rows; {how}"), ("Personal adapters", own.get(kind, kept))]


def resolved(run: Digest) -> str:
    """The plan, every key said."""
    return markup.more("The resolved plan", markup.listing(plans.write(run.plan)))
