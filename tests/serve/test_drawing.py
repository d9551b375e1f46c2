"""The batch of pictures: who may join, what is told on the way, what is held and let go. Twins compare the pictures."""

import contextlib
import math
import queue
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fedgen import Bank
from fedgen.backbones import DiffusionBackbone
from fedgen.errors import BackboneError, BusyError, DataError, FedgenError, ServeError
from fedgen.records import Document, Tree
from fedgen.serve.engine.drawing import REMEMBERED, Drawing, turn
from fedgen.serve.engine.loop import Batch, Engine
from fedgen.serve.engine.wishes import Broken, Draw, Drawn, Ended, Event, Job, Sketch, Write
from fedgen.serve.pool import BARE, Adapter, Course, Slots
from fedgen.store import Card
from fedgen.tree import digest

CAT = Document("", "", "a cat")
ALONE: Course = [(1.0, {BARE: 1.0})]


@pytest.fixture(scope="module")
def denoiser(denoisers: dict[str, DiffusionBackbone]) -> DiffusionBackbone:
    return denoisers["pixart"]


def adapter(batch: Drawing, seed: int, by: float = 0.3) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    fresh = batch.slots.bank.fresh(draw)
    tree: Tree = {key: value + by * torch.randn(value.shape, generator=draw) for key, value in fresh.items()}
    return Adapter(Card(kind="image", backbone="", hash=digest(tree), rank=2), lambda: tree)


@pytest.fixture
def slots(denoiser: DiffusionBackbone) -> Iterator[Slots]:
    with Bank(denoiser.network, denoiser.targets, 2, slots=2) as bank:
        yield Slots(bank)


@pytest.fixture
def batch(denoiser: DiffusionBackbone, slots: Slots) -> Drawing:
    return Drawing(denoiser, slots, rows=3)


def job(told: list[Event], wish: Draw | None = None, under: Course = ALONE) -> Job:
    return Job(wish or Draw(CAT, steps=4, guidance=1.0), under, told.append)


def finish(batch: Drawing) -> list[Job]:
    over: list[Job] = []
    while len(batch):
        over += batch.step()
    return over


def mounted(batch: Drawing) -> bool:
    """Whether the network carries any adapter."""
    lanes: Any = [module for module in batch.backbone.network.modules() if isinstance(module, torch.nn.Module)]
    return any(getattr(lane, "a", None) is not None for lane in lanes)


# ---- what can never be drawn

BAD: list[tuple[Draw | Write, type[FedgenError], str]] = [
    (Write("a cat"), ServeError, "draws pictures and writes no text; ask it for a picture"),
    (Draw(CAT, steps=0), ServeError, "^steps: wanted 1 to 1000, came 0$"),
    (Draw(CAT, steps=1001), ServeError, "^steps: wanted 1 to 1000, came 1001$"),
    (Draw(CAT, guidance=-0.1), ServeError, "^guidance: wanted 0 or more, and finite, came -0.1$"),
    (Draw(CAT, guidance=math.nan), ServeError, "^guidance: wanted 0 or more, and finite, came nan$"),
    (Draw(CAT, guidance=math.inf), ServeError, "^guidance: wanted 0 or more, and finite, came inf$"),
    (Draw(CAT, sketches=-1), ServeError, "^sketches: wanted 0 or more, came -1$"),
    (Draw(Document("", "", "a cat " * 40)), DataError, "wanted at most 16 tokens, came"),
    (Draw({"text": torch.zeros(1, 2, 3)}), BackboneError, "^sealed prompt: wanted finite .*; seal it for this"),
]


@pytest.mark.parametrize(("wish", "kind", "said"), BAD, ids=range(len(BAD)))
def test_what_can_never_be_drawn_is_refused(
    wish: Draw | Write, kind: type[FedgenError], said: str, batch: Drawing
) -> None:
    with pytest.raises(kind, match=said):
        batch.check(wish)
    batch.check(Draw(CAT, steps=1000, guidance=0.0, sketches=3))


def test_a_label_that_is_no_class_is_refused(denoisers: dict[str, DiffusionBackbone]) -> None:
    dit = denoisers["dit"]
    with Bank(dit.network, dit.targets, 2) as bank:
        batch = Drawing(dit, Slots(bank))
        batch.check(Draw(Document("", "", label="3")))
        with pytest.raises(DataError, match=r"^label 'cat': wanted the number of a class, 0 to 999"):
            batch.check(Draw(Document("", "", label="cat")))
        with pytest.raises(BackboneError, match="wanted finite a class, came"):
            batch.check(Draw(denoisers["pixart"].seal("a cat")))


# ---- joining and leaving


def test_it_is_a_batch(batch: Drawing) -> None:
    as_batch: Batch = batch
    assert (as_batch.room(), len(as_batch)) == (3, 0)
    jobs = [job([]) for _ in range(3)]
    for one in jobs:
        batch.join(one)
    assert (batch.room(), len(batch)) == (0, 3)
    batch.leave(jobs[1])
    assert (batch.room(), len(batch)) == (1, 2)
    assert finish(batch) == [jobs[0], jobs[2]]


