"""The CLIP score: what transformers itself says, alone as in a batch, and what is said of a folder that is no CLIP."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast

from fedgen.errors import DataError
from fedgen.quality import Clip
from fedgen.quality.features import CLIP_MEAN, CLIP_STD

BEGIN, END, SIZE = "<begin>", "<end>", 24
PROMPTS = ["a red square", "", "the letter Q in old type", "naïve café, and more words than the network can read " * 3]
COLOURS = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[BEGIN, END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(PROMPTS, trainer)
    marks = [(BEGIN, 0), (END, 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A {END}", special_tokens=marks)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=END)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ordinary Hugging Face folder: a CLIP of one layer a side, with colours of its own."""
    image = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    made, tokenizer = tmp_path_factory.mktemp("clip"), tiny_tokenizer()
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = small | {
        "vocab_size": len(tokenizer), "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    vision = small | {"image_size": SIZE, "patch_size": 8}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=4))
    network.save_pretrained(made)
    tokenizer.save_pretrained(made)
    square = {"height": SIZE, "width": SIZE}
    image.CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=square, **COLOURS).save_pretrained(made)
    return made


def pictures(count: int, *shape: int) -> Tensor:
    """Pictures of a few broad colours, as bytes."""
    broad = torch.rand(count, shape[0], 4, 4, generator=torch.Generator().manual_seed(0))
    return (255 * torch.nn.functional.interpolate(broad, shape[1:])).round().to(torch.uint8)


def slow(folder: Path, given: Tensor, prompts: list[str]) -> Tensor:
    """Picture by picture, as transformers prepares and joins them."""
    image = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    processor = image.CLIPImageProcessorPil.from_pretrained(folder)
    tokenizer, network = PreTrainedTokenizerFast.from_pretrained(folder), CLIPModel.from_pretrained(folder).eval()
    found = []
    for picture, prompt in zip(given, prompts, strict=True):
        seen = processor(picture.expand(3, -1, -1).permute(1, 2, 0).numpy(), return_tensors="pt")["pixel_values"]
        read = tokenizer(prompt, truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            out = network(pixel_values=seen, input_ids=read["input_ids"], attention_mask=read["attention_mask"])
        found.append(100 * torch.cosine_similarity(out.image_embeds, out.text_embeds).clamp(min=0))
    return torch.cat(found)


@pytest.mark.parametrize("shape", [(3, SIZE, SIZE), (1, 28, 28), (3, 40, 57), (3, 200, 120)])
def test_score_is_what_transformers_says(folder: Path, shape: tuple[int, ...]) -> None:
    given, prompts = pictures(len(PROMPTS) * 3, *shape), PROMPTS * 3
    found = Clip(str(folder)).score(given, prompts)
    assert found.shape == (len(prompts),)
    assert found.max() > 1
    assert found.min() >= 0
    torch.testing.assert_close(
        found, slow(folder, given, prompts), rtol=0, atol=0.2
    )  # a byte may round to its neighbour


def test_a_batch_scores_as_each_alone(folder: Path) -> None:
    clip, given, prompts = Clip(str(folder)), pictures(36, 3, SIZE, SIZE), PROMPTS * 9
    alone = torch.cat([clip.score(one[None], [prompt]) for one, prompt in zip(given, prompts, strict=True)])
    torch.testing.assert_close(clip.score(given, prompts), alone, rtol=0, atol=1e-3)


def test_scores_end_at_zero_and_tell_prompts_apart(folder: Path) -> None:
    given = pictures(1, 3, SIZE, SIZE).repeat(40, 1, 1, 1)
    found = Clip(str(folder)).score(given, [f"{at} {'xyz'[at % 3] * at}" for at in range(40)])
    assert len(set(found.tolist())) > 10
    assert 0 == found.min() < found.max() <= 100


def test_colours_are_clips_own_unless_the_folder_says(folder: Path, tmp_path: Path) -> None:
    given, bare = pictures(8, 3, SIZE, SIZE), shutil.copytree(folder, tmp_path / "bare")
    (bare / "preprocessor_config.json").unlink()
    said, own = Clip(str(folder)).score(given, PROMPTS * 2), Clip(str(bare)).score(given, PROMPTS * 2)
    assert (said - own).abs().max() > 0.1
    (bare / "preprocessor_config.json").write_text(
        f'{{"image_mean": {list(CLIP_MEAN)}, "image_std": {list(CLIP_STD)}}}'
    )
    assert torch.equal(Clip(str(bare)).score(given, PROMPTS * 2), own)


def test_a_prompt_a_picture_is_wanted(folder: Path) -> None:
    for count, prompts in [(2, ["one"]), (0, []), (1, ["one", "two"])]:
        with pytest.raises(
            DataError, match=f"CLIP: wanted a prompt a picture, came {count} pictures and {len(prompts)}"
        ):
            Clip(str(folder)).score(pictures(2, 3, SIZE, SIZE)[:count], prompts)
    with pytest.raises(DataError, match="wanted uint8"):
        Clip(str(folder)).score(torch.rand(1, 3, SIZE, SIZE), ["one"])


def test_a_folder_of_another_kind_is_no_clip(tiny_backbone: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="wanted a CLIP, came a model of kind 'llama'"):
        Clip(str(tiny_backbone)).score(pictures(1, 3, SIZE, SIZE), ["one"])
    with pytest.raises(DataError, match=r"wanted a folder with a CLIP.*No such file"):
        Clip(str(tmp_path / "nothing")).score(pictures(1, 3, SIZE, SIZE), ["one"])


def test_a_clip_that_lacks_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    part = shutil.copytree(folder, tmp_path / "part")
    weights = load_file(part / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, part / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"came one that lacks 1 weights, first 'visual_projection\.weight'"):
        Clip(str(part)).score(pictures(1, 3, SIZE, SIZE), ["one"])


def test_pickled_weights_are_never_read(folder: Path, tmp_path: Path) -> None:
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    with pytest.raises(DataError, match="wanted a folder with a CLIP, its weights as safetensors"):
        Clip(str(pickled)).score(pictures(1, 3, SIZE, SIZE), ["one"])
