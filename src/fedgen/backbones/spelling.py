"""Tokens as text while they come: each is read once, and half a character waits for its other half."""

from collections.abc import Sequence
from typing import Any

LOST = "\ufffd"  # how a tokenizer spells what is no whole character
LETTERS = 64  # characters of one token at most: what is longer for its tokens need not be read to be refused
WHOLE = 4  # tokens of one character at most, a byte each
NEAR, FAR = 4, 16  # tokens that are read along with a new one, so that it is spelled as in its place


class Spelling:
    """One text's tokens, spelled one after the other behind those `before` them."""

    def __init__(self, tokenizer: Any, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = self._near(before)
        self._text = self._shown = self._read(self._ids)
        self._waits = 0  # tokens, for the other half of a character

    def add(self, token: int) -> str:
        """What can be shown of the text now and could not before."""
        self._ids.append(token)
        self._text = self._read(self._ids)
        self._waits = self._waits + 1 if self._text.endswith(LOST) else 0
        if 0 < self._waits < WHOLE:
            return ""
        self._waits = 0
        sure = self._text.removesuffix(LOST)  # only the last of those that have waited long may still be half of one
        new, self._shown = sure[len(self._shown) :], sure
        if len(self._ids) > FAR:
            self._ids = self._near(self._ids)
            self._text = self._read(self._ids)
            self._shown = self._text.removesuffix(LOST)
        return new

    def rest(self) -> str:
        """What is left at the end, without half a character."""
        return self._text[len(self._shown) :].rstrip(LOST)

    def alone(self, token: int) -> str:
        """One token as it would be spelled next."""
        near = self._ids[-1:]
        return self._read([*near, token])[len(self._read(near)) :]

    def _near(self, ids: Sequence[int]) -> list[int]:
        """The last few, from where a character begins: some tokenizers spell no byte behind half of one."""
        tails = [list(ids[-count:]) for count in range(NEAR, NEAR + WHOLE)]
        return next((tail for tail in tails if not self._read(tail).startswith(LOST)), tails[0])

    def _read(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        return text
