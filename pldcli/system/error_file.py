"""How far a process that torchrun's agent started came: its end is in the file that the agent names, for it and for the next attempt."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pldcli.errors import CheckpointError, DataError, DivergedError, OutputError, PreemptedError, StoppedError, UsageError
from pldcli.system.json_text import from_json

__all__ = [
    "ERROR_FILE",
    "FINAL_CODES",
    "STOP_CODES",
    "Ending",
    "count_lost",
    "final_ending",
    "note_beginning",
    "read_endings",
    "write_ending",
]

STOP_CODES = frozenset({PreemptedError.exit_code, StoppedError.exit_code})
FINAL_CODES = STOP_CODES | {error.exit_code for error in (UsageError, DataError, CheckpointError, DivergedError, OutputError)}
"""Exit codes that are no failure of a process, or that the next attempt would end with, too."""
_BEGUN, _TOLD = "begun", "error.json"
ERROR_FILE, _ATTEMPT = "TORCHELASTIC_ERROR_FILE", "TORCHELASTIC_RESTART_COUNT"


class Ending(NamedTuple):
    """How a process has ended."""

    message: str
    exit_code: int


def note_beginning() -> None:
    """Note beside the agent's file that this process works from now on: if it ends without telling how, work is lost."""
    if place := os.environ.get(ERROR_FILE):
        with suppress(OSError):
            Path(place).with_name(_BEGUN).touch()


def count_lost(directory: Path) -> int:
    """Count the processes of an attempt that had begun to work and told nothing of their end.

    Args:
        directory: Where each has a directory of its own.
    """
    return sum(not begun.with_name(_TOLD).exists() for begun in directory.glob(f"*/{_BEGUN}"))


def write_ending(message: str, **more: Any) -> None:
    """Tell the agent how this process ends, where there is one; what was told before stays.

    Args:
        message: Why.
        more: What else is known, such as `exit_code`.
    """
    place = os.environ.get(ERROR_FILE)
    if not place or Path(place).exists():
        return
    with suppress(OSError):  # a full disk must not hide what is to be told
        whole = Path(f"{place}.tmp")
        whole.write_text(json.dumps({"message": message, "timestamp": str(int(time.time())), **more}), encoding="utf-8")
        whole.replace(place)


def read_endings(directory: Path) -> list[Ending]:
    """Read how the processes of an attempt have ended, by rank; those that were killed told nothing.

    Args:
        directory: Where each has a directory of its own.
    """
    endings = []
    for file in sorted(directory.glob(f"*/{_TOLD}"), key=lambda file: (len(file.parent.name), file.parent.name)):
        told = from_json(file.read_text(encoding="utf-8"))
        if isinstance(told, dict) and isinstance(told.get("exit_code"), int):
            endings.append(Ending(str(told["message"]), told["exit_code"]))
    return endings


def final_ending() -> Ending | None:
    """Find out how the attempt before this one ended on this machine, where no further attempt can end otherwise.

    An agent's own restarts ask no exit code: without this a wrong setting would be tried, and a stop undone, as often as it may.

    Source: `DefaultLogsSpecs` of torch.distributed.elastic, for the places of the files.
    """
    place, attempt = os.environ.get(ERROR_FILE), os.environ.get(_ATTEMPT, "0")
    if not place or not attempt.isdecimal() or attempt == "0":
        return None
    before = Path(place).parents[1].with_name(f"attempt_{int(attempt) - 1}")
    return next((ending for ending in read_endings(before) if ending.exit_code in FINAL_CODES), None)
