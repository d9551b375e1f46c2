"""Between an engine's thread and a coroutine: nothing is lost, and who goes, or stops reading, is seen."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from fedgen.errors import BusyError, LateError, ServeError
from fedgen.serve.api import hearing
from fedgen.serve.api.hearing import Heard, Hearing, LeftError, begun, whole
from fedgen.serve.api.metrics import Metrics
from fedgen.serve.engine.wishes import Broken, Ended, Event, Job, Piece, Write
from fedgen.serve.house import House

Tell = Callable[[Event], None]


def heard_of(rows: int) -> tuple[Hearing, list[Job]]:
    made = Hearing(Metrics(House({})), "text")
    made.jobs = [Job(Write("a"), [], made.ear(at)) for at in range(rows)]
    return made, list(made.jobs)


async def stays() -> Mapping[str, Any]:
    await asyncio.sleep(60)
    return {"type": "http.request"}


async def goes() -> Mapping[str, Any]:
    await asyncio.sleep(0.02)
    return {"type": "http.disconnect"}


async def said(heard: list[Heard]) -> bytes:
    return " ".join(event.text if isinstance(event, Piece) else type(event).__name__ for _, event in heard).encode()


async def parts_of(made: Hearing) -> list[bytes]:
    stream = await begun(made, stays, said, b"end")
    return [part async for part in stream.parts]


def test_all_that_a_thread_tells_is_heard_in_order() -> None:
    async def main() -> list[Heard]:
        made, jobs = heard_of(3)

        def tell() -> None:
            for number in range(2000):
                jobs[number % 3].tell(Piece(str(number)))
            for job in jobs:
                job.ended("length")

        thread = threading.Thread(target=tell)
        thread.start()
        found = await whole(made, stays)
        thread.join()
        return found

    found = asyncio.run(main())
    texts = [event.text for _, event in found if isinstance(event, Piece)]
    assert texts == [str(number) for number in range(2000)]
    assert [at for at, event in found if isinstance(event, Ended)] == [0, 1, 2]


def test_a_slow_listener_hears_more_at_once() -> None:
    async def main() -> list[bytes]:
        made, (job,) = heard_of(1)
        job.tell(Piece("a"))
        stream = await begun(made, stays, said, b"end")
        found = [await anext(stream.parts)]
        for text in "bcd":
            job.tell(Piece(text))
        job.ended("stop")
        return found + [part async for part in stream.parts]

    assert asyncio.run(main()) == [b"a", b"b c d Ended", b"end"]


def test_a_silent_stream_says_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "ALIVE", 0.05)

    async def main() -> list[bytes]:
        made, (job,) = heard_of(1)
        asyncio.get_running_loop().call_later(0.12, job.ended, "stop")
        return await parts_of(made)

    *still, last, end = asyncio.run(main())
    assert (last, end) == (b"Ended", b"end")
    assert set(still) == {b": still there\n\n"}
    assert len(still) == 2


@pytest.mark.parametrize("how", [whole, lambda made, receive: begun(made, receive, said)], ids=["whole", "stream"])
def test_what_is_broken_is_raised_and_the_other_rows_are_let_go(how: Callable[..., Awaitable[object]]) -> None:
    async def main() -> list[Job]:
        made, jobs = heard_of(2)
        jobs[1].tell(Broken(BusyError("too much", 3)))
        with pytest.raises(BusyError, match="too much"):
            await how(made, stays)
        return jobs

    assert [job.gone for job in asyncio.run(main())] == [True, True]


@pytest.mark.parametrize("how", [whole, lambda made, receive: begun(made, receive, said)], ids=["whole", "stream"])
def test_who_goes_is_seen_while_nothing_is_said(how: Callable[..., Awaitable[object]]) -> None:
    async def main() -> list[Job]:
        made, jobs = heard_of(2)
        with pytest.raises(LeftError):
            await how(made, goes)
        return jobs

    assert [job.gone for job in asyncio.run(main())] == [True, True]


def test_what_breaks_a_stream_that_began_is_its_last_event() -> None:
    async def main() -> tuple[list[bytes], bool]:
        made, (job,) = heard_of(1)
        job.tell(Piece("a"))
        stream = await begun(made, stays, said, b"end")
        found = [await anext(stream.parts)]
        job.tell(Broken(ServeError("no more")))
        return found + [part async for part in stream.parts], job.gone

    (first, last), gone = asyncio.run(main())
    assert first == b"a"
    assert last.startswith(b'event: error\ndata: {"error":{"message":"no more"')
    assert gone


def test_who_reads_nothing_for_long_loses_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing, "STALLED", 0.05)

    async def main() -> bool:
        made, (job,) = heard_of(1)
        job.tell(Piece("a"))
        await asyncio.sleep(0.1)
        assert not job.gone
        job.tell(Piece("b"))
        with pytest.raises(LateError, match="was not read for"):
            await made.some()
        return job.gone

    assert asyncio.run(main())


def test_whatever_goes_wrong_after_rows_were_queued_lets_them_go() -> None:
    async def main() -> list[Job]:
        made, jobs = heard_of(2)
        with pytest.raises(ZeroDivisionError), made:
            1 / 0  # noqa: B018
        return jobs

    assert [job.gone for job in asyncio.run(main())] == [True, True]


def test_a_row_may_tell_when_the_server_has_ended() -> None:
    async def main() -> Job:
        return heard_of(1)[1][0]

    asyncio.run(main()).ended("stop")
