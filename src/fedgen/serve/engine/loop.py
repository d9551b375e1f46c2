"""One thread that works a batch: rows join from the queue, take a step together, and leave when they are done."""

import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

import torch

from fedgen.errors import BusyError, ClosedError, FedgenError, LateError
from fedgen.serve.engine.line import Line, on_time
from fedgen.serve.engine.wishes import Broken, Draw, Job, Write

T = TypeVar("T")
LOG = logging.getLogger(__name__)
SOME = 0.1  # of the mean so far is the newest row's time


class Batch(Protocol):
    """Rows that share each pass. All but `check` is called by one thread."""

    @property
    def nbytes(self) -> int:
        """What its rows and caches may take in memory."""

    def check(self, wish: Write | Draw) -> None:
        """Refuse what can never be answered."""

    def room(self) -> int:
        """How many rows may join now."""

    def join(self, job: Job) -> None:
        """Take a row in; BusyError if it must wait until another one leaves."""

    def leave(self, job: Job) -> None:
        """Free a row that nobody waits for; nothing is told."""

    def step(self) -> list[Job]:
        """One token, or one step of denoising, of every row: tells each job, and gives those that are over and out."""

    def __len__(self) -> int:
        """How many rows are at work."""


class Engine:
    """A batch, its queue and its thread. All rows of a question get into the queue, or none."""

    def __init__(self, batch: Batch, places: int, bare: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        self.batch = batch
        self._line = Line(places)
        self._bare = bare
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._change = threading.Condition()
        self._at_work: list[Job] = []
        self._open = True
        self._stop_at = math.inf
        self._mean = 1.0  # seconds a row has taken of late
        self._thread = threading.Thread(target=self._work, name=f"fedgen {type(batch).__name__}", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread is at work."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return len(self._line)

    @property
    def running(self) -> int:
        """Rows at work."""
        return len(self._at_work)

    @property
    def distinct(self) -> int:
        """Different adapters among the rows at work."""
        return len({adapter for job in tuple(self._at_work) for _, mixed in job.under for adapter in mixed})

    def put(self, jobs: Sequence[Job]) -> None:
        """Ask for one user's rows, all of them or none; what can never be answered is refused at once."""
        for job in jobs:
            self.batch.check(job.wish)
        with self._change:
            if not self._open:
                raise ClosedError("the server is stopping and takes no more questions; ask it when it is back")
            rows = max(1, len(self._at_work) + self.batch.room())
            self._line.put(jobs, max(1.0, math.ceil(len(self._line) / rows * self._mean)))
            self._change.notify()

    def call(self, act: Callable[[], T]) -> "Future[T]":
        """Have the thread do something with the bare backbone between two steps."""
        done: Future[T] = Future()
        with self._change:
            if not self._open:
                raise ClosedError("the server is stopping and takes no more questions; ask it when it is back")
            self._calls.put((act, done))
            self._change.notify()
        return done

    def close(self, patience: float = 0.0) -> None:
        """Take nothing more, tell those who wait, let rows at work finish for so many seconds, and stop."""
        with self._change:
            self._open = False
            self._stop_at = time.monotonic() + patience
            self._change.notify()
        if self._thread.is_alive():
            self._thread.join()

    # ---- the thread

    def _work(self) -> None:
        try:
            with torch.no_grad():
                while self._wait():
                    while not self._calls.empty():
                        self._answer(*self._calls.get())
                    self._sweep()
                    self._admit()
                    self._step()
        except Exception:
            LOG.exception("the engine of %s has died", type(self.batch).__name__)
            with self._change:
                self._open = False
                left = [*self._line.drop(lambda job: False), *self._at_work]
            failed = ClosedError("the engine has failed; the server has to be started again")
            for job in left:
                job.tell(Broken(failed))
            while not self._calls.empty():
                _, done = self._calls.get()
                if done.set_running_or_notify_cancel():
                    done.set_exception(failed)

    def _answer(self, act: Callable[[], Any], done: "Future[Any]") -> None:
        if not done.set_running_or_notify_cancel():  # nobody waits for it
            return
        try:
            with self._bare():
                done.set_result(act())
        except Exception as error:  # noqa: BLE001  whatever it is, it belongs to who called
            done.set_exception(error)

    def _wait(self) -> bool:
        """Sleep until there is something to do; False at the end."""
        with self._change:
            while self._open and not self._line and not self._at_work and self._calls.empty():
                self._change.wait()
            return self._open or bool(self._at_work) or bool(self._line) or not self._calls.empty()

    def _sweep(self) -> None:
        """Let those go whom nobody waits for, or whose time is over."""
        with self._change:
            dropped = self._line.drop(lambda job: self._open and on_time(job))
        for job in dropped:
            self._refuse(job)
        over = [job for job in self._at_work if not on_time(job) or time.monotonic() > self._stop_at]
        for job in over:
            self._out(job)
            self._refuse(job)

    def _refuse(self, job: Job) -> None:
        waited = time.monotonic() - job.asked
        if time.monotonic() > job.deadline:
            job.tell(Broken(LateError(f"not done within its deadline, {waited:.1f} s after it was asked")))
        elif not job.gone:
            job.tell(Broken(ClosedError("the server is stopping; ask it again when it is back")))

    def _out(self, job: Job) -> None:
        self.batch.leave(job)
        self._at_work.remove(job)

    def _break(self, job: Job, error: Exception) -> None:
        if not isinstance(error, FedgenError):
            LOG.error("a row of %s failed", type(self.batch).__name__, exc_info=error)
        job.tell(Broken(error))

    def _admit(self) -> None:
        while self.batch.room() > 0:
            with self._change:
                job = self._line.take()
            if job is None:
                return
            job.began = time.monotonic()
            try:
                self.batch.join(job)
            except BusyError as error:
                if self._at_work:  # one of these will make room
                    with self._change:
                        self._line.give_back(job)
                    return
                job.tell(Broken(error))
            except Exception as error:  # noqa: BLE001  one row's trouble is not the others'
                self._break(job, error)
            else:
                self._at_work.append(job)

    def _step(self) -> None:
        if not self._at_work:
            return
        try:
            over = self.batch.step()
        except Exception as error:  # noqa: BLE001  the rows are lost, the server is not
            for job in list(self._at_work):
                self._out(job)
                self._break(job, error)
            return
        for job in over:
            self._at_work.remove(job)
            self._mean += SOME * (time.monotonic() - job.began - self._mean)
