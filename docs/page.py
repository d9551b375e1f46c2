"""Draw docs/serving.png: the server's own page over two runs with clusters, side by side.

python docs/page.py TEXT_RUN IMAGE_RUN

Wants Chromium, and what the tests of the page want.
"""

import sys
import tempfile
from pathlib import Path

from fedgen.serve.api import LOOPBACK, Door, Server, listening
from fedgen.serve.house import open_house
from fedgen.serve.keys import Keys

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "serve"))

from browser import Browser, Page  # noqa: E402  the browser that the tests drive

WIDE, HIGH = 1280, 900
READY = "document.getElementById('health').textContent === 'Ready'"
OVER = "document.querySelectorAll('.entry.over').length === {}"


def asked(page: Page, url: str) -> None:
    """Two letters side by side, under the backbone, the global adapter, a cluster's, and a mixture of two clusters."""
    page.see(WIDE, HIGH)
    page.go(url)
    page.wait(READY)
    page.click("#runs label:nth-of-type(2)")
    page.wait("!document.getElementById('steps').disabled")
    for name in ("cluster-1", "cluster-2"):
        page.click(f"[aria-label='Add {name} to the mixture']")
    for at in range(2):
        slid = "one.value = 1; one.dispatchEvent(new Event('input')); one.dispatchEvent(new Event('change'))"
        page.js(f"(one => {{ {slid} }})(document.querySelectorAll('#chosen input[type=range]')[{at}])")
    page.click("#ways label:nth-of-type(2)")
    page.fill("#seed", "7")
    page.click("#lock")
    for at, letter in enumerate("Rg"):
        page.fill("#prompt", f"the letter {letter}")
        page.click("#go")
        page.wait(OVER.format(at + 1))


def main() -> None:
    """Serve, look, and keep what is seen."""
    text, images = map(Path, sys.argv[1:3])
    server = Server(open_house([text, images]), Door(Keys({}), open=True, hosts=LOOPBACK), listening("127.0.0.1", 0))
    server.start()
    try:
        with tempfile.TemporaryDirectory() as profile, Browser.start(Path(profile)) as browser, browser.page() as page:
            asked(page, server.url)
            page.shoot(HERE / "serving.png")
    finally:
        server.stop()


if __name__ == "__main__":
    main()
