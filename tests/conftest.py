"""One tiny federation for the whole suite: a backbone, six clients' text, a plan, and the run that came of it."""

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import fedgen
from fedgen import Bank, Run
from fedgen.backbones import LanguageBackbone

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
