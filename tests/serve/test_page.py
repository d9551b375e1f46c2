"""The page in a real Chromium, over a real server: what a hand does, what an eye sees, and what goes over the wire."""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

pytest.importorskip("websockets")
sys.path.insert(0, str(Path(__file__).parent))  # where the browser is

from browser import CTRL, FOUND, PATIENCE, SHIFT, Browser, Page

from fedgen import Run
from fedgen.roster import CLUSTERS
from fedgen.serve.api import LOOPBACK, Door, Server, listening
from fedgen.serve.house import Limits, open_house
from fedgen.serve.keys import Keys
from fedgen.serve.page import files

pytestmark = pytest.mark.skipif(not FOUND, reason="there is no Chromium to look at the page with")

READY = "document.getElementById('health')?.textContent === 'Ready'"
TEXT, PICTURES = "v1/completions", "v1/images/generations"
WIDTHS = {1280: 900, 390: 844}
EVIL = "<img src=x onerror=\"document.title='broken in'\">"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser.start(tmp_path_factory.mktemp("chromium")) as made:
        yield made


@pytest.fixture
def page(browser: Browser, server: SimpleNamespace) -> Iterator[Page]:
    """The page as ann opens it. Whatever a test does, nothing is asked of anybody else, and nothing goes wrong."""
    with browser.page() as page:
        enter(page, server.url, server.keys["ann"])
        yield page
        assert [url for url in page.requests if not url.startswith(f"{server.url}/")] == []
        assert page.errors == []


def enter(page: Page, url: str, key: str) -> None:
    """Open the page with a key in the address's fragment."""
    page.go(f"{url}/#key={key}")
    page.wait(READY)


def ended(page: Page, entries: int = 1) -> None:
    page.wait(f"document.querySelectorAll('.entry.over').length === {entries}")


def run(page: Page, entries: int = 1) -> dict[str, Any]:
    """Ask, wait for the answer, and say what was asked."""
    page.press("Enter", CTRL)
    ended(page, entries)
    assert page.text(".entry:first-of-type .wrong") == ""
    return page.bodies[-1]


def pictures(page: Page) -> None:
    """Turn from text to pictures."""
    page.click("#runs label:nth-of-type(2)")
    page.wait("!document.getElementById('steps').disabled")
    page.fill("#steps", "3")


def texts(page: Page, selector: str) -> list[str]:
    """The text of every element of a kind, as it stands in the page."""
    return page.js(f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.textContent)")


def shown(page: Page) -> list[str]:
    """Every picture of the page, in base64."""
    return page.js("[...document.querySelectorAll('.picture img')].map((one) => one.src.split(',')[1])")


def seeded(page: Page) -> None:
    """Ask from one seed, again and again."""
    page.fill("#seed", "7")
    page.click("#lock")


def way(page: Page, name: str) -> None:
    page.click(f"#ways label:has([value={name}])")


def tool(page: Page, name: str) -> None:
    """Press a button of the newest entry."""
    page.click(".entry .tool", texts(page, ".entry .tool").index(name))


