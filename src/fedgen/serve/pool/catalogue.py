"""Names that point to adapters: who sees which, which round is live, and how to go back from it."""

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches

from fedgen.bank import Layout
from fedgen.errors import FedgenError, ServeError, UnknownError
from fedgen.records import GLOBAL
from fedgen.run import KEPT
from fedgen.serve.keys import Who
from fedgen.serve.pool.adapter import BARE, Adapter, sound
from fedgen.serve.pool.entries import BACKBONE, LONGEST, Entry, Verdict, check_loaded, order, owner_of, version_of

HISTORY = 3  # versions of a name, today's among them
TOLD = 100  # verdicts that are remembered
SAME = "the same content as before"


class Catalogue:
    """Names for everyone's threads: a change puts a new table in the old one's place, and no reader sees half of one.

    A version whose measure is worse than the last one's by more than the share `margin` is held back.
    """

    def __init__(self, layout: Layout, backbone_hash: str = "", margin: float = 0.05) -> None:
        self.heard: Callable[[Verdict], None] = lambda verdict: None  # told each one that is new
        self._layout = layout
        self._backbone_hash = backbone_hash
        self._margin = margin
        self._lock = threading.Lock()
        self._names: Mapping[str, Entry] = {BACKBONE: Entry(BACKBONE, "backbone", BARE)}
        self._versions: dict[str, tuple[Entry, ...]] = {}  # of each name, today's among them, the oldest first
        self._against: dict[str, float] = {}  # the measure that a name's next version is held against
        self._refused: dict[str, dict[str, str]] = {}  # by name, contents that were held or taken back, and why
        self._where: Mapping[str, str] = {}
        self._verdicts: deque[Verdict] = deque(maxlen=TOLD)

    # ---- what is read

    def visible(self, who: Who) -> list[Entry]:
        """All that the asker may use: the backbone, then what is global, of clusters, personal and loaded."""
        return sorted((entry for entry in self._names.values() if who.owns(entry.owner)), key=order)

    def find(self, name: str, who: Who) -> Entry:
        """What a name points to; of a missing one and of somebody else's the same is told."""
        entry = self._names.get(name)
        if entry is None or not who.owns(entry.owner):
            raise UnknownError(f"model '{name[:LONGEST]}': is not here; {self._near(name, who)}")
        return entry

    def chain(self, name: str, who: Who) -> list[str]:
        """A name and its stand-ins, as far as they are there: a user's cluster, then global and backbone."""
        client = owner_of(name.partition(KEPT)[0])
        cluster = self._where.get(client, "") if client and who.owns(client) else ""
        wanted = (BACKBONE,) if name == BACKBONE else (name, cluster, GLOBAL, BACKBONE)
        found = [(each, self._names.get(each)) for each in dict.fromkeys(wanted)]
        return [each for each, entry in found if entry is not None and who.owns(entry.owner)]

    @property
    def verdicts(self) -> list[Verdict]:
        """The last ones, the newest at the end; those with an owner are for that owner's eyes."""
        with self._lock:
            return list(self._verdicts)

    def pins(self) -> frozenset[str]:
        """The contents that are to stay in memory."""
        return frozenset(entry.adapter.hash for entry in self._names.values() if entry.pinned)

    # ---- what changes names

    def publish(
        self, name: str, adapter: Adapter, *, kind: str, owner: str = "",
        round: int = 0, measure: float | None = None,  # noqa: A002  named as in an entry
    ) -> Verdict:  # fmt: skip
        """Point a name to a new version, unless it is worse than the last; what cannot be used at all is refused."""
        if kind == "loaded":
            check_loaded(name)
        self._check(name, adapter)
        new = Entry(version_of(name, round), kind, adapter, owner or owner_of(name), round, measure, parent=BACKBONE)
        with self._lock:
            verdict = self._judged(name, new)
            if verdict.published:
                self._point(name, new)
            else:
                self._refused.setdefault(name, {})[adapter.hash] = verdict.reason
        if verdict.reason != SAME:
            self.note(verdict)
        return verdict

    def keep(self, name: str, adapter: Adapter, *, kind: str, turn: int) -> None:
        """Know a round's version as NAME@round-N, for good; NAME itself stays where it points."""
        self._check(name, adapter)
        new = Entry(version_of(name, turn), kind, adapter, owner_of(name), turn, parent=BACKBONE, kept=True)
        with self._lock:
            others = [old for old in self._versions.get(name, ()) if old.round != turn]
            at = sum(old.round < turn for old in others)
            self._versions[name] = (*others[:at], new, *others[at:])
            self._names = {**self._names, new.name: new}

    def roll_back(self, name: str) -> Entry:
        """Point a name to the version before today's, which will not come back by itself."""
        with self._lock:
            now = self._named(name)
            versions = self._versions.get(name, ())
            here = [at for at, old in enumerate(versions) if old.adapter == now.adapter]
            earlier = [old for old in versions[: max(here, default=0)] if old.adapter != now.adapter]
            if not earlier:
                raise ServeError(f"model '{name}': has no earlier version to go back to")
            self._check(name, earlier[-1].adapter)
            back = replace(earlier[-1], name=name, pinned=now.pinned, kept=False)
            self._refused.setdefault(name, {})[now.adapter.hash] = f"was taken back for round {back.round}"
            self._measured(name, back.measure)
            gone = [versions[at] for at in here]
            self._versions[name] = tuple(old for old in versions if old not in gone)
            self._names = {**_without(self._names, gone), name: back}
        self.note(Verdict(name, back.round, True, f"taken back from round {now.round}", back.owner))
        return back

    def remove(self, name: str) -> None:
        """Forget a name, and its versions but for those that are kept; rows at work are not touched."""
        with self._lock:
            entry, plain = self._named(name), name.partition(KEPT)[0]
            if entry.kind == BACKBONE:
                raise ServeError(f"model '{name}': is what all others stand on, and cannot be taken out")
            known = self._versions.pop(plain, ())
            gone = [old for old in known if (old.name == name if plain != name else not old.kept)]
            left = tuple(old for old in known if old not in gone)
            if left:
                self._versions[plain] = left
            if plain == name:
                self._measured(name, None)
                self._refused.pop(name, None)
            lost = {name, *(old.name for old in gone)}
            self._names = {each: old for each, old in self._names.items() if each not in lost}

    def pin(self, name: str, on: bool = True) -> Entry:
        """Keep what a name points to in memory, today's version and those that come; or no longer."""
        with self._lock:
            entry = replace(self._named(name), pinned=on)
            self._names = {**self._names, name: entry}
        return entry

    def place(self, where: Mapping[str, str]) -> None:
        """Say which cluster each client is in."""
        self._where = dict(where)

    def note(self, verdict: Verdict) -> bool:
        """Remember what was decided, and tell whether it is new: what was refused for the same reason is said once."""
        with self._lock:
            new = verdict.published or verdict not in self._verdicts
            if new:
                self._verdicts.append(verdict)
        if new:
            self.heard(verdict)
        return new

    # ---- how

    def _near(self, name: str, who: Who) -> str:
        names = [entry.name for entry in self._names.values() if who.owns(entry.owner)]
        near = get_close_matches(name[:LONGEST], names, 3, 0.5)
        return f"the nearest are {', '.join(near)}" if near else "ask /v1/models for those that are"

    def _named(self, name: str) -> Entry:
        if name not in self._names:
            raise UnknownError(f"model '{name[:LONGEST]}': is not here; ask /v1/models for those that are")
        return self._names[name]

    def _check(self, name: str, adapter: Adapter) -> None:
        """See that it can be carried: whole, its hash's content, all numbers, of this backbone, and not too wide."""
        made_for = adapter.card.backbone_hash
        if made_for and self._backbone_hash and made_for != self._backbone_hash:
            came = f"'{adapter.card.backbone}' ({made_for[:12]})"
            raise ServeError(
                f"model '{name}': is made for backbone {came}, not for this one ({self._backbone_hash[:12]})"
            )
        try:
            self._layout.vector(sound(adapter, self._layout))
        except FedgenError as error:
            raise ServeError(f"model '{name}': {error}") from error

    def _judged(self, name: str, new: Entry) -> Verdict:
        now, last = self._names.get(name), self._against.get(name)
        refused = self._refused.get(name, {}).get(new.adapter.hash) if new.kind != "loaded" else None
        if now is not None and now.adapter == new.adapter:
            good, reason = True, SAME
        elif refused:
            good, reason = False, refused
        elif new.measure is None:
            good, reason = True, "not measured"
        else:
            good, reason = self._weighed(new.measure, last)
        return Verdict(name, new.round, good, reason, new.owner)

    def _weighed(self, measure: float, last: float | None) -> tuple[bool, str]:
        if math.isnan(measure):
            return False, "its measure is not a number; the last one stays"
        if last is None:
            return True, f"first measured at {measure:.4g}"
        if measure > last + self._margin * abs(last):
            return False, f"measured {measure:.4g}, more than {self._margin:.3g} worse than {last:.4g}; that one stays"
        return True, f"measured {measure:.4g} after {last:.4g}"

    def _measured(self, name: str, measure: float | None) -> None:
        if measure is None:
            self._against.pop(name, None)
        else:
            self._against[name] = measure

    def _point(self, name: str, new: Entry) -> None:
        """Put a version at the end of a name's history, and the name to it."""
        now = self._names.get(name)
        if now is not None and now.adapter == new.adapter and new.measure is None:
            new = replace(new, measure=now.measure)
        known = self._versions.get(name, ())
        again = [old for old in known if old.round == new.round and (new.round or old.adapter == new.adapter)]
        new = replace(new, kept=any(old.kept and old.adapter == new.adapter for old in again))
        versions = [*(old for old in known if old not in again), new]
        gone = [old for old in versions if not old.kept][:-HISTORY]
        if new.measure is not None:
            self._against[name] = new.measure
        self._versions[name] = tuple(old for old in versions if old not in gone)
        pointer = replace(new, name=name, pinned=now is not None and now.pinned, kept=False)
        self._names = {**_without(self._names, gone), new.name: new, name: pointer}


def _without(names: Mapping[str, Entry], gone: Iterable[Entry]) -> dict[str, Entry]:
    """The names without those of versions that are gone, but for the kept ones."""
    lost = {old.name for old in gone if not old.kept}
    return {name: entry for name, entry in names.items() if name not in lost}
