"""Ctrl-C and SIGTERM as a request that the loop answers at the next safe place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pldcli.signals import first_signal

__all__ = ["StopRequest", "stop_requests"]


@dataclass
class StopRequest:
    """The signal that asked to stop, or 0."""

    signal_number: int = 0


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch SIGINT and SIGTERM while the block runs; a second one stops at once."""
    request = StopRequest()

    def note(number: int) -> None:
        request.signal_number = number

    with first_signal(note):
        yield request
