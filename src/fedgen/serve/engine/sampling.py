"""How likely the tokens were that were written, and which others might have stood there."""

from collections.abc import Sequence

from torch import Tensor

from fedgen.backbones.spelling import Spelling
from fedgen.serve.engine.wishes import Token


def likelihoods(
    logits: Tensor, tokens: Sequence[int], wished: Sequence[int], spellings: Sequence[Spelling]
) -> list[Token]:
    """Each row's token with its log-probability, before temperature, and its `wished` likeliest ones."""
    shares = logits.log_softmax(-1)
    best, which = shares.topk(min(max(wished), shares.shape[1]), -1)
    rows = zip(tokens, wished, spellings, shares, best.tolist(), which.tolist(), strict=True)
    return [
        Token(spelling.alone(token), float(share[token]), tuple(
            (spelling.alone(other), value) for other, value in zip(ids[:count], values[:count], strict=True)
        ))
        for token, count, spelling, share, values, ids in rows
    ]  # fmt: skip
