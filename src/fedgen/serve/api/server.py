"""A running server: it listens, says when it is up, and ends without cutting anybody short."""

import logging
import os
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from fedgen.errors import ServeError
from fedgen.report.wording import counted
from fedgen.serve.api.app import app
from fedgen.serve.api.guard import Door
from fedgen.serve.api.hearing import STALLED
from fedgen.serve.house import House

LAST = 5  # seconds for answers to reach their readers, once all rows are done
PATIENCE = 30.0


class Server:
    """A house behind HTTP, at `url` from the moment that it is made.

    When it is told to end it takes nothing more and is not ready, rows at work finish within `patience`, those that
    wait are told, and then it is over.
    """

    def __init__(
        self, house: House, door: Door, at: socket.socket, *, patience: float = PATIENCE,
        tell: Callable[[str], None] = lambda said: None,
    ) -> None:  # fmt: skip
        made = app(house, door)
        import uvicorn

        self._house, self._socket, self._patience, self._tell = house, at, patience, tell
        host, port, *_ = at.getsockname()
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        quiet: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
        settings = uvicorn.Config(made, lifespan="off", ws="none", timeout_graceful_shutdown=LAST, **quiet)
        self._server: Any = uvicorn.Server(settings)
        self._server.handle_exit = self._signalled
        self._ending: threading.Thread | None = None

    def run(self, up: Callable[[], None] = lambda: None) -> None:
        """Answer until a signal says to end."""
        self._house.start()
        up()
        self._server.run(sockets=[self._socket])
        self._house.close()

    def start(self) -> None:
        """Answer in a thread of its own, until `stop`."""
        self._thread = threading.Thread(target=self.run, name="fedgen server", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End, and wait until it is over."""
        self._end()
        self._thread.join()

    def _signalled(self, number: int, frame: FrameType | None) -> None:
        if self._ending is not None:  # asked a second time: at once
            logging.getLogger("uvicorn.error").disabled = True  # which would show each stream that is cut
            self._server.force_exit = self._server.should_exit = True
            return
        rows = sum(stand.engine.running for stand in self._house.stands.values())
        self._tell(f"ending; {counted(rows, 'row')} at work may finish, {self._patience:.0f} s at most; again ends now")
        self._ending = threading.Thread(target=self._end, name="fedgen end", daemon=True)
        self._ending.start()

    def _end(self) -> None:
        self._house.close(self._patience)
        self._server.should_exit = True


def listening(host: str, port: int) -> socket.socket:
    """A socket at this address; port 0 is any that is free."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        made = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ServeError(
            f"{host}:{port}: cannot be listened on ({os.strerror(error.errno or 0)}); choose another --port"
        ) from error
    if (option := getattr(socket, "TCP_USER_TIMEOUT", None)) is not None:  # of Linux alone: nobody reads, nobody waits
        made.setsockopt(socket.IPPROTO_TCP, option, int(STALLED * 1000))
    return made
