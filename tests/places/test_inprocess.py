"""Clients in this process: every message is weighed as for a wire, and nothing of a client's text is in any."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedgen import factors, lora, tree
from fedgen import plan as plans
from fedgen.backbones import Diffusion, Language
from fedgen.bank import Bank
from fedgen.data import Folder
from fedgen.data.glyphs import Glyphs
from fedgen.guards import Guards
from fedgen.places import inprocess, silent
from fedgen.places.inprocess import (
    TREES,
    asker,
    facts_of,
    free_memory,
    hold_data,
    holdings,
    pack,
    settle,
    sizes_of,
    weigh,
    whole,
)
from fedgen.plan import Adapter
from fedgen.records import GLOBAL, Client, Failure, Offer, Update
from fedgen.store import Shelf
from fedgen.turns import Site


@pytest.fixture(scope="module")
def plan(tiny_plan: dict[str, Any]) -> plans.Plan:
    return plans.read(tiny_plan, ["training.cohort=4", "personal.kind=keep"])


@pytest.fixture(scope="module")
def ground(plan: plans.Plan) -> tuple[Any, Bank, dict[str, Client]]:
    backbone = plan.backbone.load()
    settled = settle(plan, backbone)
    return backbone, Bank(backbone.network, settled.adapter.targets, settled.adapter.rank), hold_data(plan, backbone)[0]


@pytest.fixture
def site(plan: plans.Plan, ground: tuple[Any, Bank, dict[str, Client]], tmp_path: Path) -> Site:
    backbone, bank, held = ground
    return Site(plan.seed, backbone, bank, held, plan.training, plan.personal, Shelf(tmp_path), plan.evaluate.rows)


def asked(site: Site, use: Any = "train") -> list[Offer]:
    start = site.bank.fresh(torch.Generator().manual_seed(0))
    return [Offer(1, name, GLOBAL, start, use) for name in site.clients]


@pytest.mark.parametrize("use", ["train", "check", "score"])
def test_a_packed_message_says_all_of_it_and_no_more(use: str, site: Site) -> None:
    offer = asked(site, use)[0]
    reply = next(asker(site)([offer]))
    assert isinstance(reply, Update)
    for message in (offer, reply):
        found, notes = tree.unpack(pack(message))
        assert found.keys() == message.adapter.keys()
        assert all(value.equal(message.adapter[key]) for key, value in found.items())
        said = {key: value for key, value in vars(message).items() if key not in TREES}
        assert {key: json.loads(value) for key, value in notes.items()} == {"message": said}


@pytest.mark.parametrize("use", ["train", "check", "score"])
def test_bytes_are_those_of_the_packed_messages(use: str, site: Site) -> None:
    offers = [*asked(site, use), Offer(1, "nobody", GLOBAL, asked(site)[0].adapter)]
    replies = list(asker(site)(offers))
    assert [reply.client for reply in replies] == [offer.client for offer in offers]
    for offer, reply in zip(offers, replies, strict=True):
        assert reply.down == len(pack(offer)) > 4 * tree.size(offer.adapter)
        if isinstance(reply, Update):
            assert reply.up == len(pack(reply)) > 0
            assert (reply.up > 4 * tree.size(offer.adapter)) == (use == "train")
    assert isinstance(replies[-1], Failure)


def test_a_failure_has_come_down_and_sent_nothing(site: Site) -> None:
    offer = asked(site)[0]
    lost = weigh(offer, Failure(1, offer.client, GLOBAL, "away"))
    assert isinstance(lost, Failure)
    assert lost.down == len(pack(offer))


def test_sizes_of_messages_go_by_what_is_offered() -> None:
    """Also where layers have unlike ranks, which the widest of them does not say, and others are beside it."""
    layers = {"k": torch.nn.Linear(6, 5), "q": torch.nn.Linear(4, 8)}
    wide = lora.fresh(layers, 4, torch.Generator().manual_seed(0))
    uneven = wide | {key: value for key, value in factors.head(wide, 1).items() if ".k." in key}
    sizes = sizes_of(Guards())
    offers = [Offer(1, "ann", GLOBAL, tree, rank=4) for tree in (wide, uneven)]
    for offer in [*offers, *offers]:
        assert sizes(offer) == (len(tree.pack(offer.adapter)),) * 2
    (up, down), more = sizes(offers[0]), sizes(offers[1])[1]
    assert sizes(replace(offers[0], beside={"one": uneven})) == (up, down + more)
    assert sizes(replace(offers[0], adapter=factors.head(wide, 2), rank=2))[0] < up


def windows(raw: bytes, size: int) -> Iterator[bytes]:
    return (raw[at : at + size] for at in range(0, len(raw) - size, size))


@pytest.mark.parametrize("use", ["train", "check", "score"])
def test_nothing_of_a_client_s_text_leaves_it(use: str, site: Site, tiny_text: Path) -> None:
    """No word of six letters or more, no run of eight tokens in any width of number, and no metric but the few."""
    for offer, reply in zip(asked(site, use), asker(site)(asked(site, use)), strict=True):
        assert isinstance(reply, Update)
        up = pack(reply)
        text = (tiny_text / f"{offer.client}.txt").read_text("utf-8")
        words = {word.strip(".").lower().encode() for word in text.split() if len(word) >= 7}
        assert len(words) > 20
        assert [word for word in words if word in up.lower()] == []
        client = site.clients[offer.client]
        for rows in (client.train, client.valid, client.test):
            for width in (torch.int16, torch.int32, torch.int64, torch.float32):
                ids = rows["ids"].to(width).numpy().tobytes()
                assert not any(piece in up for piece in windows(ids, 8 * torch.tensor([], dtype=width).element_size()))
        allowed = {"loss", "steps", "terms"} if use == "train" else {"loss", "terms", "words", "bytes"}
        assert {key.rpartition(".")[2] for key in reply.metrics} <= allowed


def test_the_scan_above_sees_text_and_tokens(site: Site) -> None:
    ids = next(iter(site.clients.values())).train["ids"].to(torch.int64).numpy().tobytes()
    up = tree.pack({"x": torch.zeros(3)}, {"note": "harbour"}) + ids
    assert b"harbour" in up.lower()
    assert any(piece in up for piece in windows(ids, 64))


def test_what_is_told_is_what_is_yielded(site: Site) -> None:
    heard: list[object] = []
    replies = list(asker(site, heard.append)(asked(site)))
    assert len(heard) == len(replies) == 6
    assert all(one is other for one, other in zip(heard, replies, strict=True))


def test_offers_are_taken_a_cohort_at_a_time(site: Site) -> None:
    taken: list[str] = []

    def offers() -> Iterator[Offer]:
        for offer in asked(site):
            taken.append(offer.client)
            yield offer

    replies = asker(site)(offers())
    assert taken == []
    next(replies)
    assert len(taken) == site.training.cohort == 4
    assert len(list(replies)) == 5


# --- what this machine decides


def test_a_settled_plan_leaves_nothing_to_decide(tiny_plan: dict[str, Any]) -> None:
    plan = plans.read(tiny_plan)
    backbone = plan.backbone.load()
    settled = settle(plan, backbone)
    assert settled.adapter.targets == ("q_proj", "v_proj")
    assert settled.training.cohort >= 1
    assert settle(settled, backbone) == settled
    assert plans.read(settled) == settled


@pytest.mark.parametrize(
    ("share", "targets"),
    [
        (0.1, ("model.layers.1.self_attn.v_proj",)),  # one at least
        (0.5, ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj")),
    ],
)
def test_a_settled_plan_names_the_last_layers_in_full(
    share: float, targets: tuple[str, ...], tiny_plan: dict[str, Any]
) -> None:
    plan = plans.read(tiny_plan, [f"adapter.last={share}"])
    backbone = plan.backbone.load()
    settled = settle(plan, backbone)
    assert (settled.adapter.targets, settled.adapter.last) == (targets, 1.0)
    assert settle(settled, backbone) == settled  # so that a resumed run does not take the last of the last
    with settled.adapter.bank(backbone.network, 2) as bank:
        assert tuple(lora.short(pair.path) for pair in lora.pairs(bank.fresh(torch.Generator()))) == tuple(
            lora.short(path) for path in targets
        )


def test_facts_tell_what_a_row_takes_as_it_is_trained(tiny_plan: dict[str, Any]) -> None:
    plan = plans.read(tiny_plan)
    backbone = plan.backbone.load()
    anew = plans.read(tiny_plan, ["training.checkpoint=true"])
    assert facts_of(anew, backbone)["row_bytes"] < facts_of(plan, backbone)["row_bytes"]


def test_a_settled_plan_says_its_paths_in_full(
    tiny_plan: dict[str, Any], tiny_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_text.parent)
    monkeypatch.setenv("HOME", str(tiny_text.parent))
    plan = plans.read(tiny_plan, [f"data.path={tiny_text.name}", "quality.weights=~/net.pt", "quality.clip=some/clip"])
    settled = settle(plan, plan.backbone.load())
    assert isinstance(settled.data, Folder)
    assert settled.data.path == str(tiny_text)
    assert settled.quality == plans.Quality(
        weights=str(tiny_text.parent / "net.pt"), clip=str(tiny_text.parent / "some" / "clip")
    )
    monkeypatch.chdir("/")
    assert plans.read(settled).data.read() == Folder(str(tiny_text)).read()


def test_what_is_no_path_stays_as_it_is() -> None:
    for part in (Language(), Language("hub:some/model"), Diffusion(), Glyphs(), plans.Quality(), Adapter()):
        assert whole(part) == part


def test_holdings_are_the_documents_that_each_client_s_rows_are_of(
    tiny_plan: dict[str, Any], ground: tuple[Any, Bank, dict[str, Client]]
) -> None:
    held, (_, _, rows) = holdings(plans.read(tiny_plan)), ground
    assert list(held) == list(rows)
    assert {name: {document.owner for document in own} for name, own in held.items()} == {name: {name} for name in held}


def test_pictures_dealt_by_their_own_parts_are_held_whole() -> None:
    world = Glyphs(("bold", "serif"), 2, "abcdef", 1, 2, size=16)
    held = holdings(replace(plans.Plan(), data=world))
    assert list(held) == ["bold-1", "bold-2", "serif-1", "serif-2"]
    assert {len(own) for own in held.values()} == {6}
    assert {document.label for document in held["serif-2"]} == {"serif"}


def test_free_memory_is_asked_for_or_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_memory() > 2**20
    if torch.cuda.is_available():
        pytest.skip("the GPU is asked, not the system")
    for error in (ValueError("unrecognized configuration name"), OSError("not here")):

        def refuse(name: str, error: Exception = error) -> int:
            raise error

        monkeypatch.setattr(os, "sysconf", refuse)
        assert free_memory() == 2**31


def test_facts_are_those_of_the_backbone_and_the_data(tiny_plan: dict[str, Any], tmp_path: Path) -> None:
    plan = plans.read(tiny_plan)
    backbone = plan.backbone.load()
    settled = settle(plan, backbone)
    place = inprocess.place(settled, backbone, tmp_path / "shelf", silent)
    assert sorted(place.sizes) == ["ann", "bob", "cleo", "dan", "eve", "finn"]
    assert place.facts["rows"] == sum(place.sizes.values())
    assert (place.facts["clients"], place.facts["dropped"]) == (6, [])
    saved = (Path(plan.backbone.source) / "model.safetensors").stat().st_size
    assert 0 < saved - place.facts["full_bytes"] < 4096  # all of the file but its header; tied weights count once
    assert facts_of(settled, backbone)["full_bytes"] == place.facts["full_bytes"] == 4 * place.facts["parameters"]
    assert not (tmp_path / "shelf").exists()
