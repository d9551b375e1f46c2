"""Leaving: what PEFT, diffusers, transformers, ComfyUI and A1111 read of an export is what the bank makes of it."""

import json
import re
import shlex
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner, Result

import fedgen
from fedgen import Bank, Run, cli, lora
from fedgen.backbones import Diffusion, DiffusionBackbone
from fedgen.errors import BackboneError, ServeError, StoreError
from fedgen.leaving import RANKS, README, RECIPE, Form, leave, leave_all, vllm
from fedgen.merging import add
from fedgen.records import Tree
from fedgen.sample import compact, mixture
from fedgen.store import load_bundle, save_bundle
from fedgen.store.kohya import VERSIONS, kohya
from fedgen.tree import digest

CLOSE = 1e-5
IDS = torch.randint(0, 290, (2, 9), generator=torch.Generator().manual_seed(1))
UNET = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "conv2"]
NAMES = ["a", "b"]


def loud(run: Run, to: Path, ranks: Mapping[str, int]) -> Run:
    """A copy of a run, in which these clients' own adapters are so wide and change much."""
    found = Run(Path(shutil.copytree(run.folder, to / run.folder.name)))
    shelf, like = found.shelf(), found.adapter("global")[0]
    for name, rank in ranks.items():
        draw = torch.Generator().manual_seed(rank)
        wide = lora.resize(like, rank)
        shelf.put(name, 9, {key: 0.2 * torch.randn(value.shape, generator=draw) for key, value in wide.items()})
    shelf.flush()
    return found


