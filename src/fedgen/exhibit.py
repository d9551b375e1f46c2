"""What a run's adapters draw, once its rounds are over: sheets side by side and over rounds, and measures of them."""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedgen.backbones import Backbone, DiffusionBackbone
from fedgen.data.glyphs import Glyphs, character_of
from fedgen.plan import Plan, Quality
from fedgen.quality import FEATURES, Clip, Features, called, compare
from fedgen.quality.judge import Judge
from fedgen.records import GLOBAL, Document, Rows
from fedgen.run import KEPT, Run
from fedgen.sample import BARE, Sampler, Wish
from fedgen.sheet import empty, save_png, save_sheet
from fedgen.store import write_whole

QUALITY, SAMPLES = "quality.json", "samples"
CLUSTER, OTHER, HYBRID, PERSONAL = "cluster", "other cluster", "hybrid", "personal"
UNMEASURED = OTHER, HYBRID  # only shown
OWN = {CLUSTER: "own cluster"}  # what it is called beside the other one
SHOWN, ACROSS = 6, 10  # clients and pictures on a sheet
PROMPTS, LONGEST = 2, 60  # a client's rows on the sheet of prompts, and the letters of their names

SHEETS = {
    "side-by-side.png": ("Side by side", "the same prompts and the same noise in each row"),
    "rounds.png": ("Round by round", "the global adapter as it grew; the same prompts and noise in each row"),
    "prompts.png": (
        "Prompt by prompt",
        "a prompt of a client a row, an adapter a column; the other cluster is the next one, the hybrid half of both",
    ),
}

Held = Mapping[str, Sequence[Document]]  # each client's documents
Shown = Mapping[str, Mapping[str, Tensor]]  # by kind of adapter, each client's pictures
SheetRows = list[tuple[str, Tensor]]  # a name and its pictures


@dataclass(frozen=True)
class Painting:
    """An event while pictures are drawn: how many of how many are done."""

    done: int
    total: int


