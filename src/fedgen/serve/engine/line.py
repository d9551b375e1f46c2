"""The queue: at most so many rows wait, and users take turns however much one of them asks."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

from fedgen.errors import BusyError, ServeError
from fedgen.serve.engine.wishes import Job


class Line:
    """Jobs that wait. No user has more than three quarters of the places, so there is room for another one."""

    def __init__(self, places: int) -> None:
        self.places, self.most = places, places - places // 4
        self._waiting: OrderedDict[str, deque[Job]] = OrderedDict()  # the next user's turn is the first one's
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, jobs: Sequence[Job], after: float) -> None:
        """All of one user's jobs, or none if they do not fit; `after` so many seconds it may be worth asking again."""
        user = jobs[0].user
        own = len(self._waiting.get(user, ()))
        if len(jobs) > self.most:
            raise ServeError(f"queue: {len(jobs)} rows are more than the {self.most} that one may have; ask for fewer")
        if own + len(jobs) > self.most or self._count + len(jobs) > self.places:
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
        """Take out all jobs that nobody wants any more. Each is judged once: time goes on, and so does who leaves."""
        kept: OrderedDict[str, deque[Job]] = OrderedDict()
        dropped = []
        for user, own in self._waiting.items():
            for job in own:
                if wanted(job):
                    kept.setdefault(user, deque()).append(job)
                else:
                    dropped.append(job)
        self._waiting = kept
        self._count -= len(dropped)
        return dropped


def on_time(job: Job) -> bool:
    """Whether somebody still waits for it."""
    return not job.gone and time.monotonic() <= job.deadline