@pytest.fixture(scope="module")
def words(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of text."""
    return loud(tiny_run, tmp_path_factory.mktemp("runs"), {"ann": 6, "bob": 2})


@pytest.fixture(scope="module")
def drawn(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """A run of pictures, by the kind of its backbone."""
    made: dict[str, Run] = {}

    def run(kind: str) -> Run:
        if kind in made:
            return made[kind]
        folder = tmp_path_factory.mktemp(kind)
        channels, side, _ = Diffusion(str(pipelines[kind]), device="cpu").load().picture
        shape = (12, side, side, 3) if channels == 3 else (12, side, side)
        x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        np.savez(folder / "data.npz", x=x, y=np.arange(12) % 2)
        plan = {
            "rounds": 1,
            "backbone": {"kind": "diffusion", "source": str(pipelines[kind]), "device": "cpu"},
            "adapter": {"targets": UNET} if kind == "stable" else {},
            "data": {"kind": "npz", "path": str(folder / "data.npz"), "names": NAMES},
            "partition": {"kind": "even", "clients": 2},
            "training": {"steps": 1, "batch": 2},
            "personal": {"kind": "none"},
            "evaluate": {"every": 0, "rows": 1},
        }
        made[kind] = loud(fedgen.run(plan, folder / "plain" / kind), folder, {"0": 3})
        return made[kind]

    return run


def called(*words: object) -> Result:
    env = {"NO_COLOR": "1", "COLUMNS": "100", "TERM": "dumb"}
    return CliRunner().invoke(cli.app, ["export", *map(str, words)], env=env)


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@torch.no_grad()
def logits(network: Any) -> Tensor:
    found: Tensor = network(IDS).logits
    return found


def banked(run: Run, adapter: str, said: Callable[[Any], Tensor]) -> tuple[Tensor, Tensor]:
    """What the network says under an adapter in the bank, and alone."""
    network: Any = run.plan.backbone.load().network
    with Bank(network, run.plan.adapter.targets, 8, slots=3) as bank:
        parts = mixture(adapter)
        for slot, name in enumerate(parts, 1):
            bank.write(slot, run.adapter(name)[0])
        with bank.rows(torch.arange(1, len(parts) + 1)[None], torch.tensor([list(parts.values())])):
            found = said(network)
    return found, said(network)


def denoised(backbone: DiffusionBackbone, seed: int = 0) -> Callable[[Any], Tensor]:
    """What a denoiser of this kind says of one noisy picture."""
    draw = torch.Generator().manual_seed(seed)
    noisy = torch.randn(1, *backbone.shape, generator=draw)
    told = {key: torch.randn(value.shape, generator=draw) if value.is_floating_point() else value
            for key, value in (backbone.condition.empty() or {}).items()}  # fmt: skip
    given: dict[str, Any] = {"timestep": torch.tensor([500])}
    given["sample" if backbone.component == "unet" else "hidden_states"] = noisy
    given |= {"encoder_hidden_states": told["text"]} if "text" in told else {}
    if "seen" in told:
        more = {"resolution": None, "aspect_ratio": None}
        given |= {"encoder_attention_mask": told["seen"], "added_cond_kwargs": more}

    @torch.no_grad()
    def said(network: Any) -> Tensor:
        found: Tensor = network(**given).sample
        return found

    return said


# ---- bundles


def test_peft_reads_every_bundle_of_a_run(words: Run, tmp_path: Path) -> None:
    said = called(words.folder, "--all", "--with", "client/ann", "--with", "client/bob", "--to", tmp_path / "out")
    assert said.exit_code == 0, said.output
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        README, "client-ann", "client-bob", "global",
    ]  # fmt: skip
    for name in ("global", "client/ann", "client/bob"):
        wanted, bare = banked(words, name, logits)
        network: Any = words.plan.backbone.load().network
        read = PeftModel.from_pretrained(network, str(tmp_path / "out" / name.replace("/", "-")))
        assert gap(logits(read), wanted) < CLOSE
        assert gap(wanted, bare) > CLOSE


def test_all_is_what_the_run_shares_and_no_more(words: Run, tmp_path: Path) -> None:
    assert [left.name for left in leave_all(words, tmp_path)] == ["global"]
    kept = words.folder / "adapters" / "global"
    other = Run(Path(shutil.copytree(words.folder, tmp_path / "clustered")))
    for name in ("cluster-0", "cluster-1", "global@round-1"):
        shutil.copytree(kept, other.folder / "adapters" / name)
    assert [left.name for left in leave_all(other, tmp_path / "more")] == ["cluster-0", "cluster-1", "global"]
    again = leave_all(other, tmp_path / "more")  # over what is there
    assert [load_bundle(left.path)[1].hash for left in again] == [other.adapter("global")[1].hash] * 3


def flags(line: str) -> dict[str, list[str]]:
    """The words of a command by its flags."""
    found: dict[str, list[str]] = {"": []}
    flag = ""
    for word in shlex.split(line):
        if word.startswith("--"):
            flag = word
            found[flag] = []
        else:
            found[flag].append(word)
    return found


def test_the_line_for_vllm_is_said_and_written(words: Run, tmp_path: Path) -> None:
    to = tmp_path / "out"
    said = called(words.folder, "--all", "--with", "client/ann", "--to", to).stdout.splitlines()
    told = flags(said[-1])
    assert told[""] == ["vllm", "serve", words.plan.backbone.source]
    assert (told["--enable-lora"], told["--max-loras"]) == ([], ["2"])
    wide = int(told["--max-lora-rank"][0])
    modules = dict(module.split("=") for module in told["--lora-modules"])  # as vLLM splits them
    assert list(modules) == ["global", "client/ann"]
    for path in modules.values():
        config = json.loads((Path(path) / "adapter_config.json").read_text())
        assert config["r"] <= wide  # vLLM's own checks of an adapter
        assert config["lora_alpha"] == config["r"]
        assert (config["modules_to_save"], config["use_dora"], config["bias"]) == (None, False, "none")
        assert isinstance(config["target_modules"], list)
    assert wide == 8 in RANKS
    page = (to / README).read_text()
    (written,) = re.findall(r"^vllm serve .*$", page, re.MULTILINE)
    assert flags(written) == told | {"": ["vllm", "serve", "BACKBONE"], "--lora-modules": ["global=global", "client/ann=client-ann"]}  # fmt: skip  # noqa: E501
    assert "--model-path BACKBONE --enable-lora --lora-paths global=global client/ann=client-ann" in page
    assert "| `client-ann` | client/ann | 2 | 6 | " in page
    assert "has rank 6: vLLM fills its slots of 8 up with zeros" in page
    assert "export with `--rank 8`" in page
    assert str(tmp_path) not in page
    assert words.plan.backbone.source not in page


def test_a_rank_of_vllms_own_needs_no_word_and_zeros_change_nothing(words: Run, tmp_path: Path) -> None:
    leave_all(words, tmp_path, also=["client/ann"], rank=8)
    assert "zeros" not in (tmp_path / README).read_text()
    wide, card = load_bundle(tmp_path / "client-ann")
    assert card.rank == 8
    assert lora.rank(wide) == 8
    network: Any = words.plan.backbone.load().network
    read = PeftModel.from_pretrained(network, str(tmp_path / "client-ann"))
    assert gap(logits(read), banked(words, "client/ann", logits)[0]) < CLOSE


def test_a_name_that_vllm_would_split_is_said_as_json(words: Run, tmp_path: Path) -> None:
    odd = loud(words, tmp_path, {"x=2, y": 2})
    found = leave_all(odd, tmp_path / "out", also=["client/x=2, y"])
    assert [left.path.name for left in found] == ["global", "client-x=2-y"]
    _, module = flags(vllm(found, "tiny", tmp_path / "out"))["--lora-modules"]
    assert json.loads(module) == {"name": "client/x=2, y", "path": str(tmp_path / "out" / "client-x=2-y")}


def test_two_names_for_one_folder_are_refused_before_anything_is_written(words: Run, tmp_path: Path) -> None:
    odd = loud(words, tmp_path, {"a b": 2, "a/b": 2})
    with pytest.raises(StoreError, match="two of global, client/a b, client/a/b would be one folder"):
        leave_all(odd, tmp_path / "out", also=["client/a b", "client/a/b"])
    assert not (tmp_path / "out").exists()


def held(folder: Path) -> dict[str, bytes]:
    """Everything in a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_all_does_not_stand_beside_what_was_there(words: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = called(words.folder, "--all", "--with", "client/ann", "--to", out)
    assert first.exit_code == 0, first.output
    before = held(out)
    for also in ([], ["--with", "client/bob"]):
        said = called(words.folder, "--all", *also, "--to", out)
        assert isinstance(said.exception, StoreError)
        remedy = "which would be lost; take it out or choose another folder"
        assert str(said.exception) == f"{out}: holds 'client-ann', {remedy}"
        assert held(out) == before
    assert called(words.folder, "--all", "--with", "client/ann", "--with", "client/bob", "--to", out).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    (out / "global" / "mine.txt").write_text("mine")
    before = held(out)
    with pytest.raises(StoreError, match=r"holds 'global/mine.txt', which would be lost"):
        leave_all(words, out, also=["client/ann", "client/bob"])
    assert held(out) == before


def test_all_is_written_whole_or_not_at_all(words: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_all(words, tmp_path / "there")
    before = held(tmp_path / "there")
    real = fedgen.leaving.write_whole

    def full(path: Path, raw: bytes) -> None:
        real(path, raw)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedgen.leaving.write_whole", full)  # the page, which is written last
    for name in ("there", "new"):
        with pytest.raises(StoreError, match=rf"{name}: cannot be written \(.*No space left on device\); make room"):
            leave_all(words, tmp_path / name, rank=8)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    assert held(tmp_path / "there") == before


def test_a_place_that_cannot_be_a_folder_of_its_own_is_refused(
    words: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="file: wanted a folder, came a file; choose another"):
        leave_all(words, tmp_path / "file")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for place in (".", "..", str(tmp_path / "here")):
        with pytest.raises(StoreError, match="is where you are, and a folder is written as one; name a new one"):
            leave_all(words, Path(place))
    assert held(tmp_path) == {"file": b"mine"}


# ---- kohya


def test_diffusers_reads_a_kohya_file_as_the_bundle(drawn: Callable[[str], Run], tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    run = drawn("stable")
    backbone: Any = run.plan.backbone.load()
    said = denoised(backbone)
    left = leave(run, "client/0", tmp_path / "Lora", form=Form.kohya)
    assert left.path == tmp_path / "Lora" / "stable-client-0.safetensors"
    bundle = leave(run, "client/0", tmp_path / "bundle")
    wanted, bare = banked(run, "client/0", said)
    found = []
    for folder, name in ((left.path.parent, left.path.name), (bundle.path, "pytorch_lora_weights.safetensors")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline = diffusers.StableDiffusionPipeline.from_pretrained(run.plan.backbone.source)
            pipeline.load_lora_weights(str(folder), weight_name=name)
        found.append(said(pipeline.unet))
    assert torch.equal(*found)
    assert gap(found[0], wanted) < CLOSE
    assert gap(wanted, bare) > 0.01


def comfy(network: nn.Module, file: Mapping[str, Tensor]) -> None:
    """What ComfyUI does with a file: a name for each weight, alpha over rank, and the product onto the weight."""
    used: set[str] = set()
    for path, weight in network.named_parameters():
        name = "lora_unet_" + path.removesuffix(".weight").replace(".", "_")
        if not path.endswith(".weight") or f"{name}.lora_up.weight" not in file:
            continue
        up, down, alpha = (file[f"{name}.{end}"] for end in ("lora_up.weight", "lora_down.weight", "alpha"))
        used |= {f"{name}.lora_up.weight", f"{name}.lora_down.weight", f"{name}.alpha"}
        scale = alpha.item() / down.shape[0]
        weight.data += scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    assert used == set(file), "ComfyUI says 'lora key not loaded' of the rest"


def test_comfyui_and_a1111_read_a_kohya_file_by_their_own_rules(drawn: Callable[[str], Run], tmp_path: Path) -> None:
    run = drawn("stable")
    backbone: Any = run.plan.backbone.load()
    said = denoised(backbone)
    path = leave(run, "client/0", tmp_path, form=Form.kohya).path
    file = load_file(path)
    comfy(backbone.network, file)
    assert gap(said(backbone.network), banked(run, "client/0", said)[0]) < CLOSE
    assert {value.item() for key, value in file.items() if key.endswith(".alpha")} == {3.0}
    convolutions = [value for key, value in file.items() if "conv1" in key and key.endswith("weight")]
    assert convolutions
    assert {value.dim() for value in convolutions} == {4}
    with safe_open(path, "pt") as opened:
        notes = opened.metadata()
    assert (notes["ss_network_module"], notes["ss_network_dim"]) == ("networks.lora", "3")
    assert float(notes["ss_network_alpha"]) == 3
    assert notes["ss_base_model_version"] == notes["ss_sd_model_name"] == backbone.name
    assert notes["ss_output_name"] == "stable-client-0"


@pytest.mark.parametrize("wide", VERSIONS)
def test_what_a_unet_was_made_from_is_seen_by_its_text(wide: int) -> None:
    key = f"{lora.PREFIX}down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_"
    tree: Tree = {f"{key}A.weight": torch.ones(2, wide), f"{key}B.weight": torch.ones(8, 2)}
    raw = kohya(tree, "mine", "x")
    notes = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    assert notes["ss_base_model_version"] == VERSIONS[wide]
    assert notes["ss_v2"] == str(VERSIONS[wide] == "sd_v2")


def test_kohya_for_all_is_one_folder_of_files(drawn: Callable[[str], Run], tmp_path: Path) -> None:
    said = called(drawn("stable").folder, "--all", "--with", "client/0", "--as", "kohya", "--to", tmp_path)
    assert said.exit_code == 0, said.output
    names = ["stable-client-0.safetensors", "stable-global.safetensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


# ---- whole models


def test_transformers_reads_a_merged_model_that_says_what_the_bank_says(
    words: Run, tiny_backbone: Path, tmp_path: Path
) -> None:
    text = "client/ann=0.7,client/bob=0.7"
    said = called(words.folder, "--mix", text, "--as", "merged", "--to", tmp_path / "model")
    assert said.exit_code == 0, said.output
    assert f"{tmp_path}/model: a whole model, content" in said.stdout
    assert "rank" not in said.stdout
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    wanted, bare = banked(words, text, logits)
    assert gap(logits(model), wanted) < CLOSE
    assert gap(wanted, bare) > 0.01
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    own: Any = AutoTokenizer.from_pretrained(tiny_backbone)
    assert tokenizer("naïve café")["input_ids"] == own("naïve café")["input_ids"]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    keys = load_file(tmp_path / "model" / "model.safetensors").keys()
    assert keys == load_file(tiny_backbone / "model.safetensors").keys()
    texts = [path.read_text() for path in (tmp_path / "model").glob("*.json")]
    assert not [text for text in texts if str(tiny_backbone) in text or "lora" in text.lower()]


def test_a_merged_model_keeps_the_backbones_precision(tiny_run: Run, tiny_backbone: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    shutil.copytree(tiny_backbone, half)
    AutoModelForCausalLM.from_pretrained(tiny_backbone, dtype=torch.bfloat16).save_pretrained(half)
    run = Run(Path(shutil.copytree(tiny_run.folder, tmp_path / "run")))
    plan = (run.folder / "plan.toml").read_text().replace(str(tiny_backbone), str(half))
    (run.folder / "plan.toml").write_text(plan)
    with pytest.raises(StoreError, match="was trained on another backbone"):
        leave(Run(run.folder), "global", tmp_path / "model", form=Form.merged)
    facts = json.loads((run.folder / "facts.json").read_text())
    for path in (run.folder / "facts.json", *run.folder.glob("adapters/*/card.json")):
        found = path.read_text().replace(facts["backbone_hash"], Run(run.folder).plan.backbone.load().hash)
        path.write_text(found)
    leave(Run(run.folder), "global", tmp_path / "model", form=Form.merged)
    kinds = {value.dtype for value in load_file(tmp_path / "model" / "model.safetensors").values()}
    assert kinds == {torch.bfloat16}


@pytest.mark.parametrize("kind", ["stable", "pixart", "ddpm"])
def test_diffusers_reads_a_merged_folder_that_draws_what_the_bank_draws(
    kind: str, drawn: Callable[[str], Run], pipelines: dict[str, Path], tmp_path: Path
) -> None:
    diffusers = pytest.importorskip("diffusers")
    run = drawn(kind)
    backbone: Any = run.plan.backbone.load()
    said = denoised(backbone)
    leave(run, "client/0", tmp_path / "model", form=Form.merged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        more = {"vae": None} if kind == "pixart" else {}
        pipeline = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model", **more)
    wanted, bare = banked(run, "client/0", said)
    assert gap(said(getattr(pipeline, backbone.component)), wanted) < CLOSE
    assert gap(wanted, bare) > 0.01
    again: Any = Diffusion(str(tmp_path / "model"), device="cpu").load()
    assert gap(said(again.network), wanted) < CLOSE
    files = {path.relative_to(tmp_path / "model") for path in (tmp_path / "model").rglob("*") if path.is_file()}
    files.remove(Path(README))
    assert files == {path.relative_to(pipelines[kind]) for path in pipelines[kind].rglob("*") if path.is_file()}
    changed = {str(at) for at in files if (tmp_path / "model" / at).read_bytes() != (pipelines[kind] / at).read_bytes()}
    apart = "" if kind == "ddpm" else f"{backbone.component}/"
    assert f"{apart}diffusion_pytorch_model.safetensors" in changed
    assert changed <= {f"{apart}diffusion_pytorch_model.safetensors", f"{apart}config.json"}
    assert str(pipelines[kind]) not in (tmp_path / "model" / apart / "config.json").read_text()


def test_a_whole_model_says_what_is_in_it_and_nothing_of_the_bare_backbone(
    words: Run, drawn: Callable[[str], Run], tmp_path: Path
) -> None:
    run = drawn("pixart")
    source = Path(shutil.copytree(run.plan.backbone.source, tmp_path / "pixart"))
    spoken = [README, "samples.png", "samples.json", "training.json", "transformer/README.md", "notes/a.txt", ".git/b"]
    for name in spoken:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("of the bare backbone")
    moved = Run(Path(shutil.copytree(run.folder, tmp_path / "run")))
    plan = moved.folder / "plan.toml"
    plan.write_text(plan.read_text().replace(str(run.plan.backbone.source), str(source)))
    leave(moved, "client/0", tmp_path / "picture", form=Form.merged)
    left = {str(path.relative_to(tmp_path / "picture")) for path in (tmp_path / "picture").rglob("*")}
    assert left & set(spoken) == {README}
    assert {"model_index.json", "transformer/config.json", "tokenizer/tokenizer.json", "scheduler"} <= left
    assert "of the bare backbone" not in (tmp_path / "picture" / README).read_text()

    said = leave(words, "client/ann=0.7,client/bob=0.25", tmp_path / "text", form=Form.merged)
    page = (tmp_path / "text" / README).read_text()
    for name, weight in (("client/ann", "0.7"), ("client/bob", "0.25")):
        tree, card = words.adapter(name)
        assert f"| {name} | {weight} | {card.round} | `{digest(tree)[:12]}` |" in page
    facts = words.facts
    assert f"# A whole model of the run '{words.folder.name}'" in page
    assert f"`{Path(words.plan.backbone.source).name}` (content `{facts['backbone_hash'][:12]}`)" in page
    assert f"sum has the content `{said.card.hash[:12]}`." in page
    assert str(tmp_path) not in page
    narrow = leave(words, "client/ann=0.7,client/bob=0.25", tmp_path / "narrow", form=Form.merged, rank=2)
    assert f"cost {narrow.lost:.2%} of its energy" in (tmp_path / "narrow" / README).read_text()


def test_the_page_of_many_whole_models_has_no_rank(words: Run, tmp_path: Path) -> None:
    for _ in range(2):  # the second time over the first
        found = leave_all(words, tmp_path / "out", also=["client/ann"], form=Form.merged)
    page = (tmp_path / "out" / README).read_text()
    assert "| folder | adapter | round | content |" in page
    for left in found:
        row = f"| `{left.path.name}` | {left.name} | {left.card.round} | `{left.card.hash[:12]}` |"
        assert row in page
        assert (left.path / "model.safetensors").is_file()
        assert f"| {left.name} | 1 | " in (left.path / README).read_text()


def test_a_whole_model_is_written_whole_or_not_at_all(
    words: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match=r"full: holds 'mine.txt', which would be lost; take it out or choose another"):
        leave(words, "global", tmp_path / "full", form=Form.merged)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", full)
    with pytest.raises(StoreError, match=r"model: cannot be written \(.*No space left on device\); make room"):
        leave(words, "global", tmp_path / "model", form=Form.merged)
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "mine.txt"]


def test_a_full_models_change_becomes_a_model_and_nothing_else(tiny_plan: dict[str, Any], tmp_path: Path) -> None:
    run = fedgen.run(
        tiny_plan | {"rounds": 1, "adapter": {"of": "weights"}, "personal": {"kind": "none"}}, tmp_path / "run"
    )
    leave(run, "global", tmp_path / "model", form=Form.merged)
    change = run.adapter("global")[0]
    found, own = (AutoModelForCausalLM.from_pretrained(at) for at in (tmp_path / "model", run.plan.backbone.source))
    before = dict(own.named_parameters())
    for name, weight in found.named_parameters():
        assert torch.equal(weight, before[name] + change[name])
    with pytest.raises(ServeError, match="is the change of a full model"):
        leave(run, "global", tmp_path / "bundle")


def test_a_weight_that_two_layers_share_is_not_merged() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.read.weight
            self.grouped = nn.Conv2d(4, 4, 3, groups=2)

    with torch.random.fork_rng():
        network = Tied()
    for names, said in ((["head"], "'head' shares its weight with 'read'"), (["grouped"], "'grouped' is a grouped")):
        tree = lora.fresh(lora.targets(network, names), 2, torch.Generator().manual_seed(0))
        with pytest.raises(StoreError, match=f"^merge: {said}.*; use --as peft$"):
            add(network, tree)


# ---- llama.cpp


def test_a_recipe_names_this_bundle_and_stands_in_it(words: Run, tmp_path: Path) -> None:
    for _ in range(2):  # the second time over the first
        said = called(words.folder, "--adapter", "client/ann", "--as", "gguf", "--to", tmp_path / "my ann")
        assert said.exit_code == 0, said.output
    recipe = (tmp_path / "my ann" / RECIPE).read_text()
    (block,) = re.findall(r"```text\n(.*?)```", recipe, re.DOTALL)
    backbone, adapter, server = map(shlex.split, block.splitlines())
    assert backbone == ["python", "convert_hf_to_gguf.py", "BACKBONE", "--outfile", "backbone.gguf"]
    assert adapter == ["python", "convert_lora_to_gguf.py", "--base", "BACKBONE", "--outfile", "my ann.gguf", "my ann"]
    assert server == ["llama-server", "-m", "backbone.gguf", "--lora", "my ann.gguf"]
    assert "The backbone is a LlamaForCausalLM, which llama.cpp was written for" in recipe
    assert words.plan.backbone.source not in recipe
    _, card = load_bundle(tmp_path / "my ann")
    assert card.client == "ann"


def test_another_family_is_told_to_ask_first(words: Run, tmp_path: Path) -> None:
    source = Path(shutil.copytree(words.plan.backbone.source, tmp_path / "other"))
    config = (source / "config.json").read_text().replace("LlamaForCausalLM", "GPT2LMHeadModel")
    (source / "config.json").write_text(config)
    run = Run(Path(shutil.copytree(words.folder, tmp_path / "run")))
    path = run.folder / "plan.toml"
    path.write_text(path.read_text().replace(words.plan.backbone.source, str(source)))
    recipe = (leave(Run(run.folder), "global", tmp_path / "out", form=Form.gguf).path / RECIPE).read_text()
    assert "is a GPT2LMHeadModel, not of the Llama family" in recipe
    assert "--print-supported-models" in recipe
    (source / "config.json").write_text("{")
    with pytest.raises(BackboneError, match=r"^backbone: the config of '.*' cannot be read: "):
        leave(Run(run.folder), "global", tmp_path / "out", form=Form.gguf)


# ---- what cannot be


def test_a_form_that_does_not_fit_is_refused_and_writes_nothing(
    words: Run, drawn: Callable[[str], Run], tmp_path: Path
) -> None:
    for run, form, said in (
        (words, Form.kohya, "for the UNet of a pipeline, came text; use --as peft"),
        (drawn("pixart"), Form.kohya, "for the UNet of a pipeline, came a transformer; use --as peft"),
        (drawn("stable"), Form.gguf, "llama.cpp writes text, and this run draws pictures"),
    ):
        with pytest.raises(StoreError, match=said):
            leave(run, "global", tmp_path / "out", form=form)
    assert not list(tmp_path.iterdir())


def test_a_name_that_is_not_there_is_found_before_anything_is_written(
    words: Run, drawn: Callable[[str], Run], tmp_path: Path
) -> None:
    for run, forms in ((words, (Form.peft, Form.merged, Form.gguf)), (drawn("stable"), (Form.kohya,))):
        for form in forms:
            with pytest.raises(StoreError, match="has no adapter 'client/zoe'"):
                leave_all(run, tmp_path / "out", also=["client/zoe"], form=form)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["client/zoe", "client/bo", "annn", "x"])
def test_the_names_there_are_come_in_one_order_whatever_was_asked(name: str, words: Run, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"; it has {', '.join(words.adapters())}$"):
        leave_all(words, tmp_path / "out", also=[name])


def test_flags_that_do_not_fit_each_other_are_refused(words: Run, tmp_path: Path) -> None:
    for extra, said in ((["--with", "client/ann"], "is of --all"), (["--all", "--adapter", "client/ann"], "--with")):
        found = called(words.folder, "--to", tmp_path, *extra)
        assert found.exit_code == 2
        assert said in found.output
    assert called(words.folder, "--to", tmp_path, "--as", "onnx").exit_code == 2


@pytest.mark.parametrize("kind", ["stable", "pixart", "ddpm"])
def test_what_is_said_of_pictures_does_what_it_says(
    kind: str, drawn: Callable[[str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diffusers = pytest.importorskip("diffusers")
    run = loud(drawn(kind), tmp_path, {"0": 3})
    own, card = run.adapter("client/0")
    save_bundle(run.folder / "adapters" / "global", own, card, component=run.facts["component"])
    told = called(run.folder, "--all", "--to", tmp_path / "out")
    assert told.exit_code == 0, told.output
    page = (tmp_path / "out" / README).read_text()
    assert "vllm" not in page + told.output
    said = denoised(run.plan.backbone.load())
    lines = re.findall(r"```text\n(.*?)\n```", page, re.DOTALL)
    assert len(lines) == (1 if run.facts["component"] == "transformer" else 2)
    monkeypatch.chdir(tmp_path / "out")
    for line in lines[: 2 if kind == "stable" else 1]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            more = {"vae": None} if kind == "pixart" else {}
            pipeline = diffusers.DiffusionPipeline.from_pretrained(run.plan.backbone.source, **more)
            exec(line, {"pipeline": pipeline, "PeftModel": PeftModel})  # noqa: S102  the page says: do this
        wanted, bare = banked(run, "client/0", said)
        assert gap(said(getattr(pipeline, run.facts["component"])), wanted) < CLOSE
        assert gap(wanted, bare) > 0.01


def test_a_mixture_leaves_as_one(words: Run, tmp_path: Path) -> None:
    left = leave(words, "client/ann=0.5,client/bob=1", tmp_path / "out")
    wanted, _, _ = compact(words, {"client/ann": 0.5, "client/bob": 1.0})
    found, card = load_bundle(tmp_path / "out")
    assert card == left.card
    assert all(torch.equal(found[key], value) for key, value in wanted.items())
