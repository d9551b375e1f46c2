"""Who asks: keys with what they open. A personal adapter answers to its owner alone.

A key's secret is shown once and never kept; the file that says what it opens holds its hash:

    [keys.alice]
    sha256 = "9f86..."
    users = ["alice"]  # whose personal adapters are hers; "*" is everyone's
    admin = false
"""

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fedgen.errors import FedgenError, ServeError
from fedgen.plan import load, part_of, toml_of
from fedgen.store import read_bytes, write_whole

LOG = logging.getLogger(__name__)
ALL = "*"  # among a key's users: every user's adapter


@dataclass(frozen=True)
class Who:
    """An asker: a name for fairness and counting, the users whose personal adapters are theirs, and admin or not."""

    name: str
    users: frozenset[str] = frozenset()
    admin: bool = False

    def owns(self, owner: str) -> bool:
        """Whether what belongs to this owner answers to the asker; what belongs to nobody answers to all."""
        return not owner or owner in self.users or ALL in self.users


@dataclass(frozen=True)
class Key:
    """What the file says of one key."""

    sha256: str
    users: tuple[str, ...] = ()
    admin: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ServeError("sha256 must be 64 digits of 0-9 a-f, as `fedgen key` writes them")
        if "" in self.users:
            raise ServeError("users names nobody; name a client, or leave it out")


@dataclass(frozen=True)
class Keys:
    """Askers by the hash of their secret."""

    known: Mapping[str, Who] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> "Keys":
        """The keys of a file; it holds no secret, and nothing but keys."""
        said = load(path, "keys")
        if odd := set(said) - {"keys"}:
            raise ServeError(f"keys '{path}': '{min(odd)}' is no key; wanted tables [keys.NAME] alone")
        tables = said.get("keys", {})
        if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
            raise ServeError(f"keys '{path}': wanted a table [keys.NAME] for each key, came something else")
        found: dict[str, Who] = {}
        for name, table in tables.items():
            key: Key = part_of(f"keys '{path}': {name}", Key, table)
            if key.sha256 in found:
                raise ServeError(
                    f"keys '{path}': '{found[key.sha256].name}' and '{name}' have one secret; make another"
                )
            found[key.sha256] = Who(name, frozenset(key.users), key.admin)
        return cls(found)

    def who(self, secret: str) -> Who | None:
        """Whose secret it is. Every key is compared in full, so the time taken tells nothing."""
        asked, found = _hash(secret), None
        for known, who in self.known.items():
            if hmac.compare_digest(asked, known):
                found = who
        return found


class KeysFile:
    """The keys of a file, read anew when it changes; one that cannot be read leaves the last ones in force."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen, self._keys = _stamp(path), Keys.read(path)

    def who(self, secret: str) -> Who | None:
        """Whose secret it is, by today's file."""
        if (now := _stamp(self._path)) != self._seen:
            self._seen = now
            try:
                self._keys = Keys.read(self._path)
            except FedgenError as error:
                LOG.warning("keys: what was read last stays in force: %s", error)
        return self._keys.who(secret)


def new_key() -> tuple[str, str]:
    """A new secret, and the hash that a keys file holds."""
    secret = f"fedgen-{secrets.token_urlsafe(32)}"
    return secret, _hash(secret)


def add_key(path: Path, name: str, *, users: tuple[str, ...] = (), admin: bool = False) -> str:
    """Add a key to a file, which is made if need be, and tell its secret; it can not be told again."""
    taken = Keys.read(path).known.values() if path.exists() else ()
    if not name or any(who.name == name for who in taken):
        raise ServeError(f"keys '{path}': wanted a new name, came '{name}'; choose another, or take the old key out")
    secret, content = new_key()
    key = Key(content, users, admin)
    lines = [f"{spot} = {toml_of(value)}" for spot, value in vars(key).items()]
    before = read_bytes(path).rstrip() + b"\n\n" if path.exists() else b""
    write_whole(path, before + "\n".join([f"[keys.{toml_of(name)}]", *lines, ""]).encode(), 0o600)
    return secret


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes with a file's content."""
    seen = path.stat() if path.exists() else None
    return (seen.st_mtime_ns, seen.st_ino) if seen else None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()
