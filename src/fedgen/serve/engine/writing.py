"""The batch of texts: rows join and leave between two tokens, and each writes under its own adapters.

A step is at most one pass over prompts, of no more than a chunk while others write, and one pass over the newest token
of every row that writes. These rows are the slab's first, so what they have read is a view and never copied.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fedgen import seeds
from fedgen.backbones import LanguageBackbone
from fedgen.backbones.sampling import Taste, choose
from fedgen.backbones.spelling import LETTERS, Spelling
from fedgen.errors import BusyError, ServeError
from fedgen.serve.engine.prefixes import Prefixes
from fedgen.serve.engine.reader import Reader
from fedgen.serve.engine.sampling import likelihoods
from fedgen.serve.engine.under import Under
from fedgen.serve.engine.voice import Voice
from fedgen.serve.engine.wishes import Broken, Draw, Job, Token, Write
from fedgen.serve.pool import Mixture, Slots

SOON = 1.0  # seconds after which a row may be free


@dataclass(eq=False)
class Row:
    """A job at work: its prompt, its place in the slab, how many tokens lie there, and the newest, which does not."""

    job: Job
    wish: Write
    given: Tensor
    taste: Taste
    voice: Voice
    place: int
    ids: list[int] = field(default_factory=list)  # none of a sealed prompt
    read: int = 0
    cached: int = 0
    made: int = 0
    newest: int = 0

    @property
    def mixture(self) -> Mixture:
        """What it is written under."""
        return self.job.under[0][1]


class Writing:
    """Texts of one backbone, any number of adapters and at most so many rows at once."""

    def __init__(
        self, backbone: LanguageBackbone, slots: Slots, *, rows: int = 16, length: int = 0, chunk: int = 64,
        prefix_bytes: int = 64 << 20,
    ) -> None:  # fmt: skip
        self.backbone, self.slots, self.rows, self.chunk = backbone, slots, rows, chunk
        self.prefixes = Prefixes(prefix_bytes)
        self._reader = Reader(backbone, rows, length)
        self._slab = self._reader.slab
        self.length = self._reader.length
        self._writing: list[Row] = []  # each at its own number's place
        self._joining: list[Row] = []  # in the order they came, at any places behind
        self._under = Under(slots)

    @property
    def nbytes(self) -> int:
        """What its rows and the kept beginnings of prompts may take in memory."""
        return self._slab.nbytes + self.prefixes.room

    def __len__(self) -> int:
        return len(self._writing) + len(self._joining)

    def room(self) -> int:
        """How many rows may join now."""
        return self.rows - len(self)

    def check(self, wish: Write | Draw) -> None:
        """Refuse what can never be written."""
        if not isinstance(wish, Write):
            raise ServeError(f"backbone '{self.backbone.name}' writes text and draws no pictures; ask one that does")
        fair = wish.tokens >= 1 and 0 <= wish.temperature < math.inf and 0 <= wish.top_p <= 1
        if not fair or "" in wish.stop:
            said = "wanted 1 token or more, a temperature from 0, top_p from 0 to 1, and no empty stop word"
            came = f"{wish.tokens}, {wish.temperature}, {wish.top_p} and {len(wish.stop)} stop words"
            raise ServeError(f"text: {said}, came {came}")
        if isinstance(wish.prompt, str) and len(wish.prompt) > self.length * LETTERS:  # not even read for it
            said = f"{len(wish.prompt)} characters are more than the {self.length} tokens"
            raise ServeError(f"prompt: {said} that '{self.backbone.name}' reads here; shorten it")
        given = len(self.backbone.given(wish.prompt))
        if given + wish.tokens > self.length:
            most = f"one of {self.length - 1} tokens leaves room for one" if given >= self.length else (
                f"it leaves room for {self.length - given}"
            )  # fmt: skip
            said = f"{given} tokens of prompt and {wish.tokens} to be written are more than the {self.length}"
            raise ServeError(f"prompt: {said} that '{self.backbone.name}' reads here; {most}")

    def join(self, job: Job) -> None:
        """Take a row in, with what is known of its prompt."""
        if not self.room():
            raise BusyError(f"rows: all {self.rows} are at work; ask again in a moment", SOON)
        if len(job.under) != 1:
            raise ServeError("stages: adapters take turns between the steps of a picture alone; name one mixture here")
        self.slots.hold(job.under)
        try:
            self._joining.append(self._seated(job))
        except BaseException:
            self.slots.release(job.under)
            raise

    def _seated(self, job: Job) -> Row:
        wish = job.wish
        assert isinstance(wish, Write)  # it was checked
        given = self.backbone.given(wish.prompt)
        ids = given.tolist() if isinstance(wish.prompt, str) else []
        taste = Taste(seeds.generator(wish.seed, -1, "", "sample"), wish.temperature, wish.top_p)
        voice = Voice(Spelling(self.backbone.tokenizer, ids or [self.backbone.end]), wish.stop)
        place = min(set(range(len(self._writing), self.rows)) - {row.place for row in self._joining})
        row = Row(job, wish, given, taste, voice, place, ids)
        known = self.prefixes.find(job.user, row.mixture, ids)
        if known is not None:
            self._slab.write(place, known)
            row.read = row.cached = len(known)
        return row

    def leave(self, job: Job) -> None:
        """Free a row that nobody waits for, if it is still there."""
        for row in [row for row in (*self._writing, *self._joining) if row.job is job]:
            self._out(row)

    def _out(self, row: Row) -> None:
        """Free a row's place; the last of those that write moves up. A pass that failed may have laid a chunk more."""
        self._slab.clear(row.place, row.read + self.chunk)
        self.slots.release(row.job.under)
        if row in self._joining:
            self._joining.remove(row)
        elif (last := self._writing.pop()) is not row:
            self._slab.swap(row.place, last.place, last.read + self.chunk)
            self._writing[row.place] = last
            last.place = row.place
        if not self:
            self._under.rest()

    @torch.no_grad()
    def step(self) -> list[Job]:
        """A chunk of the prompts, and a token of every row that writes."""
        over = self._prefill() if self._joining else []
        return over + (self._decode() if self._writing else [])

    def _prefill(self) -> list[Job]:
        """Read on in the prompts; rows whose prompt is read write their first token."""
        rows, parts = self._shares()
        if any(part.dim() == 2 for part in parts):  # a sealed prompt: the tokens of others as states beside it
            parts = [part if part.dim() == 2 else self.backbone.embedded(part) for part in parts]
        self._under.lay("prompts", [row.mixture for row in rows])
        logits = self._reader.read([row.place for row in rows], parts, [row.read for row in rows])
        for row, part in zip(rows, parts, strict=True):
            row.read += len(part)
        done = [at for at, row in enumerate(rows) if row.read == len(row.given)]
        for at in done:
            self._seat(rows[at])
        return self._chosen([rows[at] for at in done], logits[done]) if done else []

    def _shares(self) -> tuple[list[Row], list[Tensor]]:
        """Who reads how much: a chunk in all while others write and wait, a chunk each otherwise; first come first."""
        rows, parts, left = [], [], self.chunk
        for row in self._joining:
            part = row.given[row.read : row.read + left]
            rows.append(row)
            parts.append(part)
            left -= len(part) if self._writing else 0
            if not left:
                break
        return rows, parts

    def _seat(self, row: Row) -> None:
        """Let a row that has read its prompt take the next place of those that write."""
        place = len(self._writing)
        if row.place != place:
            others = [other for other in self._joining if other.place == place]
            self._slab.swap(row.place, place, max(one.read for one in (row, *others)))
            for other in others:
                other.place = row.place
            row.place = place
        self._joining.remove(row)
        self._writing.append(row)

    def _decode(self) -> list[Job]:
        rows = list(self._writing)
        self._under.lay("texts", [row.mixture for row in rows])
        tokens = torch.tensor([[row.newest] for row in rows], device=rows[0].given.device)
        logits = self._reader.read(slice(len(rows)), tokens, [row.read for row in rows])
        for row in rows:
            row.read += 1
        return self._chosen(rows, logits)

    # ---- what is told

    def _chosen(self, rows: list[Row], logits: Tensor) -> list[Job]:
        """Choose each row's next token and tell it; gives the jobs that are over, and out."""
        tokens = choose(logits, [row.taste for row in rows])
        told = _likelihoods(rows, tokens, logits)
        over = [row for row, token, one in zip(rows, tokens, told, strict=True) if self._told(row, token, one)]
        for row in over:
            self._out(row)
        return [row.job for row in over]

    def _told(self, row: Row, token: int, told: Token | None) -> bool:
        """Whether the row is over. One that cannot be told is, and the others do not hear of it."""
        try:
            return self._wrote(row, token, told)
        except Exception as error:  # noqa: BLE001  one row's trouble is not the others'
            with contextlib.suppress(Exception):
                row.job.tell(Broken(error))
            return True

    def _wrote(self, row: Row, token: int, told: Token | None) -> bool:
        if token < 0:
            raise ServeError("text: under these adapters the model makes numbers that are not finite; ask another one")
        pieces = []
        if not (ended := token == self.backbone.end):
            row.made, row.newest = row.made + 1, token
            pieces.append(row.voice.add(token, told))
        if row.made <= 1:
            self.prefixes.keep(row.job.user, row.mixture, row.ids, slab=self._slab, row=row.place)
        done = ended or row.voice.over or row.made == row.wish.tokens
        if done and not row.voice.over:
            pieces.append(row.voice.rest())
        for piece in filter(None, pieces):
            row.job.tell(piece)
        if done:
            reason = "stop" if ended or row.voice.over else "length"
            row.job.ended(reason, given=len(row.given), cached=row.cached, made=row.made)
        return done


def _likelihoods(rows: Sequence[Row], tokens: Sequence[int], logits: Tensor) -> list[Token | None]:
    """Of the rows that want to know."""
    told: list[Token | None] = [None] * len(rows)
    asked = [at for at, row in enumerate(rows) if row.wish.likely >= 0 <= tokens[at]]
    if asked:
        likely, spellings = [rows[at].wish.likely for at in asked], [rows[at].voice.spelling for at in asked]
        for at, one in zip(
            asked, likelihoods(logits[asked], [tokens[at] for at in asked], likely, spellings), strict=True
        ):
            told[at] = one
    return told
