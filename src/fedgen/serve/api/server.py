"""A running server: it listens, says when it is up, and ends without cutting anybody short."""

import os
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from fedgen.errors import ServeError
from fedgen.serve.api.app import app
from fedgen.serve.api.guard import Door
from fedgen.serve.house import House

LAST = 5  # seconds for answers to reach their readers, once all rows are done
PATIENCE = 30.0


class Server:
    """A house behind HTTP, at `url` from the moment that it is made.

    When it is told to end it takes nothing more and is not ready, rows at work finish within `patience`, those that
    wait are told, and then it is over.
    """

    def __init__(
        self, house: House, door: Door, *, host: str = "127.0.0.1", port: int = 8000, patience: float = PATIENCE
    ) -> None:
        made = app(house, door)
        import uvicorn

        self._house, self._patience = house, patience
        self._socket = _listening(host, port)
        name = f"[{host}]" if ":" in host else host
        self.url = f"http://{name}:{self._socket.getsockname()[1]}"
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
            self._server.force_exit = self._server.should_exit = True
            return
        self._ending = threading.Thread(target=self._end, name="fedgen end", daemon=True)
        self._ending.start()

    def _end(self) -> None:
        self._house.close(self._patience)
        self._server.should_exit = True


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ServeError(
            f"{host}:{port}: cannot be listened on ({os.strerror(error.errno or 0)}); choose another --port"
        ) from error
