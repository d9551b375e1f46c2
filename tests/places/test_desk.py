"""A machine's desk: the turns of its clients, what it keeps for them, what it refuses, and what never leaves it."""

import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedgen import plan as plans
from fedgen import tree
from fedgen.errors import ClientError
from fedgen.places import inprocess
from fedgen.places.desk import Desk
from fedgen.places.device import Consent, Device, Limits
from fedgen.places.inprocess import start_of
from fedgen.places.wire import Errand, Parcel, Present, offered, question, read_present, read_replies
from fedgen.plan import Plan
from fedgen.records import GLOBAL, Failure, Offer, Reply, Tree, Update
from fedgen.store import Shelf
from fedgen.turns import Site, turns

MOST = 10**7
TRIAL = Consent(("train", "check", "score", "encode", "label"), plan_data=True)
CLUSTERED = {"encode": {"kind": "backbone"}, "cluster": {"kind": "kmeans", "count": 2}}
KINDS = (torch.int16, torch.int32, torch.int64, torch.float32)
RUN = 6  # so many token ids in a row are no accident
USES: list[Any] = ["train", "check", "score", "encode"]


@pytest.fixture(scope="module")
def settled(tiny_plan: dict[str, Any]) -> Plan:
    plan = plans.read(
        tiny_plan | CLUSTERED, ["training.cohort=3", "training.steps=2", "personal.kind=keep", "personal.steps=1"]
    )
    return inprocess.settle(plan, plan.backbone.load())


@pytest.fixture(scope="module")
def site(settled: Plan) -> Site:
    """The same clients in this process."""
    backbone = settled.backbone.load()
    held, _ = inprocess.hold_data(settled, backbone)
    bank = settled.adapter.bank(backbone.network, settled.width)
    parts = settled.training, settled.personal, Shelf(), settled.evaluate.rows, settled.encode, settled.profile
    return Site(settled.seed, backbone, bank, held, *parts, settled.share)


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def desk(tmp_path: Path, notes: list[str]) -> Desk:
    return Desk(Device("trial", consent=TRIAL), tmp_path / "runs", notes.append)


@pytest.fixture(scope="module")
def start(settled: Plan, site: Site) -> Tree:
    """An adapter that does something."""
    draw = torch.Generator().manual_seed(1)
    made = start_of(settled, site.bank)
    return {key: value + 0.05 * torch.randn(value.shape, generator=draw) for key, value in made.items()}


def errand(plan: Plan, **changes: Any) -> Errand:
    return replace(Errand("tiny-0a1b", plans.write(plan), "one"), **changes)


def ask(desk: Desk, errand: Errand, offers: Sequence[Offer]) -> list[Reply]:
    return read_replies(desk.answer(offered(errand, offers)), offers, MOST)


def meet(desk: Desk, errand: Errand) -> Present:
    return read_present(desk.answer(question(errand)))


def asked(start: Tree, names: Sequence[str] = ("ann", "bob"), turn: int = 1, use: Any = "train") -> list[Offer]:
    return [Offer(turn, name, GLOBAL, {} if use == "encode" else start, use) for name in names]


def update(reply: Reply) -> Update:
    assert isinstance(reply, Update), reply
    return reply


def reason(reply: Reply) -> str:
    assert isinstance(reply, Failure), reply
    return reply.reason


def equal(found: Reply, wanted: Reply) -> None:
    """The same reply, but for the bytes that it had on its way."""
    one, other = (vars(reply) | {"adapter": 0, "profile": 0, "up": 0} for reply in (found, wanted))
    assert one == other
    same(update(found).adapter, update(wanted).adapter)
    for mine, yours in [(update(found).profile, update(wanted).profile)]:
        assert (mine is None and yours is None) or (mine is not None and yours is not None and mine.equal(yours))


def same(one: Tree | None, other: Tree | None) -> None:
    assert one is not None
    assert other is not None
    assert one.keys() == other.keys()
    assert all(one[key].equal(other[key]) for key in one)


# ---- its answers


@pytest.mark.parametrize("use", USES)
def test_answers_are_the_turns_of_its_clients(use: str, desk: Desk, settled: Plan, site: Site, start: Tree) -> None:
    offers = asked(start, ("eve", "ann", "finn"), use=use)
    wanted = turns(replace(site, shelf=Shelf()), offers)
    for found, turn in zip(ask(desk, errand(settled), offers), wanted, strict=True):
        equal(found, turn)


