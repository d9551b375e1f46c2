"""Language models of several families, from a folder alone: loading, what is refused, rows, and writing."""

import shutil
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.constants import HF_HUB_OFFLINE
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from fedgen import tree
from fedgen.backbones import Language, LanguageBackbone
from fedgen.backbones.language import hash_of
from fedgen.bank import Bank
from fedgen.errors import BackboneError
from fedgen.records import Document

LENGTH = 16
WEIGHTS = "model.safetensors"


def gpt2(words: dict[str, int]) -> Any:
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.1, **words)
    return GPT2LMHeadModel(config)


def qwen(words: dict[str, int]) -> Any:
    config = Qwen2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=64, initializer_range=0.1, tie_word_embeddings=False, **words,
    )  # fmt: skip
    return Qwen2ForCausalLM(config)


def saved(make: Callable[[dict[str, int]], Any], tiny_backbone: Path, folder: Path) -> Path:
    """A folder of another family with the tiny backbone's tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_backbone)
    words = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make(words).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {make.__name__: saved(make, tiny_backbone, tmp_path_factory.mktemp(make.__name__)) for make in (gpt2, qwen)}
    return {"llama": tiny_backbone} | made


def load(folder: Path, **settings: Any) -> LanguageBackbone:
    return Language(str(folder), **({"length": LENGTH, "device": "cpu"} | settings)).load()


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> LanguageBackbone:
    return load(tiny_backbone)


@pytest.fixture
def copied(tiny_backbone: Path, tmp_path: Path) -> Path:
    """A copy of the tiny backbone, to be broken."""
    return Path(shutil.copytree(tiny_backbone, tmp_path / "copy"))


# ---- loading

FAMILIES = {
    "llama": (LlamaForCausalLM, ("q_proj", "v_proj")),
    "gpt2": (GPT2LMHeadModel, ("c_attn",)),
    "qwen": (Qwen2ForCausalLM, ("q_proj", "v_proj")),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_loads_frozen_and_takes_an_adapter(family: str, folders: dict[str, Path]) -> None:
    backbone = load(folders[family])
    kind, targets = FAMILIES[family]
    assert isinstance(backbone.network, kind)
    assert backbone.targets == targets
    assert not backbone.network.training
    assert not any(weight.requires_grad for weight in backbone.network.parameters())
    assert {weight.dtype for weight in backbone.network.parameters()} == {torch.float32}
    rows = backbone.encode([Document("", "the quick brown fox jumps over the lazy dog. " * 3)])
    bare, terms = backbone.losses(rows)
    assert terms.tolist() == rows["scored"].sum(1).tolist()
    with Bank(backbone.network, backbone.targets, 2) as bank:
        line = torch.randn(1, bank.layout.width, generator=torch.Generator().manual_seed(0), requires_grad=True)
        with bank.carry(line):
            losses, _ = backbone.losses(rows)
        losses.sum().backward()
        assert line.grad is not None
        assert line.grad.isfinite().all()
        assert (losses - bare).abs().min() > 0.01


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_costs_what_the_family_itself_says(family: str, folders: dict[str, Path]) -> None:
    backbone = load(folders[family])
    rows = backbone.encode([Document("", "a client holds its own text, and the server never reads it. naïve café")])
    ids = rows["ids"].long()
    labels = ids.clone()
    labels[:, 1:][~rows["scored"]] = -100
    wanted = [backbone.network(input_ids=one[None], labels=to[None]).loss for one, to in zip(ids, labels, strict=True)]
    sums, terms = backbone.losses(rows)
    assert (sums / terms).tolist() == pytest.approx([loss.item() for loss in wanted], rel=1e-5)


def test_the_dtype_is_the_one_asked_for(tiny_backbone: Path) -> None:
    found = load(tiny_backbone, dtype="bfloat16")
    assert {weight.dtype for weight in found.network.parameters()} == {torch.bfloat16}


def test_the_hash_is_the_contents(tiny_backbone: Path, copied: Path) -> None:
    assert hash_of(copied) == hash_of(tiny_backbone) == load(tiny_backbone).hash
    weights = load_file(copied / WEIGHTS)
    next(iter(weights.values())).view(-1)[0] += 1
    save_file(weights, copied / WEIGHTS, {"format": "pt"})
    assert hash_of(copied) != hash_of(tiny_backbone)


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every try to reach a network; counted, not only refused, as someone may swallow the refusal."""
    made: list[Any] = []

    def refuse(*where: Any, **how: Any) -> None:
        made.append(where)
        raise OSError("no network here")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # nobody waits to try again
    return made


