"""Ctrl-C and SIGTERM as a request to stop at the next safe point, instead of an exception anywhere."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody asked this process to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __bool__(self) -> bool:
        return self.signal_number is not None

    def ask(self, signal_number: int) -> None:
        """Note the request. A second one ends the process at once with 128 + signal, unsaved."""
        if self.signal_number is not None:
            os._exit(128 + signal_number)
        self.signal_number = signal_number


@contextmanager
def catch_stop_signals() -> Iterator[StopRequest]:
    """Inside the block, SIGINT and SIGTERM only set the flag; the former handlers come back after it.

    Outside the main thread Python can't install handlers: the flag is then only set by calling `ask`.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(signal_number: int, frame: FrameType | None) -> None:
        request.ask(signal_number)

    former = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
