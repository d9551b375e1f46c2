"""How likely a token was, by hand, and the likeliest in its place."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from fedgen.backbones.spelling import Spelling
from fedgen.serve.engine.sampling import likelihoods


def test_log_probabilities_by_hand(tiny_backbone: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_backbone)
    logits = torch.randn(3, len(tokenizer), generator=torch.Generator().manual_seed(0))
    spellings = [Spelling(tokenizer, [0]) for _ in logits]
    told = likelihoods(logits, [70, 71, 72], [0, 2, 5], spellings)
    wanted = logits.log_softmax(-1)
    assert [one.logprob for one in told] == pytest.approx([float(wanted[at, 70 + at]) for at in range(3)])
    assert [one.text for one in told] == [tokenizer.decode([token]) for token in (70, 71, 72)]
    assert [len(one.likely) for one in told] == [0, 2, 5]
    best = wanted[2].sort(descending=True)
    assert [value for _, value in told[2].likely] == pytest.approx(best.values[:5].tolist())
    assert [text for text, _ in told[2].likely] == [tokenizer.decode([token]) for token in best.indices[:5].tolist()]


def test_more_likely_tokens_than_there_are(tiny_backbone: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_backbone)
    (told,) = likelihoods(torch.zeros(1, 7), [3], [20], [Spelling(tokenizer, [0])])
    assert len(told.likely) == 7
