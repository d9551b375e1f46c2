"""Users over HTTP: a real server in a process of its own, and threads that ask it and watch the clock."""

import http.client
import itertools
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fedgen

EXAMPLE = Path(__file__).parents[1] / "examples" / "first.toml"
PROMPT = "def read(path, encoding):\n    "
USERS, ASKED, TOKENS = (1, 8, 32), 48, 32
QUEUE, TIMES, SECONDS = 16, 4, 60.0
GROWTH, SLOWER = 1.05, 2.0  # of memory while it lasts, and of the first token afterwards: more is a fault


@dataclass
class Seen:
    """What the users of one crowd saw."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    tokens: int = 0


@contextmanager
def serving(run: Path, *more: str) -> Iterator[tuple[int, int]]:
    """A server of this run in its own process: its port and its process."""
    command = [sys.executable, "-m", "fedgen", "serve", str(run), "--port", "0", *more]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout
    try:
        for line in server.stdout:
            if found := re.search(r"http://127\.0\.0\.1:(\d+)", line):
                break
        else:
            raise SystemExit(f"the server did not start: exit {server.wait()}")
        threading.Thread(target=server.stdout.read, daemon=True).start()  # it must not wait for a reader
        until_ready(int(found[1]))
        yield int(found[1]), server.pid
    finally:
        server.send_signal(signal.SIGTERM)
        if server.wait(60):
            raise SystemExit(f"the server ended with {server.returncode}")


def until_ready(port: int) -> None:
    """Wait until it answers."""
    for _ in range(600):
        try:
            link = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            link.request("GET", "/ready")
            if link.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit("the server was not ready within a minute")


@contextmanager
def trained() -> Iterator[Path]:
    """A small run with adapters to ask under."""
    with tempfile.TemporaryDirectory() as folder:
        yield fedgen.run(EXAMPLE, Path(folder) / "first").folder


def ask(port: int, body: dict[str, Any], seen: Seen) -> None:
    """One streamed answer, and when its tokens came."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        began = time.perf_counter()
        link.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = link.getresponse()
        if answer.status != 200:
            seen.answers[str(answer.status)] += 1
            answer.read()
            time.sleep(0.05)  # a user who has been told to come again does so, but sooner than asked
            return
        times = [time.perf_counter() for line in answer if line.startswith(b"data: {") and b'"text": ""' not in line]
        seen.first.append(times[0] - began)
        seen.between += [after - before for before, after in itertools.pairwise(times)]
        seen.tokens += len(times)
        seen.answers["200"] += 1
    except (OSError, http.client.HTTPException, IndexError) as error:
        seen.answers[type(error).__name__] += 1
    finally:
        link.close()


def crowd(port: int, models: Sequence[str], users: int, more: Callable[[int], bool]) -> tuple[Seen, float]:
    """So many users who ask again as soon as they are answered, while there is `more`."""
    count, lock, seen = iter(range(1 << 30)), threading.Lock(), [Seen() for _ in range(users)]

    def user(at: int) -> None:
        while True:
            with lock:
                turn = next(count)
            if not more(turn):
                return
            body = {
                "model": models[turn % len(models)],
                "prompt": f"{PROMPT}# {turn}\n",
                "max_tokens": TOKENS,
                "seed": turn,
            }
            ask(port, body | {"stream": True}, seen[at])

    began = time.perf_counter()
    threads = [threading.Thread(target=user, args=[at]) for at in range(users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = Seen()
    for one in seen:
        whole.first += one.first
        whole.between += one.between
        whole.answers += one.answers
        whole.tokens += one.tokens
    return whole, time.perf_counter() - began


def milliseconds(times: Sequence[float]) -> dict[str, float]:
    """The median and the 95th percentile."""
    cuts = statistics.quantiles(times, n=100)
    return {"p50": round(1000 * cuts[49], 1), "p95": round(1000 * cuts[94], 1)}


def told(seen: Seen, seconds: float) -> dict[str, Any]:
    """What a crowd saw, as numbers."""
    return {
        "answers": dict(seen.answers),
        "tokens_a_second": round(seen.tokens / seconds, 1),
        "to_first_token_ms": milliseconds(seen.first),
        "between_tokens_ms": milliseconds(seen.between),
    }


def http_crowds(quick: bool) -> dict[str, Any]:
    """1, 8 and 32 users, each under an adapter of their choice; no request may be lost."""
    found: dict[str, Any] = {"tokens": TOKENS, "requests": ASKED}
    asked = 8 if quick else ASKED
    with trained() as run, serving(run) as (port, _):
        crowd(port, ["global"], 4, lambda turn: turn < 8)
        for users in USERS:
            turns = range(max(asked, 3 * users))
            seen, seconds = crowd(port, ["global", "backbone"], users, turns.__contains__)
            if set(seen.answers) != {"200"}:
                raise SystemExit(f"{users} users: requests were lost: {seen.answers}")
            found[f"{users} users"] = told(seen, seconds)
    return found


def overload(quick: bool) -> dict[str, Any]:
    """Four times as many users as the queue has places, for a minute; then one user again."""
    seconds = 5.0 if quick else SECONDS
    with trained() as run, serving(run, "--queue", str(QUEUE)) as (port, process):
        crowd(port, ["global"], 4, lambda turn: turn < 8)
        before, _ = crowd(port, ["global"], 1, lambda turn: turn < 12)
        memory = [resident(process)]
        end = time.monotonic() + seconds
        watch = threading.Thread(target=lambda: watched(process, memory, end))
        watch.start()
        seen, took = crowd(port, ["global", "backbone"], TIMES * QUEUE, lambda turn: time.monotonic() < end)
        watch.join()
        after, _ = crowd(port, ["global"], 1, lambda turn: turn < 12)
    if set(seen.answers) - {"200", "429"} or after.answers != Counter({"200": 12}):
        raise SystemExit(f"overload: something broke: {seen.answers}, afterwards {after.answers}")
    early, late = max(memory[: max(2, len(memory) // 3)]), memory[-1]
    if not quick and late > GROWTH * early:
        raise SystemExit(f"overload: memory grew from {early / 1e6:.0f} to {late / 1e6:.0f} MB while it lasted")
    if statistics.median(after.first) > SLOWER * statistics.median(before.first):
        raise SystemExit(f"overload: slow afterwards: {milliseconds(before.first)}, then {milliseconds(after.first)}")
    return {
        "users": TIMES * QUEUE, "queue": QUEUE, "seconds": round(took), **told(seen, took),
        "memory_mb": [round(size / 1e6) for size in memory],
        "first_token_ms_before": milliseconds(before.first), "first_token_ms_after": milliseconds(after.first),
    }  # fmt: skip


def watched(process: int, memory: list[int], end: float) -> None:
    """The server's memory every few seconds."""
    while time.monotonic() < end:
        time.sleep(min(5.0, max(0.1, end - time.monotonic())))
        memory.append(resident(process))


def resident(process: int) -> int:
    """Bytes that a process holds."""
    status = Path(f"/proc/{process}/status").read_text()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]