def test_a_local_folder_never_reaches_for_the_network(tiny_backbone: Path, attempts: list[Any]) -> None:
    found = load(tiny_backbone)
    found.losses(found.encode([Document("", "all of it is here")]))
    assert list(found.write("every", tokens=2, temperature=0, draw=torch.Generator()))
    assert attempts == []


@pytest.mark.skipif(HF_HUB_OFFLINE, reason="this environment keeps everyone off the network")
def test_only_a_hub_name_reaches_for_the_network(attempts: list[Any]) -> None:
    with pytest.raises(BackboneError, match="'hub:nobody/nothing' is not a causal language model"):
        Language("hub:nobody/nothing", device="cpu").load()
    assert attempts


# ---- what is refused


def refused(folder: Path, **settings: Any) -> str:
    """The one line that loading says."""
    with pytest.raises(BackboneError) as caught:
        load(folder, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    said = refused(tmp_path / "nowhere")
    assert f"no config.json in '{tmp_path / 'nowhere'}'" in said
    assert "'hub:owner/name'" in said


def test_a_folder_without_config(copied: Path) -> None:
    (copied / "config.json").unlink()
    assert "no config.json" in refused(copied)


@pytest.mark.parametrize("content", ["{", "{}", '{"model_type": "vit"}'])
def test_a_config_of_no_language_model(copied: Path, content: str) -> None:
    (copied / "config.json").write_text(content)
    assert f"'{copied}' is not a causal language model" in refused(copied)


@pytest.mark.parametrize("kept", [0, 4, 500, -100])
def test_weights_cut_short(copied: Path, kept: int) -> None:
    raw = (copied / WEIGHTS).read_bytes()
    (copied / WEIGHTS).write_bytes(raw[:kept])
    assert f"'{copied}' is not a causal language model" in refused(copied)


def test_no_weights_at_all(copied: Path) -> None:
    (copied / WEIGHTS).unlink()
    assert WEIGHTS in refused(copied)


def test_a_weight_that_is_missing_is_not_made_up(copied: Path) -> None:
    weights = load_file(copied / WEIGHTS)
    lost = [key for key in weights if "layers.1.self_attn" in key]
    save_file({key: value for key, value in weights.items() if key not in lost}, copied / WEIGHTS, {"format": "pt"})
    said = refused(copied)
    assert f"lacks {len(lost)} of its weights" in said
    assert f"'{min(lost)}'" in said


def test_a_folder_without_tokenizer(copied: Path) -> None:
    for file in copied.glob("tokenizer*"):
        file.unlink()
    assert str(copied) in refused(copied)


@pytest.mark.parametrize("device", ["warp", "cuda:99", ""])
def test_a_device_that_is_not_there(tiny_backbone: Path, device: str) -> None:
    assert f"backbone.device: '{device}' cannot be used" in refused(tiny_backbone, device=device)


def test_targets_that_match_nothing_are_told_with_those_that_do(backbone: LanguageBackbone) -> None:
    with pytest.raises(BackboneError, match="'c_attn' is no layer of this backbone") as caught:
        Bank(backbone.network, ["c_attn"], 2)
    assert "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj" in str(caught.value)


# ---- rows


def test_documents_are_one_stream_cut_into_rows(backbone: LanguageBackbone) -> None:
    texts = ["the quick brown fox jumps over the lazy dog.", "naïve café", "x"]
    rows = backbone.encode([Document("", text) for text in texts])
    stream = []
    for text in texts:
        stream += [backbone.end, *backbone.tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert rows["ids"].shape[1] == LENGTH + 1
    assert rows["scored"].shape == (len(rows["ids"]), LENGTH)
    read = [backbone.end]
    for ids, scored in zip(rows["ids"], rows["scored"], strict=True):
        assert ids[0] == read[-1]  # a row goes on where the one before it ended
        read += ids[1:][scored].tolist()
    assert read == stream


def test_a_short_row_is_padded_and_its_padding_not_scored(backbone: LanguageBackbone) -> None:
    rows = backbone.encode([Document("", "xyz")])
    tokens = len(backbone.tokenizer("xyz")["input_ids"])
    assert rows["scored"].sum() == tokens
    assert (rows["ids"][0, tokens + 1 :] == backbone.end).all()
    loss, terms = backbone.losses(rows)
    other = dict(rows) | {"ids": rows["ids"].clone()}
    other["ids"][0, tokens + 1 :] = 7
    assert terms.tolist() == [tokens]
    assert torch.equal(backbone.losses(other)[0], loss)


@pytest.mark.parametrize("documents", [[], [Document("", "")]])
def test_nothing_makes_a_table_without_rows(backbone: LanguageBackbone, documents: list[Document]) -> None:
    rows = backbone.encode(documents)
    assert {key: len(value) for key, value in rows.items()} == {"ids": 0, "scored": 0, "words": 0, "bytes": 0}


def answer_of(backbone: LanguageBackbone, document: Document) -> list[int]:
    (ids,), (scored,) = (backbone.encode([document])[key] for key in ("ids", "scored"))
    return ids[1:][scored].tolist()


def test_of_a_question_and_its_answer_only_the_answer_is_scored(backbone: LanguageBackbone) -> None:
    tokens = backbone.tokenizer("yes.", add_special_tokens=False)["input_ids"]
    assert answer_of(backbone, Document("", "yes.", prompt="why?")) == [*tokens, backbone.end]
    rows = backbone.encode([Document("", "yes.", prompt="why?")])
    asked = backbone.tokenizer("why?", add_special_tokens=False)["input_ids"]
    assert rows["ids"][0, : len(asked) + 1].tolist() == [backbone.end, *asked]


def test_a_long_question_loses_its_beginning_and_a_long_answer_its_end(backbone: LanguageBackbone) -> None:
    tokens = backbone.tokenizer("yes.", add_special_tokens=False)["input_ids"]
    assert answer_of(backbone, Document("", "yes.", prompt="z" * 90)) == [*tokens, backbone.end]
    found = answer_of(backbone, Document("", "q" * 90, prompt="z" * 90))
    assert len(found) == LENGTH
    assert backbone.tokenizer.decode(found[:-1]).strip("q") == ""


def test_streams_and_questions_share_a_table(backbone: LanguageBackbone) -> None:
    rows = backbone.encode([Document("", "yes.", prompt="why?"), Document("", "just text")])
    assert rows.keys() == {"ids", "scored", "words", "bytes"}
    assert rows["words"].sum() == 3


def test_text_needs_no_chance(backbone: LanguageBackbone) -> None:
    rows = backbone.encode([Document("", "just text")])
    assert backbone.draw(rows, torch.Generator()) is rows


# ---- writing


def written(backbone: LanguageBackbone, prompt: str, tokens: int, temperature: float = 0, seed: int = 0) -> str:
    draw = torch.Generator().manual_seed(seed)
    return "".join(backbone.write(prompt, tokens=tokens, temperature=temperature, draw=draw))


def by_transformers(folder: Path, backbone: LanguageBackbone, prompt: str, tokens: int) -> list[int]:
    """The tokens that transformers' own greedy search writes."""
    ids = [backbone.end, *backbone.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    given = torch.tensor([ids])
    settings = {"attention_mask": torch.ones_like(given), "pad_token_id": backbone.end, "do_sample": False}
    made = AutoModelForCausalLM.from_pretrained(folder).generate(given, max_new_tokens=tokens, **settings)
    new: list[int] = made[0, len(ids) :].tolist()
    return new[: new.index(backbone.end)] if backbone.end in new else new


def shown(backbone: LanguageBackbone, tokens: list[int]) -> str:
    """Tokens as text; half a character at the end is not written."""
    text: str = backbone.tokenizer.decode(tokens)
    return text.rstrip("\ufffd")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt", ["every round", "naïve", ""])
def test_greedy_writing_is_transformers_own(family: str, prompt: str, folders: dict[str, Path]) -> None:
    backbone = load(folders[family])
    wanted = by_transformers(folders[family], backbone, prompt, 20)
    assert wanted
    assert written(backbone, prompt, 20).rstrip("\ufffd") == shown(backbone, wanted)
    assert written(backbone, prompt, 7).rstrip("\ufffd") == shown(backbone, wanted[:7])
    assert written(backbone, prompt, 0) == ""


def test_writing_stops_at_the_end(folders: dict[str, Path]) -> None:
    backbone, prompt = load(folders["qwen"]), "a client holds"
    wanted = by_transformers(folders["qwen"], backbone, prompt, 20)
    at = next(at for at, token in enumerate(wanted) if at > 2 and token not in wanted[:at])
    swapped = backbone.network.lm_head.weight.data  # now the model says "end" where it said this token
    swapped[[backbone.end, wanted[at]]] = swapped[[wanted[at], backbone.end]]
    assert written(backbone, prompt, 20).rstrip("\ufffd") == shown(backbone, wanted[:at])


@pytest.mark.parametrize("family", ["gpt2", "qwen"])
def test_a_prompt_longer_than_the_model_reads_loses_its_beginning(family: str, folders: dict[str, Path]) -> None:
    backbone = load(folders[family])  # it reads 64 tokens
    assert written(backbone, "z" * 500, 10)
    assert written(backbone, "every", 500)
    assert written(backbone, "0" * 9 + "z" * 500, 10) == written(backbone, "z" * 500, 10)


def test_rows_longer_than_the_model_reads(folders: dict[str, Path]) -> None:
    assert load(folders["gpt2"], length=64).losses
    assert "backbone.length: wanted at most 64" in refused(folders["gpt2"], length=65)


def test_a_sample_is_its_generators(backbone: LanguageBackbone) -> None:
    first = written(backbone, "every", 20, temperature=1.0, seed=1)
    assert written(backbone, "every", 20, temperature=1.0, seed=1) == first
    assert written(backbone, "every", 20, temperature=1.0, seed=2) != first


def test_an_adapter_changes_what_is_written(backbone: LanguageBackbone) -> None:
    bare = written(backbone, "every", 20)
    with Bank(backbone.network, backbone.targets, 2, slots=1) as bank:
        draw = torch.Generator().manual_seed(0)
        drawn = bank.fresh(draw)
        bank.write(1, tree.add(drawn, {key: torch.randn(value.shape, generator=draw) for key, value in drawn.items()}))
        with bank.rows(torch.tensor([1])):
            assert written(backbone, "every", 20) != bare
        assert written(backbone, "every", 20) == bare


def test_an_adapter_that_blew_up_is_told(backbone: LanguageBackbone) -> None:
    with (
        Bank(backbone.network, backbone.targets, 2) as bank,
        bank.carry(torch.full((1, bank.layout.width), 1e30)),
        pytest.raises(BackboneError) as caught,
    ):
        written(backbone, "every", 5)
    assert "makes numbers that are not finite" in str(caught.value)
