"""Write the figures of docs/clusters.md from the result files of the experiments and the bench.

python docs/cluster_results.py
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).parent
PAGE, ROOT = HERE / "clusters.md", HERE.parent
OPEN, CLOSE = "<!-- from here on written by docs/cluster_results.py -->\n", "<!-- to here -->\n"
CALLED = {
    "local": "local only", "global": "one global adapter", "clusters": "clusters", "exchange": "clusters that exchange",
    "oracle": "the true groups",
}  # fmt: skip
FALLS = ("fall", "worst_tenth", "smallest_quarter")


def read(path: str) -> dict[str, Any]:
    """One result file."""
    found: dict[str, Any] = json.loads((ROOT / path).read_text("utf-8"))
    return found


def spread(values: Iterable[float]) -> str:
    """The mean of the seeds, and where there are several the least and the most."""
    values = list(values)
    span = f" ({min(values):.1%} to {max(values):.1%})" if len(values) > 1 else ""
    return f"{mean(values):.1%}{span}"


def cells(runs: Iterable[Mapping[str, Any]], part: str) -> list[str]:
    """The three falls of an arm, without or with the personal step."""
    known = [run[part] for run in runs if part in run]
    return [spread(one[key] for one in known) if known else "" for key in FALLS]


def arms(result: dict[str, Any]) -> list[str]:
    """A table a world: what each way gains over the bare backbone."""
    lines: list[str] = []
    for world, found in result["worlds"].items():
        head = f"{world}, {found['clients']} clients in {found['groups']} groups"
        lines += [f"| {head} | mean fall of {found['measure']} | worst tenth of clients | smallest quarter of groups |"]
        lines += ["|---|---|---|---|"]
        for arm, runs in found["arms"].items():
            for part, said in (("shared", ""), ("personal", ", and a personal step")):
                row = cells(runs.values(), part)
                if any(row):
                    own = "" if arm == "local" else said
                    lines.append(f"| {CALLED[arm]}{own} | {' | '.join(row)} |")
        aris = [run["quality"]["ari"] for run in found["arms"]["clusters"].values()]
        needed = found["rounds_to_best_of_global"]
        rounds = len(next(iter(found["arms"]["global"].values()))["curve"])
        said = (
            f"Found groups against true ones: ARI {min(aris):.2f} in the worst of {len(aris)} seeds. What one global "
            f"adapter reaches in its best of {rounds} rounds, clusters reach by round {max(needed['clusters'])} and "
            f"clusters that exchange by round {max(needed['exchange'])}, on validation rows, in every seed."
        )
        lines += ["", said, ""]
    return lines


def tried(result: dict[str, Any]) -> list[str]:
    """Other exchanges on text, one seed."""
    found = result["worlds"]["text"]
    rows = {CALLED[arm]: found["arms"][arm]["0"] for arm in ("clusters", "exchange")}
    rows |= {name: one["runs"]["0"] for name, one in found["tried"].items()}
    lines = ["| text, seed 0: exchange | mean fall | worst tenth | smallest quarter |", "|---|---|---|---|"]
    lines += [f"| {name} | {' | '.join(cells([run], 'shared'))} |" for name, run in rows.items()]
    said = (
        "To add others' steps is to take a longer step, too: at twice the learning rate there is less left for "
        "exchange to add. Shares of whole adapters compound from round to round and cost what a cluster had learnt "
        "for itself."
    )
    return [*lines, "", said]


def hybrids(result: dict[str, Any]) -> list[str]:
    """How often each mixture is judged a face of both styles, and how often its letter is right."""
    lines = []
    for wanted in next(iter(result["seeds"].values())):
        each = [seed[wanted] for seed in result["seeds"].values()]
        lines += [f"| {wanted} | judged {wanted} | letter right |", "|---|---|---|"]
        for name in each[0]["judged"]:
            shares = [spread(one["judged"][name][key] for one in each) for key in ("style", "letter")]
            lines.append(f"| {name} | {' | '.join(shares)} |")
        shares = [spread(one["real face"][key] for one in each[:1]) for key in ("style", "letter")]
        pairs = ", ".join(" and ".join(f"{weight:g}" for weight in one["weights"]) for one in each)
        lost = spread(one["energy lost at one adapter's rank"] for one in each)
        said = (
            f"Best weights, seed by seed: {pairs}. As one adapter of a cluster's rank they lose {lost} of their energy."
        )
        lines += [f"| the real, never-trained face | {' | '.join(shares)} |", "", said, ""]
    return lines


def clustering(found: dict[str, Any]) -> str:
    """The time and memory of clustering many profiles."""
    given, chosen, (fewest, most) = found["given"], found["chosen"], found["range"]
    before, peak = (chosen[key] for key in ("of_it_before_clustering_mb", "peak_memory_mb"))
    return (
        f"{found['profiles']:,} profiles of {found['width']} numbers are grouped in {given['seconds']:.1f} s if the "
        f"number of clusters is given, and in {chosen['seconds'] / 60:.1f} minutes if it is chosen from {fewest} to "
        f"{most}; peak memory {peak:.0f} MB, of which {before:.0f} MB were there before (`bench/cluster.py`, "
        f"{found['machine']})."
    )


def page() -> str:
    """The page as it should be."""
    before, _, rest = PAGE.read_text("utf-8").partition(OPEN)
    _, _, after = rest.partition(CLOSE)
    found, mixed = read("experiments/results/clusters.json"), read("experiments/results/hybrids.json")
    protocol = (
        "Three seeds; the mean, and the least and the most. A fall is how far a client's held-out measure lies "
        "below that of the bare backbone. Rounds, cohorts and steps are the same for all (`experiments/clusters.py`)."
    )
    judged = (
        "Clusters learnt bold, slanted and serif letters; their adapters alone are mixed. A judge that was trained on "
        f"real faces chooses among {len(mixed['settings']['among'])} styles; {mixed['settings']['pictures']} letters "
        "each, three seeds. Weights are chosen on one draw of noise and judged on another (`experiments/hybrids.py`)."
    )
    parts = [
        "## What clusters are worth",
        protocol,
        "\n".join(arms(found)).rstrip(),
        "![By round, and by client](../experiments/results/clusters.png)",
        "\n".join(tried(found)),
        "## What hybrids are worth",
        judged,
        "\n".join(hybrids(mixed)).rstrip(),
        "![Letters of both parents, the hybrid, and the real face](../experiments/results/hybrids.png)",
        "## What clustering costs",
        clustering(read("bench/results/cluster.json")),
    ]
    return before + OPEN + "\n" + "\n\n".join(parts) + "\n\n" + CLOSE + after


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
