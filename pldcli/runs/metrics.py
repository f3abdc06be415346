"""Metrics of a run: metrics.jsonl and TensorBoard."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from pldcli.system import atomic
from pldcli.system.json_text import from_json

__all__ = ["CONTEXT_MARGIN", "VALIDATION_LOSSES", "MetricsLog", "read_metrics", "reads_context", "validation_key"]

CONTEXT_MARGIN = 0.1
"""Nats: the loss of a few targets is no finer."""

VALIDATION_LOSSES = ("eval/mlm_loss", "eval/clm_loss")
"""What a validation's row calls its loss: of masked tokens, or of next ones where the model is causal."""


class MetricsLog:
    """Append rows to metrics.jsonl and TensorBoard.

    Rows after `from_step` are dropped first: after a crash they belong to steps that will be done again.

    Args:
        directory: The run directory.
        from_step: The step from which the run resumes.

    Raises:
        OutputError: The directory is not writable.
    """

    def __init__(self, directory: Path, *, from_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = directory / "metrics.jsonl"
        kept = [row for row in read_metrics(path) if row["step"] <= from_step]
        atomic.write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        if getattr(threading.excepthook, "func", None) is not _hook:
            threading.excepthook = partial(_hook, threading.excepthook)
        with atomic.output_errors(path):
            self._path = path
            self._file = path.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=from_step + 1)

    def write(self, row: Mapping[str, Any]) -> None:
        """Add a row; it must have `step`."""
        with atomic.output_errors(self._path):
            self._file.write(json.dumps({name: _json_number(value) for name, value in row.items()}) + "\n")
            self._file.flush()
            for name, value in row.items():
                if name != "step" and isinstance(value, int | float):
                    self._board.add_scalar(name, value, row["step"])

    def close(self) -> None:
        """Close both files.

        Raises:
            OutputError: The disk is full: what could not be written before is tried again here.
        """
        with atomic.output_errors(self._path), closing(self._board):
            self._file.close()


def _hook(other: Callable[[threading.ExceptHookArgs], object], failed: threading.ExceptHookArgs) -> None:
    """Pass over an error of TensorBoard's thread, which the next row that is written raises again; leave others to another hook."""
    if type(failed.thread).__name__ != "_AsyncWriterThread":
        other(failed)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a metrics.jsonl; a last line cut off by a crash is left out."""
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = from_json(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _json_number(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def validation_key(row: Mapping[str, Any]) -> str | None:
    """Return the name that a validation's row has its loss under; None for a row of no validation."""
    return next((name for name in VALIDATION_LOSSES if name in row), None)


def reads_context(loss: float, unigram_loss: float) -> bool:
    """Return whether a validation loss is clearly below that of the unigram baseline, a model without context."""
    return loss <= unigram_loss - CONTEXT_MARGIN
