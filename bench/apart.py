"""Work in a process of its own, of which nothing outlives the script."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def apart(act: Callable[[], Result]) -> Result:
    """What the act returns. However the script ends, killed or not, the act's process ends, and all that it started."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), fall_with_parent) as pool:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # else Ctrl-C would wait for the act
        return pool.submit(act).result()


def fall_with_parent() -> None:
    """Take a group of processes, and kill it when the parent is gone."""
    os.setpgid(0, 0)
    threading.Thread(target=watch, daemon=True).start()


def watch() -> None:
    parent = multiprocessing.parent_process()
    assert parent
    parent.join()
    os.killpg(0, signal.SIGKILL)
