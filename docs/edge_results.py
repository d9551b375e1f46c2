"""Write the figures of docs/edge.md from the result files of experiments/edge.py and the benches.

python docs/edge_results.py
"""

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).parent
PAGE, ROOT = HERE / "edge.md", HERE.parent
OPEN, CLOSE = "<!-- from here on written by docs/edge_results.py -->\n", "<!-- to here -->\n"
sys.path.insert(0, str(ROOT / "experiments"))
from edge_figures import over, recovered, time_to  # noqa: E402  the same figures as in its pictures

Found = Mapping[str, Any]


def read(path: str) -> dict[str, Any]:
    """One result file."""
    found: dict[str, Any] = json.loads((ROOT / path).read_text("utf-8"))
    return found


def spread(values: Iterable[float], form: str = "+.2%") -> str:
    """The mean of the seeds, and where there are several the least and the most."""
    values = list(values)
    span = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{mean(values):{form}}{span}"


def cell(arm: Found, key: str, form: str) -> str:
    """The mean of a figure over an arm's seeds."""
    return f"{mean(run[key] for run in arm['runs'].values()):{form}}"


def few(result: Found) -> list[str]:
    """A table a world: bytes of a turn, and what they cost in quality."""
    lines = ["### Bytes", "", "![Quality against bytes](../experiments/results/edge-bytes.png)", ""]
    for world, found in result["worlds"].items():
        plain = found["arms"]["plain"]
        lines += [f"| {world} | bytes up, a turn | smaller by | of full | {found['measure']}, against plain | seeds |"]
        lines += ["|---|---|---|---|---|---|"]
        for name, arm in found["arms"].items():
            less = mean(run["up"] for run in plain["runs"].values()) / mean(run["up"] for run in arm["runs"].values())
            cells = [cell(arm, "up", ",.0f"), f"{less:.1f}", cell(arm, "of_full", ".3%"), spread(over(arm, plain))]
            lines.append(f"| {name} | {' | '.join(cells)} | {len(arm['runs'])} |")
        lines.append("")
    said = (
        "Wanted were at most 0.05% of full-model FedAvg's bytes, 20 times fewer than plain fp32 adapters of "
        "rank 8, within 1%: `thin` and signs with feedback do in both worlds and in every seed. Without "
        "feedback, or with fewer numbers, the quality goes. B alone sends half and learns too little here, "
        "even with A drawn anew each round. Bars and brackets are from the least to the most of the seeds; "
        "bytes have some 250 of names and metrics in each message."
    )
    return [*lines, said, ""]


def thin(result: Found) -> str:
    """What the method of fewest bytes comes to, as the README says it."""
    said = []
    for world, found in result["worlds"].items():
        arms = found["arms"]
        small, less = cell(arms["thin"], "of_full", ".3%"), mean(over(arms["thin"], arms["plain"]))
        said.append(f"{small} of full-model FedAvg's bytes on {world}, {less:.1%} worse than plain adapters")
    return "; ".join(said)


def readme() -> str:
    """The README's sentence."""
    return f"`--method thin` sends {thin(read('experiments/results/edge-bytes.json'))} (three seeds)."


def mixed(result: Found) -> list[str]:
    """How much of the gap between narrow and wide each rule recovers."""
    found = result["worlds"]["ranks"]
    arms = found["arms"]
    lines = ["### Mixed ranks", "", "![Mixed ranks](../experiments/results/edge-ranks.png)", ""]
    lines += [f"| ranks | {found['measure']} | of the gap, stacked | of the gap, averaged | bytes up, down |"]
    lines += ["|---|---|---|---|---|"]
    for name, arm in arms.items():
        values = spread((run["measure"] for run in arm["runs"].values()), ".2f")
        ends = name.removesuffix(", averaged") in ("all 2", "all 32")
        shares = ["" if ends else spread(recovered(arms, name, of), ".0%") for of in ("", ", averaged")]
        sent = f"{cell(arm, 'up', ',.0f')}, {cell(arm, 'down', ',.0f')}"
        who = name if name.startswith("all ") else f"2 to 32: {name}"
        lines.append(f"| {who} | {values} | {' | '.join(shares)} | {sent} |")
    said = (
        "Wanted were 85% of the gap. Mixed ranks do not reach it: stacked increments recover most, each end "
        "at a rate that suits it. A client of rank 2 teaches the others less of its own data than one of rank"
        " 32, whatever the rule. But thin links are no reason for narrow ranks: with `thin` everyone at rank "
        "32 sends about half of what a plain adapter of rank 2 takes, and nearly all of the gap is made up "
        "for; what is left to choose ranks by is memory. The mean of the products (`exact`) loses rank by "
        "rank what narrow clients do not hold, as its effective rank shows; `changes` keeps more of it. What "
        "else was tried is in the [log](../LOG.md)."
    )
    return [*lines, "", said, ""]


