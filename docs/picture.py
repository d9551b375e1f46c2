"""Draw docs/picture.svg: what fedgen-edge does, and what the demo's clients gained by it (bench/results/demo.json).

python docs/picture.py
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STYLE = """
text { font: 15px system-ui, sans-serif; fill: #1c1d21 } .small { font-size: 12.5px; fill: #5b5e6b }
.head { font-size: 17px; font-weight: 600 }
.box { fill: #f4f5f7; stroke: #c3c7d1 } .frozen { fill: #e3e6ec; stroke: #aab0bd }
.own { fill: #0067a6 } .shared, .flow { fill: none; stroke: #c2560c; stroke-width: 2 } .arrow { fill: #c2560c }
.axis { stroke: #8a8e9b } .stem { stroke: #d6d9e0 } .thin { stroke-width: 1.4 }
@media (prefers-color-scheme: dark) {
text { fill: #ececf1 } .small { fill: #a3a7b5 }
.box { fill: #1f222a; stroke: #454a58 } .frozen { fill: #2c303b; stroke: #5b6170 }
.own { fill: #63b3ed } .shared, .flow { stroke: #f0954f } .arrow { fill: #f0954f }
.axis { stroke: #6d7282 } .stem { stroke: #3a3e4a } }
"""


def client(x: int, name: str) -> str:
    """A device: the frozen model, its own adapter, its text."""
    return (
        f'<g transform="translate({x} 190)"><rect class="box" width="112" height="118" rx="10"/>'
        f'<text x="56" y="24" text-anchor="middle">{name}</text>'
        '<rect class="frozen" x="14" y="38" width="56" height="34" rx="5"/>'
        '<text class="small" x="42" y="59" text-anchor="middle">frozen</text>'
        '<circle class="own" cx="88" cy="48" r="7"/><circle class="shared" cx="88" cy="66" r="6"/>'
        '<text class="small" x="56" y="98" text-anchor="middle">its text stays</text></g>'
        f'<path class="flow" d="M{x + 48} 190 V132 M{x + 64} 120 V178"/>'
        f'<path class="arrow" d="M{x + 43} 133 l5 -11 l5 11 z M{x + 59} 177 l5 11 l5 -11 z"/>'
    )


def schematic() -> str:
    """The federation: adapters go up, their mean comes down."""
    clients = "".join(client(28 + 132 * at, name) for at, name in enumerate(("json", "email", "tkinter")))
    return (
        '<text class="head" x="28" y="34">Only adapters travel</text>'
        '<rect class="box" x="28" y="52" width="376" height="62" rx="10"/>'
        '<circle class="shared" cx="54" cy="83" r="9"/>'
        '<text x="74" y="79">server: the weighted mean of adapters</text>'
        '<text class="small" x="74" y="99">no text, no model, nothing personal</text>'
        f"{clients}"
        '<circle class="own" cx="36" cy="338" r="7"/><circle class="shared" cx="222" cy="338" r="6"/>'
        + small(50, 342, "personal adapter, kept")
        + small(236, 342, "shared adapter, averaged")
    )


def small(x: float, y: float, text: str, anchor: str = "start") -> str:
    """A line of small text."""
    return f'<text class="small" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def chart(demo: dict[str, Any]) -> str:
    """How far each client's held-out perplexity fell."""
    falls = sorted(demo["falls"].values(), key=lambda fall: fall["personal"])
    parts = [
        f'<path class="stem" d="M500 {height(at / 100)} H920"/>{small(492, height(at / 100) + 4, f"{at}%", "end")}'
        for at in (0, 25, 50, 75)
    ]
    for at, fall in enumerate(falls):
        x, own, shared = 500 + 420 * (at + 0.5) / len(falls), height(fall["personal"]), height(fall["global"])
        parts.append(f'<path class="stem" d="M{x:.1f} 308 V{own:.1f}"/>')
        parts.append(f'<circle class="own" cx="{x:.1f}" cy="{own:.1f}" r="3.4"/>')
        parts.append(f'<circle class="shared thin" cx="{x:.1f}" cy="{shared:.1f}" r="2.6"/>')
    gain, saved = demo["gains"]["personal"], int(demo["uplink_saved"] * 1000) / 10
    said = f"{gain['mean']:.0%} lower perplexity on average, {gain['gained']} of {gain['clients']} clients gain"
    return (
        '<text class="head" x="460" y="34">What each client gains on its held-out text</text>'
        + small(460, 58, f"make demo: {said},")
        + small(460, 76, f"with {saved}% less uplink than full-model FedAvg")
        + f'{"".join(parts)}<path class="axis" d="M500 308 H920"/>'
        + small(710, 342, f"{len(falls)} modules of Python’s standard library, sorted", "middle")
    )


def height(share: float) -> float:
    """Where a share of perplexity lost stands on the page."""
    return round(308 - 220 * share, 1)


def drawn() -> str:
    """The whole picture."""
    demo = json.loads((HERE.parent / "bench" / "results" / "demo.json").read_text("utf-8"))["demo"]
    opened = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 950 362" role="img">'
    return f"{opened}<style>{STYLE}</style>{schematic()}{chart(demo)}</svg>\n"


if __name__ == "__main__":
    (HERE / "picture.svg").write_text(drawn(), "utf-8")
