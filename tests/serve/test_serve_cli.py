"""`fedgen serve` and `fedgen key` as a user starts them: real processes, signals and exit codes."""

import contextlib
import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from fedgen import Run
from fedgen.cli import app
from fedgen.errors import ServeError
from fedgen.serve.keys import Keys

WAIT = 90.0


@contextmanager
def serving(*words: str) -> Iterator[tuple["subprocess.Popen[str]", str, str]]:
    """The command in a process of its own: the process, its address and the key it made."""
    command = [sys.executable, "-m", "fedgen", "serve", *words, "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert server.stdout
    timer = threading.Timer(WAIT, server.kill)
    timer.start()
    try:
        said = ""
        for line in server.stdout:
            said += line
            if found := re.search(r"serving at (http://[\w.:]+)(?:/#key=(\S+))?", line):
                yield server, found[1], found[2] or ""
                break
        else:
            pytest.fail(f"the server said no address: {said}")
    finally:
        timer.cancel()
        server.kill()
        server.wait()
        server.stdout.close()


def stream(url: str, tokens: int, heard: list[str], **more: object) -> None:
    """Ask for a text and keep what comes."""
    body = {"model": "global", "prompt": "the harbour", "max_tokens": tokens, "temperature": 0.0, "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body | more, timeout=WAIT) as answer:
        heard.append(str(answer.status_code))
        heard += [line for line in answer.iter_lines() if line]


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_sigterm_finishes_rows_at_work_and_ends_with_0(text_run: Run) -> None:
    with serving(str(text_run.folder)) as (server, url, _):
        heard: list[str] = []
        asking = threading.Thread(target=stream, args=[url, 110, heard], kwargs={"n": 16})
        asking.start()
        until(lambda: len(heard) > 2)
        server.send_signal(signal.SIGTERM)
        assert server.stdout
        assert re.search(
            r"ending; \d+ rows? at work may finish, 30 s at most; again ends now", server.stdout.readline()
        )
        asking.join(WAIT)
        assert heard[0] == "200"
        assert heard[-1] == "data: [DONE]"
        told = [json.loads(line.removeprefix("data: ")) for line in heard[1:-1]]
        ends = [choice["finish_reason"] for one in told for choice in one["choices"] if choice["finish_reason"]]
        assert len(ends) == 16
        assert set(ends) <= {"length", "stop"}
        assert server.wait(WAIT) == 0


def test_ctrl_c_ends_with_0_where_nothing_is_at_work(text_run: Run) -> None:
    with serving(str(text_run.folder)) as (server, url, _):
        until(lambda: httpx.get(f"{url}/ready").status_code == 200)
        server.send_signal(signal.SIGINT)
        assert server.wait(WAIT) == 0


def test_a_second_signal_ends_at_once_and_says_no_more(text_run: Run) -> None:
    with serving(str(text_run.folder), "--texts", "1") as (server, url, _):
        heard: list[str] = []
        asking = threading.Thread(target=lambda: cut(url, heard))
        asking.start()
        until(lambda: len(heard) > 2)
        server.send_signal(signal.SIGINT)
        time.sleep(0.05)
        server.send_signal(signal.SIGINT)
        assert server.wait(WAIT) == 0
        asking.join(WAIT)
        assert server.stdout
        assert "Traceback" not in server.stdout.read()


def cut(url: str, heard: list[str]) -> None:
    """Ask for many texts, and be cut short."""
    with contextlib.suppress(httpx.HTTPError):
        stream(url, 110, heard, n=20)


def test_the_key_in_the_address_opens_what_belongs_to_somebody(text_run: Run) -> None:
    with serving(str(text_run.folder), "--hand", "ann") as (_, url, secret):
        names = [{model["id"] for model in httpx.get(f"{url}/v1/models", headers=heads).json()["data"]} for heads in (
            {}, {"Authorization": f"Bearer {secret}"}
        )]  # fmt: skip
        assert {name.partition("@")[0] for name in names[1] - names[0]} == {"user/ann"}
        assert httpx.post(f"{url}/v1/unload_lora_adapter", json={"lora_name": "global"}).status_code == 401


def test_a_server_for_others_wants_keys(text_run: Run) -> None:
    found = CliRunner().invoke(app, ["serve", str(text_run.folder), "--host", "0.0.0.0"])
    assert isinstance(found.exception, ServeError)
    assert "--host 0.0.0.0: others can reach it, and it wants --keys" in str(found.exception)


def test_a_key_in_a_file_is_for_its_owners_eyes_and_no_file_is_lost(tmp_path: Path) -> None:
    path, to = tmp_path / "keys.toml", tmp_path / "ann.key"
    words = ["key", str(path), "--user", "ann", "--to", str(to)]
    assert CliRunner().invoke(app, [*words, "--name", "ann"]).stdout == ""
    secret = to.read_text().strip()
    assert Keys.read(path).who(secret)
    assert to.stat().st_mode & 0o777 == 0o600
    again = CliRunner().invoke(app, [*words, "--name", "bob"])
    assert "is there already, and would be lost" in str(again.exception)
    assert to.read_text().strip() == secret
    assert len(Keys.read(path).known) == 1


def test_wrong_flags_are_told_before_anything_is_loaded(text_run: Run) -> None:
    flags = {
        "--hand": ("nobody", "client 'nobody' has no adapter"),
        "--adapters": ("nowhere", "wanted a folder, came none"),
    }
    for flag, (value, said) in flags.items():
        found = CliRunner().invoke(app, ["serve", str(text_run.folder), "--port", "0", flag, value])
        assert isinstance(found.exception, ServeError)
        assert said in str(found.exception)


def test_a_key_is_told_once_and_kept_as_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    secret = CliRunner().invoke(app, ["key", str(path), "--name", "ann", "--user", "ann"]).stdout.strip()
    who = Keys.read(path).who(secret)
    assert who
    assert (who.name, who.users, who.admin) == ("ann", {"ann"}, False)
    assert secret not in path.read_text()
    again = CliRunner().invoke(app, ["key", str(path), "--name", "ann"])
    assert isinstance(again.exception, ServeError)


def test_a_taken_port_is_said_in_one_line(text_run: Run) -> None:
    with serving(str(text_run.folder)) as (_, url, _):
        command = [sys.executable, "-m", "fedgen", "serve", str(text_run.folder), "--port", url.rpartition(":")[2]]
        found = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=False)
    assert found.returncode == 1
    assert "cannot be listened on (Address already in use); choose another --port" in found.stderr


def test_a_run_of_whole_models_is_refused_in_words(text_run: Run, tmp_path: Path) -> None:
    plan = text_run.folder / "plan.toml"
    (tmp_path / "plan.toml").write_text(plan.read_text().replace('of = "pairs"', 'of = "weights"'))
    found = CliRunner().invoke(app, ["serve", str(tmp_path)])
    assert isinstance(found.exception, ServeError)
    assert "trained whole models" in str(found.exception)
