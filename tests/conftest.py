"""One tiny federation for the whole suite: a backbone, six clients' text, a plan, and the run that came of it.

And for pictures a tiny diffusers folder of every kind.
"""

import copy
import json
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import fedgen
from fedgen import Bank, Run
from fedgen.backbones import Diffusion, DiffusionBackbone, LanguageBackbone

torch.set_num_threads(1)  # tensors this small gain nothing from a second, and on a busy machine wait for it

END = "<end>"
SENTENCES = (
    "the quick brown fox jumps over the lazy dog.",
    "a client holds its own text, and the server never reads it.",
    "every round some clients train, and their adapters are averaged.",
    "naïve café, 25 °C: bytes that take more than one.",
)
PLACES = {
    "ann": "harbour",
    "bob": "mountain",
    "cleo": "kitchen",
    "dan": "orchestra",
    "eve": "station",
    "finn": "garden",
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE of 300 entries: every text has tokens, and all of them are read back."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=END)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary Hugging Face folder: a Llama of two layers and its tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("backbone") / "tiny", tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=128, initializer_range=0.1, tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = LlamaForCausalLM(config)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_story(name: str, length: int) -> str:
    """Text in one client's own words, the same every time."""
    draw = random.Random(name)
    place = PLACES[name]
    words = [place, *("".join(draw.choices(place + "aeiou", k=draw.randint(2, 8))) for _ in range(60))]
    text = ""
    while len(text) < length:
        text += " ".join(draw.choices(words, k=draw.randint(4, 12))).capitalize() + ".\n"
    return text


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file for each of six clients, of 6 to 12 kB, each in its own words."""
    folder = tmp_path_factory.mktemp("text")
    for at, name in enumerate(PLACES):
        (folder / f"{name}.txt").write_text(tiny_story(name, 6000 + 1200 * at), "utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_plan(tiny_backbone: Path, tiny_text: Path) -> Iterator[dict[str, Any]]:
    """A plan of two short rounds. It is everyone's: lay changes over a copy of it."""
    plan: dict[str, Any] = {
        "name": "tiny",
        "rounds": 2,
        "backbone": {"source": str(tiny_backbone), "length": 32, "device": "cpu"},
        "data": {"kind": "folder", "path": str(tiny_text)},
        "cohort": {"count": 4},
        "training": {"steps": 3, "batch": 2},
        "personal": {"steps": 3},
        "evaluate": {"rows": 4},
    }
    made = copy.deepcopy(plan)
    yield plan
    assert plan == made, "a test changed the plan that all share"


@pytest.fixture(scope="session")
def tiny_run(tiny_plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The finished run of that plan."""
    return fedgen.run(tiny_plan, tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture
def bank(backbone: LanguageBackbone) -> Iterator[Bank]:
    """An empty bank of rank 2 on the module's own `backbone`."""
    with Bank(backbone.network, backbone.targets, 2) as bank:
        yield bank


# ---- pictures


TOKENS, WIDTH = 16, 32


def prompt_tokenizer() -> PreTrainedTokenizerFast:
    """The tiny tokenizer as a text encoder wants it: a mark at both ends, and so many tokens at most."""
    tokenizer = tiny_tokenizer().backend_tokenizer
    marks = [(END, tokenizer.token_to_id(END))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A {END}", special_tokens=marks)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END, model_max_length=TOKENS
    )


def text_encoder() -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=300, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=TOKENS, bos_token_id=0, eos_token_id=0, pad_token_id=0,
        )
    )  # fmt: skip


def pipeline_parts() -> dict[str, tuple[str, dict[str, Any]]]:
    """By kind, the pipeline's class and the parts it is made of."""
    diffusers = pytest.importorskip("diffusers")
    levels = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    unet = {"sample_size": 8, "attention_head_dim": 4} | levels
    bare = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    crossed = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    flat = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "patch_size": 2}
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4, sample_size=16,
    )  # fmt: skip
    prompts = {"tokenizer": prompt_tokenizer(), "text_encoder": text_encoder()}
    painter = diffusers.PixArtTransformer2DModel(
        in_channels=1, out_channels=1, cross_attention_dim=16, caption_channels=WIDTH, **flat
    )
    pixart = {"transformer": painter, "vae": None} | prompts
    return {
        "ddpm": ("DDPMPipeline", {
            "unet": diffusers.UNet2DModel(in_channels=3, out_channels=3, **unet, **bare),
            "scheduler": diffusers.DDPMScheduler(),
        }),
        "classes": ("DDPMPipeline", {
            "unet": diffusers.UNet2DModel(in_channels=1, out_channels=1, num_class_embeds=10, **unet, **bare),
            "scheduler": diffusers.DDIMScheduler(),
        }),
        "stable": ("StableDiffusionPipeline", {
            "unet": diffusers.UNet2DConditionModel(cross_attention_dim=WIDTH, **unet, **crossed), "vae": vae,
            "scheduler": diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
            "safety_checker": None, "feature_extractor": None, **prompts,
        }),
        "dit": ("DiTPipeline", {  # which takes for granted that there are 1000 classes
            "transformer": diffusers.DiTTransformer2DModel(in_channels=4, out_channels=8, **flat),
            "vae": vae, "scheduler": diffusers.DDIMScheduler(prediction_type="v_prediction"),
        }),
        "pixart": ("PixArtAlphaPipeline", pixart | {
            "scheduler": diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction"),
        }),
        "flow": ("PixArtAlphaPipeline", pixart | {"scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=2.0)}),
    }  # fmt: skip


def save_pipeline(folder: Path, name: str, parts: Mapping[str, Any]) -> Path:
    """A diffusers folder of these parts; that of a `DDPMPipeline` has one level, as early ones have."""
    index: dict[str, Any] = {"_class_name": name}
    for part, made in parts.items():
        library = "transformers" if part in ("tokenizer", "text_encoder") else "diffusers"
        kind = "PreTrainedTokenizerFast" if part == "tokenizer" else type(made).__name__
        index[part] = [library, kind] if made is not None else [None, None]
        if made is not None:
            made.save_pretrained(folder if name == "DDPMPipeline" else folder / part)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny diffusers folder of every kind; they are everyone's: spoil copies."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = pipeline_parts()
    return {kind: save_pipeline(tmp_path_factory.mktemp(kind), *made) for kind, made in parts.items()}


@pytest.fixture(scope="session")
def denoisers(pipelines: dict[str, Path]) -> dict[str, DiffusionBackbone]:
    """Each of them loaded."""
    return {kind: Diffusion(str(folder), device="cpu").load() for kind, folder in pipelines.items()}


@pytest.fixture(scope="session")
def digits_plan(pipelines: dict[str, Path]) -> Callable[[str], dict[str, Any]]:
    """A plan of one short round over scanned digits, for a kind of backbone."""

    def plan(kind: str) -> dict[str, Any]:
        return {
            "rounds": 1,
            "backbone": {"kind": "diffusion", "source": str(pipelines[kind]), "device": "cpu"},
            "data": {"kind": "digits"},
            "partition": {"kind": "even", "clients": 60},
            "cohort": {"count": 2},
            "training": {"steps": 2, "batch": 2, "lr": 0.1},
            "personal": {"kind": "none"},
            "evaluate": {"every": 0, "rows": 1},
        }

    return plan
