"""The engine's thread, over a batch that counts instead of writing."""

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from fedgen.errors import BusyError, ClosedError, LateError, ServeError
from fedgen.serve.engine.loop import Engine
from fedgen.serve.engine.wishes import Broken, Draw, Ended, Event, Job, Piece, Write

WAIT = 20.0


class Counting:
    """A batch whose rows say a number a step, as many as they were asked for. Steps wait for `go`."""

    def __init__(self, rows: int = 2) -> None:
        self.rows, self.at_work, self.go = rows, {}, threading.Event()
        self.left: list[Job] = []
        self.most, self.broken, self.full = 0, False, False
        self.go.set()

    def check(self, wish: Write | Draw) -> None:
        if isinstance(wish, Write) and wish.tokens > 1000:
            raise ServeError("too many")

    def room(self) -> int:
        return self.rows - len(self.at_work)

    def join(self, job: Job) -> None:
        if self.full and self.at_work:
            raise BusyError("no slot", 1)
        if job.user == "odd":
            raise ServeError("cannot be held")
        self.at_work[job] = 0
        self.most = max(self.most, len(self.at_work))

    def leave(self, job: Job) -> None:
        del self.at_work[job]
        self.left.append(job)

    def step(self) -> list[Job]:
        assert self.go.wait(WAIT)
        time.sleep(0.001)
        if self.broken:
            self.broken = False
            raise ZeroDivisionError
        for job in self.at_work:
            self.at_work[job] += 1
            job.tell(Piece(str(self.at_work[job])))
        over = [job for job, made in self.at_work.items() if isinstance(job.wish, Write) and made >= job.wish.tokens]
        for job in over:
            del self.at_work[job]
            job.ended("length")
        return over

    def __len__(self) -> int:
        return len(self.at_work)


class Ear:
    """Hears one row."""

    def __init__(self) -> None:
        self.heard: list[Event] = []
        self.over = threading.Event()

    def __call__(self, event: Event) -> None:
        self.heard.append(event)
        if isinstance(event, Ended | Broken):
            self.over.set()

    @property
    def end(self) -> Event:
        assert self.over.wait(WAIT), "nothing ended"
        return self.heard[-1]

    @property
    def error(self) -> Exception:
        assert isinstance(self.end, Broken)
        return self.end.error


@pytest.fixture
def batch() -> Counting:
    return Counting()


@pytest.fixture
def engine(batch: Counting) -> Iterator[Engine]:
    engine = Engine(batch, 8, contextlib.nullcontext)
    engine.start()
    yield engine
    batch.go.set()
    engine.close()


def job(ear: Ear, tokens: int = 3, user: str = "ann", **more: float) -> Job:
    return Job(Write("x", tokens=tokens), [], ear, user, **more)


def until(true: object) -> None:
    end = time.monotonic() + WAIT
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, "it never came"
        time.sleep(0.002)


def test_rows_join_leave_and_all_are_told(engine: Engine, batch: Counting) -> None:
    ears = [Ear() for _ in range(6)]
    engine.put([job(ear, tokens=at + 1) for at, ear in enumerate(ears)])
    for at, ear in enumerate(ears):
        assert isinstance(ear.end, Ended)
        assert [event.text for event in ear.heard[:-1] if isinstance(event, Piece)] == [
            str(n + 1) for n in range(at + 1)
        ]
        assert ear.end.seconds >= ear.end.waited >= 0
    assert batch.most == 2
    until(lambda: engine.running == engine.waiting == 0)


def test_what_can_never_be_answered_is_refused_before_it_waits(engine: Engine) -> None:
    with pytest.raises(ServeError, match="too many"):
        engine.put([job(Ear()), job(Ear(), tokens=2000)])
    assert engine.waiting == 0


def test_a_full_queue_says_when_to_ask_again(engine: Engine, batch: Counting) -> None:
    batch.go.clear()
    first = [Ear() for _ in range(2)]
    engine.put([job(ear) for ear in first])
    until(lambda: engine.running == 2)
    engine.put([job(Ear(), user="bob") for _ in range(6)])
    engine.put([job(Ear(), user="dan") for _ in range(2)])
    with pytest.raises(BusyError) as told:
        engine.put([job(Ear(), user="cleo")])
    assert told.value.after >= 1


