"""Who may come in, by which name the server may be called, and from which pages."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedgen.serve.api.errors import RefusedError
from fedgen.serve.keys import Keys, KeysFile, Who

GUEST = Who("guest")  # whoever has no key, where none is needed
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Door:
    """The keys, and whether who has none is let in to what belongs to nobody.

    `hosts` are the names that the server may be called by (none: any), so that no page of another site can turn its
    own name into this machine's address; `origins` are the sites whose pages may ask; below `within` lie the bundles
    that an admin may load.
    """

    keys: Keys | KeysFile
    open: bool = False
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    within: Path | None = None

    def who(self, headers: Mapping[str, str]) -> Who:
        """Who asks."""
        word, _, secret = headers.get("authorization", "").partition(" ")
        found = self.keys.who(secret.strip()) if word.lower() == "bearer" else None
        if found is None and self.open:
            return GUEST
        if found is None:
            came = "a wrong one" if secret else "none"
            wish = "wanted a key as Authorization: Bearer KEY"
            raise RefusedError(f"key: {wish}, came {came}", status=401, code="invalid_api_key")
        return found

    def admin(self, headers: Mapping[str, str]) -> Who:
        """Who asks, if it is an admin."""
        who = self.who(headers)
        if who is GUEST:
            raise RefusedError("key: wanted one with admin rights, came none", status=401, code="invalid_api_key")
        if not who.admin:
            raise RefusedError("key: wanted one with admin rights, came one without", status=403, code="not_admin")
        return who

    def check_host(self, host: str) -> None:
        """Refuse to be called by a name that is not the server's."""
        name = host[: host.rindex("]") + 1] if "]" in host else host.partition(":")[0]
        if self.hosts and name.lower() not in self.hosts:
            raise RefusedError(f"host: wanted {', '.join(self.hosts)}, came {host[:80]!r}", code="unknown_host")
