"""SIGINT, SIGTERM and SIGUSR1: noted once, and turned into the error that ends the program."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from pldcli.errors import PreemptedError, StoppedError

__all__ = ["STOP_SIGNALS", "StopRequest", "first_signal", "stop_error", "stop_on_signals", "stop_requests"]

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM)
"""SIGUSR1 is what queues send ahead of SIGTERM; SIGALRM comes from the timer of `stop_requests`."""

_ONE_SIGNAL_SECONDS = 0.1
"""A repeat within this time is the same signal: `timeout`, for one, signals the process and then its group."""


_SOON_SECONDS = 1e-3
"""A timer of zero is none."""


@contextmanager
def first_signal(answer: Callable[[int], None], *, second_kills: bool = False) -> Iterator[None]:
    """Answer the first stop signal that arrives while the block runs; a second one does what it did before the block.

    The timer's is answered and does not count: a first Ctrl-C after it is answered too.

    Does nothing outside the main thread, where Python delivers no signals.

    Args:
        answer: Called with the signal's number; what it raises is raised in the block.
        second_kills: A second one ends the process at once, without running any clean-up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    first = 0.0

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal first
        if number == signal.SIGALRM:
            answer(number)
        elif not first:
            first = time.monotonic()
            answer(number)
        elif time.monotonic() - first > _ONE_SIGNAL_SECONDS:
            restore()
            if second_kills or previous[signal.Signals(number)] is _stop:
                signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    for number in previous:
        signal.signal(number, handle)
    try:
        yield
    finally:
        restore()


def stop_on_signals() -> None:
    """Let SIGTERM and SIGUSR1 raise the error of a stop from now on, wherever `first_signal` has no other answer."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    raise stop_error(number, hint="run the same command again to go on")


@dataclass
class StopRequest:
    """The signal that asked to stop, or 0."""

    signal_number: int = 0


@contextmanager
def stop_requests(at: float | None = None) -> Iterator[StopRequest]:
    """Catch stop signals while the block runs; a second one stops at once.

    Args:
        at: Ask to stop when `time.monotonic()` says this, too.
    """
    request = StopRequest()

    def note(number: int) -> None:
        request.signal_number = number

    with first_signal(note):
        if at is not None:
            signal.setitimer(signal.ITIMER_REAL, max(at - time.monotonic(), _SOON_SECONDS))
        try:
            yield request
        finally:
            if at is not None:
                signal.setitimer(signal.ITIMER_REAL, 0.0)


def stop_error(signal_number: int, state: str = "", *, where: str = "", hint: str = "") -> StoppedError | PreemptedError:
    """Make the error of a stop: "interrupted" by SIGINT, "time is up" by the timer, otherwise "terminated", and the state that this left.

    Args:
        signal_number: One of `STOP_SIGNALS`.
        state: What is saved and what is lost, in a few words.
        where: The run that was stopped.
        hint: How to resume it.
    """
    kind = StoppedError if signal_number == signal.SIGINT else PreemptedError
    word = {signal.SIGINT: "interrupted", signal.SIGALRM: "time is up"}.get(signal.Signals(signal_number), "terminated")
    return kind(f"{word}, {state}" if state else word, where=where, hint=hint)