def test_one_that_has_left_frees_its_row_and_hears_nothing_more(engine: Engine, batch: Counting) -> None:
    ear = Ear()
    endless = job(ear, tokens=900)
    engine.put([endless])
    until(lambda: len(ear.heard) > 2)
    endless.gone = True
    until(lambda: engine.running == 0)
    heard = len(ear.heard)
    assert batch.left == [endless]
    assert not ear.over.is_set()
    time.sleep(0.02)
    assert len(ear.heard) == heard


def test_a_deadline_ends_rows_at_work_and_in_the_queue(engine: Engine) -> None:
    ears = [Ear() for _ in range(4)]
    soon = time.monotonic() + 0.1
    engine.put([job(ear, tokens=900, deadline=soon) for ear in ears])
    assert all(isinstance(ear.error, LateError) for ear in ears)
    assert "not done within its deadline" in str(ears[0].error)


def test_one_rows_trouble_is_not_the_others(engine: Engine) -> None:
    odd, sound = Ear(), Ear()
    engine.put([job(odd, user="odd")])
    engine.put([job(sound)])
    assert str(odd.error) == "cannot be held"
    assert isinstance(sound.end, Ended)


def test_a_step_that_fails_loses_its_rows_and_not_the_server(
    engine: Engine, batch: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    batch.go.clear()
    lost, later = Ear(), Ear()
    engine.put([job(lost)])
    until(lambda: engine.running == 1)
    batch.broken = True
    batch.go.set()
    assert isinstance(lost.error, ZeroDivisionError)
    assert "a row of Counting failed" in caplog.text
    engine.put([job(later)])
    assert isinstance(later.end, Ended)


def test_a_row_that_finds_no_slot_waits_for_one(engine: Engine, batch: Counting) -> None:
    batch.full = True
    ears = [Ear() for _ in range(3)]
    engine.put([job(ear) for ear in ears])
    assert all(isinstance(ear.end, Ended) for ear in ears)
    assert batch.most == 1


def test_calls_run_between_steps_and_bring_back_errors(engine: Engine) -> None:
    assert engine.call(lambda: threading.current_thread().name).result(WAIT) == "fedgen Counting"
    with pytest.raises(ZeroDivisionError):
        engine.call(lambda: 1 // 0).result(WAIT)


def test_closing_finishes_rows_at_work_and_tells_those_that_wait(batch: Counting) -> None:
    engine = Engine(batch, 8, contextlib.nullcontext)
    engine.start()
    batch.go.clear()
    working, waiting = [Ear(), Ear()], Ear()
    engine.put([job(ear, tokens=20) for ear in working])
    until(lambda: engine.running == 2)
    engine.put([job(waiting)])
    threading.Timer(0.05, batch.go.set).start()
    engine.close(patience=WAIT)
    assert all(isinstance(ear.end, Ended) and len(ear.heard) == 21 for ear in working)
    assert isinstance(waiting.error, ClosedError)
    with pytest.raises(ClosedError, match="is stopping"):
        engine.put([job(Ear())])
    with pytest.raises(ClosedError):
        engine.call(lambda: 1)


def test_closing_without_patience_tells_rows_at_work(batch: Counting) -> None:
    engine, ear = Engine(batch, 8, contextlib.nullcontext), Ear()
    engine.start()
    engine.put([job(ear, tokens=900)])
    until(lambda: engine.running == 1)
    engine.close()
    assert isinstance(ear.error, ClosedError)


def test_an_engine_that_dies_tells_everybody_and_is_not_alive(
    engine: Engine, batch: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    batch.go.clear()
    working, waiting = [Ear(), Ear()], Ear()
    rows = [job(ear) for ear in working]
    engine.put(rows)
    until(lambda: engine.running == 2)
    engine.put([job(waiting)])
    called = engine.call(lambda: 1)
    batch.broken = True
    del batch.at_work[rows[0]]  # so that letting it go fails as well
    assert engine.alive
    batch.go.set()
    assert isinstance(waiting.error, ClosedError)
    assert all(isinstance(ear.end, Broken) for ear in working)
    until(lambda: not engine.alive)
    assert "has died" in caplog.text
    with pytest.raises(ClosedError):
        called.result(WAIT)
    with pytest.raises(ClosedError):
        engine.put([job(Ear())])
