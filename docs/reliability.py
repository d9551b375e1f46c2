"""Write the figures of docs/reliability.md from the result file of the fault bench.

python docs/reliability.py
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE, RESULT = HERE / "reliability.md", HERE.parent / "bench" / "results" / "faults.json"
COSTS = RESULT.with_name("fleet.json")
OPEN, CLOSE = "<!-- from here on written by docs/reliability.py -->\n", "<!-- to here -->\n"


def seconds(spent: float | None) -> str:
    """So many seconds, if it was measured."""
    return "" if spent is None else f"{spent:.0f} s"


def kept(found: bool | None) -> str:
    """Whether all bytes were there."""
    return {None: "", True: "all", False: "**not all**"}[found]


def end(found: dict[str, Any]) -> str:
    """What the run's end was the same as."""
    same = found["same_shared_adapter"] and found["same_own_parts"]
    if not found["finished"] or not same:
        return "**no**"
    return "uninterrupted" if not found["missing"] else f"without {out(found['missing'])}"


def out(missing: dict[str, list[str]]) -> str:
    """Who was missing when."""
    return "; ".join(f"{' and '.join(names)} in round {turn}" for turn, names in missing.items())


def table(result: dict[str, Any]) -> list[str]:
    """A row a scenario."""
    lines = ["| fault | what was done | whole again | next round ended | own parts kept | same end, bit for bit, as |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, found in result["scenarios"].items():
        spent = [seconds(found[key]) for key in ("seconds_until_whole", "seconds_until_the_round_ended")]
        cells = [name, found["what"], *spent, kept(found["own_parts_kept"]), end(found)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def seen(result: dict[str, Any]) -> list[str]:
    """What was to be seen of each, in the product's own words."""
    lines = []
    for name, found in result["scenarios"].items():
        said = found["seen"] or ["nothing but a longer round"]
        lines += [f"**{name}**", "", *(f"- {line}" for line in said), ""]
    return lines


def costs(found: dict[str, Any]) -> list[str]:
    """What a round takes beyond training, where it goes, and whether memory grows."""
    plain, checked = found["seconds a round"], found["seconds a round with validation"]
    said = (
        f"{found['nodes']} nodes, {found['clients']} clients, each turn one step; {found['machine']}, {found['date']}. "
        f"Without validation a round is one message to each node and back: {plain['median']:.1f} s "
        f"({plain['least']:.1f} to {plain['most']:.1f} over {found['rounds']} rounds), of which nodes work "
        f"{found['of which work at the nodes']:.2f} s. With validation it is two: {checked['median']:.1f} s "
        f"({checked['least']:.1f} to {checked['most']:.1f} over {found['rounds with validation']}). A fleet is online "
        f"{found['seconds until all nodes are online']:.0f} s after `up`."
    )
    rows = ["| of a round without validation | seconds |", "|---|---|"]
    rows += [f"| {name} | {spent:.2f} |" for name, spent in found["where a median round goes, seconds"].items()]
    early, late, grown = (
        found[key] for key in ("MB held after a tenth of the rounds", "MB held after the last", "MB grown")
    )
    rows += ["", f"Memory over {found['rounds']} rounds:", ""]
    rows += ["| process | MB after a tenth of the rounds | after the last | grown |", "|---|---|---|---|"]
    rows += [f"| {name} | {early[name]:.0f} | {late[name]:.0f} | {grown[name]:+.1f} |" for name in early]
    return [said, "", *rows]


def page() -> str:
    """The page as it should be."""
    result = json.loads(RESULT.read_text("utf-8"))
    before, _, rest = PAGE.read_text("utf-8").partition(OPEN)
    _, _, after = rest.partition(CLOSE)
    loads = [found["load"] for found in result["scenarios"].values()]
    about = (
        f"{result['nodes']} nodes, {result['clients']} clients, all of them in each of {result['rounds']} rounds; "
        f"{result['machine']}, of which other work took its share (load {min(loads):.0f} to {max(loads):.0f}), "
        f"flwr {result['versions']['flwr']}, {result['date']}. Seconds are counted from the fault."
    )
    parts = ["## What happened", about, "\n".join(table(result)), "## What was to be seen", "\n".join(seen(result))]
    parts += ["## What a round costs", "\n".join(costs(json.loads(COSTS.read_text("utf-8"))))]
    return before + OPEN + "\n" + "\n\n".join(parts) + "\n" + CLOSE + after


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
