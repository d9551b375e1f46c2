"""Bank == PEFT == weights merged by hand, by kind of layer and for whole networks; and the backbone is untouched."""

import copy
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from fedgen import lora
from fedgen.bank import Bank
from fedgen.records import Tree

CLOSE = 1e-5
ROWS = 6
SLOTS = [2, 0, 1, 1, 2, 0]
RANKS = {1: 4, 2: 2}  # of the adapters in slots 1 and 2
PAIRS, WEIGHTS = [[1, 2], [2, 1], [0, 2]], [[0.3, 0.7], [1.5, -0.5], [0.4, 0.6]]


class Int8(nn.Module):
    """A linear layer quantised by hand: there is no weight to look at, it can only be called."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.register_buffer("step", layer.weight.detach().abs().amax(1, keepdim=True) / 127)
        self.register_buffer("packed", (layer.weight.detach() / self.step).round().to(torch.int8))

    def dense(self) -> Tensor:
        """What the whole numbers stand for."""
        return self.packed.float() * self.step

    def forward(self, x: Tensor) -> Tensor:
        """As a linear layer without bias."""
        return F.linear(x, self.dense())


class Net(nn.Module):
    """One layer of each kind, asked for by name."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.bare, self.turned = nn.Linear(6, 10), nn.Linear(6, 10, bias=False), Conv1D(8, 6)
        self.conv = nn.Conv2d(4, 6, (3, 5))
        self.strided = nn.Conv2d(4, 6, 3, stride=2, padding=(1, 2))
        self.dilated = nn.Conv2d(4, 6, 3, padding="same", dilation=2)
        self.grouped = nn.Conv2d(4, 6, 3, groups=2, stride=2, padding=1)

    def forward(self, name: str, x: Tensor) -> Tensor:
        """One layer's output."""
        found: Tensor = self.get_submodule(name)(x)
        return found


DENSE = ["flat", "bare", "turned", "conv", "strided"]
KINDS = [*DENSE, "grouped"]  # its adapter is no weight of its shape, so it cannot be merged
MERGED = [*DENSE, "dilated"]  # PEFT forgets the dilation unless it merges


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(kind: Any) -> nn.Module:
    """A network of this kind, the same every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found: nn.Module = kind()
    return found.eval()


def llama() -> nn.Module:
    config = LlamaConfig(
        vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    config = GPT2Config(vocab_size=61, n_embd=24, n_layer=2, n_head=4, n_positions=32, bos_token_id=0, eos_token_id=1)
    return GPT2LMHeadModel(config)


WHOLE = [(llama, ["q_proj", "v_proj", "down_proj"]), (gpt2, ["c_attn", "mlp.c_proj"])]


def adapters(network: nn.Module, names: Sequence[str]) -> dict[int, Tree]:
    """Two adapters of unequal rank that change something, by slot."""
    found = {}
    for slot, rank in RANKS.items():
        tree = lora.fresh(lora.targets(network, names), rank, drawn(slot))
        found[slot] = {key: value + 0.2 * torch.randn(value.shape, generator=drawn(9)) for key, value in tree.items()}
    return found


def filled(network: nn.Module, names: Sequence[str], trees: Mapping[int, Tree]) -> Bank:
    bank = Bank(network, names, max(RANKS.values()), slots=len(trees))
    for slot, tree in trees.items():
        bank.write(slot, tree)
    return bank


def name_of(slot: int) -> str:
    """A slot as PEFT calls it."""
    return f"slot{slot}" if slot else "__base__"


def by_peft(network: nn.Module, names: Sequence[str], trees: Mapping[int, Tree]) -> Any:
    """PEFT's own model of a copy of the network, with every adapter in it."""
    model: Any = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Conv1D is turned, that grouped convolutions cannot be merged
        for slot, tree in trees.items():
            config = LoraConfig(r=lora.rank(tree), lora_alpha=lora.rank(tree), target_modules=list(names))
            if model is None:
                model = get_peft_model(copy.deepcopy(network), config, adapter_name=name_of(slot))  # type: ignore[arg-type]
            else:
                model.add_adapter(name_of(slot), config)
            assert not set_peft_model_state_dict(model, tree, adapter_name=name_of(slot)).unexpected_keys
    return model.eval()


