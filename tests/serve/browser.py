"""A real Chromium, driven by its own DevTools protocol: what a hand does, an eye sees, and what goes over the wire."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from websockets.sync.client import ClientConnection, connect

FOUND = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), "")
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-extensions "
    "--disable-background-networking --disable-component-update --disable-sync --hide-scrollbars "
    "--remote-debugging-port=0 --remote-allow-origins=*"
).split()
PATIENCE = 20.0
BEAT = 0.03
KEYS = {
    "Enter": ("Enter", 13, "\r"), "Escape": ("Escape", 27, ""), "Tab": ("Tab", 9, ""), " ": ("Space", 32, " "),
    "ArrowLeft": ("ArrowLeft", 37, ""), "ArrowRight": ("ArrowRight", 39, ""), "ArrowDown": ("ArrowDown", 40, ""),
    "/": ("Slash", 191, "/"),
}  # fmt: skip
CTRL, SHIFT = 2, 8


@dataclass
class Page:
    """One tab. Whatever was asked for over the network and whatever went wrong in it are kept."""

    wire: ClientConnection
    session: str
    numbers: Iterator[int]
    requests: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)  # of what was posted
    errors: list[str] = field(default_factory=list)

    def call(self, method: str, wish: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call the protocol; events that come before the answer are taken in."""
        number = next(self.numbers)
        self.wire.send(
            json.dumps({"id": number, "method": method, "params": wish or {}, "sessionId": self.session}, default=vars)
        )
        while True:
            heard = json.loads(self.wire.recv(PATIENCE))
            if heard.get("id") == number:
                assert "error" not in heard, f"{method}: {heard['error']}"
                return heard["result"]
            self._heard(heard.get("method", ""), heard.get("params", {}))

    def _heard(self, event: str, told: Mapping[str, Any]) -> None:
        if event == "Network.requestWillBeSent":
            if not told["request"]["url"].startswith("data:"):  # which is in the page itself
                self.requests.append(told["request"]["url"])
            if body := told["request"].get("postData"):
                self.bodies.append(json.loads(body))
        elif event == "Runtime.exceptionThrown":
            details = told["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "warning", "assert"):
            self.errors.append(str([part.get("value") for part in told["args"]]))
        elif event == "Log.entryAdded" and told["entry"]["level"] in ("error", "warning"):
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")

    def js(self, code: str) -> Any:
        """What an expression of the page comes to, waited for if it is a promise."""
        answer = self.call("Runtime.evaluate", {"expression": code, "awaitPromise": True, "returnByValue": True})
        assert "exceptionDetails" not in answer, f"{code}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait(self, code: str, seconds: float = PATIENCE) -> None:
        """Wait until an expression comes to something true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.js(f"Boolean({code})"):
                return
            time.sleep(BEAT)
        raise AssertionError(f"after {seconds} s still not: {code}\n{self.text('body')[:2000]}\n{self.errors}")

    def go(self, url: str) -> None:
        """Open an address, and wait until the page has loaded."""
        self.call("Page.navigate", {"url": "about:blank"})  # as a change of the fragment alone would load nothing
        self.wait("location.href === 'about:blank'")
        self.call("Page.navigate", {"url": url})
        self.wait("location.href !== 'about:blank' && document.readyState === 'complete'")

    def text(self, selector: str) -> str:
        """All text that is shown in an element."""
        return self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def value(self, selector: str) -> str:
        """What a control holds."""
        return self.js(f"document.querySelector({json.dumps(selector)}).value")

    def count(self, selector: str) -> int:
        """How many elements there are of a kind."""
        return self.js(f"document.querySelectorAll({json.dumps(selector)}).length")

    def click(self, selector: str, nth: int = 0) -> None:
        """Press the mouse in the middle of an element, which must be what is there."""
        spot = self.js(f"""(() => {{
            const node = document.querySelectorAll({json.dumps(selector)})[{nth}];
            if (!node) return null;
            node.scrollIntoView({{ block: "center", behavior: "instant" }});
            const box = node.getBoundingClientRect();
            const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
            const hit = document.elementFromPoint(x, y);
            const there = node.contains(hit) || (hit?.contains(node) ?? false);
            return {{ x, y, hit: there, over: hit?.outerHTML.slice(0, 90) }};
        }})()""")
        assert spot, f"nothing to click: {selector} [{nth}]"
        assert spot["hit"], f"{selector} is covered by {spot['over']}"
        for kind in ("mousePressed", "mouseReleased"):
            where = {"x": spot["x"], "y": spot["y"], "button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", {"type": kind} | where)

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press a key."""
        code, number, text = KEYS[key]
        wish = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", wish | {"type": "keyDown", "text": "" if modifiers & CTRL else text})
        self.call("Input.dispatchKeyEvent", wish | {"type": "keyUp"})

    def type(self, text: str) -> None:
        """Write where the focus is."""
        self.call("Input.insertText", {"text": text})

    def fill(self, selector: str, text: str) -> None:
        """Write a text in place of what a control holds."""
        self.js(f"document.querySelector({json.dumps(selector)}).select()")
        self.type(text)

    def see(self, width: int, height: int, *, dark: bool = False) -> None:
        """Look through a window of this size, in the light or in the dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", {"features": [scheme]})

    def shoot(self, path: Path) -> None:
        """Keep a picture of the whole page."""
        shot = self.call("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(shot["data"]))


@dataclass
class Browser:
    """A running Chromium, by its one wire."""

    wire: ClientConnection
    numbers: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    @contextlib.contextmanager
    def start(cls, profile: Path) -> Iterator[Self]:
        """Chromium with an empty profile, for as long as the context lasts."""
        command = [FOUND, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        environment = {**os.environ, "DBUS_SESSION_BUS_ADDRESS": "disabled:"}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
        told, end = profile / "DevToolsActivePort", time.monotonic() + PATIENCE
        try:
            while not (told.is_file() and told.read_text().count("\n") == 1):
                assert process.poll() is None, f"{FOUND} ended with {process.returncode}"
                assert time.monotonic() < end, f"{FOUND} opened no port within {PATIENCE} s"
                time.sleep(BEAT)
            port, path = told.read_text().split("\n")
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None) as wire:
                yield cls(wire)
        finally:
            process.terminate()
            process.wait(PATIENCE)

    @contextlib.contextmanager
    def page(self) -> Iterator[Page]:
        """A new tab of a new, empty session."""
        root = Page(self.wire, "", self.numbers)
        context = self._root("Target.createBrowserContext")["browserContextId"]
        target = self._root("Target.createTarget", {"url": "about:blank", "browserContextId": context})["targetId"]
        session = self._root("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = Page(self.wire, session, root.numbers)
        for part in ("Page", "Network", "Runtime", "Log"):
            page.call(f"{part}.enable")
        page.see(1280, 900)
        yield page
        self._root("Target.disposeBrowserContext", {"browserContextId": context})

    def _root(self, method: str, wish: Mapping[str, Any] | None = None) -> dict[str, Any]:
        number = next(self.numbers)
        self.wire.send(json.dumps({"id": number, "method": method, "params": wish or {}}))
        while True:
            heard = json.loads(self.wire.recv(PATIENCE))
            if heard.get("id") == number:
                assert "error" not in heard, f"{method}: {heard['error']}"
                return heard["result"]