def test_it_says_whom_it_holds(desk: Desk, settled: Plan, site: Site) -> None:
    found = meet(desk, errand(settled))
    assert (found.name, found.reason, found.backbone) == ("trial", "", site.backbone.hash)
    assert dict(found.rows) == {name: len(client.train["ids"]) for name, client in site.clients.items()}
    third = Desk(Device("third", consent=Consent(plan_data=True, share="2/3")), desk.folder / "third")
    assert list(meet(third, errand(settled)).rows) == ["bob", "eve"]
    assert meet(third, errand(settled)).labels == {}
    (lost,) = ask(third, errand(settled), asked({}, ["ann"], use="encode"))
    assert reason(lost) == "no such client here"


def test_a_device_with_data_of_its_own_is_one_client(settled: Plan, tiny_text: Path, tmp_path: Path) -> None:
    own = plans.read({"data": {"kind": "folder", "path": str(tiny_text)}}).data
    model: Any = settled.backbone
    desk = Desk(Device("ada", own, backbones={model.source: model.source}), tmp_path)
    assert list(meet(desk, errand(settled)).rows) == ["ada"]


# ---- what it keeps


def shelf(desk: Desk, run: str = "tiny-0a1b") -> Shelf:
    return Shelf(desk.folder / run / "shelf")


def test_own_parts_outlive_the_process(desk: Desk, settled: Plan, start: Tree) -> None:
    first = ask(desk, errand(settled), asked(start))
    kept = shelf(desk).get("ann")
    again = Desk(desk.device, desk.folder)
    same(shelf(again).get("ann"), kept)
    for found, before in zip(ask(again, errand(settled), asked(start)), first, strict=True):
        equal(found, before)  # asked the same again, it starts from what was there before
    same(shelf(again).get("ann"), kept)
    ask(again, errand(settled, done=1), asked(start, turn=2))
    other = Desk(desk.device, desk.folder / "other")
    ask(other, errand(settled), asked(start))
    ask(other, errand(settled, done=1), asked(start, turn=2))
    same(shelf(again).get("ann"), shelf(other).get("ann"))  # as if nothing had been in between


def test_a_new_session_goes_back_to_where_it_began(desk: Desk, settled: Plan, start: Tree) -> None:
    for turn in (1, 2):
        ask(desk, errand(settled, done=turn - 1), asked(start, turn=turn))
    one, two = shelf(desk).get("ann", before=2), shelf(desk).get("ann")
    ask(desk, errand(settled, session="two", base=1, done=1), asked(start, ["bob"], turn=2))
    assert shelf(desk).round_of("ann") == 1, "round 2 was cut short, and is played anew"
    same(shelf(desk).get("ann"), one)
    ask(desk, errand(settled, session="two", base=1, done=1), asked(start, ["ann"], turn=2))
    same(shelf(desk).get("ann"), two)
    ask(desk, errand(settled, session="two", base=1, done=2), asked(start, ["bob"], turn=3))
    assert shelf(desk).round_of("ann") == 2, "the same session goes back once"
    assert shelf(desk).round_of("bob") == 3


def test_a_session_that_is_over_is_refused_and_takes_nothing_back(desk: Desk, settled: Plan, start: Tree) -> None:
    ask(desk, errand(settled, session="two", done=0), asked(start, turn=1))
    before = shelf(desk).get("ann")
    late = ask(desk, errand(settled, session="one", base=0, done=0), asked(start, ["ann"], turn=1))
    assert [reply.reason for reply in late if isinstance(reply, Failure)] == [
        "session one: is over, the server is at two"
    ]
    same(shelf(desk).get("ann"), before)


def test_what_is_done_is_settled(desk: Desk, settled: Plan, start: Tree) -> None:
    for turn in (1, 2, 3):
        ask(desk, errand(settled, done=turn - 1), asked(start, ["ann"], turn=turn))
    assert shelf(desk).get("ann", before=2) is None
    assert shelf(desk).get("ann", before=3) is not None
    ask(desk, errand(settled, done=3), asked(start, ["bob"], turn=4))
    assert len(list((desk.folder / "tiny-0a1b" / "shelf").glob("ann.*"))) == 1


@pytest.mark.parametrize("run", ["other-77", "läuft (2), 1.5-0a1b"])
def test_two_runs_do_not_share_a_shelf(run: str, desk: Desk, settled: Plan, start: Tree) -> None:
    (first,) = ask(desk, errand(settled), asked(start, ["ann"]))
    (second,) = ask(desk, errand(settled, run=run), asked(start, ["ann"]))
    equal(second, first)
    ask(desk, errand(settled, done=1), asked(start, ["ann"], turn=2))
    assert (shelf(desk).round_of("ann"), shelf(desk, run).round_of("ann")) == (2, 1)
    assert sorted(path.name for path in desk.folder.iterdir()) == sorted([run, "tiny-0a1b"])


