"""The page: static files, read once, without a library and without a build step.

Modules, streams, dialogs and SVG are what every browser brings, so a library would give the user nothing but a longer
wait. Us it would give a bundle larger than the page to keep and to renew, or a tool chain to build it.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@cache
def files() -> Mapping[str, tuple[str, bytes]]:
    """Every file of the page by its name: its media type, and its bytes."""
    found = sorted(path for path in Path(__file__).parent.iterdir() if path.suffix in TYPES)
    return {path.name: (TYPES[path.suffix], path.read_bytes()) for path in found}
