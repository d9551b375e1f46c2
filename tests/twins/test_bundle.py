"""A bundle read by PEFT and by diffusers, against the product added to the weights by hand."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from fedgen import lora
from fedgen.records import Tree
from fedgen.store import Card, load_bundle, save_bundle

ROWS = torch.randint(0, 61, (2, 9), generator=torch.Generator().manual_seed(1))


def llama() -> nn.Module:
    config = LlamaConfig(
        vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2() -> nn.Module:
    config = GPT2Config(vocab_size=61, n_embd=24, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=1)
    return GPT2LMHeadModel(config).eval()


def trained(network: nn.Module, names: list[str], rank: int = 4) -> Tree:
    """An adapter that changes something."""
    draw = torch.Generator().manual_seed(2)
    tree = lora.fresh(lora.targets(network, names), rank, draw)
    return {key: value + 0.2 * torch.randn(value.shape, generator=draw) for key, value in tree.items()}


def by_hand(network: nn.Module, tree: Tree) -> nn.Module:
    """A copy of the network with every product added to its weight."""
    changed = copy.deepcopy(network)
    for pair in lora.pairs(tree):
        layer = changed.get_submodule(pair.path)
        product = pair.b.flatten(1) @ pair.a.flatten(1)
        weight: Any = layer.weight
        weight.data += product.T if isinstance(layer, Conv1D) else product.view(weight.shape)
    return changed


@torch.no_grad()
def logits(network: nn.Module) -> Tensor:
    found: Tensor = network(ROWS).logits
    return found


def quiet_peft(network: nn.Module, config: LoraConfig) -> nn.Module:
    """PEFT's own adapter on a network; its warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made: nn.Module = get_peft_model(copy.deepcopy(network), config)  # type: ignore[arg-type]
    return made.eval()


@pytest.mark.parametrize(
    ("make", "names", "turned"),
    [
        (llama, ["q_proj", "v_proj", "down_proj"], False),
        (gpt2, ["c_attn", "mlp.c_proj"], True),
    ],
)
def test_peft_reads_a_bundle_and_says_what_the_product_by_hand_says(
    tmp_path: Path, make: Any, names: list[str], turned: bool
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make()
    tree = trained(network, names)
    save_bundle(tmp_path / "a", tree, Card(kind="text", backbone="tiny", targets=tuple(names), fan_in_fan_out=turned))
    wanted = logits(by_hand(network, tree))
    assert (wanted - logits(network)).abs().max() > 0.01
    read = PeftModel.from_pretrained(copy.deepcopy(network), str(tmp_path / "a"))  # warnings are errors
    assert (logits(read) - wanted).abs().max() < 1e-5
    assert set(read.state_dict()) >= {key.replace(".weight", ".default.weight") for key in tree}


@pytest.mark.parametrize("made_rs", [False, True])
@pytest.mark.parametrize("named", [{}, {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"1.self_attn.q_proj": 5}}])
def test_an_adapter_that_peft_made_is_read_with_its_scale(tmp_path: Path, made_rs: bool, named: dict[str, Any]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = llama()
        config = LoraConfig(
            task_type="CAUSAL_LM", r=4, lora_alpha=11, use_rslora=made_rs, target_modules=["q_proj", "v_proj"],
            init_lora_weights=False, base_model_name_or_path="tiny", **named,
        )  # fmt: skip
        model = quiet_peft(network, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(tmp_path))  # type: ignore[operator]
    tree, card = load_bundle(tmp_path, backbone_hash="any")
    assert (card.kind, card.rank, card.targets, card.client) == ("text", 4, ("q_proj", "v_proj"), "")
    assert lora.rank(tree) == 4
    assert (logits(by_hand(network, tree)) - logits(model)).abs().max() < 1e-5
    ours = save_bundle(tmp_path / "ours", tree, card)
    assert ours.hash == card.hash
    read = PeftModel.from_pretrained(copy.deepcopy(network), str(tmp_path / "ours"))
    assert (logits(read) - logits(model)).abs().max() < 1e-5


def test_peft_draws_factors_of_the_same_shapes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flat, self.turned = nn.Linear(6, 10), Conv1D(8, 6)
            self.conv, self.grouped = nn.Conv2d(4, 6, (3, 5)), nn.Conv2d(4, 6, 3, groups=2)

    names = ["flat", "turned", "conv", "grouped"]
    model = quiet_peft(Net(), LoraConfig(r=4, target_modules=names))
    theirs = {key.replace(".default", ""): value.shape for key, value in model.state_dict().items() if "lora_" in key}
    ours = lora.fresh(lora.targets(Net(), names), 4, torch.Generator().manual_seed(0))
    assert {key: value.shape for key, value in ours.items()} == theirs


def test_diffusers_reads_an_image_bundle(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 16), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=12, attention_head_dim=4, norm_num_groups=4,
        ).eval()  # fmt: skip
    names = ["to_q", "to_out.0", "conv1"]
    tree = trained(unet, names)
    card = Card(kind="image", backbone="tiny", targets=tuple(names))
    save_bundle(tmp_path, tree, card, component="unet")
    draw = torch.Generator().manual_seed(3)
    noisy, prompt = torch.randn(2, 3, 8, 8, generator=draw), torch.randn(2, 5, 12, generator=draw)
    with torch.no_grad():
        bare = unet(noisy, 7, prompt).sample
        wanted = by_hand(unet, tree)(noisy, 7, prompt).sample
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            unet.load_lora_adapter(str(tmp_path), prefix="unet", weight_name="pytorch_lora_weights.safetensors")
        found = unet(noisy, 7, prompt).sample
    assert (wanted - bare).abs().max() > 0.01
    assert (found - wanted).abs().max() < 1e-5
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] is None
