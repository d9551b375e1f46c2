"""Leaving: a run's adapters as other programs read them, each written whole or not at all."""

import json
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from transformers import AutoConfig

from fedgen import lora
from fedgen.backbones.language import EMBEDDED, locate
from fedgen.errors import BackboneError, StoreError
from fedgen.merging import merge, whole
from fedgen.records import Tree
from fedgen.run import Run
from fedgen.sample import BARE, Mixture, compact, one_mixture
from fedgen.store import Card, save_bundle, write_whole
from fedgen.store.kohya import kohya
from fedgen.tree import digest

README, RECIPE = "README.md", "RECIPE.md"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of vLLM's slots, which fill a narrower adapter up with zeros
AT_ONCE = 16  # adapters in one of vLLM's batches


class Form(StrEnum):
    """What an adapter is written as."""

    peft = "peft"
    kohya = "kohya"
    merged = "merged"
    gguf = "gguf"


@dataclass(frozen=True)
class Left:
    """An adapter on its way out, made of `parts`; `lost` is the share of its energy that a narrower rank has cost."""

    run: Run
    name: str
    parts: Mixture
    tree: Tree
    card: Card
    lost: float
    path: Path

    @property
    def component(self) -> str:
        """Which part of an image pipeline it changes; none for text."""
        return _component(self.run)


def leave(run: Run, name: str, to: Path, *, form: Form = Form.peft, rank: int = 0) -> Left:
    """Write one adapter, or a mixture as one; `rank` makes it so wide, as near as can be."""
    return FORMS[form](_found(run, name, to, form, rank))


def leave_all(run: Run, to: Path, *, also: Sequence[str] = (), form: Form = Form.peft, rank: int = 0) -> list[Left]:
    """Write all that a run shares, the global adapter and the clusters', `also` these, and how they are served."""
    shared = [name for name in run.adapters() if "@" not in name and not name.startswith("client/")]
    names = list(dict.fromkeys([*shared, *also]))
    if len({_word(name) for name in names}) < len(names):
        raise StoreError(f"{to}: two of {', '.join(names)} would be one folder; export one of them by itself")
    found = [_found(run, name, to, form, rank) for name in names]  # all of them, before the first is written
    if form is Form.kohya:
        return [_kohya(left) for left in found]
    with whole(to, [README, *map(_word, names)]) as part:
        made = [FORMS[form](replace(left, path=part / _word(left.name))) for left in found]
        write_whole(part / README, _readme(made, form).encode())
    return [replace(left, path=to / left.path.name) for left in made]


def _found(run: Run, name: str, to: Path, form: Form, rank: int) -> Left:
    _refuse_odd(_component(run), form, to)
    parts = one_mixture(run, name)
    if form is Form.merged and list(parts.values()) == [1.0]:
        found, card = run.adapter(next(iter(parts)))
        if not card.rank:  # the change of a full model
            return Left(run, name, parts, found, replace(card, hash=digest(found)), 0.0, to)
    found, card, lost = compact(run, parts, rank)
    return Left(run, name, parts, found, replace(card, rank=lora.rank(found), hash=digest(found)), lost, to)


def _component(run: Run) -> str:
    return str(run.facts.get("component", ""))


def _refuse_odd(component: str, form: Form, to: Path) -> None:
    if form is Form.kohya and component != "unet":
        came = f"came a {component}" if component else "came text"
        raise StoreError(f"{to}: kohya's spelling is for the UNet of a pipeline, {came}; use --as peft")
    if form is Form.gguf and component:
        raise StoreError(f"{to}: llama.cpp writes text, and this run draws pictures; use --as peft or kohya")


# ---- the forms


def _peft(left: Left) -> Left:
    return replace(left, card=save_bundle(left.path, left.tree, left.card, component=left.component))


def _kohya(left: Left) -> Left:
    path = left.path / f"{left.run.folder.resolve().name}-{_word(left.name)}.safetensors"
    write_whole(path, kohya(left.tree, left.card.backbone, path.stem))
    return replace(left, path=path)


def _merged(left: Left) -> Left:
    with whole(left.path) as part:
        merge(left.run, left.tree, part)
        write_whole(part / README, _inside(left).encode())
    return left


def _gguf(left: Left) -> Left:
    recipe = {RECIPE: _recipe(left).encode()}
    return replace(left, card=save_bundle(left.path, left.tree, left.card, beside=recipe))


FORMS: dict[Form, Callable[[Left], Left]] = {
    Form.peft: _peft,
    Form.kohya: _kohya,
    Form.merged: _merged,
    Form.gguf: _gguf,
}


def _word(name: str) -> str:
    """An adapter's name as a folder's."""
    return re.sub(r"[^\w.@=+-]+", "-", name).strip(".-") or "adapter"


# ---- what is said beside them


def vllm(found: Sequence[Left], backbone: str = "", root: Path = Path()) -> str:
    """The line that serves bundles; where nothing is said, as seen from their own folder."""
    wide = max(left.card.rank for left in found)
    slots = next((rank for rank in RANKS if rank >= wide), wide)
    many = f"--max-lora-rank {slots} --max-loras {min(len(found), AT_ONCE)}"
    where = shlex.quote(backbone or _hub(found[0].run))
    return f"vllm serve {where} --enable-lora {many} --lora-modules {_modules(found, root)}"


def backbone_of(run: Run) -> str:
    """The backbone's name on the hub, or its folder on this machine."""
    source = run.plan.backbone.source
    folder = EMBEDDED if source == "embedded" else Path(source).expanduser()
    return _hub(run) if source.startswith("hub:") else str(folder)


def _hub(run: Run) -> str:
    """The backbone as others can get it: never a path of this machine."""
    source = run.plan.backbone.source
    return source.removeprefix("hub:") if source.startswith("hub:") else "BACKBONE"


