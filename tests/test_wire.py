"""What is on the wire: no text and no token ids, in a run and in a prompt that is sent to be continued or drawn."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fedgen
from fedgen import tree
from fedgen.backbones import Diffusion, DiffusionBackbone, Language, LanguageBackbone
from fedgen.encode import seal, unseal
from fedgen.errors import BackboneError, DataError, TreeError
from fedgen.places import inprocess
from fedgen.records import Document, Update

CLUSTERED = {"encode": {"kind": "backbone"}, "cluster": {"kind": "kmeans", "count": 2}}
RUN = 6  # so many token ids in a row are no accident
KINDS = (torch.uint8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32, torch.float64)


def spelled(ids: list[int]) -> Iterator[bytes]:
    """Runs of token ids as any kind of number would lie in a message."""
    for at in range(0, len(ids) - RUN + 1, RUN):
        cut = ids[at : at + RUN]
        yield from (
            torch.tensor(cut, dtype=kind).numpy().tobytes() for kind in KINDS if max(cut) < 256 or kind.itemsize > 1
        )


def secrets(texts: list[str], tokenizer: Any) -> set[bytes]:
    """Long words of the texts, and runs of their tokens."""
    words = {word.encode() for text in texts for word in text.split() if len(word) > 5}
    ids = [tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
    return words | {run for row in ids for run in spelled(row)}


def sent(plan: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Every byte that a run's messages have, in both directions."""
    heard: list[bytes] = []
    pack = inprocess.pack
    monkeypatch.setattr(inprocess, "pack", lambda message: heard.append(pack(message)) or heard[-1])
    fedgen.run(plan, folder)
    return b"".join(heard)