def test_a_backbone_is_loaded_once_for_all_plans_of_it(
    desk: Desk, settled: Plan, start: Tree, notes: list[str], tiny_backbone: Path, tmp_path: Path
) -> None:
    before = ask(desk, errand(settled), asked(start))
    smaller = replace(settled, adapter=replace(settled.adapter, rank=2), seed=9)
    thin = {key: value[:2] if ".lora_A." in key else value[:, :2].contiguous() for key, value in start.items()}
    for found in ask(desk, errand(smaller, run="smaller"), asked(thin)):
        assert tree.size(update(found).adapter) == tree.size(thin)
    for found, was in zip(ask(desk, errand(settled), asked(start)), before, strict=True):
        equal(found, was)
    assert [note.split(" (")[0] for note in notes] == ["loaded the backbone 'tiny'"]
    shutil.copytree(tiny_backbone, tmp_path / "twin")
    model: Any = settled.backbone
    twin = replace(settled, backbone=replace(model, source=str(tmp_path / "twin")))
    ask(desk, errand(twin, run="twin"), asked(start))
    assert len(notes) == 2


# ---- what goes wrong


def test_one_client_that_fails_does_not_take_others_along(
    desk: Desk, settled: Plan, start: Tree, notes: list[str]
) -> None:
    wanted = ask(desk, errand(settled, run="good"), asked(start))
    odd = {"a": torch.ones(2, 2)}
    offers = [*asked(start, ["ann"]), Offer(1, "eve", GLOBAL, odd), *asked(start, ["bob"])]
    first, lost, second = ask(desk, errand(settled), offers)
    equal(first, wanted[0])
    equal(second, wanted[1])
    assert reason(lost) == "TreeError on 'trial'; its node.log says more"
    assert any("Traceback" in note and "TreeError" in note for note in notes)


def test_a_client_that_diverges_is_told(desk: Desk, settled: Plan, start: Tree) -> None:
    huge = {key: torch.full_like(value, 1e30) for key, value in start.items()}
    found, lost = ask(desk, errand(settled), [*asked(start, ["ann"]), *asked(huge, ["bob"])])
    update(found)
    assert "numbers that are not finite" in reason(lost)


def test_data_that_cannot_be_read_is_told_by_its_kind_alone(
    settled: Plan, tiny_text: Path, tmp_path: Path, start: Tree, notes: list[str]
) -> None:
    (tmp_path / "private").mkdir()
    shutil.copy(tiny_text / "ann.txt", tmp_path / "private" / "diary.txt")
    (tmp_path / "private" / "diary.txt").write_bytes(b"my diary \xff\xfe\xfa")
    own = plans.read({"data": {"kind": "folder", "path": str(tmp_path / "private")}}).data
    model: Any = settled.backbone
    desk = Desk(Device("ada", own, backbones={model.source: model.source}), tmp_path / "runs", notes.append)
    asks = [offered(errand(settled), asked(start, ["ada"], use=use)) for use in USES]
    for answer in map(desk.answer, (question(errand(settled)), *asks)):
        assert "DataError on 'ada'; its node.log says more" in answer.words
        for told in (str(tmp_path), "diary", "private"):
            assert told not in answer.words
    assert any(str(tmp_path / "private" / "diary.txt") in note for note in notes)


def test_a_reader_that_is_missing_is_told_without_its_path(settled: Plan, start: Tree, tmp_path: Path) -> None:
    reader: Any = plans.read({"encode": {"kind": "folder", "path": "/srv/reader"}}).encode
    own = {"/srv/reader": str(tmp_path / "hidden" / "reader")}
    desk = Desk(Device("ada", consent=TRIAL, backbones=own), tmp_path / "runs")
    answer = desk.answer(offered(errand(replace(settled, encode=reader)), asked(start, ["ann"], use="encode")))
    assert "no profile: encode.path '/srv/reader': wanted a Hugging Face folder" in answer.words
    assert str(tmp_path) not in answer.words


