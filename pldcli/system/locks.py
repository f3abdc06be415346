"""A lock that a process holds on a file, and that ends with the process, however it ends."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pldcli.errors import OutputError
from pldcli.system import atomic

__all__ = ["is_held", "locked"]

_NAME = ".lock"
_WITHIN_SECONDS = 1.0
"""Looking whether the lock is held takes it for a moment."""


@contextmanager
def locked(directory: Path, what: str, *, shared: bool = False) -> Iterator[None]:
    """Make a directory and hold its lock while the block runs.

    Args:
        directory: It.
        what: What another process that holds it does there.
        shared: Let others that share it hold it, too.

    Raises:
        OutputError: Another process holds it, or it is not writable.
    """
    with atomic.output_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / _NAME).open("a")
    with file:
        until = time.monotonic() + _WITHIN_SECONDS
        while not (taken := _take(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)) and time.monotonic() < until:
            time.sleep(0.01)
        if not taken:
            raise OutputError(f"another process is {what} here", where=str(directory), hint="wait for it, or choose another --out")
        yield


def is_held(directory: Path) -> bool:
    """Return whether a process holds the lock of a directory."""
    lock = directory / _NAME
    if not lock.is_file():
        return False
    try:
        with lock.open("r") as file:
            return not _take(file, fcntl.LOCK_SH)
    except OSError:
        return False


def _take(file: Any, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
