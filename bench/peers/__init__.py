"""What others would write for the same work, to be measured beside ours; this file imports nothing of theirs.

Flower and Ray send nothing home from here: they read these words of the environment when they are first imported.
"""

import os
from dataclasses import dataclass

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns of its own plans at every start
}
START = "start.safetensors"
for name, value in QUIET.items():
    os.environ.setdefault(name, value)


@dataclass(frozen=True)
class Work:
    """What a peer is to do; `folder` holds the adapter to start from, and of each client the text and the batches.

    A row predicts `length` tokens.
    """

    folder: str
    model: str
    clients: int
    rounds: int
    rank: int
    targets: list[str]
    length: int
    lr: float
    clip: float


@dataclass(frozen=True)
class Played:
    """When each round ended, the steps, tokens and mean loss of all clients in it, and the adapter at the end."""

    ends: list[float]
    steps: list[int]
    terms: list[int]
    loss: list[float]
    adapter: bytes  # safetensors
