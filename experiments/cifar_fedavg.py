"""Full-model FedAvg for experiments/cifar.py: the engine's own round, asked of clients that train every weight."""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from cifar_backbone import TARGETS, descend
from torch import nn

from fedgen import Bank, seeds
from fedgen.backbones import DiffusionBackbone
from fedgen.client import order, precision
from fedgen.data.deal import count, take
from fedgen.evaluate import YARDSTICKS, Score, score, total
from fedgen.places import inprocess
from fedgen.plan import Plan
from fedgen.records import GLOBAL, Client, Offer, Reply, Report, Rows, State, Tree, Update
from fedgen.rounds import Server, play

YARDSTICK = YARDSTICKS["image"]


@dataclass(frozen=True)
class Full:
    """A plan's federation with every weight trained and sent; the backbone is changed by it."""

    plan: Plan
    backbone: DiffusionBackbone
    clients: dict[str, Client]

    def rounds(self) -> Iterator[Report]:
        """Play the rounds, the network following; each report has the validation loss."""
        sizes = {name: count(client.train) for name, client in self.clients.items()}
        plan = self.plan
        server = Server(plan.seed, sorted(sizes), sizes, plan.cohort, plan.aggregate, plan.outer)
        state = State(0, {GLOBAL: weights_of(self.backbone.network)})
        for _ in range(plan.rounds):
            state, report = play(server, state, self.ask)
            put(self.backbone.network, state.adapters[GLOBAL])
            valid = mean_loss(missed(self.backbone, (client.valid for client in self.clients.values())))
            yield dataclasses.replace(report, metrics=dict(report.metrics) | {YARDSTICK.key: valid})

    def ask(self, offers: Iterable[Offer]) -> Iterator[Reply]:
        """The clients' half: on the rows, and under the noise, that the adapters' clients meet at each step."""
        for offer in offers:
            put(self.backbone.network, offer.adapter)
            rows = self.clients[offer.client].train
            losses = self.train(rows, offer)
            seen = {"loss": math.fsum(losses) / len(losses), "terms": float(len(losses) * self.plan.training.batch)}
            weights = weights_of(self.backbone.network)
            update = Update(offer.round, offer.client, offer.cluster, weights, count(rows), seen)
            yield inprocess.weigh(offer, update)

    def train(self, rows: Rows, offer: Offer) -> list[float]:
        """A client's turn; the loss of each step."""
        network, training = self.backbone.network.requires_grad_(True), self.plan.training
        optimizer = torch.optim.AdamW(network.parameters(), lr=training.lr, weight_decay=training.decay)
        name, losses = (self.plan.seed, offer.round, offer.client), []
        noise = seeds.generator(*name, "shared noise")
        for picks in order(training, count(rows), seeds.generator(*name, "shared order")):
            batch = self.backbone.draw(take(rows, picks.clamp(min=0)), noise)
            with precision(self.backbone.device):
                loss = self.backbone.losses(batch)[0][(picks >= 0).to(self.backbone.device)].mean()
            descend(loss, network, optimizer)
            losses.append(loss.item())
        return losses


def full(plan: Plan, backbone: DiffusionBackbone) -> Full:
    """The federation of all weights, from a backbone that it will change."""
    return Full(plan, backbone, inprocess.hold_data(plan, backbone)[0])


def weights_of(network: nn.Module) -> Tree:
    """All weights as a tree."""
    return {name: weight.detach().cpu().clone() for name, weight in network.named_parameters()}


@torch.no_grad()
def put(network: nn.Module, weights: Tree) -> None:
    """Give a network the weights of a tree."""
    for name, weight in network.named_parameters():
        weight.copy_(weights[name])


def missed(backbone: DiffusionBackbone, tables: Iterable[Rows]) -> Score:
    """How a network as it is does on rows that it has not learnt, as the engine scores adapters."""
    with Bank(backbone.network, TARGETS, 1) as bank:
        return total(score(backbone, bank, [(bank.lines[0], rows) for rows in tables]))


def mean_loss(found: Score) -> float:
    """The denoising loss, rounded for a record."""
    return round(YARDSTICK.of(found), 5)
