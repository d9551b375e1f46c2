"""Prompts to vectors: encoders that read alike everywhere, profiles of several tastes, calibrated noise, bad input."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModelWithProjection, T5Config

from fedgen.backbones import Backbone, DiffusionBackbone, Language, LanguageBackbone
from fedgen.backbones.conditions import Prompts
from fedgen.bank import Bank
from fedgen.encode import ENCODERS, Encoder, Folder, Ngrams, Own, Profile, Silent, noise, states
from fedgen.errors import BackboneError, DataError, PlanError

CATS = ["a black cat sleeps", "the black cats sleep", "one black cat asleep"]
CODE = ["import json", "json.loads(text)", "json.dumps(text)", "return json.dumps(text)"]
YESTERDAY = [3, -1, -5, -3, 3, -1, -1, 3, -3, -1, -3, 1]  # of "cat", in tenths
LONG = "all work and no play " * 200
Saved = Callable[[str], Path]


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> LanguageBackbone:
    return Language(str(tiny_backbone), length=32, device="cpu").load()


@pytest.fixture(scope="module")
def saved(pipelines: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A folder with a text model of a kind, its weights drawn at random, and a tokenizer; a new one at each call."""

    def make(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind)
        sizes: dict[str, int] = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            if kind == "clip":
                config = CLIPTextConfig(
                    **sizes, num_attention_heads=2, max_position_embeddings=16, projection_dim=24, eos_token_id=2
                )
                model: Any = CLIPTextModelWithProjection(config)
            else:
                model = BertModel(BertConfig(**sizes, num_attention_heads=2, max_position_embeddings=64))
        model.save_pretrained(folder)
        for file in (pipelines["stable"] / "tokenizer").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return folder

    return make


@pytest.fixture(scope="module")
def encoders(saved: Saved) -> dict[str, Encoder]:
    """Every encoder that reads."""
    return {
        "backbone": Own(),
        "clip": Folder(str(saved("clip"))),
        "bert": Folder(str(saved("bert"))),
        "ngrams": Ngrams(),
    }


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- every encoder


@pytest.mark.parametrize("kind", ["backbone", "clip", "bert", "ngrams"])
def test_a_text_is_a_vector_of_length_one_whatever_is_read_beside_it(
    kind: str, encoders: Mapping[str, Encoder], backbone: Backbone
) -> None:
    texts = [*CATS, LONG, "a", "naïve café \U0001f408", *CODE] * 4  # more than one batch
    made = encoders[kind].read(texts, backbone)
    assert made.dtype == torch.float32
    assert made.shape[0] == len(texts)
    assert torch.allclose(made.norm(dim=1), torch.ones(len(texts)))
    alone = torch.cat([encoders[kind].read([text], backbone) for text in texts[:10]])
    assert torch.allclose(made[:10], alone, atol=1e-5)
    assert (made[:10] @ made[:10].T - torch.eye(10)).amax() < 0.9999  # no two are read alike


@pytest.mark.parametrize("kind", ["backbone", "clip", "bert", "ngrams"])
@pytest.mark.parametrize("texts", [[], ["a cat", " \n"]])
def test_nothing_to_read_is_refused(
    kind: str, texts: list[str], encoders: Mapping[str, Encoder], backbone: Backbone
) -> None:
    with pytest.raises(DataError, match=r"wanted texts to read, came .*; leave out"):
        encoders[kind].read(texts, backbone)


def test_every_kind_of_the_table_reads_or_says_why_not(saved: Saved, backbone: Backbone) -> None:
    path = str(saved("bert"))
    for kind, part in ENCODERS.items():
        encoder = Folder(path) if part is Folder else part()
        if kind == "none":
            with pytest.raises(PlanError, match="'none' makes no vectors; choose"):
                encoder.read(CATS, backbone)
        else:
            assert encoder.read(CATS, backbone).shape[0] == len(CATS)
    assert set(ENCODERS) == {"none", "backbone", "folder", "ngrams"}
    assert ENCODERS["none"] is Silent


# ---- n-grams


def test_ngrams_are_the_same_in_every_process(backbone: Backbone) -> None:
    code = "from fedgen.encode import Ngrams; print(Ngrams(12).read(['A  cat'], None)[0].tolist())"
    env = os.environ | {"PYTHONHASHSEED": "7"}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == Ngrams(12).read(["a cat"], backbone)[0].tolist()


def test_ngrams_are_what_they_were_yesterday(backbone: Backbone) -> None:
    made = (Ngrams(12).read(["cat"], backbone)[0] * 10).round().int().tolist()
    assert made == YESTERDAY  # of another hash, profiles kept by a server would fit no new ones


def test_ngrams_know_likeness(backbone: Backbone) -> None:
    cat, again, other = Ngrams().read(["a black cat sleeps", "the black cats sleep", "print(json.dumps(x))"], backbone)
    assert cat @ again > 0.4
    assert (cat @ other).abs() < 0.2


