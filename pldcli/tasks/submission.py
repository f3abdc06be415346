"""The zip file that the GLUE server scores: a table of index and prediction for each test set.

Source: the submission instructions of gluebenchmark.com (FAQ).
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pldcli.errors import DataError
from pldcli.system import atomic
from pldcli.tasks.registry import glue_tasks
from pldcli.tasks.task import Label, Task

__all__ = ["write_submission"]

_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The date of every file in the zip, so that equal predictions give equal bytes."""

_LOWEST, _HIGHEST = 0.0, 5.0
"""STS-B's scale."""


def write_submission(path: Path, predictions: Mapping[str, Sequence[tuple[Label, Any]]]) -> list[str]:
    """Write test-set predictions as the GLUE server wants them.

    Args:
        path: The zip file.
        predictions: For a file of the server, such as `MNLI-m.tsv`, the index and the spelled label, or number, of each test
            example, in order.

    Returns:
        What the server still needs, in the order of the leaderboard: files that are not there, and those that are too short.

    Raises:
        DataError: An index is not that of the official test set, or a number is not finite.
        OutputError: The file cannot be written.
    """
    servers = {name: (task, split) for task in glue_tasks() for split, name in task.server_files.items()}
    assert predictions.keys() <= servers.keys(), predictions.keys() - servers.keys()
    content = io.BytesIO()
    missing = []
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (task, split) in servers.items():
            official = task.num_rows[split]
            if name not in predictions:
                missing.append(name)
                continue
            if len(predictions[name]) != official:
                missing.append(f"{name} ({len(predictions[name]):,} of {official:,} rows)")
            entry = zipfile.ZipInfo(name, _EARLIEST)
            entry.compress_type, entry.external_attr, entry.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
            archive.writestr(entry, _rows(name, task, predictions[name]))
    atomic.write_bytes(path, content.getvalue())
    return missing


def _rows(name: str, task: Task, predictions: Sequence[tuple[Label, Any]]) -> str:
    lines = ["index\tprediction"]
    known = {task.spelled(number) for number in range(len(task.labels))}
    for row, (index, value) in enumerate(predictions):
        if index != row or isinstance(index, bool):
            what = f"example {row} of the test set has the index {index!r}; the GLUE server wants 0, 1, 2 and so on"
            raise DataError(what, where=name, hint="predict the published test file, whole and in its order")
        if task.kind == "regression":
            number = float(value)
            if not math.isfinite(number):
                raise DataError(f"the prediction of example {row} is {number}", where=name, hint="has training diverged?")
            lines.append(f"{row}\t{min(max(number, _LOWEST), _HIGHEST):.3f}")
        else:
            assert value in known, f"{name}: {value!r} is not one of {known}"
            lines.append(f"{row}\t{int(value) if isinstance(value, (bool, int, float)) else value}")
    return "\n".join(lines) + "\n"
