"""Tokens as text while they come: each is read once, and half a character waits for its other half."""

from collections.abc import Sequence
from typing import Any

LOST = "\ufffd"  # how a tokenizer spells what is no whole character
NEAR, FAR = 4, 16  # tokens that are read along with a new one, so that it is spelled as in its place


class Spelling:
    """One text's tokens, spelled one after the other behind those `before` them."""

    def __init__(self, tokenizer: Any, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = list(before[-NEAR:])
        self._text = self._shown = self._read(self._ids)

    def add(self, token: int) -> str:
        """What can be shown of the text now and could not before."""
        self._ids.append(token)
        self._text = self._read(self._ids)
        if self._text.endswith(LOST):
            return ""
        new = self._text[len(self._shown) :]
        self._shown = self._text
        if len(self._ids) > FAR:
            self._ids = self._ids[-NEAR:]
            self._text = self._shown = self._read(self._ids)
        return new

    def rest(self) -> str:
        """What is left at the end, without half a character."""
        return self._text[len(self._shown) :].rstrip(LOST)

    def alone(self, token: int) -> str:
        """One token as it would be spelled next."""
        near = self._ids[-1:]
        return self._read([*near, token])[len(self._read(near)) :]

    def _read(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text
