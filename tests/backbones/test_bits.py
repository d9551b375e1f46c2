"""Backbones in 8 and 4 bits: trained through the bank as any other, where the library for it is there."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import pytest
import torch

from fedgen import seeds
from fedgen.backbones import Language
from fedgen.bank import Bank
from fedgen.client import Job, Start, Training, train
from fedgen.errors import BackboneError
from fedgen.evaluate import score
from fedgen.records import Document


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
def test_a_quantised_backbone_trains_through_the_bank(bits: Literal[4, 8]) -> None:
    pytest.importorskip("bitsandbytes")
    backbone = Language(length=16, device="cpu", bits=bits).load()
    rows = backbone.encode([Document("ann", "the quick brown fox jumps over the lazy dog. " * 8)])
    with torch.no_grad():  # as a score does, which must not be the last thing that the model can
        backbone.losses(rows)
    with Bank(backbone.network, ["down_proj"], 2) as bank:
        job = Job(
            "ann", Start(bank.fresh(torch.Generator().manual_seed(0))), rows, partial(seeds.generator, 0, 0, "ann")
        )
        (done,) = train(Training(steps=12, lr=3e-2), backbone, bank, [job])
        line = bank.layout.vector(done.adapter)
        before, after = score(backbone, bank, [(torch.zeros_like(line), rows), (line, rows)])
    assert after.loss < 0.98 * before.loss


def test_bits_without_the_library_say_what_to_install(tiny_backbone: Path) -> None:
    if find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed here")
    with pytest.raises(BackboneError, match=r"bits = 4 wants bitsandbytes: pip install fedgen-edge\[bits\]"):
        Language(str(tiny_backbone), bits=4, device="cpu").load()
