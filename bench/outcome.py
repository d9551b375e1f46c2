"""What a finished run came to, as the result files say it."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fedgen.evaluate import Score, total
from fedgen.report import digest
from fedgen.run import Run
from fedgen.screen import gains_of


def pooled(run: Run) -> Mapping[str, Score]:
    """Every client's scores as one, adapter by adapter."""
    scores = run.scores.values()
    names = dict.fromkeys(name for score in scores for name in score)
    return {name: total(score[name] for score in scores if name in score) for name in names}


def outcome(run: Run, seconds: float) -> dict[str, Any]:
    """Clients, rounds, gains over the bare backbone, bytes and time."""
    names = [name for name in pooled(run) if name != "backbone"]
    gains = {name: gains_of(run.scores, name, run.yardstick) for name in names}
    return {
        "clients": len(run.scores),
        "rounds": len(run.journal),
        "gains": {name: asdict(gain) for name, gain in gains.items() if gain},
        "adapter_message_bytes": run.journal[0]["up"] // len(run.journal[0]["clients"]),
        "full_model_bytes": run.facts["full_bytes"],
        "uplink_saved": round(digest.read(run).saved or 0, 5),
        "seconds": round(seconds),
    }