def _modules(found: Sequence[Left], root: Path) -> str:
    said = []
    for left in found:
        path = str(root / left.path.name)
        odd = set("=,") & set(left.name + path)  # vLLM splits at the one, and takes the other for JSON
        said.append(json.dumps({"name": left.name, "path": path}) if odd else f"{left.name}={path}")
    return " ".join(map(shlex.quote, said))


def _readme(found: Sequence[Left], form: Form) -> str:
    card, name = found[0].card, found[0].run.folder.resolve().name
    say = {Form.merged: f"a whole model, with its {README}", Form.gguf: f"a bundle, with its {RECIPE}"}
    what = say.get(form, "a bundle that PEFT and others read unchanged")
    rows = "\n".join(
        f"| `{left.path.name}` | {left.name} | {left.card.round} |{_wide(left, form)} `{left.card.hash[:12]}` |"
        for left in found
    )
    how = "" if form is Form.merged else _for_pictures(found[0]) if found[0].component else _for_text(found)
    return f"""# Adapters of the run '{name}'

Each folder is {what}, made on the backbone `{card.backbone}` (content `{card.backbone_hash[:12]}`).

| folder | adapter | round |{"" if form is Form.merged else " rank |"} content |
|---|---|---|{"" if form is Form.merged else "---|"}---|
{rows}
{how}"""


def _wide(left: Left, form: Form) -> str:
    return "" if form is Form.merged else f" {left.card.rank} |"  # a whole model has no rank


def _inside(left: Left) -> str:
    card, run = left.card, left.run.folder.resolve().name
    cards = {name: left.run.adapter(name) for name in left.parts if name != BARE}  # the backbone adds nothing
    rows = "\n".join(
        f"| {name} | {left.parts[name]:g} | {own.round} | `{digest(tree)[:12]}` |"
        for name, (tree, own) in cards.items()
    )
    lost = f"{left.lost:.2%}"
    less = "" if lost == "0.00%" else f" A narrower rank has cost {lost} of its energy."
    return f"""# A whole model of the run '{run}'

The backbone `{card.backbone}` (content `{card.backbone_hash[:12]}`) with these in its weights, each with its weight:

| adapter | weight | round | content |
|---|---|---|---|
{rows}

Their sum has the content `{card.hash[:12]}`.{less} What was measured of the backbone alone does not hold here.
"""


def _for_text(found: Sequence[Left]) -> str:
    run, wide = found[0].run, max(left.card.rank for left in found)
    folder = "" if _hub(run) != "BACKBONE" else f"BACKBONE is the folder of `{found[0].card.backbone}`. "
    return f"""
In this folder, vLLM and SGLang serve them all at once:

```text
{vllm(found)}
python -m sglang.launch_server --model-path {_hub(run)} --enable-lora --lora-paths {_modules(found, Path())}
```

{folder}A client names an adapter as its `model`.{_padding(wide)}
"""


def _padding(wide: int) -> str:
    if wide in RANKS:
        return ""
    if wide > RANKS[-1]:
        return f" vLLM has room for rank {RANKS[-1]} and no more, and the widest here has {wide}: export with --rank."
    slots = next(rank for rank in RANKS if rank > wide)
    zeros = f"The widest has rank {wide}: vLLM fills its slots of {slots} up with zeros, which changes nothing."
    return f" {zeros} For a server that wants the rank itself so, export with `--rank {slots}`."


def _for_pictures(left: Left) -> str:
    part, folder = f"pipeline.{left.component}", json.dumps(left.path.name)
    loras = f"\nOf a Stable Diffusion this does the same:\n\n```text\npipeline.load_lora_weights({folder})\n```\n"
    return f"""
In this folder, with a pipeline of diffusers and `from peft import PeftModel`:

```text
{part} = PeftModel.from_pretrained({part}, {folder}).base_model.model
```
{loras if left.component == "unet" else ""}"""


def _recipe(left: Left) -> str:
    family, hub, file = _family(left.run), _hub(left.run), shlex.quote(f"{left.path.name}.gguf")
    fetch = "" if hub == "BACKBONE" else f"hf download {hub} --local-dir BACKBONE\n"
    llama = (
        f"The backbone is a {family}, which llama.cpp was written for. It does not know every tokenizer: where it says "
        "`BPE pre-tokenizer was not recognized`,\nthis backbone cannot be brought there as it is."
    )
    other = (
        f"The backbone is a {family}, not of the Llama family: see first whether\n"
        "`python convert_hf_to_gguf.py --print-supported-models` names it."
    )
    return f"""# '{left.name}' of the run '{left.run.folder.resolve().name}' in llama.cpp

llama.cpp reads GGUF alone: the backbone and this bundle are converted once, by the scripts in its repository.
Beside this folder, with BACKBONE for that of `{left.card.backbone}`:

```text
{fetch}python convert_hf_to_gguf.py BACKBONE --outfile backbone.gguf
python convert_lora_to_gguf.py --base BACKBONE --outfile {file} {shlex.quote(left.path.name)}
llama-server -m backbone.gguf --lora {file}
```

{llama if re.match("Llama|Mistral", family) else other}

`--lora-scaled {file}:0.5` takes half of it. Of several a request mixes its own:
`"lora": [{{"id": 0, "scale": 0.7}}, {{"id": 1, "scale": 0.3}}]`. Requests with different mixtures share no batch there.
"""


def _family(run: Run) -> str:
    where, local = locate(run.plan.backbone.source)
    try:
        return str((AutoConfig.from_pretrained(where, local_files_only=local).architectures or ["model"])[0])
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise BackboneError(f"backbone: the config of '{run.plan.backbone.source}' cannot be read: {reason}") from error
