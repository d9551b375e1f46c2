"""A full model's turn == a plain torch.optim loop over all its weights; a federation of them == the mean of weights."""

import copy
import functools
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fedgen
from fedgen import Run, lora, places, plan, report, seeds, tree
from fedgen.backbones import Backbone, DiffusionBackbone, Language, LanguageBackbone
from fedgen.client import Job, Start, Training, order, train
from fedgen.data.deal import count, take
from fedgen.errors import BackboneError, PlanError, ServeError, StoreError, TreeError
from fedgen.evaluate import score
from fedgen.places import inprocess
from fedgen.records import GLOBAL, Document, Offer, Report, Rows, Tree, Update
from fedgen.sample import Wish, compact, sampler
from fedgen.store import load_bundle
from fedgen.weights import Weights

CLOSE = 1e-5
PLAIN = Training(lr=1e-3, batch=2, epochs=2, clip=0.0)
WAYS = {
    "adamw": PLAIN,
    "adamw-clip-proximal-decay": replace(PLAIN, clip=0.5, proximal=0.5, decay=0.3),
    "sgd": replace(PLAIN, optimizer="sgd", lr=0.05),
    "sgd-momentum-clip-proximal": replace(PLAIN, optimizer="sgd", lr=0.05, momentum=0.9, clip=0.5, proximal=0.5),
}
# Adam makes rounding as large as its rate where slopes are none, as in the attention's biases of those that draw.
TURNS = [("text", way) for way in WAYS] + [
    (kind, way) for kind in ("unet", "transformer") for way in WAYS if "sgd" in way
]


@pytest.fixture(scope="module")
def language(tiny_backbone: Path) -> LanguageBackbone:
    return Language(str(tiny_backbone), length=16, device="cpu").load()


@pytest.fixture(params=["text", "unet", "transformer"])
def backbone(
    request: pytest.FixtureRequest, language: LanguageBackbone, denoisers: dict[str, DiffusionBackbone]
) -> Backbone:
    return {"text": language, "unet": denoisers["classes"], "transformer": denoisers["flow"]}[request.param]


@pytest.fixture
def bank(backbone: Backbone) -> Iterator[Weights]:
    with Weights(backbone.network) as bank:
        yield bank


def rows_of(backbone: Backbone, number: int, seed: int = 0) -> Rows:
    """So many rows of words or of pictures, drawn."""
    draw = torch.Generator().manual_seed(seed)
    if not isinstance(backbone, DiffusionBackbone):
        words = torch.randint(97, 123, (2000,), generator=draw).tolist()
        return take(backbone.encode([Document("", "".join(map(chr, words)))]), torch.arange(number))
    drawn = torch.randint(0, 256, (number, *backbone.picture), generator=draw, dtype=torch.uint8)
    return backbone.encode([Document("", "", f"client {at}", str(at), picture=one) for at, one in enumerate(drawn)])


def change(bank: Weights, seed: int, by: float = 0.01) -> Tree:
    draw = torch.Generator().manual_seed(seed)
    return {key: by * torch.randn(part.shape, generator=draw) for key, part in bank.layout.like.items()}


def job(backbone: Backbone, start: Tree) -> Job:
    return Job("ann", Start(start), rows_of(backbone, 5), functools.partial(seeds.generator, 0, 1, "ann"))


def bytes_of(network: nn.Module) -> str:
    """The content's name of all that the network holds, under the names and of the kinds that it has."""
    found = hashlib.sha256()
    for key, value in network.state_dict(keep_vars=True).items():
        found.update(f"{key} {type(value).__name__} {value.requires_grad}".encode() + value.detach().numpy().tobytes())
    return found.hexdigest()


def with_change(backbone: Any, start: Tree) -> Any:
    """A copy of the backbone that is the frozen one with the change put in, for good."""
    network = copy.deepcopy(backbone.network)
    for key, weight in network.named_parameters():
        weight.data += start[key]
    return replace(backbone, network=network)


def gap(one: Tree, two: Tree) -> float:
    assert one.keys() == two.keys()
    return max(float((one[key] - two[key]).abs().max()) for key in one)


