"""What a run looks like in a terminal: live progress, plain lines where there is no terminal, and tables."""

import json
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedgen.cohort import wanted
from fedgen.devices import Burden
from fedgen.evaluate import Gains, Score, Yardstick, gains, total, yardstick_of
from fedgen.exhibit import QUALITY, Painting
from fedgen.methods import Method
from fedgen.places.asking import NEVER, Standing
from fedgen.places.roll import Noticed
from fedgen.records import Failure, Report, Update
from fedgen.report import digest
from fedgen.report.clusters import table_of
from fedgen.report.digest import CLUSTER, KINDS
from fedgen.report.wording import counted, happened, number, saving, size, span
from fedgen.run import Began, Run


class Screen:
    """Hears a run's events and shows them; Ctrl-C is answered with how to go on."""

    def __init__(self, out: Console) -> None:
        self.out = out
        self.began: Began | None = None
        self.standing: Standing | None = None
        self.done = 0
        self.bar = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=out, transient=True, disable=not out.is_terminal,
        )  # fmt: skip

    def __enter__(self) -> Self:
        if not self.out.is_terminal:
            self.out.print("loading the backbone ...")
        self.bar.start()
        self.task = self.bar.add_task("loading the backbone", total=None)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bar.stop()
        if kind is KeyboardInterrupt:
            if self.began is None:
                self.out.print("stopped before the first round; nothing was written")
            else:
                self.out.print(f"stopped; all finished rounds are safe: go on with `fedgen resume {self.began.folder}`")

    def tell(self, event: object) -> None:
        """Show one event."""
        if isinstance(event, Began):
            self._begin(event)
        elif isinstance(event, Update | Failure):
            if self.standing is None:  # else that has counted it
                self.bar.advance(self.task)
            if isinstance(event, Failure):
                self.out.print(
                    f"  round {event.round}: client '{event.client}' sent nothing: {event.reason}", markup=False
                )
            if self.began and event.round > self.began.plan.rounds:
                self.bar.update(self.task, description="personal adapters and held-out scores")
        elif isinstance(event, Report):
            self._round(event)
        elif isinstance(event, Standing):
            self._stand(event)
        elif isinstance(event, Noticed):
            self.out.print(f"  {event.said}", markup=False, soft_wrap=True)
        elif isinstance(event, Painting):
            self.bar.update(self.task, description="pictures", completed=event.done, total=event.total)

    def _begin(self, event: Began) -> None:
        self.began, plan, clients = event, event.plan, event.facts["clients"]
        cohort = wanted(plan.cohort, clients)
        panel = min(plan.evaluate.clients, clients) if plan.evaluate.every == 1 else 0
        rounds = plan.rounds - event.round
        self.bar.update(self.task, total=rounds * (cohort + panel) + clients, description=f"round {event.round + 1}")
        facts = event.facts
        self.out.print(
            f"{clients} clients, {cohort} a round, {plan.rounds} rounds; "
            f"backbone {facts['parameters']:,} parameters, frozen; run folder {event.folder}",
            soft_wrap=True,
        )
        for name in facts["dropped"]:
            self.out.print(f"  client '{name}' has too little data and is left out", markup=False)

    def _stand(self, now: Standing) -> None:
        """How a question to clients elsewhere stands: who is there, who has answered, how long that may take."""
        if self.standing and (self.standing.round, self.standing.use) != (now.round, now.use):
            self.done += self.standing.answered
        self.standing = now
        self.bar.update(self.task, completed=self.done + now.answered, description=stands(now))

    def _round(self, report: Report) -> None:
        yardstick = yardstick_of(self.began.facts if self.began else {})
        seen, digits = report.metrics.get(yardstick.key), yardstick.digits
        answered = report.metrics.get("answered", len(report.clients) - len(report.failures))
        parts = [
            f"round {report.round}/{self.began.plan.rounds if self.began else '?'}",
            f"{answered:.0f}/{len(report.clients)} clients",
            f"loss {report.metrics['loss']:.{max(3, digits)}f}",
            *([f"{yardstick.name} {seen:.{digits}f}"] if seen else []),
            *([counted(len(report.clusters["members"]), "cluster")] if report.clusters else []),
            *([f"mean rank {_mean(report.ranks['clients'].values()):.1f}"] if report.ranks else []),
            f"{size(report.up)} up",
            f"{report.metrics['terms'] / report.seconds:,.0f} {yardstick.term}s/s",
            *([f"{span(report.metrics['clock'])} simulated"] if "clock" in report.metrics else []),
        ]
        self.out.print("  ".join(parts), soft_wrap=True)
        for event in report.clusters.get("events", []):
            self.out.print(f"  {happened(event)}", markup=False, soft_wrap=True)
        self.bar.update(self.task, description=f"round {report.round + 1}")