def exhibit(run: Run, voice: Sampler, held: Held, tell: Callable[[object], None]) -> None:
    """Draw for some clients under the backbone and under every kind of adapter; save sheets and measures."""
    plan = run.plan
    names, kinds = chosen(run, held, plan.quality.clients), kinds_of(run)
    asked = {name: wanted(held[name], plan.quality.pictures) for name in names}
    few = {name: asked[name][:ACROSS] for name in names[:SHOWN]}
    wished = {kind: few if kind in UNMEASURED else asked for kind in kinds}
    groups = [
        [Wish(kinds[kind](name), document, plan.seed + at) for name in which for at, document in enumerate(which[name])]
        for kind, which in wished.items()
    ]
    course = [BARE, *rounds, GLOBAL] if (rounds := kept(run)) else []
    some = [document for name in names for document in asked[name][:1]][:ACROSS]
    groups += [[Wish(adapter, document, plan.seed + at) for at, document in enumerate(some)] for adapter in course]
    made = _painted(voice, groups, plan.quality, tell)
    drawn = dict(zip(kinds, made, strict=False))
    said = {"run": run.folder.name, "steps": plan.quality.steps, "guidance": plan.quality.guidance, "seed": plan.seed}
    shown = {OWN.get(kind, kind): _of_each(pictures, wished[kind]) for kind, pictures in drawn.items()}
    sheets = [_saved(run, "side-by-side.png", said, _side_by_side(few, shown))]
    if CLUSTER in kinds:
        sheets.append(_saved(run, "prompts.png", said, _by_prompt(few, shown), list(shown)))
    if course:
        grown = dict(zip(course, made[len(kinds) :], strict=True))
        sheets.append(_saved(run, "rounds.png", said, _over_rounds(grown)))
    documents = [document for name in names for document in asked[name]]
    real = [document.picture for name in names for document in held[name] if document.picture is not None]
    counted = {kind: pictures for kind, pictures in drawn.items() if kind not in UNMEASURED}
    content = {"sheets": sheets, "measures": measured(plan, documents, counted, torch.stack(real))}
    write_whole(run.folder / QUALITY, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def draw(
    voice: Sampler, asked: str | Rows, adapter: str, seeds: Iterable[int], to: Path, *,
    steps: int, guidance: float, stem: str = "",
) -> Iterator[Path]:  # fmt: skip
    """One prompt or class under one adapter, or one sealed prompt, which is called by its `stem`.

    A PNG a seed, which says how it was made, and a sheet of all.
    """
    prompt = asked if isinstance(asked, str) else f"sealed {stem}".strip()
    told = Document("", "", prompt, label=prompt) if isinstance(asked, str) else asked
    wishes = [Wish(adapter, told, seed) for seed in seeds]
    said = {"prompt": prompt, "adapter": adapter, "run": voice.run.folder.name, "steps": steps, "guidance": guidance}
    stem = re.sub(r"\W+", "-", f"{prompt[:40]}-{adapter}").strip("-")
    made = []
    for wish, picture in zip(wishes, voice.paint(wishes, steps=steps, guidance=guidance), strict=True):
        path = to / f"{stem}-{wish.seed}.png"
        save_png(path, picture, said | {"seed": wish.seed})
        made.append(picture)
        yield path
    sheet = to / f"{stem}-sheet.png"
    rows = [("", torch.stack(made[at : at + ACROSS])) for at in range(0, len(made), ACROSS)]
    save_sheet(sheet, rows, said | {"seeds": [wish.seed for wish in wishes]})
    yield sheet


def ready(plan: Plan, backbone: Backbone) -> None:
    """Refuse now what would fail once the rounds are over: a network that is not there, or cannot see the pictures."""
    quality = plan.quality
    if not quality.pictures or not isinstance(backbone, DiffusionBackbone):
        return
    blank = torch.zeros(1, *backbone.picture, dtype=torch.uint8)
    if quality.features != "none":
        features = features_of(quality)
        called(features, quality.pictures * quality.clients)
        features.of(blank)
    if isinstance(plan.data, Glyphs):
        Judge().of(blank)
    if quality.clip:
        Clip(quality.clip).score(blank, ["a picture"])


def kinds_of(run: Run) -> dict[str, Callable[[str], str]]:
    """The kinds of adapter that a run has, and for each the adapter that a client is drawn with."""
    own: dict[str, Callable[[str], str]] = {PERSONAL: lambda name: f"client/{name}"}
    shared: dict[str, Callable[[str], str]] = {BARE: lambda name: BARE, GLOBAL: lambda name: GLOBAL}
    return shared | _of_clusters(run) | (own if run.shelf().clients() else {})


def _of_clusters(run: Run) -> dict[str, Callable[[str], str]]:
    """A client's own cluster, the next one by name, and an even mixture of the two; nothing in a flat run."""
    where: dict[str, str] = run.clusters.get("where", {})
    names = sorted({*where.values()} - {GLOBAL})
    if not names:
        return {}
    following = dict(zip([GLOBAL, *names], [*names, names[0]], strict=True))  # a client in no cluster gets the first

    def own(name: str) -> str:
        return where.get(name, GLOBAL)

    def other(name: str) -> str:
        return following[own(name)]

    def hybrid(name: str) -> str:
        return f"{own(name)}=0.5,{other(name)}=0.5"

    kinds: dict[str, Callable[[str], str]] = {CLUSTER: own}
    if len(names) > 1:
        kinds |= {OTHER: other, HYBRID: hybrid}
    return kinds


def kept(run: Run) -> list[str]:
    """The shared adapters that were kept on the way, by round; that of the last is the global one."""
    last = f"{GLOBAL}{KEPT}{run.plan.rounds}"
    return [name for name in run.adapters() if name.startswith(f"{GLOBAL}{KEPT}") and name != last]


def chosen(run: Run, held: Held, count: int) -> list[str]:
    """So many clients, label by label in turn, so that every label is seen; only such as have an adapter, if any do."""
    own = set(run.shelf().clients()) or set(held)
    by_label: dict[str, list[str]] = {}
    for name in sorted(own & set(held)):
        by_label.setdefault(held[name][0].label, []).append(name)
    order = sorted((at, label) for label, names in by_label.items() for at in range(len(names)))
    return [by_label[label][at] for at, label in order[:count]]


def wanted(documents: Sequence[Document], count: int) -> list[Document]:
    """What is drawn for a client: one of each prompt and label, those for testing first, then again."""
    each: dict[tuple[str, str], Document] = {}
    for document in sorted(documents, key=lambda document: document.part != "test"):
        each.setdefault((document.prompt, document.label), document)
    return list(itertools.islice(itertools.cycle(each.values()), count))


def _painted(
    voice: Sampler, groups: Sequence[Sequence[Wish]], quality: Quality, tell: Callable[[object], None]
) -> list[Tensor]:
    """The pictures of each group of wishes."""
    wishes, made = list(itertools.chain(*groups)), []
    for picture in voice.paint(wishes, steps=quality.steps, guidance=quality.guidance):
        made.append(picture)
        tell(Painting(len(made), len(wishes)))
    return list(torch.stack(made).split([len(group) for group in groups]))


def _of_each(pictures: Tensor, asked: Held) -> dict[str, Tensor]:
    """Each client's own of the pictures."""
    return dict(zip(asked, pictures.split([len(documents) for documents in asked.values()]), strict=True))


def _side_by_side(asked: Held, shown: Shown) -> SheetRows:
    """A block of rows a client: a real picture of each prompt, and what each kind of adapter made of it."""
    rows: SheetRows = []
    for name, documents in asked.items():
        real = [document.picture for document in documents if document.picture is not None]
        rows.append((f"{name}: its own", torch.stack(real)))
        rows += [(kind, pictures[name][:ACROSS]) for kind, pictures in shown.items()]
        rows.append(("", empty()))
    return rows[:-1]


def _by_prompt(asked: Held, shown: Shown) -> SheetRows:
    """A row a prompt, the first few of each client: what each kind of adapter made of it."""
    return [
        (
            f"{name}: {document.prompt or document.label}"[:LONGEST],
            torch.stack([own[name][at] for own in shown.values()]),
        )
        for name, documents in asked.items()
        for at, document in enumerate(documents[:PROMPTS])
    ]


def _over_rounds(course: Mapping[str, Tensor]) -> SheetRows:
    return [(name.replace(f"{GLOBAL}{KEPT}", "round "), pictures) for name, pictures in course.items()]


def _saved(
    run: Run, file: str, said: Mapping[str, object], rows: SheetRows, heads: Sequence[str] = ()
) -> dict[str, str]:
    """Write a sheet, and say what the report says of it."""
    save_sheet(run.folder / SAMPLES / file, rows, said, heads)
    title, note = SHEETS[file]
    return {"file": f"{SAMPLES}/{file}", "title": title, "note": note}


# ---- measures


def measured(plan: Plan, asked: Sequence[Document], drawn: Mapping[str, Tensor], real: Tensor) -> dict[str, Any]:
    """The table of measures: one row a measure, one column a kind of adapter."""
    rows: list[list[Any]] = []
    steps, guidance = plan.quality.steps, plan.quality.guidance
    notes = [f"{len(asked)} pictures by each adapter, {steps} steps, guidance {guidance:g}, one seed"]
    if isinstance(plan.data, Glyphs):
        found, note = judged(plan.data, asked, drawn)
        rows, notes = rows + found, [*notes, note]
    if plan.quality.features != "none":
        found, note = compared(plan.quality, drawn, real)
        rows, notes = rows + found, [*notes, note]
    if plan.quality.clip:
        eye, prompts = Clip(plan.quality.clip), [document.prompt for document in asked]
        rows.append(["CLIP score", *(float(eye.score(made, prompts).mean()) for made in drawn.values())])
    return {"columns": list(drawn), "rows": rows, "note": "; ".join(notes)}


def judged(world: Glyphs, asked: Sequence[Document], drawn: Mapping[str, Tensor]) -> tuple[list[list[Any]], str]:
    """How often the judge sees the style and the letter that were wanted, over all prompts and over those held out."""
    judge, styles = Judge(), world.styles
    hidden = torch.tensor([document.part == "test" for document in asked])
    rows: dict[str, list[Any]] = {}
    for made in drawn.values():
        right = {
            "Style": zip(judge.styles(made, styles), [document.label for document in asked], strict=True),
            "Letter": zip(
                judge.letters(made, world.characters),
                [character_of(document.prompt) for document in asked],
                strict=True,
            ),
        }
        for what, pairs in right.items():
            hits = torch.tensor([said == true for said, true in pairs]).double()
            rows.setdefault(f"{what} judged right", []).append(f"{hits.mean():.1%}")
            if hidden.any():
                rows.setdefault(f"{what} judged right, characters held out", []).append(f"{hits[hidden].mean():.1%}")
    record = judge.record
    note = (
        f"the judge chooses among the clients' {len(styles)} styles and {len(world.characters)} characters; on real "
        f"glyphs, the plain style among them, it is right on {record['demo_styles_right']:.1%} of the styles and "
        f"{record['demo_letters_right']:.1%} of the letters"
    )
    return [[name, *cells] for name, cells in sorted(rows.items(), key=lambda row: "held out" in row[0])], note


def compared(quality: Quality, drawn: Mapping[str, Tensor], real: Tensor) -> tuple[list[list[Any]], str]:
    """Distances to the clients' own pictures on the features that the plan names, and how much of them is covered."""
    features = features_of(quality)
    found = [compare(features, real, made) for made in drawn.values()]
    rows = [
        [found[0].called, *(one.frechet for one in found)],
        ["Kernel distance, same features", *(one.kernel for one in found)],
        ["Precision", *(one.precision for one in found)],
        ["Recall", *(one.recall for one in found)],
    ]
    return rows, f"distances are to {len(real)} pictures of the same clients; lower is better"


def features_of(quality: Quality) -> Features:
    """The network that a plan names."""
    return FEATURES[quality.features](quality.weights)
