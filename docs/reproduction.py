"""Write the pages of docs/results with their figures, and the table of docs/results.md, from the result files there.

python docs/reproduction.py
"""

from pathlib import Path
from statistics import mean

from fedgen.report.wording import percent, saving, size
from fedgen.reproduce import page as pages
from fedgen.reproduce.reading import FULL, Result, Run, alike, course, gains, own, read

DOCS = Path(__file__).parent
PAGE = DOCS / "results.md"
BEGIN, END = "<!-- from here on written by docs/reproduction.py -->\n", "<!-- to here -->\n"
STUDIES = ("ptb", "cifar10")
OURS = ("fedgen-edge", "stack")


def page() -> str:
    """The hand-written page with its table as it should be."""
    before, _, rest = PAGE.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def table() -> str:
    """What the papers claim, and what each world of each study says to it; a table a study."""
    blocks = []
    for result in (read(DOCS / "results" / f"{name}.json") for name in STUDIES):
        worlds = [world for world in result.worlds() if {FULL, "fedit", *OURS} <= result.table(world).keys()]
        lines = [f"| {result.content['about']['title']} | {' | '.join(worlds)} |", "|---" * (len(worlds) + 1) + "|"]
        for question, answer in QUESTIONS.items():
            lines.append(f"| {question} | {' | '.join(answer(result, world) for world in worlds)} |")
        blocks.append("\n".join([*lines, ""]))
    return "\n".join(blocks)


def shown(result: Result, value: float) -> str:
    return f"{value:.{0 if result.kind == 'text' else 5}f}"


def saved(result: Result, world: str) -> str:
    """How much smaller an adapter's message is than the full model's update."""
    (run, *_), (full, *_) = (result.table(world)[name] for name in ("fedit", FULL))
    return f"{size(run['message'])}: {saving(1 - run['message'] / full['message'])}"


def full_best(result: Result, world: str) -> str:
    """Full FedAvg's best validation measure, and what had been sent by then."""
    value, turn, sent = best(result.table(world)[FULL][0])
    return f"{shown(result, value)} in round {turn}, {size(sent)}"


def best(run: Run) -> tuple[float, int, int]:
    return min((value, turn, sent) for turn, value, sent in course(run))


def ours_best(result: Result, world: str) -> str:
    """The lowest validation measure of a shared adapter of ours, and its share of full FedAvg's bytes till its best."""
    _, _, all_bytes = best(result.table(world)[FULL][0])
    found = {name: best(runs[0]) for name, runs in result.table(world).items() if name in OURS}
    name = min(found, key=lambda name: found[name])
    value, _, sent = found[name]
    return f"{result.title(name)}: {shown(result, value)}, {percent(sent / all_bytes)} of its bytes"


def at_the_end(result: Result, world: str) -> str:
    """Held-out rows after all rounds: our best with own adapters, and full FedAvg; and the share of its bytes."""
    table = result.table(world)
    name = min(OURS, key=lambda name: mean(map(own, table[name])))
    mine, full = table[name][0], table[FULL][0]
    share = sum(line["up"] for line in mine["rounds"]) / sum(line["up"] for line in full["rounds"])
    both = f"{result.title(name)} {shown(result, own(mine))}, full FedAvg {shown(result, own(full))}"
    return f"{both}, {share:.1%} of its bytes"


def gaining(result: Result, world: str) -> str:
    """How many clients fedgen-edge's personal step helps."""
    falls = [fall for run in result.table(world).get("fedgen-edge", []) for fall in gains(run)]
    return f"{percent(sum(fall > 0 for fall in falls) / len(falls))} of {len(falls)}" if falls else ""


def contest(result: Result, world: str) -> str:
    """Our best method beside the best baseline that sends no more than adapters."""
    table = result.table(world)
    most = max(len(runs) for runs in table.values())  # those played with fewer seeds have no part in it
    ends = {name: mean(map(own, runs)) for name, runs in table.items() if len(runs) == most}
    mine = min((name for name in ends if result.group(name) == "own"), key=ends.__getitem__)
    theirs = min((name for name in ends if result.group(name) in ("adapters", "personal")), key=ends.__getitem__)
    both = ", ".join(f"{result.title(name)} {shown(result, ends[name])}" for name in (mine, theirs))
    return both + (f" ({most} seeds)" if most > 1 else "")


def pair(*names: str):  # type: ignore[no-untyped-def]  # a question's answer
    """Several methods' measures, beside each other."""

    def answer(result: Result, world: str) -> str:
        table = result.table(world)
        if not table.keys() >= set(names):
            return ""
        fair = alike({name: table[name] for name in names})
        return ", ".join(shown(result, mean(map(own, runs))) for runs in fair.values())

    return answer


QUESTIONS = {
    "uplink saved, FedIT's message": saved,
    "full FedAvg's best": full_best,
    "our best shared adapter": ours_best,
    "at the end, own adapters, first seed": at_the_end,
    "our best method, best baseline of adapters": contest,
    "clients that the personal step of fedgen-edge helps": gaining,
    "full FedAvg, FedProx, FedAdam": pair(FULL, "fedprox-full", "fedadam-full"),
    "FedIT, exact average, FLoRA, FedEx": pair("fedit", "exact", "flora", "fedex"),
    "FedIT, FFA, RoLoRA, FedSVD, seeded": pair("fedit", "ffa", "rolora", "fedsvd", "seeded"),
    "share A (FedSA), share B": pair("fedsa", "share-b"),
    "local only, fedgen-edge, Ditto": pair("local", "fedgen-edge", "ditto"),
}


if __name__ == "__main__":
    for result in sorted((DOCS / "results").glob("*.json")):
        for made in pages.write(result):
            print(made)
    PAGE.write_text(page(), "utf-8")
