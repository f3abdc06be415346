"""Ctrl-C and SIGTERM as a request that the loop answers at the next safe place."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

__all__ = ["StopRequest", "stop_requests"]

_ONE_SIGNAL_SECONDS = 0.1
"""A repeat within this time is the same request: `timeout`, for one, signals the process and then its group."""


@dataclass
class StopRequest:
    """The signal that asked to stop, or 0."""

    signal_number: int = 0


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM while the block runs; a second one stops at once.

    Does nothing outside the main thread, where Python delivers no signals.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    first = 0.0

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if not request.signal_number:
            request.signal_number, first = number, time.monotonic()
        elif time.monotonic() - first > _ONE_SIGNAL_SECONDS:
            restore()
            signal.raise_signal(number)

    def restore() -> None:
        for again, handler in previous.items():
            signal.signal(again, signal.SIG_DFL if handler is None else handler)

    for number in previous:
        signal.signal(number, note)
    try:
        yield request
    finally:
        restore()
