import pytest

from fedgen.errors import BusyError, ServeError
from fedgen.serve.engine.line import Line
from fedgen.serve.engine.wishes import Job, Write


def job(user: str, **more: float) -> Job:
    return Job(Write("x"), [], lambda event: None, user, **more)


def test_users_take_turns() -> None:
    line = Line(100)
    line.put([job("ann") for _ in range(5)], 1)
    line.put([job("bob") for _ in range(2)], 1)
    line.put([job("cleo")], 1)
    taken = [line.take() for _ in range(9)]
    assert [one.user for one in taken if one] == ["ann", "bob", "cleo", "ann", "bob", "ann", "ann", "ann"]
    assert taken[-1] is None
    assert len(line) == 0


def test_one_users_jobs_keep_their_order() -> None:
    line, jobs = Line(8), [job("ann") for _ in range(3)]
    line.put(jobs, 1)
    assert [line.take() for _ in range(3)] == jobs


def test_all_or_none() -> None:
    line = Line(4)
    line.put([job("ann"), job("ann"), job("ann")], 1)
    with pytest.raises(BusyError, match="3 of 4 places are taken, 0 of them yours, and 2 more do not fit") as told:
        line.put([job("bob"), job("bob")], 7.0)
    assert told.value.after == 7.0
    assert len(line) == 3
    line.put([job("bob")], 1)
    assert len(line) == 4


def test_nobody_has_more_than_three_quarters() -> None:
    line = Line(8)
    line.put([job("ann")] * 6, 1)
    with pytest.raises(BusyError, match="6 of them yours"):
        line.put([job("ann")], 1)
    line.put([job("bob"), job("bob")], 1)
    assert len(line) == 8


def test_what_never_fits_is_no_matter_of_waiting() -> None:
    with pytest.raises(ServeError, match="7 rows are more than the 6 that one may have; ask for fewer") as told:
        Line(8).put([job("ann")] * 7, 1)
    assert not isinstance(told.value, BusyError)


def test_a_job_given_back_is_next() -> None:
    line, first = Line(8), job("ann")
    line.put([first, job("ann")], 1)
    line.put([job("bob")], 1)
    assert line.take() is first
    line.give_back(first)
    assert len(line) == 3
    assert line.take() is first


def test_the_unwanted_are_dropped_and_their_places_are_free() -> None:
    line = Line(4)
    gone, stays = job("ann"), job("bob")
    line.put([gone], 1)
    line.put([stays], 1)
    assert line.drop(lambda one: one is not gone) == [gone]
    assert len(line) == 1
    assert line.take() is stays
    assert line.take() is None


def test_a_job_is_judged_once() -> None:
    line, jobs = Line(8), [job("ann") for _ in range(4)]
    line.put(jobs, 1)
    changing = iter([True, False] * 4)
    dropped = line.drop(lambda one: next(changing))
    kept = list(iter(line.take, None))
    assert sorted([*dropped, *kept], key=jobs.index) == jobs
    assert len(dropped) == 2
