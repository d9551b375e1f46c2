"""Write the figures of docs/serving.md from the result file of its bench.

python docs/serving_results.py
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE, RESULT = HERE / "serving.md", HERE.parent / "bench" / "results" / "serve.json"
OPEN, CLOSE = "<!-- from here on written by docs/serving_results.py -->\n", "<!-- to here -->\n"
ROWS = {
    "bank over merged": "one adapter, merged into the weights, in the same engine",
    "bank over merged, generate": "the same, by `generate` of transformers",
    "bank over adapter_names": "PEFT's `adapter_names`",
    "bank over set_adapter": "PEFT's `set_adapter`, row after row",
    "of 256 over bank": "256 adapters in memory, over 16",
}


def spread(found: Mapping[str, float]) -> str:
    """A median and its range."""
    return f"{found['median']:.2f} ({found['low']:.2f} to {found['high']:.2f})"


def speed(found: Mapping[str, Any], goals: Mapping[str, float]) -> list[str]:
    """A row a way, a column a choice of layers."""
    lines = [f"| 16 adapters in one batch, over | wanted | {' | '.join(found)} |", f"|---|---|{'---|' * len(found)}"]
    for key, name in ROWS.items():
        cells = [spread(one["ratios"][key]["wall"]) for one in found.values()]
        goal = f"{goals[key]:g}" if key in goals else ""
        lines.append(f"| {name} | {goal} | {' | '.join(cells)} |")
    one = next(iter(found.values()))
    live = ", ".join(f"{each['new_adapter_in_steps']['median']:.2f}" for each in found.values())
    about = (
        f"A Llama of six layers at random, rank {one['rank']}, {one['rows']} rows of {one['prompt']} and "
        f"{one['answer']} tokens; median and range of {one['repeats']} repeats, by the wall, all ways in turn and all "
        "writing the same tokens. A new adapter goes from the disk to its name and its slot in "
        f"{live} of the time of one token of these rows."
    )
    return [*lines, "", about]


def felt(found: Mapping[str, Any]) -> list[str]:
    """What users felt over HTTP."""
    lines = [
        "| users at once | first token, p50 and p95 | between tokens | tokens a second | lost |",
        "|---|---|---|---|---|",
    ]
    for name, one in found.items():
        if name.endswith("users"):
            first, between = one["to_first_token_ms"], one["between_tokens_ms"]
            lost = sum(count for answer, count in one["answers"].items() if answer != "200")
            times = f"{first['p50']:.0f} and {first['p95']:.0f} ms | {between['p50']:.0f} and {between['p95']:.0f} ms"
            lines.append(f"| {name.split()[0]} | {times} | {one['tokens_a_second']:,.0f} | {lost} |")
    return lines


def heavy(found: Mapping[str, Any]) -> str:
    """What an overload came to."""
    before, after = found["first_token_ms_before"]["p50"], found["first_token_ms_after"]["p50"]
    answers = found["answers"]
    crowd = f"Four times as many users as the queue has places ({found['users']} over {found['queue']})"
    memory = f"from {found['memory_mb'][1]} to {found['memory_mb'][-1]} MB"
    return (
        f"{crowd}, for {found['seconds']} s: {answers['200']:,} answers, {answers['429']:,} times 429, nothing else; "
        f"the server's memory went {memory}. A first token took {before:.0f} ms before and {after:.0f} ms right after."
    )


def page() -> str:
    """The page with today's figures."""
    result = json.loads(RESULT.read_text("utf-8"))
    text = PAGE.read_text("utf-8")
    head, rest = text.split(OPEN)
    lines = [*speed(result["engine"], result["goals"]), "", *felt(result["http"]), "", heavy(result["overload"]), ""]
    about = (
        f"{result['machine']}, torch {result['versions']['torch']}, {result['date']}; server and users share the cores."
    )
    return head + OPEN + "\n".join(["", *lines, about, "", ""]) + CLOSE + rest.split(CLOSE)[1]


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