def test_no_text_and_no_token_is_on_the_wire(
    tiny_plan: dict[str, Any], tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = sent(tiny_plan | CLUSTERED, tmp_path / "run", monkeypatch)
    backbone = fedgen.Run(tmp_path / "run").plan.backbone.load()
    assert isinstance(backbone, LanguageBackbone)
    tokenizer = backbone.tokenizer
    texts = [path.read_text("utf-8") for path in tiny_text.glob("*.txt")]
    assert b"profile" in wire
    assert not [secret for secret in secrets(texts, tokenizer) if secret in wire]
    ids = torch.tensor(tokenizer(texts[0])["input_ids"][:40])
    for kind in KINDS[2:]:  # the same search finds them where they are sent
        told = inprocess.pack(Update(1, "ann", "global", {"key": ids.to(kind)}, 1, {}))
        assert [secret for secret in secrets([tokenizer.decode(ids.tolist())], tokenizer) if secret in told]


def test_no_prompt_and_no_token_of_pictures_is_on_the_wire(
    pipelines: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {
        "rounds": 1,
        "backbone": {"kind": "diffusion", "source": str(pipelines["pixart"]), "device": "cpu"},
        "data": {"kind": "digits"},
        "partition": {"kind": "dirichlet", "clients": 4, "alpha": 1.0},
        "training": {"steps": 1, "batch": 2},
        "personal": {"kind": "none"},
        "evaluate": {"rows": 2},
    }
    wire = sent(plan | CLUSTERED, tmp_path / "run", monkeypatch)
    run = fedgen.Run(tmp_path / "run")
    backbone: Any = run.plan.backbone.load()
    prompts = sorted({document.prompt for own in inprocess.holdings(run.plan).values() for document in own})
    assert len(prompts) == 10
    found = secrets(prompts, backbone.condition.tokenizer) | {prompt.encode() for prompt in prompts}
    assert b"profile" in wire
    assert not [secret for secret in found if secret in wire]


# ---- sealed prompts


@pytest.fixture(scope="module")
def writer(tiny_backbone: Path) -> LanguageBackbone:
    return Language(str(tiny_backbone), length=32, device="cpu").load()


@pytest.fixture(scope="module")
def painter(pipelines: dict[str, Path]) -> DiffusionBackbone:
    return Diffusion(source=str(pipelines["pixart"]), device="cpu").load()


def by_tokens(backbone: LanguageBackbone, prompt: str, tokens: int) -> str:
    """The slow way: the whole text read anew for each token."""
    ids = [backbone.end, *backbone.tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    made: list[int] = []
    for _ in range(tokens):
        with torch.no_grad():
            token = int(backbone.network(input_ids=torch.tensor([ids + made])).logits[0, -1].argmax())
        if token == backbone.end:
            break
        made.append(token)
    return str(backbone.tokenizer.decode(made))


def test_a_sealed_prompt_is_continued_as_the_prompt_itself(writer: LanguageBackbone) -> None:
    for prompt in ("the quick brown fox", "every round some clients train", "café"):
        raw = seal(prompt, writer)
        assert not [secret for secret in secrets([prompt], writer.tokenizer) if secret in raw]
        opened = unseal(raw, writer, "message")
        sealed = "".join(writer.write(opened, tokens=12, temperature=0, draw=torch.Generator()))
        assert sealed.rstrip("\ufffd") == by_tokens(writer, prompt, 12).rstrip("\ufffd")


def test_a_sealed_prompt_is_drawn_as_the_prompt_itself(painter: DiffusionBackbone) -> None:
    prompt, other = "the digit seven", Document("", "", "the digit three")

    def painted(asked: Any) -> Tensor:
        draws = [torch.Generator().manual_seed(at) for at in range(2)]
        return painter.paint([asked, other], draws, steps=3, guidance=2.0)

    raw = seal(prompt, painter)
    assert not [secret for secret in secrets([prompt], painter.condition.tokenizer) if secret in raw]  # type: ignore[attr-defined]
    plain, sealed = painted(Document("", "", prompt)), painted(unseal(raw, painter, "message"))
    assert torch.equal(plain, sealed)
    assert not torch.equal(painted(other)[0], sealed[0])


def test_what_is_no_sealed_prompt_of_this_backbone_is_refused(
    writer: LanguageBackbone, painter: DiffusionBackbone, denoisers: dict[str, DiffusionBackbone]
) -> None:
    raw = seal("every round", writer)
    with pytest.raises(BackboneError, match="came one for"):
        unseal(raw, painter, "note.safetensors")
    with pytest.raises(BackboneError, match=r"note.safetensors: .* came something else"):
        unseal(tree.pack({"states": torch.zeros(2, 32)}), writer, "note.safetensors")
    with pytest.raises(TreeError, match="wanted whole safetensors"):
        unseal(raw[:-5], writer, "note.safetensors")
    header = b'{"states":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[0,1]}}'
    with pytest.raises(TreeError, match="wanted whole safetensors"):  # of numbers that torch's reader does not know
        unseal(len(header).to_bytes(8, "little") + header + b"\0", writer, "note.safetensors")
    with pytest.raises(DataError, match="came a blank one"):
        seal("  ", writer)
    with pytest.raises(BackboneError, match="reads no prompts"):
        seal("seven", denoisers["classes"])
    every: Any = copy.deepcopy(writer)
    every.network.config.hidden_size_per_layer_input = 4
    with pytest.raises(BackboneError, match="every layer of 'tiny' reads the tokens"):
        seal("every round", every)
    for states in (torch.full((3, 32), torch.nan), torch.zeros(3, 31), torch.zeros(0, 32), torch.zeros(32)):
        with pytest.raises(BackboneError, match="sealed prompt: wanted a row of 32 finite numbers"):
            list(writer.write({"states": states}, tokens=2, temperature=0, draw=torch.Generator()))
    with pytest.raises(BackboneError, match="sealed prompt: wanted finite"):
        painter.paint([unseal(raw, writer, "x")], [torch.Generator()], steps=1)


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "complex64", "int64", "bool", "float32", "float16", "bfloat16"])
def test_a_sealed_prompt_is_numbers_that_can_be_read(
    kind: str, writer: LanguageBackbone, denoisers: dict[str, DiffusionBackbone]
) -> None:
    for backbone, part in ((writer, "states"), (denoisers["pixart"], "text")):
        states, notes = tree.unpack(seal("every round", backbone))
        raw = tree.pack(states | {part: states[part].to(getattr(torch, kind))}, notes)
        if kind in ("float32", "float16", "bfloat16"):
            assert unseal(raw, backbone, "x")[part].dtype == getattr(torch, kind)
            continue
        with pytest.raises(BackboneError, match=f"^x: wanted '{part}' in float32, float16 or bfloat16, came {kind}; "):
            unseal(raw, backbone, "x")


def test_which_states_of_a_sealed_prompt_are_seen_is_whole_numbers(denoisers: dict[str, DiffusionBackbone]) -> None:
    states, notes = tree.unpack(seal("every round", denoisers["pixart"]))
    raw = tree.pack(states | {"seen": states["seen"].to(torch.float8_e4m3fn)}, notes)
    with pytest.raises(BackboneError, match=r"^x: wanted 'seen' in int64, came float8_e4m3fn; "):
        unseal(raw, denoisers["pixart"], "x")