def product(pair: lora.Pair) -> Tensor:
    """A pair as the weight it stands for, dense."""
    if pair.a.ndim == 4:
        return torch.einsum("or,rikl->oikl", pair.b[:, :, 0, 0], pair.a)
    return pair.b @ pair.a


def merged(network: nn.Module, parts: Sequence[tuple[float, Tree]]) -> nn.Module:
    """A copy with every product added to its weight."""
    changed = copy.deepcopy(network)
    for weight, tree in parts:
        for pair in lora.pairs(tree):
            layer: Any = changed.get_submodule(pair.path)
            dense = weight * product(pair)
            layer.weight.data += dense.T if isinstance(layer, Conv1D) else dense
    return changed


def sample(kind: str) -> Tensor:
    return torch.randn(
        ROWS, *((4, 9, 11) if kind in ("conv", "strided", "dilated", "grouped") else (5, 6)), generator=drawn(3)
    )


@torch.no_grad()
def routed(bank: Bank, inputs: Sequence[Any], slots: Any, weights: Any = None) -> Tensor:
    """The network's output with its rows routed through the bank."""
    with bank.rows(torch.tensor(slots), None if weights is None else torch.tensor(weights)):
        found = bank.network(*inputs)
    return found if isinstance(found, Tensor) else found.logits


def gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_mixed_rows_of_one_layer(kind: str) -> None:
    network, x = made(Net), sample(kind)
    trees = adapters(network, [kind])
    wanted = by_peft(network, [kind], trees)(kind, x, adapter_names=[name_of(slot) for slot in SLOTS])
    bare = network(kind, x)
    found = routed(filled(network, [kind], trees), (kind, x), SLOTS)
    assert gap(found, wanted) < CLOSE
    assert gap(found[:1], bare[:1]) > 0.01
    assert gap(found[:1], found[2:3]) > 0.01
    assert torch.equal(found[1], bare[1])  # slot 0 is the backbone, to the bit


@pytest.mark.parametrize("kind", DENSE)
@torch.no_grad()
def test_mixtures_of_one_layer(kind: str) -> None:
    network, x = made(Net), sample(kind)[: len(PAIRS)]
    trees = adapters(network, [kind])
    model = by_peft(network, [kind], trees)
    for at, (slots, weights) in enumerate(zip(PAIRS[:2], WEIGHTS[:2], strict=True)):
        names = [name_of(slot) for slot in slots]
        model.base_model.add_weighted_adapter(names, weights, f"mix{at}", combination_type="cat")
    by_hand = merged(network, [(WEIGHTS[2][1], trees[PAIRS[2][1]])])(kind, x[2:])  # slot 0 weighs nothing
    wanted = torch.cat([model(kind, x[:2], adapter_names=["mix0", "mix1"]), by_hand])
    found = routed(filled(network, [kind], trees), (kind, x), PAIRS, WEIGHTS)
    assert gap(found, wanted) < CLOSE
    assert gap(found, network(kind, x)) > 0.01


@torch.no_grad()
def test_mixtures_of_a_grouped_convolution() -> None:
    """PEFT's `cat` lays ranks across groups here, so the truth is the sum of its single adapters."""
    network, x = made(Net), sample("grouped")[: len(PAIRS)]
    trees = adapters(network, ["grouped"])
    model = by_peft(network, ["grouped"], trees)
    outputs = {slot: model("grouped", x, adapter_names=[name_of(slot)] * len(x)) for slot in (0, 1, 2)}
    wanted = torch.stack([
        outputs[0][at] + sum(weight * (outputs[slot][at] - outputs[0][at]) for slot, weight in zip(*row, strict=True))
        for at, row in enumerate(zip(PAIRS, WEIGHTS, strict=True))
    ])  # fmt: skip
    found = routed(filled(network, ["grouped"], trees), ("grouped", x), PAIRS, WEIGHTS)
    assert gap(found, wanted) < CLOSE


