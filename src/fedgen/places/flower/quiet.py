"""Flower as an optional guest: which version is welcome, and what keeps it and Ray from calling home."""

from collections.abc import MutableMapping
from importlib import metadata

from fedgen.errors import PlanError

WANTED = ((1, 41), (1, 43))  # from the first, below the second
INSTALL = 'pip install "fedgen-edge[fleet]"'

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else each actor without a GPU warns
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.1",  # seconds; Flower's second would be half of a short turn
}


def quiet(environ: MutableMapping[str, str]) -> None:
    """Turn telemetry, update checks and installing at run time off, unless the user has set them; before any import."""
    for name, value in QUIET.items():
        environ.setdefault(name, value)


def flower() -> str:
    """The version of the Flower that is installed; refuses none, and one that this was not written for."""
    try:
        found = metadata.version("flwr")
    except metadata.PackageNotFoundError as error:
        raise PlanError(f"Flower is not installed; {INSTALL}") from error
    refuse(found)
    return found


def refuse(found: str) -> None:
    """Refuse a version of Flower outside the range that this was written for."""
    first, last = (".".join(map(str, version)) for version in WANTED)
    if not WANTED[0] <= _numbers(found) < WANTED[1]:
        raise PlanError(f"Flower: wanted >={first},<{last}, came {found}; {INSTALL}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in version.split(".")[:2])
