"""A lock that a process holds on a file, and that ends with the process, however it ends.

The file says who holds it, or held it last: host, boot id and process number, as JSON.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pldcli.errors import OutputError, reason_of
from pldcli.system import atomic
from pldcli.system.json_text import from_json
from pldcli.system.machine import boot_id

__all__ = ["is_held", "locked"]

_NAME = ".lock"
_WITHIN_SECONDS = 1.0
"""Looking whether the lock is held takes it for a moment."""
_LONGEST_OWNER = 1000
"""Characters."""


@contextmanager
def locked(directory: Path, what: str, *, shared: bool = False, waits: bool = False) -> Iterator[None]:
    """Make a directory and hold its lock while the block runs.

    Args:
        directory: It.
        what: What another process that holds it does there.
        shared: Let others that share it hold it, too.
        waits: Wait for another process that holds it, however long, instead of raising.

    Raises:
        OutputError: Another process holds it, it is not writable, or its file system cannot lock it.
    """
    with atomic.output_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / _NAME).open("a+", encoding="utf-8")  # NFS demands of a shared lock that the file can be read
    with file:
        until = math.inf if waits else time.monotonic() + _WITHIN_SECONDS
        try:
            while not (taken := _take(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)) and time.monotonic() < until:
                time.sleep(_WITHIN_SECONDS if waits else 0.01)
        except OSError as error:
            what = f"its file system cannot lock it ({reason_of(error)}): a second process here would go unnoticed"
            hint = "choose an --out elsewhere, or mount that with locks (Lustre: -o flock)"
            raise OutputError(what, where=str(directory), hint=hint) from error
        if not taken:
            what = f"another process is {what} here{_owner(file)}"
            raise OutputError(what, where=str(directory), hint="wait for it, or choose another --out")
        with suppress(OSError):  # the disk may be full; the lock is held all the same
            _sign(file)
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


def _sign(file: Any) -> None:
    """Write down who holds the lock; of those that share it, the last one to come."""
    owner = {"host": platform.node(), "boot_id": "", "process": os.getpid()}
    with suppress(OSError):  # no Linux
        owner["boot_id"] = boot_id()
    os.ftruncate(file.fileno(), 0)
    os.write(file.fileno(), f"{json.dumps(owner)}\n".encode())  # unbuffered: nothing is left to be written when the file is closed


def _owner(file: Any) -> str:
    """Read who holds the lock, in brackets; empty where the file does not say it."""
    try:
        file.seek(0)
        owner = from_json(file.read(_LONGEST_OWNER))
        return f" (process {owner['process']} on {owner['host']}, boot {owner['boot_id'] or 'unknown'})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _take(file: Any, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
