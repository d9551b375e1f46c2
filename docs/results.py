"""Write the README's figures from the result files in bench/results.

python docs/results.py
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README, RESULTS = HERE.parent / "README.md", HERE.parent / "bench" / "results"
OPEN, CLOSE = "<!-- from here on written by docs/results.py -->\n", "<!-- to here -->\n"


def read(name: str) -> dict[str, Any]:
    """One result file."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text("utf-8"))
    return found


def outcome(demo: dict[str, Any]) -> list[str]:
    """The demo's table."""
    rows = ["| on held-out text | perplexity per token | bits per byte | mean fall | worst tenth | clients that gain |"]
    rows.append("|---|---|---|---|---|---|")
    for name, score in demo["perplexity"].items():
        gain = demo["gains"].get(name)
        falls = "| | "
        if gain:
            falls = f"{gain['mean']:.1%} | {gain['worst_decile']:.1%} | {gain['gained']} of {gain['clients']}"
        rows.append(f"| {name} | {score:.2f} | {demo['bits_per_byte'][name]:.3f} | {falls} |")
    said = (
        f"{demo['clients']} clients, {demo['rounds']} rounds, {demo['held_out_tokens']:,} held-out tokens. "
        f"An adapter's message is {demo['adapter_message_bytes']:,} bytes as serialised, the whole model's weights are "
        f"{demo['full_model_bytes']:,}: {floor(demo['uplink_saved'])} less uplink. "
        f"The run took {demo['seconds']} s on {demo['machine']}."
    )
    return [*rows, "", said]


def floor(share: float) -> str:
    """A saving, never rounded up."""
    return f"{int(share * 10_000) / 100:.2f}%"


def variants(kept: dict[str, Any]) -> list[str]:
    """The demo with one thing changed at a time."""
    rows = [
        "| the demo, but | uplink saved | mean fall, global | personal | clients that gain |",
        "|---|---|---|---|---|",
    ]
    for name, found in kept.items():
        gains = found["gains"]
        own = gains["personal"]
        name = "as it is" if name == "demo" else name
        shares = f"{floor(found['uplink_saved'])} | {gains['global']['mean']:.1%} | {own['mean']:.1%}"
        rows.append(f"| {name} | {shares} | {own['gained']} of {own['clients']} |")
    said = (
        "Rows are held out at random among each client's own; the end of each module is text less like what came "
        "before it, and there adapters gain less."
    )
    return [*rows, "", said]


def letters(kept: dict[str, Any]) -> list[str]:
    """The demo of images: what is judged of what the adapters draw."""
    demo = kept["demo"]
    columns = demo["measures"]["columns"]
    rows = [f"| the demo of images | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, *cells in demo["measures"]["rows"]:
        shown = [f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells]
        rows.append(f"| {name} | {' | '.join(shown)} |")
    for name in [name for name in kept if name != "demo"]:
        rows += [
            f"| {what}, {name} | {' | '.join(map(str, cells))} |"
            for what, *cells in kept[name]["measures"]["rows"]
            if what in ("Style judged right", "Letter judged right")
        ]
    said = (
        f"{demo['clients']} clients of six typefaces, {demo['rounds']} rounds; {demo['measures']['note']}. "
        f"An adapter's message is {demo['adapter_message_bytes']:,} bytes, the whole denoiser's weights are "
        f"{demo['full_model_bytes']:,}: {floor(demo['uplink_saved'])} less uplink. It took {demo['seconds']} s."
    )
    return [*rows, "", said]


def speed(found: dict[str, Any]) -> list[str]:
    """The three ways to train a client."""
    rows = [
        "| rows a step | cohort through the bank | one at a time | peak memory, cohort / PEFT |",
        "|---|---|---|---|",
    ]
    for name, way in found["speed"].items():
        memory = found["peak_memory_mb"][name]
        ratios = [way["speed_over_peft"][key] for key in ("cohort", "one")]
        cells = [f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})" for ratio in ratios]
        rows.append(f"| {name.split()[0]} | {' | '.join(cells)} | {memory['cohort']} / {memory['peft']} MB |")
    share = found["share_of_a_round_not_training"]["median"]
    said = (
        "Speed over a plain PEFT and PyTorch loop with nothing federated around it, same model, data and steps, in "
        f"one run: median and range of {found['repeats']} repeats. All that is not training takes {share:.1%} of a "
        f"round of {found['clients']} clients."
    )
    return [said, "", *rows]