def test_what_it_does_not_consent_to_it_does_not_do(settled: Plan, start: Tree, tmp_path: Path) -> None:
    shy = Desk(Device("shy", consent=Consent(("check",), plan_data=True)), tmp_path)
    for use in USES:
        (reply,) = ask(shy, errand(settled), asked(start, ["ann"], use=use))
        assert isinstance(reply, Update) == (use == "check")
        if use != "check":
            assert reason(reply) == f"its consent is to check, not to {use}"
    assert meet(shy, errand(settled)).labels == {}
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_device_too_small_says_so_however_often_it_is_asked(
    desk: Desk, settled: Plan, start: Tree, tmp_path: Path, notes: list[str]
) -> None:
    small = Desk(Device("small", limits=Limits(memory=1), consent=TRIAL), tmp_path, notes.append)
    heavy = replace(settled, training=replace(settled.training, batch=4096))
    for _ in range(2):
        (lost,) = ask(small, errand(heavy), asked(start, ["ann"]))
        assert reason(lost).startswith("limits.memory: wanted at least ")
        assert meet(small, errand(heavy)).reason.startswith("limits.memory: wanted at least ")
    light = replace(settled, training=replace(settled.training, batch=1))
    (found,) = ask(small, errand(light), asked(start, ["ann"]))
    equal(found, ask(desk, errand(light), asked(start, ["ann"]))[0])
    assert len([note for note in notes if note.startswith("loaded")]) == 2  # both desks', once each


@pytest.mark.parametrize("run", ["", ".", "..", "../../etc", "a/b", "/etc", ".hidden", "nul\0", "a\nb", "x" * 300])
def test_a_run_whose_name_leads_elsewhere_is_refused(run: str, desk: Desk, settled: Plan, start: Tree) -> None:
    for parcel in (offered(errand(settled, run=run), asked(start)), question(errand(settled, run=run))):
        with pytest.raises(ClientError, match="run: wanted the name of a folder, came "):
            desk.answer(parcel)
    assert not desk.folder.exists()


def test_a_plan_that_is_none_is_told(desk: Desk, start: Tree) -> None:
    for text in ("not toml [", 'rounds = "many"', "[data]\nkind = 3"):
        (lost,) = ask(desk, Errand("tiny", text), asked(start, ["ann"]))
        assert reason(lost).endswith("Error on 'trial'; its node.log says more")
        assert meet(desk, Errand("tiny", text)).reason == reason(lost)


# ---- what never leaves it


def spelled(ids: list[int]) -> Iterator[bytes]:
    """Runs of token ids as any kind of number would lie in a message."""
    for at in range(0, len(ids) - RUN + 1, RUN):
        yield from (torch.tensor(ids[at : at + RUN], dtype=kind).numpy().tobytes() for kind in KINDS)


def leaks(text: str, tokens: list[int], crossed: bytes) -> list[bytes]:
    """Which windows of a text, and which runs of its tokens, are in what crossed."""
    raw = text.encode()
    found = [raw[at : at + 12] for at in range(0, len(raw) - 12, 4) if raw[at : at + 12].lower() in crossed.lower()]
    return found + [run for run in spelled(tokens) if run in crossed]


def test_nothing_of_a_client_s_text_and_no_path_crosses(
    desk: Desk, settled: Plan, site: Site, start: Tree, tiny_text: Path
) -> None:
    names, crossed = sorted(site.clients), [desk.answer(question(errand(settled)))]
    for use in USES:
        crossed.append(desk.answer(offered(errand(settled), asked(start, names, use=use))))
        assert '"reason"' not in crossed[-1].words
    whole = b"".join(raw for parcel in crossed for raw in (parcel.words.encode(), *parcel.trees))
    assert len(whole) > 6 * 4 * tree.size(start)
    for name in names:
        text = (tiny_text / f"{name}.txt").read_text("utf-8")
        assert leaks(text, tokens(site, name), whole) == []
    for path in (tiny_text, desk.folder, Path(settled.backbone.source)):
        assert str(path).encode() not in whole
    told = Parcel("x", (b"abc" + next(spelled(tokens(site, "ann"))) + b"HARBOUR and".lower(),))
    assert leaks("the harbour and its boats", tokens(site, "ann"), told.trees[0].replace(b"abc", b"the ")) != []


def tokens(site: Site, name: str) -> list[int]:
    client = site.clients[name]
    return [token for rows in (client.train, client.valid, client.test) for token in rows["ids"].flatten().tolist()]


def test_it_can_be_asked_from_any_thread(desk: Desk, settled: Plan, start: Tree) -> None:
    (wanted,) = ask(desk, errand(settled), asked(start, ["ann"]))
    found: list[Reply] = []
    other = threading.Thread(target=lambda: found.extend(ask(desk, errand(settled), asked(start, ["ann"]))))
    other.start()
    other.join()
    equal(found[0], wanted)
