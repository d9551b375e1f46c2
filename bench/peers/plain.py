"""A plain Flower + PEFT simulation, written the usual way, or with the model kept by the actor from call to call.

The adapter travels as an ArrayRecord of PEFT's state dict, FedAvg adds up. The usual way does everything in `train`, as
Flower's public examples do (see `peers.usual`). The other is the best that a user would write: the model is loaded once
an actor, the loop is plain, and each client's batches lie ready in a file. Ray's actors import this module by its name,
so that what it keeps is kept.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save
from torch.nn import functional as F

from peers import START, Played, Work
from peers.usual import turn, wrapped

kept: dict[str, PeftModel] = {}
app = ClientApp()


def held(config: ConfigRecord) -> PeftModel:
    """The model in PEFT, loaded once an actor."""
    name = str(config["model"])
    if name not in kept:
        kept[name] = wrapped(config)
    return kept[name]


@app.train()
def train(message: Message, context: Context) -> Message:
    """A client's turn: so many steps of AdamW on the offered adapter."""
    torch.set_num_threads(1)
    config = message.content["config"]
    act = lasting if config["cached"] else turn
    model, metrics = act(config, context.node_config["partition-id"], message.content["arrays"].to_torch_state_dict())
    sent = {"arrays": ArrayRecord(get_peft_model_state_dict(model)), "metrics": MetricRecord(metrics)}
    return Message(RecordDict(sent), reply_to=message)


def lasting(config: ConfigRecord, client: int, adapter: dict[str, torch.Tensor]) -> tuple[PeftModel, dict[str, Any]]:
    """A turn with the model that is kept, and batches that lie ready."""
    model = held(config)
    set_peft_model_state_dict(model, adapter)
    rows = load_file(Path(config["folder"]) / f"{client}.safetensors")
    at = config["server-round"] - 1
    losses = steps_of(model, rows["ids"][at], rows["labels"][at], config)
    metrics = {
        "num-examples": int(rows["examples"]),
        "loss": sum(losses) / len(losses),
        "steps": len(losses),
        "terms": int((rows["labels"][at] >= 0).sum()),
    }
    return model, metrics


def steps_of(model: PeftModel, ids: torch.Tensor, labels: torch.Tensor, config: ConfigRecord) -> list[float]:
    """Train on batches [steps, rows, tokens]; each step's loss."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config["lr"], weight_decay=0.0)
    losses = []
    for batch, wanted in zip(ids, labels, strict=True):
        logits = model(input_ids=batch, use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, config["clip"])
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def told(replies: Sequence[RecordDict], weighted_by: str) -> MetricRecord:
    """A round's mean loss over clients, and how much was done in all."""
    found = [reply["metrics"] for reply in replies]
    sums = {key: sum(each[key] for each in found) for key in ("loss", "steps", "terms")}
    return MetricRecord(sums | {"loss": sums["loss"] / len(found), "answered": len(found)})


def simulate(works: Sequence[Work], cores: int, *, cached: bool) -> list[Played]:
    """All rounds of each work in turn, on Flower's simulation engine with an actor a core."""
    logging.getLogger("flwr").setLevel(logging.ERROR)
    played: list[Played] = []
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        played.extend(play(grid, work, cached=cached) for work in works)

    start = {"num_cpus": cores, "log_to_driver": False}
    config: dict[str, Any] = {"client_resources": {"num_cpus": 1}, "init_args": start}
    run_simulation(server, app, works[0].clients, backend_config=config)
    return played


def play(grid: Grid, work: Work, *, cached: bool) -> Played:
    """The rounds of one work by FedAvg, everyone taking part in each."""
    ends: list[float] = []
    every = work.clients
    result = FedAvg(1.0, 0.0, every, 0, every, train_metrics_aggr_fn=told).start(
        grid=grid,
        initial_arrays=ArrayRecord(load_file(Path(work.folder) / START)),
        num_rounds=work.rounds,
        train_config=ConfigRecord(vars(work) | {"cached": cached}),
        evaluate_fn=lambda turn, arrays: ends.append(time.perf_counter()),
    )
    found = result.train_metrics_clientapp.values()
    if any(each["answered"] != every for each in found) or len(found) != work.rounds:
        raise RuntimeError(f"wanted {every} clients in each of {work.rounds} rounds, came {result}")
    steps, terms = ([int(each[key]) for each in found] for key in ("steps", "terms"))
    adapter = save(result.arrays.to_torch_state_dict())
    return Played(ends[1:], steps, terms, [each["loss"] for each in found], adapter)  # the first is before round 1