def _mean(values: Collection[float]) -> float:
    return sum(values) / len(values)


def stands(now: Standing) -> str:
    """How an ask stands, in words."""
    until = f" of {now.deadline:.0f}" if now.deadline < NEVER else ""
    who = f"{now.use}, {now.answered} of {now.asked} have answered, {counted(now.nodes, 'node')} online"
    when = "the end" if now.use == "score" else f"round {now.round}"
    return f"{when}: {who}, {now.seconds:.0f}{until} s, {size(now.up)} up"


def gains_of(scores: Mapping[str, Mapping[str, Score]], adapter: str, yardstick: Yardstick) -> Gains | None:
    """What an adapter gained over the bare backbone, client by client."""
    known = {name: found for name, found in scores.items() if adapter in found}
    if not known:
        return None
    return gains({n: s["backbone"] for n, s in known.items()}, {n: s[adapter] for n, s in known.items()}, yardstick)


def outcome_table(run: Run) -> Table:
    """Backbone, shared and personal adapters on what the clients held out."""
    found, scores, yardstick = digest.read(run), run.scores, run.yardstick
    in_text = any(score.bytes for own in scores.values() for score in own.values())
    title = f"{run.folder.name}: held-out {yardstick.material} of {len(scores)} clients"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=title)
    also = ("per word", "bits/byte") if in_text else ()
    for head in ("adapter", yardstick.name, *also, "fall", "worst 10%", "gained"):
        table.add_column(head, justify="left" if head == "adapter" else "right", no_wrap=True)
    known = {kind for own in scores.values() for kind in own}
    for adapter in (kind for kind in KINDS if kind in known):
        score = total(own[adapter] for own in scores.values() if adapter in own)
        gain = gains_of(scores, adapter, yardstick)
        falls = ("", "", "")
        if gain and adapter != "backbone":
            falls = (f"{gain.mean:.1%}", f"{gain.worst_decile:.1%}", f"{gain.gained} of {gain.clients}")
        table.add_row(
            adapter,
            f"{yardstick.of(score):.{yardstick.digits}f}",
            *(_in_text(score) if in_text else ()),
            *falls,
        )
    less = f", {saving(found.saved)} less than full-model FedAvg" if found.saved else ""
    table.caption = f"{len(found.journal)} rounds, {size(found.sum('up'))} up{less}"
    return table


def _in_text(score: Score) -> tuple[str, str]:
    per_word = number(score.per_word) if score.per_word < 1e6 else f"{score.per_word:.1e}"
    return per_word, f"{score.bits_per_byte:.3f}"


def quality_table(run: Run) -> Table | None:
    """What was measured of the pictures that were drawn, if any were."""
    path = run.folder / QUALITY
    if not path.exists():
        return None
    found = json.loads(path.read_text("utf-8"))["measures"]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=f"{run.folder.name}: pictures drawn")
    for head in ("", *found["columns"]):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for name, *cells in found["rows"]:
        table.add_row(name, *(number(cell, 3) if isinstance(cell, float) else str(cell) for cell in cells))
    table.caption = found["note"]
    return table