def hours(result: Found) -> list[str]:
    """Time to a target, and where each way ends."""
    found = result["worlds"]["time"]
    lines = ["### Time", "", "![Quality against simulated hours](../experiments/results/edge-time.png)", ""]
    lines += [f"| way | hours to the target | {found['measure']} at the end | hours in all | updates | MB up |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, arm in found["arms"].items():
        runs = list(arm["runs"].values())
        reached = spread((time_to(found, seed, run) / 3600 for seed, run in arm["runs"].items()), ".1f")
        ended = spread((run["measure"] for run in runs), ".2f")
        whole = spread((run["told"]["clock"][-1] / 3600 for run in runs), ".1f")
        sent = f"{mean(run['turns'] for run in runs):.0f} | {mean(run['sent'][-1] for run in runs) / 1e6:.1f}"
        lines.append(f"| {name} | {reached} | {ended} | {whole} | {sent} |")
    said = (
        "Twenty clients, of whom six are some 25 times slower than the quickest and one turn in twenty is "
        "lost; 16 rounds of ten updates, or 32 of five. The target is, in each seed, the best validation that"
        " all three ways reach. Spare clients spend turns to save time; the asynchronous run wastes none, and"
        " a slow client's change comes late and counts less."
    )
    return [*lines, "", said, ""]


def memory(result: Found) -> list[str]:
    """Peak memory of each way to train."""
    lines = ["### Memory", ""]
    for kind, ways in result["ways"].items():
        lines += [f"| {kind} | weights, MB | a turn, MB | peak, MB | time |", "|---|---|---|---|---|"]
        for name, way in ways.items():
            lines.append(f"| {name} | {way['weights']} | {way['turn']} | {way['peak']} | {way['time']:.2f} |")
        lines.append("")
    said = (
        "One step at rank 8 on one CPU thread, each way once and in a process of its own: a random Llama of "
        "about 100 M weights (4 rows of 128 tokens), and the embedded image backbone (32 rows). *A turn* is "
        "the most memory above program and backbone, and *peak* is everything; differences of 100 MB are the "
        "allocator's. Time is the processor's, against plain; *all* is micro = 1, checkpoint, sgd and last = "
        "0.25. On this CPU 8 and 4 bits alone shrink the weights and raise the peak; they pay with the rest."
    )
    return [*lines, said, ""]


def speed(result: Found) -> list[str]:
    """What packing and unpacking cost."""
    lines = ["### What packing costs", ""]
    lines += ["| way | bits a number | pack, MB/s | unpack, MB/s | both, of a turn |", "|---|---|---|---|---|"]
    for name, way in result["embedded"]["ways"].items():
        cells = [f"{way['bits_a_number']:.2f}", f"{way['encode_mb_s']}", f"{way['decode_mb_s']}"]
        lines.append(f"| {name} | {' | '.join(cells)} | {way['share_of_turn_percent']:.2f}% |")
    return [*lines, ""]


def page() -> str:
    """The page with today's figures."""
    head, rest = PAGE.read_text("utf-8").split(OPEN)
    studies = {few: "edge-bytes", mixed: "edge-ranks", hours: "edge-time"}
    results = {make: read(f"experiments/results/{name}.json") for make, name in studies.items()}
    results |= {memory: read("bench/results/memory.json"), speed: read("bench/results/bytes.json")}
    lines = [line for make, result in results.items() for line in make(result)]
    dates = sorted({result["date"] for result in results.values()})
    about = (
        f"Measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}; machine and versions are in the result files."
    )
    return head + OPEN + "\n".join(["", *lines, about, "", ""]) + CLOSE + rest.split(CLOSE)[1]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
