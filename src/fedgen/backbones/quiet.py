"""The libraries' bars and advice, kept off a user's terminal while they load."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging as bars


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars."""
    loud = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        yield
    finally:
        if loud:
            bars.enable_progress_bar()


@contextmanager
def silence() -> Iterator[None]:
    """Neither bars nor advice."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers", "bitsandbytes")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with without_bars():
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
