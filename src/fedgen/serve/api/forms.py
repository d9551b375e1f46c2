"""The two spellings of a written text: as a completion, and as a reply in a chat."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

from fedgen.serve.api.answers import (
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    Choice,
    Completion,
    Content,
    Likely,
    Reply,
    TokenLogprobs,
)
from fedgen.serve.engine.wishes import Ended, Piece, Token

LEAST = -9999.0  # what JSON can say of a probability of zero
Reason = Literal["stop", "length"]


@dataclass
class Written:
    """What was heard of one row: all of it, or what is new."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    end: Ended | None = None

    def add(self, event: Piece | Ended) -> None:
        """Take in what was told."""
        if isinstance(event, Ended):
            self.end = event
        else:
            self.text += event.text
            self.tokens += event.tokens

    @property
    def reason(self) -> Reason:
        """Why it ended."""
        return "stop" if self.end is not None and self.end.reason == "stop" else "length"


@dataclass(frozen=True)
class Form:
    """One spelling: what its ids begin with, what a part of a stream is called, and how answers and parts are made."""

    prefix: str
    part: str
    whole: type[Completion] | type[ChatCompletion]
    choice: Callable[[int, Written, bool], Any]
    change: Callable[[Written, int, bool, bool], dict[str, Any]]  # with characters before it, first one, tokens told


# ---- completions


def _logprobs(tokens: Sequence[Token], begin: int) -> TokenLogprobs:
    return TokenLogprobs(
        tokens=[token.text for token in tokens],
        token_logprobs=[_finite(token.logprob) for token in tokens],
        top_logprobs=[{text: _finite(value) for text, value in token.likely} for token in tokens],
        text_offset=list(accumulate((len(token.text) for token in tokens), initial=begin))[:-1],
    )


def _choice(at: int, written: Written, told: bool) -> Choice:
    logprobs = _logprobs(written.tokens, 0) if told else None
    return Choice(index=at, text=written.text, logprobs=logprobs, finish_reason=written.reason)


def _more(written: Written, begin: int, first: bool, told: bool) -> dict[str, Any]:
    return {"text": written.text, "logprobs": _logprobs(written.tokens, begin) if told else None}


# ---- chats


def _content(tokens: Sequence[Token]) -> ChatLogprobs:
    return ChatLogprobs(content=[_said(token) for token in tokens])


def _said(token: Token) -> Content:
    likely = [Likely(token=text, logprob=_finite(value), bytes=_bytes(text)) for text, value in token.likely]
    return Content(token=token.text, logprob=_finite(token.logprob), bytes=_bytes(token.text), top_logprobs=likely)


def _chat_choice(at: int, written: Written, told: bool) -> ChatChoice:
    logprobs = _content(written.tokens) if told else None
    return ChatChoice(index=at, message=Reply(content=written.text), logprobs=logprobs, finish_reason=written.reason)


def _more_chat(written: Written, begin: int, first: bool, told: bool) -> dict[str, Any]:
    delta = ({"role": "assistant"} if first else {}) | ({"content": written.text} if written.text or first else {})
    return {"delta": delta, "logprobs": _content(written.tokens) if told and written.tokens else None}


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)


def _bytes(text: str) -> list[int] | None:
    """A token's bytes; those of half a character are not known here."""
    return None if "\ufffd" in text else list(text.encode("utf-8", "replace"))


PLAIN = Form("cmpl-", "text_completion", Completion, _choice, _more)
CHAT = Form("chatcmpl-", "chat.completion.chunk", ChatCompletion, _chat_choice, _more_chat)
