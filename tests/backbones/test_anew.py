"""Activations computed anew: how little is kept, that the network is left as it was, and what cannot do it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import OPTConfig, OPTForCausalLM

from fedgen import lora
from fedgen.backbones import Backbone, DiffusionBackbone, Language, LanguageBackbone
from fedgen.backbones.anew import again, blocks_anew
from fedgen.bank import Bank
from fedgen.errors import BackboneError
from fedgen.records import Document, Rows

NETWORKS = ["ddpm", "stable", "dit", "pixart"]


@pytest.fixture(scope="module")
def backbone(tiny_backbone: Path) -> LanguageBackbone:
    return Language(str(tiny_backbone), length=32, device="cpu").load()


@pytest.fixture(scope="module")
def rows(backbone: LanguageBackbone) -> Rows:
    return backbone.encode([Document("", "words and words and more of them. " * 12)])


@contextmanager
def counted(found: list[int]) -> Iterator[None]:
    """Write down, at the end, how many bytes passes keep meanwhile for a gradient."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield
    found.append(sum(tensor.untyped_storage().nbytes() for tensor in kept.values()))


def kept(backbone: Backbone, rows: Rows, anew: AbstractContextManager[object], share: float = 1.0) -> int:
    """Bytes that a pass under an adapter on the last layers keeps."""
    found: list[int] = []
    names = lora.last(lora.targets(backbone.network, backbone.targets), share)
    with Bank(backbone.network, names, 2) as bank:
        leaf = bank.layout.vector(bank.fresh(torch.Generator().manual_seed(0)))[None].requires_grad_()
        with bank.carry(leaf), anew, counted(found):
            backbone.losses(rows)
    return found[0]


def noised(denoiser: DiffusionBackbone) -> Rows:
    draw = torch.Generator().manual_seed(0)
    picture = torch.randint(0, 256, denoiser.picture, generator=draw, dtype=torch.uint8)
    return denoiser.draw(denoiser.encode([Document("", "", "a word", "1", picture=picture)] * 3), draw)


def test_text_keeps_less(backbone: LanguageBackbone, rows: Rows) -> None:
    whole = kept(backbone, rows, nullcontext())
    assert kept(backbone, rows, backbone.anew()) < 0.5 * whole
    assert kept(backbone, rows, nullcontext(), 0.5) < 0.75 * whole
    assert backbone.row_bytes(anew=True) < backbone.row_bytes()


@pytest.mark.parametrize("kind", NETWORKS)
def test_pictures_keep_less(kind: str, denoisers: dict[str, DiffusionBackbone]) -> None:
    denoiser = denoisers[kind]
    rows, most = noised(denoiser), denoiser.row_bytes()
    whole, part = kept(denoiser, rows, nullcontext()), kept(denoiser, rows, denoiser.anew())
    assert part < 0.7 * whole
    assert 0.9 * part / 3 < denoiser.row_bytes(anew=True) < 0.9 * most


def test_the_network_is_left_as_it_was(backbone: LanguageBackbone, rows: Rows) -> None:
    before = {name: set(vars(layer)) for name, layer in backbone.network.named_modules()}
    with suppress(KeyError), backbone.anew():
        assert {name: set(vars(layer)) for name, layer in backbone.network.named_modules()} != before
        raise KeyError
    assert {name: set(vars(layer)) for name, layer in backbone.network.named_modules()} == before
    assert not backbone.network.training


def test_a_denoiser_is_left_as_it_was(denoisers: dict[str, DiffusionBackbone]) -> None:
    network: nn.Module = denoisers["stable"].network
    with suppress(KeyError), denoisers["stable"].anew():
        assert network.is_gradient_checkpointing
        raise KeyError
    assert not network.is_gradient_checkpointing


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_nothing_is_dropped_out(rows: Rows) -> None:
    """OPT's layers drop out where they are in training, which transformers' own switch asks for."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = OPTConfig(
            vocab_size=300, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, dropout=0.5,
            word_embed_proj_dim=16, max_position_embeddings=64,
        )  # fmt: skip
        network = OPTForCausalLM(config).eval().requires_grad_(False)
    found = []
    for way in (nullcontext(), blocks_anew(network)):
        with way:
            states = network.get_input_embeddings()(rows["ids"][:1].long()).requires_grad_()
            out = network(inputs_embeds=states, use_cache=False).logits
            found.append((out.detach(), *torch.autograd.grad(out.square().sum(), states)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_blocks_are_really_run_twice(backbone: LanguageBackbone, rows: Rows) -> None:
    runs: list[int] = []

    def counting(block: Callable[..., Tensor], *given: Tensor, **named: object) -> Tensor:
        def run(*inner: Tensor) -> Tensor:
            runs.append(1)
            return block(*inner, **named)

        return again(run, *given)

    with Bank(backbone.network, backbone.targets, 2) as bank:
        leaf = bank.layout.vector(bank.fresh(torch.Generator().manual_seed(0)))[None].requires_grad_()
        with bank.carry(leaf), blocks_anew(backbone.network, counting):
            sums, _ = backbone.losses(rows)
            assert len(runs) == 2
            torch.autograd.grad(sums.sum(), leaf)
    assert len(runs) == 4


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(
        BackboneError, match=r"training\.checkpoint: Linear has no layers that can be computed anew; set"
    ):
        blocks_anew(nn.Linear(2, 2)).__enter__()