def slow_truth(backbone: Any, training: Training, task: Job) -> Tree:
    """What one client would do if there were no fedgen: a change of all weights."""
    model = with_change(backbone, task.start.adapter)
    named = dict(model.network.requires_grad_(True).named_parameters())
    begin = {key: weight.detach().clone() for key, weight in named.items()}
    frozen = dict(backbone.network.named_parameters())
    adam = training.optimizer == "adamw"
    made: Any = (
        torch.optim.AdamW(named.values(), lr=training.lr, weight_decay=0.0)
        if adam
        else torch.optim.SGD(named.values(), lr=training.lr, momentum=training.momentum)
    )
    noise = task.draw("noise")
    for pick in order(training, count(task.rows), task.draw("order")):
        drawn = model.draw(take(task.rows, pick.clamp(min=0)), noise)
        sums, terms = model.losses(take(drawn, torch.arange(int((pick >= 0).sum()))))
        pull = sum(((weight - begin[key]) ** 2).sum() for key, weight in named.items())
        made.zero_grad()
        (sums.sum() / terms.sum() + training.proximal / 2 * pull).backward()
        if training.clip:
            torch.nn.utils.clip_grad_norm_(named.values(), training.clip)
        with torch.no_grad():
            for key, weight in named.items():
                weight -= training.lr * training.decay * (weight - frozen[key])
        made.step()
    return {key: weight.detach() - frozen[key] for key, weight in named.items()}


# ---- a turn


@pytest.mark.parametrize(("backbone", "way"), TURNS, indirect=["backbone"])
def test_a_turn_is_a_plain_loop_over_all_weights(way: str, backbone: Backbone, bank: Weights) -> None:
    before, task = bytes_of(backbone.network), job(backbone, change(bank, 1))
    (done,) = train(WAYS[way], backbone, bank, [task])
    truth = slow_truth(backbone, WAYS[way], task)
    assert gap(done.adapter, truth) < CLOSE
    assert gap(truth, task.start.adapter) > 1e-3
    assert bytes_of(backbone.network) == before


def test_each_way_is_another_way(language: LanguageBackbone) -> None:
    bank = Weights(language.network)
    found = [train(training, language, bank, [job(language, change(bank, 1))])[0].adapter for training in WAYS.values()]
    assert all(gap(one, two) > 10 * CLOSE for at, one in enumerate(found) for two in found[:at])


def test_every_weight_is_there_once_and_moves(language: LanguageBackbone) -> None:
    assert language.network.lm_head.weight is language.network.model.embed_tokens.weight
    bank = Weights(language.network)
    named = {key: weight.shape for key, weight in language.network.named_parameters()}
    nothing = bank.fresh(torch.Generator())
    assert {key: part.shape for key, part in nothing.items()} == named
    assert list(nothing) == sorted(named)
    assert bank.layout.width == sum(shape.numel() for shape in named.values())
    (done,) = train(PLAIN, language, bank, [job(language, nothing)])
    assert all(part.abs().max() > 0 for part in done.adapter.values())


def test_a_change_is_carried_at_all_places_of_its_weight_and_no_longer(language: LanguageBackbone) -> None:
    bank, network = Weights(language.network), language.network
    before, start = bytes_of(network), change(bank, 1)
    truth = with_change(language, start).network.lm_head.weight
    with bank.carry(bank.layout.vector(start)[None]):
        assert network.model.embed_tokens.weight is network.lm_head.weight
        assert network.lm_head.weight.equal(truth)
    assert bytes_of(network) == before
    with pytest.raises(ZeroDivisionError), bank.carry(bank.layout.vector(start)[None]):
        raise ZeroDivisionError
    assert bytes_of(network) == before