@pytest.mark.parametrize("kind", MERGED)
@torch.no_grad()
def test_a_layer_merged_by_hand(kind: str) -> None:
    network, x = made(Net), sample(kind)
    trees = adapters(network, [kind])
    wanted = {slot: merged(network, [(1.0, tree)])(kind, x) for slot, tree in trees.items()}
    bank = filled(network, [kind], trees)
    for slot, output in wanted.items():
        assert gap(routed(bank, (kind, x), [slot] * ROWS), output) < CLOSE


@torch.no_grad()
def test_a_layer_that_can_only_be_called() -> None:
    network = made(Net)
    dense, quantised = copy.deepcopy(network), Int8(network.bare)
    network.bare = quantised
    dense.bare.weight.copy_(quantised.dense())
    x, trees = sample("bare"), adapters(network, ["bare"])
    wanted = by_peft(dense, ["bare"], trees)("bare", x, adapter_names=[name_of(slot) for slot in SLOTS])
    before = fingerprint(network)
    with filled(network, ["bare"], trees) as bank:
        assert gap(routed(bank, ("bare", x), SLOTS), wanted) < CLOSE
    assert network.bare is quantised
    assert fingerprint(network) == before


@pytest.mark.parametrize(("kind", "names"), WHOLE)
@torch.no_grad()
def test_whole_networks(kind: Any, names: list[str]) -> None:
    network, ids = made(kind), torch.randint(0, 61, (ROWS, 9), generator=drawn(4))
    trees = adapters(network, names)
    model = by_peft(network, names, trees)
    wanted = model(ids, adapter_names=[name_of(slot) for slot in SLOTS]).logits
    mixtures = [
        merged(network, [(weight, trees[slot]) for slot, weight in zip(*row, strict=True) if slot])
        for row in zip(PAIRS, WEIGHTS, strict=True)
    ]
    mixed = torch.cat([hybrid(ids[at : at + 1]).logits for at, hybrid in enumerate(mixtures)])
    bare = network(ids).logits
    with filled(network, names, trees) as bank:
        found = routed(bank, (ids,), SLOTS)
        assert gap(found, wanted) < CLOSE
        assert torch.equal(found[1], bare[1])
        assert gap(found[0], bare[0]) > 0.01
        assert gap(routed(bank, (ids[: len(PAIRS)],), PAIRS, WEIGHTS), mixed) < CLOSE


def fingerprint(network: nn.Module) -> str:
    """Every name and every byte of a network."""
    content = hashlib.sha256()
    for key, value in network.state_dict().items():
        content.update(key.encode() + value.contiguous().numpy().tobytes())
    return content.hexdigest()


@pytest.mark.parametrize(("kind", "names"), WHOLE)
def test_neither_training_nor_serving_changes_a_byte_of_the_backbone(kind: Any, names: list[str]) -> None:
    network, ids = made(kind), torch.randint(0, 61, (ROWS, 9), generator=drawn(4))
    before, layers = fingerprint(network), dict(network.named_modules())
    trees = adapters(network, names)
    with filled(network, names, trees) as bank:
        lines = bank.lines.clone().requires_grad_()
        optimizer = torch.optim.AdamW([lines], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            with bank.carry(lines):
                network(ids, labels=ids).loss.backward()
            optimizer.step()
        assert gap(lines.detach(), bank.lines) > 0.01
        routed(bank, (ids,), SLOTS)
        assert all(weight.grad is None and not weight.requires_grad for weight in network.parameters())
    after = dict(network.named_modules())
    assert fingerprint(network) == before
    assert list(after) == list(layers)
    assert all(after[path] is layer for path, layer in layers.items())
