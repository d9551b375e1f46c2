"""What a row says while it is written: text that is sure, up to the first stop word."""

from collections.abc import Sequence

from fedgen.backbones.spelling import Spelling
from fedgen.serve.engine.wishes import Piece, Token


class Voice:
    """Holds back what may be the beginning of a stop word; `over` once there was a whole one, which is never said."""

    def __init__(self, spelling: Spelling, stop: Sequence[str] = ()) -> None:
        self.spelling, self.over = spelling, False
        self._stop = stop
        self._held = ""
        self._said = 0  # characters, before what is held
        self._tokens: list[tuple[int, Token]] = []  # where each begins, until the text behind it can be said

    def add(self, token: int, told: Token | None = None) -> Piece | None:
        """One more token: what can be said now, if anything."""
        if told:
            self._tokens.append((self._said + len(self._held), told))
        return self._say(self.spelling.add(token), last=False)

    def rest(self) -> Piece | None:
        """All that is left to be said at the end."""
        return self._say(self.spelling.rest(), last=True)

    def _say(self, new: str, *, last: bool) -> Piece | None:
        if not new and not last:
            return None
        self._held += new
        found = [at for word in self._stop if (at := self._held.find(word)) >= 0]
        self.over = self.over or bool(found)
        sure = min(found) if found else len(self._held) - (0 if last else self._doubtful())
        text, self._held = self._held[:sure], "" if self.over else self._held[sure:]
        end = self._said = self._said + len(text)
        ready = [told for at, told in self._tokens if at < end or (last and not self.over)]
        self._tokens = self._tokens[len(ready) :]
        return Piece(text, tuple(ready)) if text or ready else None

    def _doubtful(self) -> int:
        """How long the end is that may begin a stop word."""
        longest = min(len(self._held), max(map(len, self._stop), default=1) - 1)
        ends = (count for count in range(longest, 0, -1) if any(w.startswith(self._held[-count:]) for w in self._stop))
        return next(ends, 0)
