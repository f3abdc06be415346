"""What can go wrong because of the outside world, with the exit code of each.

    PldError                    1   a bug, when raised bare
    ├── UsageError              2   wrong command line or configuration
    ├── DataError               3   a corpus, a prepared directory or a task file
    │   └── MissingDataError    3   a task whose files are not there
    ├── CheckpointError         4   a checkpoint or a model directory
    ├── DeviceError             5   no such device, or out of memory
    ├── DivergedError           6   training produced no finite numbers any more
    ├── OutputError             7   disk full, or not writable
    ├── PreemptedError         75   SIGTERM, with the state saved
    └── StoppedError          130   Ctrl-C

Each is one line: what is wrong, where, what to do.
"""

from __future__ import annotations

import errno
import os
from typing import Any

__all__ = [
    "FULL_DISK",
    "UNUSABLE_PLACE",
    "CheckpointError",
    "DataError",
    "DeviceError",
    "DivergedError",
    "MissingDataError",
    "OutputError",
    "PldError",
    "PreemptedError",
    "StoppedError",
    "UsageError",
    "json_type",
    "reason_of",
]

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
UNUSABLE_PLACE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG, errno.ENAMETOOLONG, errno.ESTALE, errno.ENOTCONN,
    errno.EBUSY,
)  # fmt: skip
"""What the system says of a place that no program could use, whoever asks."""


class PldError(Exception):
    """An error that the user sees as one line.

    Args:
        what: What is wrong, without a full stop.
        where: A dotted key, a path with a line, or a step.
        hint: What to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", hint: str = "") -> None:
        self.what = what
        self.where = where
        self.hint = hint
        line = f"{where}: {what}" if where else what
        super().__init__(" ".join(f"{line}; {hint}".split()) if hint else " ".join(line.split()))


class UsageError(PldError):
    """A wrong command line or configuration."""

    exit_code = 2


class DataError(PldError):
    """A corpus, prepared directory or task file that cannot be used."""

    exit_code = 3


class MissingDataError(DataError):
    """A task whose files are not there, as opposed to files that are wrong."""


class CheckpointError(PldError):
    """A checkpoint or model directory that cannot be used."""

    exit_code = 4


class DeviceError(PldError):
    """A device that is not there, or whose memory is too small."""

    exit_code = 5


class DivergedError(PldError):
    """Training that produces no finite numbers any more."""

    exit_code = 6
    last_step = 0
    """Of those that were not sound."""


class OutputError(PldError):
    """An output that cannot be written."""

    exit_code = 7


class PreemptedError(PldError):
    """SIGTERM arrived; whatever can be kept is kept."""

    exit_code = 75


class StoppedError(PldError):
    """Ctrl-C arrived; whatever can be kept is kept."""

    exit_code = 130


def json_type(value: Any) -> str:
    """Name the JSON type of a value as messages do: `null`, `a list`, `an object`."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"of type {type(value).__name__}")


def reason_of(error: OSError) -> str:
    """Return in words what the system says."""
    return (os.strerror(error.errno) if error.errno else str(error)).lower()