# ---- the backbone's own


def dense_mean(backbone: LanguageBackbone, text: str) -> Tensor:
    """The same, told slowly: the last hidden states behind the token that stands between documents."""
    ids = torch.tensor([[backbone.end, *backbone.tokenizer(text, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        last = backbone.network(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, 1:]
    mean = last.mean(0)
    return mean / mean.norm()


def test_a_language_model_reads_its_last_hidden_states(backbone: LanguageBackbone) -> None:
    wanted = torch.stack([dense_mean(backbone, text) for text in CATS])
    assert torch.allclose(Own().read(CATS, backbone), wanted, atol=1e-5)


def test_a_text_encoder_reads_what_a_picture_is_told(denoisers: dict[str, DiffusionBackbone]) -> None:
    told = denoisers["pixart"].condition
    assert isinstance(told, Prompts)
    count = len(told.tokenizer("a cat")["input_ids"])
    wanted = told._read(["a cat"])["text"][0, :count].mean(0)
    assert torch.allclose(Own().read(["a cat"], denoisers["pixart"])[0], wanted / wanted.norm(), atol=1e-5)


@pytest.mark.parametrize("kind", ["stable", "pixart"])
def test_of_a_long_text_the_beginning_is_read(kind: str, denoisers: dict[str, DiffusionBackbone]) -> None:
    made = Own().read([LONG, LONG + "more", LONG[:100]], denoisers[kind])
    assert torch.allclose(made, made[:1].expand(3, -1), atol=1e-5)


def test_a_language_model_reads_no_more_than_it_can(backbone: LanguageBackbone) -> None:
    assert states([LONG], backbone)[0].shape[1] == backbone.reach - 1


def test_lanes_of_a_bank_change_nothing(tiny_backbone: Path) -> None:
    banked = Language(str(tiny_backbone), length=32, device="cpu").load()
    before = Own().read(CATS, banked)
    with Bank(banked.network, banked.targets, 2):
        assert Own().read(CATS, banked).equal(before)


@pytest.mark.parametrize("kind", ["ddpm", "classes"])
def test_a_backbone_without_words_is_refused(kind: str, denoisers: dict[str, DiffusionBackbone]) -> None:
    with pytest.raises(BackboneError, match=r"wants one that reads words, .* reads none; choose 'ngrams'"):
        Own().read(CATS, denoisers[kind])


def test_a_backbone_that_gives_nan_is_refused(tiny_backbone: Path) -> None:
    broken = Language(str(tiny_backbone), length=32, device="cpu").load()
    network: Any = broken.network
    network.base_model.norm.weight.fill_(math.nan)
    with pytest.raises(BackboneError, match="not finite"):
        Own().read(CATS, broken)


def test_all_hidden_states_come_with_which_are_seen(backbone: LanguageBackbone) -> None:
    made, seen = states(["a cat", "a"], backbone)
    counts = [len(backbone.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("a cat", "a")]
    assert seen.sum(1).tolist() == counts
    assert made.shape == (2, max(counts), 32)


# ---- a folder


def test_a_clip_gives_its_own_text_embedding(saved: Saved, backbone: Backbone) -> None:
    folder = saved("clip")
    network = CLIPTextModelWithProjection.from_pretrained(folder)
    ids, seen = (torch.tensor([[0, 65, 0]]), torch.ones(1, 3, dtype=torch.long))
    with torch.no_grad():
        wanted = network(input_ids=ids, attention_mask=seen).text_embeds[0]
    text = Folder(str(folder))._loaded[0].decode([65])
    assert torch.allclose(Folder(str(folder)).read([text], backbone)[0], wanted / wanted.norm(), atol=1e-5)


def test_a_folder_is_read_from_disk_once(saved: Saved, backbone: Backbone) -> None:
    folder = saved("bert")
    encoder = Folder(str(folder))
    before = encoder.read(CATS, backbone)
    (folder / "model.safetensors").unlink()
    assert encoder.read(CATS, backbone).equal(before)


def no_folder(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    no_weights(folder)


def half_the_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(dict(list(weights.items())[::2]), folder / "model.safetensors", {"format": "pt"})


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def another_model(folder: Path) -> None:
    T5Config(vocab_size=300, d_model=32, num_layers=1).save_pretrained(folder)


@pytest.mark.parametrize("spoil", [no_folder, no_weights, a_pickle, half_the_weights, no_tokenizer, another_model])
def test_a_folder_that_is_not_whole_is_refused(spoil: Callable[[Path], None], saved: Saved, backbone: Backbone) -> None:
    folder = saved("bert")
    spoil(folder)
    with pytest.raises(DataError, match=r"encode\.path .*: wanted a .*text encoder.*; (give the path|get it again)"):
        Folder(str(folder)).read(CATS, backbone)


# ---- the profile


def profile(backbone: Backbone, texts: list[str], seed: int = 0, **settings: Any) -> Tensor:
    return Profile(**settings).of(texts, Ngrams(64), backbone, chance(seed))


def test_a_profile_is_the_mean_of_its_prompts(backbone: Backbone) -> None:
    mean = Ngrams(64).read(CATS, backbone).mean(0)
    assert torch.allclose(profile(backbone, CATS), mean[None] / mean.norm())


def test_only_so_many_prompts_are_read_and_blank_ones_are_none(backbone: Backbone) -> None:
    assert profile(backbone, [" ", *CATS, *CODE], prompts=3).equal(profile(backbone, CATS))


@pytest.mark.parametrize("texts", [[], ["", "\n "]])
def test_a_client_without_prompts_is_refused(texts: list[str], backbone: Backbone) -> None:
    with pytest.raises(DataError, match="wanted at least one prompt, came none; leave the client out"):
        profile(backbone, texts)


@pytest.mark.parametrize("seed", range(4))
def test_two_tastes_are_found_and_the_larger_comes_first(seed: int, backbone: Backbone) -> None:
    cats, code = profile(backbone, CATS)[0], profile(backbone, CODE)[0]
    made = profile(backbone, [*CATS, *CODE], seed, tastes=2)
    assert torch.allclose(made, torch.stack([code, cats]), atol=1e-6)


def test_few_or_equal_prompts_have_fewer_tastes(backbone: Backbone) -> None:
    assert profile(backbone, CATS[:1], tastes=3).shape == (1, 64)
    assert profile(backbone, CATS[:1] * 5, tastes=3).shape == (1, 64)
    assert profile(backbone, CATS, tastes=5).shape == (3, 64)


def test_a_narrow_profile_keeps_likeness(backbone: Backbone) -> None:
    wide, narrow = (torch.cat([profile(backbone, [text], width=width) for text in CATS + CODE]) for width in (64, 48))
    assert narrow.shape == (7, 48)
    assert torch.allclose(narrow.norm(dim=1), torch.ones(7))
    assert (wide @ wide.T - narrow @ narrow.T).abs().max() < 0.25
    whole = Profile(width=64).narrow(wide)  # a turn of the whole space
    assert torch.allclose(whole @ whole.T, wide @ wide.T, atol=1e-5)


def test_a_profile_wider_than_what_is_encoded_is_refused(backbone: Backbone) -> None:
    with pytest.raises(DataError, match=r"profile\.width: wanted at most the 64 numbers that are encoded, came 65"):
        profile(backbone, CATS, width=65)


def test_noise_is_drawn_from_its_draw_and_rows_stay_of_length_one(backbone: Backbone) -> None:
    one, same, other = (profile(backbone, [*CATS, *CODE], seed, tastes=2, epsilon=50.0) for seed in (0, 0, 1))
    assert one.equal(same)
    assert not torch.allclose(one, other)
    assert torch.allclose(one.norm(dim=1), torch.ones(2))


def test_less_epsilon_is_more_noise(backbone: Backbone) -> None:
    clean = profile(backbone, CATS)[0]
    likeness = [
        torch.stack([profile(backbone, CATS, seed, epsilon=epsilon)[0] @ clean for seed in range(20)]).mean()
        for epsilon in (1e6, 1e3, 64.0, 1.0)
    ]
    assert likeness[0] > 0.999
    assert likeness == sorted(likeness, reverse=True)
    assert abs(likeness[3]) < 0.15  # chance: one over the root of 64, over the root of 20


def test_the_noise_is_the_one_of_metric_privacy() -> None:
    """Its length follows the Gamma law of `width` waits of mean 1 / epsilon, and it leans nowhere."""
    width, epsilon, many = 8, 4.0, 20_000
    made = noise(torch.zeros(many, width), epsilon, chance())
    lengths = made.norm(dim=1)
    assert lengths.mean().item() == pytest.approx(width / epsilon, rel=0.01)
    assert lengths.var().item() == pytest.approx(width / epsilon**2, rel=0.05)
    assert torch.nn.functional.normalize(made, dim=1).mean(0).norm() < 0.02


def test_the_odds_of_neighbours_stay_within_the_budget() -> None:
    """In the direction in which two profiles differ, how often each one's noise falls past a mark, by the budget."""
    epsilon, many, apart = 3.0, 200_000, 0.5
    made = noise(torch.zeros(many, 2), epsilon, chance())[:, 0]
    for mark in (-0.2, 0.0, 0.25, 0.6):
        here, there = (made > mark).double().mean(), (made + apart > mark).double().mean()
        assert there > here  # the mark tells them apart
        assert there / here < math.exp(epsilon * apart) * 1.05


def test_a_profile_is_no_larger_than_it_says(backbone: Backbone) -> None:
    assert profile(backbone, [*CATS, *CODE], tastes=2, width=16).nbytes == 2 * 16 * 4


def test_parts_are_values() -> None:
    assert Folder("a") == Folder("a") != Folder("b")
    assert dataclasses.replace(Profile(), tastes=2).tastes == 2