def clusters_table(run: Run) -> Table | None:
    """What each cluster is and what its adapter is worth to its members, in a run that has any."""
    found = digest.read(run)
    if not found.members or not found.scores:
        return None
    table, (heads, rows) = Table(box=SIMPLE_HEAD, pad_edge=False, title=f"{run.folder.name}: clusters"), table_of(found)
    for head in heads:
        table.add_column(head.lower(), justify="left" if head in ("Cluster", "Labels") else "right")
    for row in rows:
        table.add_row(*map(escape, row))
    table.caption = ", ".join(f"{name} {value:.2f}" for name, value in found.clusters.get("quality", {}).items())
    return table


def runs_table(runs: Sequence[Run]) -> Table:
    """One line a run."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    known = {kind for run in runs for own in run.scores.values() for kind in own}
    kinds = [kind for kind in KINDS if kind != CLUSTER or kind in known]
    for head in ("run", "rounds", "clients", *kinds, "mean fall"):
        table.add_column(head, justify="left" if head == "run" else "right", no_wrap=True)
    for run in runs:
        scores, yardstick = run.scores, run.yardstick
        pooled = [_pooled(scores, adapter, yardstick) for adapter in kinds]
        gain = next((gain for kind in reversed(kinds) if (gain := gains_of(scores, kind, yardstick))), None)
        rounds, clients = f"{len(run.journal)}/{run.plan.rounds}", str(run.facts.get("clients", ""))
        table.add_row(run.folder.name, rounds, clients, *pooled, f"{gain.mean:.1%}" if gain else "")
    measures = dict.fromkeys(run.yardstick for run in runs)
    if len(measures) > 1:
        table.caption = "; ".join(f"{measure.material}: {measure.name} {measure.unit}" for measure in measures)
    return table


def methods_table(methods: Mapping[str, Method]) -> Table:
    """A line a method: its name, its paper, and where it departs from that."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for head in ("name", "method", "paper", "departs"):
        table.add_column(head, no_wrap=head == "name")
    for name, method in methods.items():
        table.add_row(name, method.title, method.paper, method.departs)
    return table


def devices_lines(found: Sequence[Burden], *, known: bool) -> list[str]:
    """What a turn is to each kind of device, a line each below their heads; of those not `known`, what it would be."""
    who, many = ("a turn on", "clients") if known else ("a turn would be on", "")
    rows = [[who, many, "in memory", "rank", "needs", "of", "down", "work", "up"]]
    for own in found:
        low, high = own.ranks
        rank = "" if not high else f"{low}" if low == high else f"{low} to {high}"
        fits = "yes" if own.fits == own.clients else f"{own.fits:,}" if own.fits else "no"
        seconds = [_brief(each) for each in (own.turn.down, own.turn.work, own.turn.up)]
        rows.append([own.kind, many and f"{own.clients:,}", fits, rank, size(own.needs), size(own.memory), *seconds])
    wide = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(wide[0]), *map(str.rjust, row[1:], wide[1:])]) for row in rows]
    return lines if found else []


def _brief(seconds: float) -> str:
    """A time that may be a few milliseconds."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else span(seconds)


def standing(run: Run) -> str:
    """How far a run has come that is not finished, and how to go on."""
    lines, rounds, yardstick = run.journal, run.plan.rounds, run.yardstick
    metrics, digits = lines[-1]["metrics"] if lines else {}, max(3, yardstick.digits)
    named = {"loss": "loss", yardstick.key: yardstick.name}
    said = "".join(f", {name} {metrics[key]:.{digits}f}" for key, name in named.items() if key in metrics)
    return f"{run.folder}: {len(lines)} of {rounds} rounds{said}; go on with `fedgen resume {run.folder}`"


def _pooled(scores: Mapping[str, Mapping[str, Score]], adapter: str, yardstick: Yardstick) -> str:
    known = [own[adapter] for own in scores.values() if adapter in own]
    return f"{yardstick.of(total(known)):.{yardstick.digits}f}" if known else ""
