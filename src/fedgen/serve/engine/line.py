"""The queue: at most so many rows wait, and users take turns however much one of them asks."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence

from fedgen.errors import BusyError
from fedgen.serve.engine.wishes import Job


class Line:
    """Jobs that wait. A quarter of the places is kept for users who have nothing waiting yet."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # the next user's turn is the first one's
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, jobs: Sequence[Job], after: float) -> None:
        """All of one user's jobs, or none if they do not fit; `after` so many seconds it may be worth asking again."""
        user = jobs[0].user
        own = len(self._waiting.get(user, ()))
        room = self.places - self._count - (self.places // 4 if own else 0)
        if len(jobs) > room:
            said = f"queue: {self._count} of {self.places} places are taken, {own} of them yours, and {len(jobs)} more"
            raise BusyError(f"{said} do not fit; ask again in {after:.0f} s", after)
        self._waiting.setdefault(user, deque()).extend(jobs)
        self._count += len(jobs)

    def take(self) -> Job | None:
        """The first job of the user whose turn it is."""
        if not self._waiting:
            return None
        user, own = self._waiting.popitem(last=False)
        job = own.popleft()
        if own:
            self._waiting[user] = own  # behind all others
        self._count -= 1
        return job

    def give_back(self, job: Job) -> None:
        """Put a job that could not begin yet before all others."""
        self._waiting.setdefault(job.user, deque()).appendleft(job)
        self._waiting.move_to_end(job.user, last=False)
        self._count += 1

    def drop(self, wanted: Callable[[Job], bool]) -> list[Job]:
        """Take out all jobs that nobody wants any more."""
        dropped = [job for job in self._all() if not wanted(job)]
        if dropped:
            kept = {user: deque(filter(wanted, own)) for user, own in self._waiting.items()}
            self._waiting = OrderedDict((user, own) for user, own in kept.items() if own)
            self._count -= len(dropped)
        return dropped

    def _all(self) -> Iterator[Job]:
        return (job for own in self._waiting.values() for job in own)


def on_time(job: Job) -> bool:
    """Whether somebody still waits for it."""
    return not job.gone and time.monotonic() <= job.deadline