def until(true: Callable[[], object]) -> None:
    """Wait for something outside the page."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextmanager
def held(server: SimpleNamespace, run: str = "stories") -> Iterator[None]:
    """The engine of a run stands still."""
    going = threading.Event()
    server.house.stands[run].engine.call(going.wait)
    try:
        yield
    finally:
        going.set()


def asked(server: SimpleNamespace, path: str, body: dict[str, Any]) -> Any:
    """What the server answers to the same request without a page and without a stream."""
    plain = {key: one for key, one in body.items() if key not in ("stream", "stream_options", "partial_images")}
    heads = {"Authorization": f"Bearer {server.keys['ann']}"}
    answer = httpx.post(f"{server.url}/{path}", json=plain, headers=heads, timeout=30)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_text_is_streamed_and_is_what_the_server_says(page: Page, server: SimpleNamespace) -> None:
    page.js("""new MutationObserver(() => (window.grown ??= new Set()).add(document.querySelector('.text').textContent))
               .observe(document.getElementById('output'), { characterData: true, subtree: true })""")
    page.click("#prompt")
    page.type("The harbour")
    seeded(page)
    body = run(page)
    assert body["model"] == "stories:backbone"
    assert body["prompt"] == "The harbour"
    assert page.js("window.grown.size") > 3
    alone = asked(server, TEXT, body)
    assert texts(page, ".text") == ["The harbour" + alone["choices"][0]["text"]]
    assert page.text(".entry .status").startswith(f"{alone['usage']['completion_tokens']} tokens in ")
    said = {"length": "stopped at 64 tokens", "stop": "ended by itself"}
    assert page.text(".entry .foot") == said[alone["choices"][0]["finish_reason"]]
    page.click("#lock")
    page.click("#go")  # and again by hand, from another seed
    ended(page, 2)
    assert page.bodies[-1]["seed"] != body["seed"]


def test_what_is_under_way_can_be_stopped(page: Page, server: SimpleNamespace) -> None:
    with held(server):
        page.press("Enter", CTRL)
        page.wait("document.querySelector('.entry .status').textContent === 'Waiting'")
        page.press("Escape")
        ended(page)
    assert page.text(".entry .status") == "Stopped"
    assert "Text" not in texts(page, ".entry .tool")
    run(page, 2)
    page.js(
        """new MutationObserver(() => document.querySelector('.text').textContent && at('stop').click())
               .observe(at('output'), { characterData: true, subtree: true })""".replace(
            "at(", "document.getElementById("
        )
    )
    page.press("Enter", CTRL)
    ended(page, 3)
    assert page.text(".entry .status") == "Stopped"
    assert copied(page, "Text") == texts(page, ".entry .text")[0] != ""  # as far as it came


def test_a_long_prompt_is_folded_and_what_went_wrong_stands_above(page: Page, server: SimpleNamespace) -> None:
    prompt = "\n".join(f"    line {at}" for at in range(30))
    page.click("#prompt")
    page.type(prompt)
    page.fill("#tokens", "8")
    height = "document.querySelector('.entry .prompt').getBoundingClientRect().height"
    page.press("Enter", CTRL)
    ended(page)
    low, tall = "document.querySelector('.entry .wrong').getBoundingClientRect().bottom", page.js(height)
    assert "more than the" in page.text(".entry .wrong")
    assert page.js(f"{low} <= document.querySelector('.entry .prompt').getBoundingClientRect().top")
    assert page.js(f"{low} <= innerHeight")
    page.click(".entry .all")
    assert page.js(height) > 5 * tall
    assert page.count(".entry .all") == 0
    assert all("400" in error for error in page.errors)
    page.errors.clear()


def test_no_more_tokens_are_asked_for_than_the_model_writes(page: Page, server: SimpleNamespace) -> None:
    most = server.house.stands["stories"].engine.batch.length
    assert page.js("document.getElementById('tokens').max") == str(most - 1)
    page.fill("#tokens", str(most))
    page.press("Enter", CTRL)
    assert page.count(".entry") == 0
    page.fill("#tokens", str(most - 1))
    page.js("document.getElementById('prompt').value = ''")
    run(page)


def test_side_by_side_is_one_request_and_each_column_is_its_own_answer(page: Page, server: SimpleNamespace) -> None:
    page.click("#prompt")
    page.type("Every round")
    way(page, "side")
    body = run(page)
    kinds = ["backbone", "global", "cluster", "personal", "hybrid"]
    names = [name.removeprefix("stories:") for name in body["models"]]
    assert texts(page, ".column h3") == kinds
    assert names == ["backbone", "global", names[2], "user/ann", f"user/ann=0.5,{names[2]}=0.5"]
    assert page.requests.count(f"{server.url}/{TEXT}") == 1
    columns = zip(body["models"], texts(page, ".column .text"), texts(page, ".column .foot"), strict=True)
    for model, text, foot in columns:
        alone = asked(server, TEXT, {key: one for key, one in body.items() if key != "models"} | {"model": model})
        assert alone["choices"][0]["text"].lstrip() == text
        assert foot.startswith(f"{alone['usage']['completion_tokens']} tokens in ")
    page.click("#columns label:has([value=global])")
    assert len(run(page, 2)["models"]) == 4


def test_a_mixture_slid_is_another_request_and_another_text(page: Page, server: SimpleNamespace) -> None:
    seeded(page)
    page.fill("#temperature", "2")
    page.click("[aria-label='Add global to the mixture']")
    page.click("[aria-label='Add user/ann to the mixture']")
    first = run(page)
    assert first["model"] == "stories:global=0.5,user/ann=0.5"
    page.js("document.querySelector('#chosen input').focus()")
    for _ in range(20):
        page.press("ArrowRight")
    second = run(page, 2)
    assert second == first | {"model": "stories:global=1.5,user/ann=0.5"}
    told = texts(page, ".entry .text")
    assert told[0] != told[1]
    assert told == [asked(server, TEXT, body)["choices"][0]["text"] for body in (second, first)]
    page.click("#route")
    page.press("Enter", CTRL)  # by an empty prompt nothing can be routed
    assert page.js("document.activeElement.id") == "prompt"
    page.type("the harbour")
    assert run(page, 3)["route"] is True
    assert page.text(".entry h2").startswith("Routed: ")
    tool(page, "Keep this mixture")
    assert "cluster-" in page.text("#chosen")


def test_pictures_are_drawn_and_their_own_png_says_how(page: Page, server: SimpleNamespace, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pictures(page)
    page.js("""new MutationObserver((all) => (window.drawn = (window.drawn ?? 0) + all.length))
               .observe(document.getElementById('output'), { attributeFilter: ['src'], subtree: true })""")
    page.click("[data-is='digits:global']")
    page.click("#prompt")
    page.type("a seven")
    page.fill("#n", "2")
    body = run(page)
    assert page.js("window.drawn") == 2 * (body["partial_images"] + 1)
    drawn = shown(page)
    assert drawn == [one["b64_json"] for one in asked(server, PICTURES, body)["data"]]
    made = json.loads(image.open(io.BytesIO(base64.b64decode(drawn[1]))).text["parameters"])
    assert made["prompt"] == "a seven"
    assert made["seed"] == body["seed"] + 1
    page.click(".picture.done", 1)
    told = dict(zip(texts(page, "#large dt"), texts(page, "#large dd"), strict=True))
    assert list(told) == list(made)
    assert (told["seed"], told["steps"], told["hashes"]) == (str(made["seed"]), "3", *made["hashes"])
    page.call("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    page.click("#large .tools .tool")
    saved = tmp_path / f"global-{made['seed']}.png"
    until(lambda: saved.is_file() and saved.stat().st_size)
    assert saved.read_bytes() == base64.b64decode(drawn[1])
    page.fill("#steps", "2")
    page.click("#large .tools .tool", 1)
    again = run(page, 2)
    assert again == body | {"seed": made["seed"], "n": 1}
    assert shown(page)[0] == drawn[1]


def test_strengths_are_one_request(page: Page, server: SimpleNamespace) -> None:
    pictures(page)
    page.click("#prompt")
    page.type("a seven")
    way(page, "grid")
    body = run(page)
    strengths = ["0", "0.25", "0.5", "0.75", "1", "1.25", "1.5"]
    assert body["models"] == [f"digits:global={one}" if one != "1" else "digits:global" for one in strengths]
    assert texts(page, ".grid thead th") == strengths
    assert page.count(".grid .picture.done") == 7
    assert page.requests.count(f"{server.url}/{PICTURES}") == 1
    page.click(".grid .picture.done", 2)
    page.click("#large .tools .tool", 1)
    assert page.text("#chosen output") == "0.50"


def test_the_run_is_told(page: Page, server: SimpleNamespace) -> None:
    page.click("#tab-run")
    told = httpx.get(f"{server.url}/v1/runs", headers={"Authorization": f"Bearer {server.keys['ann']}"}).json()[0]
    assert page.text("#run h1") == "stories"
    assert page.count("#run .curve path") == 3
    assert page.count("#run .points .point") == len(told["points"]) == 6
    assert page.js("document.querySelector('#run .points .own + text').textContent") == "ann"
    assert page.count("#run .points .own") == 1
    assert page.count("#run tbody tr") == len(told["clusters"]) == 2
    assert "sent by clients" in page.text("#run .tiles")
    enter(page, server.url, server.keys["admin"])  # to whom all belong, so that none stands out
    page.click("#tab-run")
    assert (page.count("#run .points .point"), page.count("#run .points .own")) == (6, 0)


# ---- what stands in the way


def test_a_key_leaves_the_address_and_a_refused_one_can_be_changed(browser: Browser, server: SimpleNamespace) -> None:
    with browser.page() as page:
        page.go(f"{server.url}/#key=not-a-key")
        page.wait("!document.getElementById('notice').hidden")
        assert "The key was refused" in page.text("#notice")
        assert page.js("location.href") == f"{server.url}/"
        assert page.count(".adapter") == 0
        page.click("#notice button")
        page.click("#key-forget")
        page.wait("document.getElementById('notice').textContent.startsWith('This server asks for a key.')")
        assert page.text("#health") == "Wants a key"
        assert page.text("#more") == ""
        assert page.js("document.getElementById('go').disabled")
        page.click("#notice button")
        page.type(server.keys["bob"])
        page.press("Enter")
        page.wait(READY)
        assert page.js("document.getElementById('notice').hidden")
        assert "user/bob" in page.text("#cards")
        assert "user/ann" not in page.text("#cards")
        page.call("Page.reload")
        page.wait(f"{READY} && document.querySelectorAll('.adapter').length > 0")  # the tab still knows it
        assert server.keys["bob"] not in page.js("document.documentElement.outerHTML")
        page.click("#key-open")
        page.click("#key-forget")
        page.wait("document.querySelectorAll('.adapter').length === 0")  # what it has opened is gone with it


def test_a_full_queue_is_waited_for(page: Page, server: SimpleNamespace) -> None:
    fill = {"model": "stories:backbone", "prompt": "a", "n": 48, "max_tokens": 1}  # all that one may have
    with held(server):
        filling = threading.Thread(target=asked, args=[server, TEXT, fill])
        filling.start()
        engine = server.house.stands["stories"].engine
        until(lambda: engine.waiting == 48)
        page.press("Enter", CTRL)
        page.wait(
            "document.querySelector('.entry .status').textContent.startsWith('The queue is full. Trying again in')"
        )
    filling.join()
    ended(page)
    assert "tokens in" in page.text(".entry .status")
    assert page.requests.count(f"{server.url}/{TEXT}") > 1
    assert all("429" in error for error in page.errors)
    page.errors.clear()


@pytest.fixture
def stand_in(text_run: Run, tmp_path: Path, secrets_of: dict[str, str]) -> Callable[..., Server]:
    """A server of our own over the run, whose clusters have evil labels, on this port."""
    folder = shutil.copytree(text_run.folder, tmp_path / "stories")
    told = json.loads((folder / CLUSTERS).read_text("utf-8"))
    told["labels"] = dict.fromkeys(told["where"], EVIL)
    (folder / CLUSTERS).write_text(json.dumps(told), "utf-8")

    def start(port: int = 0, *, free: bool = False, plain: bool = True) -> Server:
        limits = Limits(texts=2, places=4, slots=8, prefix_bytes=0)
        house = open_house([folder], handed=["ann"], plain=plain, limits=limits)
        door = Door(Keys.read(Path(secrets_of["file"])), open=free, hosts=LOOPBACK)
        made = Server(house, door, listening("127.0.0.1", port))
        made.start()
        return made

    return start


def test_words_are_never_markup_and_a_server_that_was_gone_is_found_again(
    browser: Browser, secrets_of: dict[str, str], stand_in: Callable[..., Server]
) -> None:
    with browser.page() as page:
        first = stand_in(0)
        try:
            enter(page, first.url, secrets_of["ann"])
            assert page.text(".word") == EVIL
            page.click(".word")
            assert page.value("#prompt") == EVIL
            run(page)
            assert page.text(".entry .prompt") == EVIL
            page.click("#tab-run")
            assert EVIL in page.text("#run table")
            assert page.count("#output img, #cards img, #run img") == 0
            assert page.js("document.title") == "fedgen"
            assert page.errors == []
        finally:
            first.stop()
        page.press("Enter", CTRL)
        page.wait("document.getElementById('notice').textContent.startsWith('The server does not answer.')")
        second = stand_in(int(first.url.rpartition(":")[2]))
        try:
            page.wait(f"{READY} && document.getElementById('notice').hidden")
            run(page, 3)
        finally:
            second.stop()


def test_a_key_that_opens_nothing_is_told_so(
    browser: Browser, secrets_of: dict[str, str], stand_in: Callable[..., Server]
) -> None:
    server = stand_in(free=True)
    with browser.page() as page:
        try:
            page.go(server.url)
            page.wait(READY)
            page.click("#key-open")
            page.type("not-a-key")
            page.press("Enter")
            page.wait("document.getElementById('key-said').textContent.startsWith('This key opens nothing more')")
            assert page.js("document.getElementById('key-box').open")
            page.type(secrets_of["ann"])
            page.press("Enter")
            page.wait("document.getElementById('cards').textContent.includes('user/ann')")
            assert not page.js("document.getElementById('key-box').open")
            assert page.errors == []
        finally:
            server.stop()


def test_where_sealed_prompts_alone_are_taken_nothing_can_be_run(
    browser: Browser, secrets_of: dict[str, str], stand_in: Callable[..., Server]
) -> None:
    server = stand_in(plain=False)
    with browser.page() as page:
        try:
            enter(page, server.url, secrets_of["ann"])
            assert page.text("#sealed").startswith("This server takes encoded prompts alone.")
            page.press("Enter", CTRL)
            assert page.js("document.getElementById('go').disabled")
            assert (page.count(".entry"), page.bodies, page.errors) == (0, [], [])
        finally:
            server.stop()


# ---- for everybody


def test_a_keyboard_is_enough(page: Page) -> None:
    page.press("/")
    page.type("user/ann")
    page.wait("document.querySelectorAll('.adapter').length === 1")
    page.press("Tab")
    page.press("Enter")
    assert page.text("#chosen .of") == "user/ann"
    page.press("/")  # the focus is on a button again
    page.press("Tab", SHIFT)
    page.press(" ")
    assert page.js("document.getElementById('route').getAttribute('aria-pressed')") == "true"
    page.press(" ")
    assert run(page)["model"] == "stories:user/ann"
    page.js("document.getElementById('tab-make').focus()")
    page.press("ArrowRight")
    assert page.js("!document.getElementById('run').hidden && document.activeElement.id") == "tab-run"


CONTRASTS = """(() => {
  const part = (one) => one <= .03928 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => .2126 * part(r / 255) + .7152 * part(g / 255) + .0722 * part(b / 255);
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const ground = (node) => {
    const found = numbers(getComputedStyle(node).backgroundColor);
    return found.length < 4 || found[3] > 0 ? found : ground(node.parentElement);
  };
  const read = (node) => [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim()) &&
    node.checkVisibility() && !node.closest('svg, :disabled, .unseen, .said, .skip, .idle');
  return [...document.querySelectorAll('body *')].filter(read).flatMap((node) => {
    const [one, two] = [numbers(getComputedStyle(node).color), ground(node)].map(light);
    const ratio = (Math.max(one, two) + .05) / (Math.min(one, two) + .05);
    return ratio < 4.5 ? [`${node.tagName}.${node.className} ${node.textContent.slice(0, 20)}: ${ratio}`] : [];
  });
})()"""


def test_it_is_fit_to_be_looked_at(page: Page, tmp_path: Path) -> None:
    """On a phone and on a desk, in the light and in the dark: nothing sticks out, and all of it can be read."""
    shots = Path(os.environ.get("FEDGEN_SHOTS", tmp_path))
    page.click("#prompt")
    page.type("Every round some clients")
    page.click("[aria-label='Add global to the mixture']")
    page.click("[aria-label='Add user/ann to the mixture']")
    run(page)
    way(page, "side")
    run(page, 2)
    look(page, shots, "text")
    page.click("#tab-run")
    look(page, shots, "run")
    page.click("#tab-make")
    pictures(page)
    way(page, "one")
    page.fill("#prompt", "a seven")
    run(page, 3)
    way(page, "grid")
    run(page, 4)
    look(page, shots, "pictures")
    page.click("#theme")
    assert page.js("getComputedStyle(document.documentElement).colorScheme") == "light"  # the other of the two
    assert nameless(page) == []
    page.js("document.documentElement.style.setProperty('--faint', '#9a9a9a')")
    assert len(page.js(CONTRASTS)) > 3  # the check sees what is hard to read


def test_the_document_is_fit_to_be_read(page: Page, server: SimpleNamespace, tmp_path: Path) -> None:
    page.go(f"{server.url}/docs")
    look(page, Path(os.environ.get("FEDGEN_SHOTS", tmp_path)), "docs")
    ways = set(page.js("[...document.querySelectorAll('a')].map((one) => one.getAttribute('href'))"))
    assert {"#Part", "#Route", "#Usage"} <= ways
    assert page.js(
        "[...document.querySelectorAll('a[href^=\\'#\\']')].every((one) => document.querySelector(one.hash))"
    )
    for way in ways - {one for one in ways if one.startswith("#")}:
        assert httpx.get(f"{server.url}/{way}").status_code == 200
    told = page.js("document.body.textContent")
    assert "Authorization: Bearer KEY" in told
    assert "integer, 1 to 1048576" in told
    assert "e+" not in told


def look(page: Page, shots: Path, name: str) -> None:
    for width, height in WIDTHS.items():
        for dark in (False, True):
            page.see(width, height, dark=dark)
            page.wait("document.getAnimations().length === 0")
            assert page.js("document.documentElement.scrollWidth") <= width
            assert page.js(CONTRASTS) == []
            page.shoot(shots / f"{name}-{width}-{'dark' if dark else 'light'}.png")
    page.see(1280, 900, dark=True)


def nameless(page: Page) -> list[str]:
    """Controls that a screen reader could not name."""
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "searchbox", "checkbox", "radio", "slider", "spinbutton", "combobox", "tab", "image"}
    named = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles]
    assert len(named) > 20
    return [str(node) for node in named if not node.get("name", {}).get("value")]


@pytest.mark.skipif(not shutil.which("curl"), reason="there is no curl")
def test_what_is_copied_asks_the_same(page: Page, server: SimpleNamespace, browser: Browser) -> None:
    pytest.importorskip("openai")
    page.click("#prompt")
    page.type('It\'s a "harbour"\\n')
    run(page)
    text = texts(page, ".text")[0].removeprefix('It\'s a "harbour"\\n')
    curl, python = (copied(page, name) for name in ("curl", "Python"))
    assert server.keys["ann"] not in curl + python
    said = done(["bash", "-c", curl], server)
    chunks = [json.loads(line[6:]) for line in said.splitlines() if line.startswith("data: {")]
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == text
    assert done([sys.executable, "-c", python], server) == text


def test_pictures_copied_as_python_are_the_same_pictures(page: Page, server: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    pictures(page)
    page.click("#prompt")
    page.type("a seven")
    way(page, "side")
    run(page)
    assert done([sys.executable, "-c", copied(page, "Python")], server, tmp_path) == ""
    drawn = shown(page)
    assert len(drawn) == 2
    assert [base64.b64encode((tmp_path / f"{at}.png").read_bytes()).decode() for at in range(2)] == drawn


def done(command: list[str], server: SimpleNamespace, folder: Path | None = None) -> str:
    """What ann's command prints."""
    environment = {**os.environ, "FEDGEN_KEY": server.keys["ann"], "PYTHONIOENCODING": "utf-8"}
    told = subprocess.run(command, check=True, env=environment, cwd=folder, capture_output=True, timeout=60)
    return told.stdout.decode()


def copied(page: Page, name: str) -> str:
    """What a button of the newest entry puts on the clipboard."""
    page.js("navigator.clipboard.writeText = (text) => ((window.copied = text), Promise.resolve())")
    tool(page, name)
    return page.js("window.copied")


def test_the_page_is_its_own() -> None:
    found = files()
    assert found["index.html"][0] == "text/html; charset=utf-8"
    for name, (_, content) in found.items():
        text = content.decode().replace("http://www.w3.org/", "")  # the names of formats
        assert "http:" not in text, name
        assert "innerHTML" not in text, name