def test_adapters_are_held_while_a_picture_is_drawn_and_nothing_is_carried_after(
    batch: Drawing,
) -> None:
    first, second, third = (adapter(batch, seed) for seed in range(3))
    told: list[Event] = []
    one = job(told, under=[(0.5, {first: 1.0}), (1.0, {first: 0.5, second: 0.5})])
    batch.join(one)
    with pytest.raises(BusyError, match="all 2 hold adapters that are in use"):
        batch.join(job([], under=[(1.0, {third: 1.0})]))
    assert (len(batch), batch.slots.loads) == (1, 2)
    batch.step()
    assert mounted(batch)
    assert finish(batch) == [one]
    assert not mounted(batch)
    batch.join(job([], under=[(1.0, {third: 1.0})]))
    assert (batch.slots.evictions, len(batch)) == (1, 1)


def test_one_who_cannot_begin_holds_nothing(batch: Drawing) -> None:
    held = adapter(batch, 1)
    for wish in (Draw(Document("", "", "a cat " * 40)), Draw(CAT, steps=0)):
        with pytest.raises(FedgenError):
            batch.join(job([], wish, [(1.0, {held: 1.0})]))
    assert len(batch) == 0
    for seed in (2, 3):  # which takes both slots
        batch.join(job([], under=[(1.0, {adapter(batch, seed): 1.0})]))
    assert (batch.slots.loads, batch.slots.evictions) == (3, 1)


def test_one_who_leaves_is_told_nothing_and_frees_its_adapter(batch: Drawing) -> None:
    told: list[Event] = []
    gone = job(told, under=[(1.0, {adapter(batch, 1): 0.5, adapter(batch, 2): 0.5})])
    batch.join(gone)
    batch.step()
    batch.leave(gone)
    assert told == []
    assert not mounted(batch)
    batch.join(job([], under=[(1.0, {adapter(batch, 3): 0.5, adapter(batch, 4): 0.5})]))
    assert batch.slots.evictions == 2


