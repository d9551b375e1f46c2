"""The devices of a run, and the simulated time that their turns took."""

from collections import Counter

from fedgen.report import markup
from fedgen.report.digest import Digest
from fedgen.report.wording import ABSENT, counted, span

RECKONED = (
    "Reckoned, not measured: from what each client's device computes, receives and sends in a second and when it is "
    "online, on the terms of [fleet]. The clock begins at 0:00 of a day; only training takes time, measuring none"
)


def devices(run: Digest) -> str:
    """What kinds of devices there were, and what came of their turns; nothing if the run does not know."""
    kinds: dict[str, int] = run.facts.get("devices", {})
    seen: Counter[tuple[str, str]] = Counter()
    for line in run.journal:
        for kind, found in line.get("devices", {}).items():
            seen.update({(kind, key): value for key, value in found.items()})
    if not kinds:
        return ""
    if not run.times:
        return markup.table("Devices that took part", ["Device", "Clients"], [(k, f"{n:,}") for k, n in kinds.items()])
    rows = [_row(kind, many, seen) for kind, many in sorted(kinds.items())]
    told = f"Turns on {counted(sum(kinds.values()), 'simulated device')} in the rounds"
    missed = "lost, too late for their round, or not begun in it"
    return markup.table(
        f"{told}, and the simulated time of those that counted. Missed: {missed}",
        ["Device", "Clients", "Turns", "Missed", "Mean time of a turn"],
        rows,
    )


def _row(kind: str, many: int, seen: Counter[tuple[str, str]]) -> list[str]:
    turns = seen[kind, "turns"]
    mean = span(seen[kind, "seconds"] / turns) if turns else ABSENT
    return [kind, f"{many:,}", f"{turns:,}", f"{seen[kind, 'missed']:,}", mean]
