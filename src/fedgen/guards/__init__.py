"""Guards stand on the way of a change, each with two ends: a client's on the way out, a server's on the way back."""

from fedgen.guards.compress import PACKED, Compress
from fedgen.guards.guard import Clip, Guard
from fedgen.guards.way import Guards

__all__ = ["GUARDS", "PACKED", "Clip", "Compress", "Guard", "Guards"]

GUARDS: dict[str, type[Guard]] = {"clip": Clip, "compress": Compress}  # in the order of a client's way out