def test_adapters_are_gathered_when_rows_or_turns_change_and_not_at_each_step(
    batch: Drawing, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = adapter(batch, 1), adapter(batch, 2)
    gathered: list[int] = []
    gather = batch.slots.gather

    def counted(rows: Any) -> Any:
        gathered.append(len(rows))
        return gather(rows)

    monkeypatch.setattr(batch.slots, "gather", counted)
    batch.join(job([], Draw(CAT, 8, 1.0), [(0.5, {first: 1.0}), (1.0, {second: 1.0})]))
    batch.step()
    batch.step()
    batch.join(job([], Draw(CAT, 4, 3.0), [(1.0, {second: 1.0})]))
    assert gathered == [1]
    finish(batch)
    assert gathered == [1, 3, 3, 1]  # alone; a guided one joins; the first one's second turn; the guided one is done


# ---- what is told


@pytest.mark.parametrize(("steps", "sketches", "due"), [(8, 3, [2, 4, 6]), (8, 0, []), (3, 2, [1, 2]), (2, 3, [1, 1])])
def test_sketches_are_told_on_the_way(steps: int, sketches: int, due: list[int], batch: Drawing) -> None:
    told: list[Event] = []
    batch.join(job(told, Draw(CAT, steps, 2.0, sketches=sketches)))
    came: list[int] = []
    for step in range(1, steps + 1):
        before = len(told)
        batch.step()
        came += [step for event in told[before:] if isinstance(event, Sketch)]
    *on_the_way, drawn, ended = told
    assert came == sorted(set(due))
    assert [event.at for event in on_the_way if isinstance(event, Sketch)] == [due.index(step) for step in came]
    assert isinstance(drawn, Drawn)
    assert isinstance(ended, Ended)
    assert (ended.reason, ended.made) == ("stop", steps)
    assert drawn.picture.shape == batch.backbone.picture
    assert drawn.picture.dtype == torch.uint8


def test_the_last_sketch_is_near_to_the_picture_and_the_first_is_farther(batch: Drawing) -> None:
    told: list[Event] = []
    batch.join(job(told, Draw(CAT, 20, 1.0, sketches=3)))
    finish(batch)
    pictures: list[Tensor] = [event.picture.float() for event in told if isinstance(event, Sketch | Drawn)]
    far = [float((picture - pictures[-1]).square().mean()) for picture in pictures[:-1]]
    assert len(far) == 3
    assert far[2] < far[0]


def test_a_prompt_is_read_once_while_it_is_remembered(batch: Drawing, denoiser: DiffusionBackbone) -> None:
    read: list[int] = []
    condition: Any = denoiser.condition
    hook = condition.encoder.register_forward_hook(lambda *_: read.append(1))
    try:
        batch.check(Draw(CAT))
        batch.join(job([], Draw(Document("", "", "b"), 1, 1.0)))
        read.clear()
        for prompt in ("a cat", "a cat", "a dog", "a cat"):
            batch.join(job([], Draw(Document("", "", prompt), 1, 1.0)))
            finish(batch)
        assert len(read) == 2
        for at in range(REMEMBERED):
            batch.join(job([], Draw(Document("", "", f"b{at}"), 1, 1.0)))
            finish(batch)
        read.clear()
        batch.join(job([], Draw(CAT, 1, 1.0)))
        assert len(read) == 1
    finally:
        hook.remove()


def test_nobody_can_tell_by_the_time_what_another_has_asked(batch: Drawing, denoiser: DiffusionBackbone) -> None:
    read: list[int] = []
    condition: Any = denoiser.condition
    with contextlib.ExitStack() as undo:
        undo.callback(condition.encoder.register_forward_hook(lambda *_: read.append(1)).remove)
        for user in ("ann", "bob", "ann"):
            one = job([])
            one.user = user
            batch.join(one)
        assert len(read) == 2


def test_a_sealed_prompt_draws_what_the_plain_one_does(batch: Drawing, denoiser: DiffusionBackbone) -> None:
    plain, sealed, other = list[Event](), list[Event](), list[Event]()
    batch.join(job(plain, Draw(CAT, 4, 3.0)))
    batch.join(job(sealed, Draw(denoiser.seal("a cat"), 4, 3.0)))
    batch.join(job(other, Draw(denoiser.seal("a dog"), 4, 3.0)))
    finish(batch)
    first, second, third = (event[0].picture.int() for event in (plain, sealed, other) if isinstance(event[0], Drawn))
    assert (first - second).abs().max() <= 1
    assert (first - third).abs().max() > 1


def test_a_picture_that_its_vae_cannot_show_is_broken_alone(denoisers: dict[str, DiffusionBackbone]) -> None:
    stable = denoisers["stable"]
    told, fine = list[Event](), list[Event]()
    with Bank(stable.network, stable.targets, 2, slots=1) as bank:
        batch = Drawing(stable, Slots(bank))
        loud = adapter(batch, 1, by=1e3)
        batch.join(job(told, Draw(CAT, 4, 1e20, sketches=3), [(1.0, {loud: 1.0})]))
        batch.join(job(fine))
        finish(batch)
    assert [type(event) for event in fine] == [Drawn, Ended]
    assert isinstance(told[-1], Broken)
    assert isinstance(told[-1].error, BackboneError)


def test_no_memory_for_one_picture_is_its_own_trouble(denoisers: dict[str, DiffusionBackbone]) -> None:
    """The first is out when the second fails; the engine lives, and answers again."""
    stable, calls, ends = denoisers["stable"], list[int](), queue.SimpleQueue[Event]()

    def failing(*_: object) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("no memory")

    with Bank(stable.network, stable.targets, 2, slots=1) as bank:
        engine = Engine(Drawing(stable, Slots(bank)), 8, bank.bare)
        hook = stable.vae.decoder.register_forward_pre_hook(failing)
        try:
            engine.start()
            engine.put([Job(Draw(CAT, 2, 1.0, seed), ALONE, ends.put) for seed in range(3)])
            came = [ends.get(timeout=60) for _ in range(5)]
            engine.put([Job(Draw(CAT, 2, 1.0), ALONE, ends.put)])
            again = [ends.get(timeout=60) for _ in range(2)]
        finally:
            hook.remove()
            engine.close()
    assert [type(event) for event in came] == [Drawn, Ended, Broken, Drawn, Ended]
    assert [type(event) for event in again] == [Drawn, Ended]
    broken = came[2]
    assert isinstance(broken, Broken)
    assert str(broken.error) == "no memory"


def test_an_ear_that_fails_is_its_pictures_trouble_alone(batch: Drawing) -> None:
    def deaf(event: Event) -> None:
        raise OSError("nobody listens")

    told: list[Event] = []
    failing, fine = Job(Draw(CAT, 2, 1.0), ALONE, deaf), job(told, Draw(CAT, 2, 1.0))
    batch.join(failing)
    batch.join(fine)
    assert finish(batch) == [failing, fine]
    assert [type(event) for event in told] == [Drawn, Ended]


def test_who_is_out_already_stays_out(batch: Drawing) -> None:
    style = adapter(batch, 1)
    gone, other = (job([], under=[(1.0, {style: 1.0})]) for _ in range(2))
    for one in (gone, other):
        batch.join(one)
    batch.leave(gone)
    batch.leave(gone)
    assert len(batch) == 1
    finish(batch)  # under what it still holds


def test_whose_turn_it_is() -> None:
    course: Course = [(0.25, {}), (1.0, {BARE: 1.0})]
    assert [turn(course, share) for share in (0.0, 0.2, 0.25, 0.9, 1.0)] == [{}, {}, *[{BARE: 1.0}] * 3]


def test_it_works_in_the_engines_thread(batch: Drawing) -> None:
    engine, ends = Engine(batch, 8, batch.slots.bank.bare), queue.SimpleQueue[Event]()
    under: Course = [(1.0, {adapter(batch, 1): 1.0})]
    engine.start()
    engine.put([Job(Draw(CAT, 3, 2.0, seed), under, ends.put) for seed in range(5)])
    kinds = [type(ends.get(timeout=60)) for _ in range(10)]
    engine.close()
    assert (kinds.count(Drawn), kinds.count(Ended)) == (5, 5)