def images(found: dict[str, Any]) -> list[str]:
    """Pictures and training of images, beside merged weights and PEFT."""
    rows = ["| denoiser | eight adapters in one batch over one merged | over PEFT, row by row | training over PEFT |"]
    rows.append("|---|---|---|---|")
    for name, network in found["networks"].items():
        pictures, training = network["pictures"]["ratio"], network["training_steps"]["ratio"]
        ways = [pictures["bank over merged"], pictures["bank over peft"], training["cohort over peft"]]
        cells = [f"{way['median']:.2f} ({way['min']:.2f} to {way['max']:.2f})" for way in ways]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    said = (
        "Speed of images in one run: eight pictures under eight adapters through the bank, beside one adapter merged "
        "into the weights and beside PEFT switched for each row; and a cohort of four clients beside a plain PEFT loop."
    )
    return [said, "", *rows]


def scale(found: dict[str, Any]) -> list[str]:
    """The server's side alone."""
    rows = ["| registered clients | take part | milliseconds a participant | peak memory |", "|---|---|---|---|"]
    rows += [
        f"| {int(name):,} | {row['take_part']:,} | {row['milliseconds_a_participant']:.2f} "
        f"| {row['peak_memory_mb']:.0f} MB |"
        for name, row in found["registered"].items()
    ]
    return [
        "The server alone (sampling, folding, outer step, journal, checkpoint), clients answering at once:",
        "",
        *rows,
    ]


def places(found: dict[str, Any]) -> list[str]:
    """Turns of clients in process and on Ray, beside Flower and PEFT written two ways."""
    wanted = [f"{way} over {peer}" for way in ("inprocess", "ray") for peer in ("usual", "cached")]
    rows = [
        "| a turn | in process over usual | over cached | on Ray over usual | over cached |",
        "|---|---|---|---|---|",
    ]
    for name, way in ((name, way) for name, way in found.items() if isinstance(way, dict) and "speed" in way):
        cells = [f"{way['speed'][key]['median']:.2f}" for key in wanted]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    said = (
        f"Client-turns a second over a Flower and PEFT simulation app, {found['clients']} clients on "
        f"{found['cores']} cores, same rows, same steps, in one run ({found['rounds_timed']} rounds timed). "
        "*Usual* is as Flower's public examples of fine-tuning write it: tokenizer, model and Trainer are set "
        "up in every call; *cached* keeps the model in the actor and trains it by a plain loop. The wish was "
        "5 times the usual and 1.5 times the cached way, which holds for short turns alone: the longer a "
        "turn, the more of it is arithmetic that all have in common. Most of a short usual call is not "
        "loading but the garbage collection with which a Trainer begins."
    )
    return [said, "", *rows]


def page() -> str:
    """The README as it should be."""
    before, _, rest = README.read_text("utf-8").partition(OPEN)
    _, _, after = rest.partition(CLOSE)
    kept = read("demo")
    parts = [
        outcome(kept["demo"]),
        variants(kept),
        letters(read("glyphs")),
        speed(read("rounds")),
        images(read("images")),
        scale(read("scale")),
        places(read("places")),
    ]
    return before + OPEN + "\n" + "\n\n".join("\n".join(part) for part in parts) + "\n\n" + CLOSE + after


if __name__ == "__main__":
    README.write_text(page(), "utf-8")