def test_half_precision_carries_the_sum_of_the_full_numbers(tiny_backbone: Path) -> None:
    narrow = Language(str(tiny_backbone), length=16, device="cpu", dtype="bfloat16").load()
    bank = Weights(narrow.network)
    start, frozen = change(bank, 1), narrow.network.lm_head.weight
    line = bank.layout.vector(start)[None].requires_grad_()
    with bank.carry(line):
        assert narrow.network.lm_head.weight.dtype == torch.bfloat16
        assert narrow.network.lm_head.weight.equal((frozen.float() + start["model.embed_tokens.weight"]).bfloat16())
        narrow.losses(rows_of(narrow, 2))[0].sum().backward()
    assert line.grad is not None
    assert line.grad.dtype == torch.float32
    assert line.grad.abs().max() > 0


# ---- many


def test_a_score_of_many_is_that_of_each_alone(backbone: Backbone, bank: Weights) -> None:
    tasks = [(bank.layout.vector(change(bank, seed)), rows_of(backbone, 3 + seed, seed)) for seed in range(3)]
    together = score(backbone, bank, tasks, batch=4)
    for task, found, seed in zip(tasks, together, range(3), strict=True):
        assert score(backbone, bank, [task])[0].loss == pytest.approx(found.loss, rel=1e-5)
        truth = with_change(backbone, change(bank, seed))
        (own,) = score(truth, Weights(truth.network), [(torch.zeros(bank.layout.width), task[1])])
        assert found.loss == pytest.approx(own.loss, rel=1e-5)
    assert len({found.loss / found.terms for found in together}) == 3


def test_passes_have_one_owner_and_keep_the_order(language: LanguageBackbone) -> None:
    found = Weights(language.network).passes("aaaaabbcca", 2)
    assert [(part.start, part.stop) for part in found] == [(0, 2), (2, 4), (4, 5), (5, 7), (7, 9), (9, 10)]


def test_a_mixture_is_the_sum_of_the_changes(language: LanguageBackbone) -> None:
    bank, rows = Weights(language.network), rows_of(language, 2)
    lines = torch.stack([bank.layout.vector(change(bank, seed)) for seed in (1, 2)])
    with torch.no_grad(), bank.carry(lines[None], weights=torch.tensor([[0.7, 0.5]])):
        mixed = language.losses(rows)[0]
    truth = with_change(language, tree.add(tree.scale(change(bank, 1), 0.7), change(bank, 2), 0.5))
    assert torch.allclose(mixed, truth.losses(rows)[0], rtol=1e-5)


# ---- a run


@pytest.fixture(scope="module")
def full_plan(tiny_plan: dict[str, Any]) -> dict[str, Any]:
    training = {"steps": 2, "batch": 2, "lr": 1e-3}
    quick = {"evaluate": {"rows": 2, "clients": 2, "keep": 1}, "personal": {"kind": "keep", "steps": 2, "lr": 1e-3}}
    return copy.deepcopy(tiny_plan) | {"adapter": {"of": "weights"}, "training": training} | quick


@pytest.fixture(scope="module")
def full_run(full_plan: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fedgen.run(full_plan, tmp_path_factory.mktemp("runs") / "full")


def test_two_clients_come_to_the_mean_of_their_weights(full_plan: dict[str, Any], tmp_path: Path) -> None:
    found = fedgen.run(full_plan, tmp_path / "two", settings=["rounds=1", "cohort.count=2", "personal.kind=none"])
    backbone = found.plan.backbone.load()
    place = inprocess.place(found.plan, backbone, None, lambda event: None)
    offers = [Offer(1, name, GLOBAL, place.start) for name in found.journal[0]["clients"]]
    sent = [reply for reply in place.ask(offers) if isinstance(reply, Update)]
    models = [dict(with_change(backbone, update.adapter).network.named_parameters()) for update in sent]
    shares = [update.examples / sum(update.examples for update in sent) for update in sent]
    assert len(models) == 2
    assert gap(models[0], models[1]) > 1e-3
    mean: dict[str, Tensor] = {
        key: sum(share * model[key] for share, model in zip(shares, models, strict=True)) for key in models[0]
    }
    averaged = dict(with_change(backbone, found.adapter(GLOBAL)[0]).network.named_parameters())
    assert gap(averaged, mean) < 1e-6


def test_bytes_are_those_of_all_weights(full_run: Run) -> None:
    change, _ = full_run.adapter(GLOBAL)
    assert tree.size(change) == full_run.facts["parameters"]
    for line in full_run.journal:
        clients = len(line["clients"])
        assert clients * full_run.facts["full_bytes"] < line["up"] < clients * (full_run.facts["full_bytes"] + 5000)
    _, cost = places.cost(full_run.plan)
    assert cost.adapter_parameters == cost.backbone_parameters


def test_it_learns_and_each_client_keeps_a_model_of_its_own(full_run: Run) -> None:
    scores = full_run.scores
    assert len(scores) == 6
    for client, found in scores.items():
        assert found["global"].loss < found["backbone"].loss
        own, card = full_run.adapter(f"client/{client}")
        assert gap(own, full_run.adapter(GLOBAL)[0]) > 1e-4
        assert (card.rank, card.client, card.parent) == (0, client, full_run.adapter(GLOBAL)[1].hash)


def test_it_says_what_was_trained(full_run: Run) -> None:
    assert (full_run.plan.adapter.of, full_run.plan.adapter.targets, full_run.plan.training.cohort) == (
        "weights",
        (),
        1,
    )
    page = report.write(full_run).read_text("utf-8")
    assert "every weight of it" in page
    assert "every weight of the model" in page
    assert "of rank" not in page
    assert "uplink saved" not in page


class StopHere(Exception):  # noqa: N818  it is no error
    """What stops a run in these tests."""


def stop(event: object) -> None:
    if isinstance(event, Report):
        raise StopHere


def left(run: Path) -> dict[str, bytes]:
    """The bytes of every tensor that a run left."""
    return {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*.safetensors")}


def test_a_run_stopped_and_resumed_ends_as_if_nobody_had(full_plan: dict[str, Any], tmp_path: Path) -> None:
    wanted = full_plan | {"outer": {"kind": "adam"}}
    fedgen.run(wanted, tmp_path / "whole" / "run")
    with pytest.raises(StopHere):
        fedgen.run(wanted, tmp_path / "stopped" / "run", tell=stop)
    fedgen.resume(tmp_path / "stopped" / "run")
    whole, stopped = left(tmp_path / "whole" / "run"), left(tmp_path / "stopped" / "run")
    assert sorted(whole) == sorted(stopped)
    assert [name for name in whole if whole[name] != stopped[name]] == []
    assert {"adapters/global/change.safetensors", "adapters/global@round-1/change.safetensors"} <= set(whole)
    assert len([name for name in whole if name.startswith("shelf/")]) == 6


def test_a_language_model_writes_with_it(full_run: Run) -> None:
    voice = sampler(full_run)
    told = {
        name: "".join(voice.write("the quick", adapter=name, tokens=30))
        for name in ("backbone", "global", "global=1,client/ann=1")
    }
    assert len(set(told.values())) == 3
    truth = with_change(voice.backbone, full_run.adapter(GLOBAL)[0])
    draw = torch.Generator()
    assert told["global"] == "".join(truth.write("the quick", tokens=30, temperature=0.0, draw=draw))


def test_pictures_are_drawn_with_it(digits_plan: Any, tmp_path: Path) -> None:
    more = ["adapter.of=weights", "partition.clients=20", "training.lr=0.01"]
    found = fedgen.run(digits_plan("classes"), tmp_path / "run", settings=more)
    voice, asked = sampler(found), [Document("", "", label="3"), Document("", "", label="5")]
    assert isinstance(voice.backbone, DiffusionBackbone)
    names = ["global", "backbone", "global", "backbone until 0.5 then global"]
    wishes = [Wish(name, one, seed) for seed, name in enumerate(names) for one in asked]
    drawn = list(voice.paint(wishes, steps=2, guidance=1.0))
    for wish, picture in zip(wishes, drawn, strict=True):
        (alone,) = voice.paint([wish], steps=2, guidance=1.0)
        assert (alone.int() - picture.int()).abs().max() <= 1
    truth = with_change(voice.backbone, found.adapter(GLOBAL)[0])
    (by_hand,) = truth.paint(asked[:1], [seeds.generator(0, -1, "", "sample")], steps=2)
    assert (by_hand.int() - drawn[0].int()).abs().max() <= 1
    (bare,) = voice.paint([replace(wishes[0], adapter="backbone")], steps=2, guidance=1.0)
    assert not bare.equal(drawn[0])


# ---- on disk


def test_what_is_saved_comes_back_and_is_no_adapter_of_others(full_run: Run) -> None:
    folder = full_run.folder / "adapters" / GLOBAL
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "change.safetensors"]
    found, card = load_bundle(folder, backbone_hash=full_run.facts["backbone_hash"])
    assert (card.rank, card.cluster, card.targets, card.hash) == (0, GLOBAL, (), tree.digest(found))
    with pytest.raises(ServeError, match="'global' is the change of a full model, and a bundle holds pairs"):
        compact(full_run, {GLOBAL: 1.0})
    with pytest.raises(StoreError, match="made for backbone 'tiny'"):
        load_bundle(folder, backbone_hash="another")


@pytest.mark.parametrize("damage", ["cut", "other numbers", "no card", "NaN"])
def test_one_that_is_damaged_is_refused(damage: str, full_run: Run, tmp_path: Path) -> None:
    folder = full_run.folder / "adapters" / GLOBAL
    found, _ = load_bundle(folder)
    raw = (folder / "change.safetensors").read_bytes()
    spoilt = {
        "cut": raw[:-1],
        "other numbers": tree.pack(tree.scale(found, 2.0)),
        "no card": raw,
        "NaN": tree.pack(tree.scale(found, float("nan"))),
    }
    lines = {
        "cut": "wanted whole safetensors",
        "other numbers": "the content is not what its card names",
        "no card": "card.json: cannot be read",
        "NaN": "holds NaN or infinity",
    }
    (tmp_path / "change.safetensors").write_bytes(spoilt[damage])
    if damage != "no card":
        (tmp_path / "card.json").write_bytes((folder / "card.json").read_bytes())
    with pytest.raises(StoreError, match=lines[damage]):
        load_bundle(tmp_path)


# ---- what is refused


APART = {
    "aggregate": ["aggregate.kind=exact"],
    "exchange": ["cluster.kind=oracle", "exchange.kind=global"],
    "cluster": ["cluster.kind=kmeans", "cluster.by=adapters"],
    "hierarchy.merge": ["cluster.kind=oracle", "hierarchy.merge=0.5"],
    "hierarchy.split": ["cluster.kind=oracle", "hierarchy.split=-0.5"],
    "personal": ["personal.kind=added"],
    "adapter.last": ["adapter.last=0.5"],
    "training.dropout": ["training.dropout=0.1"],
}


@pytest.mark.parametrize("name", APART)
def test_parts_that_work_on_pairs_are_refused(name: str) -> None:
    plan.read({}, APART[name])
    with pytest.raises(PlanError, match=f"^adapter.of and {name}: as set, {name} works on pairs of factors, and"):
        plan.read({}, [*APART[name], "adapter.of=weights"])


def test_a_quantised_model_is_not_trained() -> None:
    network = nn.Sequential(nn.Linear(2, 2))
    network.register_parameter("packed", nn.Parameter(torch.zeros(2, dtype=torch.uint8), requires_grad=False))
    with pytest.raises(BackboneError, match=r"'packed' is quantised \(uint8\) and cannot be trained"):
        Weights(network)


def test_what_a_pass_cannot_carry_is_refused(language: LanguageBackbone) -> None:
    bank = Weights(language.network)
    with pytest.raises(TreeError, match="a pass carries one whole model"), bank.carry(bank.lines.expand(2, -1)):
        pass
    with pytest.raises(TreeError, match="drops nothing out"), bank.carry(bank.lines, drop=lambda rows: rows):
        pass


def test_a_change_of_other_weights_is_refused(language: LanguageBackbone) -> None:
    bank = Weights(language.network)
    layers = lora.targets(language.network, language.targets)
    with pytest.raises(TreeError, match=r"weights: .* is missing"):
        bank.layout.vector(lora.fresh(layers, 2, torch.Generator()))
