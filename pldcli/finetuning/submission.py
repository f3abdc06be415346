"""The zip file that the GLUE server scores: a table of index and prediction for each test set.

Source: the submission instructions of gluebenchmark.com (FAQ).
"""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pldcli.choices import Device, TaskKind
from pldcli.errors import DataError, MissingDataError, UsageError
from pldcli.evaluation.prediction import as_json_lines
from pldcli.evaluation.task import TaskSource, evaluate_task
from pldcli.finetuning.experiment import Experiment
from pldcli.finetuning.finetune import Finetuned
from pldcli.system import atomic
from pldcli.system.json_text import from_json
from pldcli.tasks.registry import ALL, AX, MNLI, find_task, glue_tasks, is_known_task
from pldcli.tasks.task import Label, Task

__all__ = ["check_submission", "submit", "write_submission"]

_EARLIEST = (1980, 1, 1, 0, 0, 0)
"""The date of every file in the zip, so that equal predictions give equal bytes."""

_LOWEST, _HIGHEST = 0.0, 5.0
"""STS-B's scale."""


def check_submission(task: str, processes: int = 1) -> None:
    """Refuse a submission of something that the GLUE server does not know.

    Args:
        task: What it is to be of.
        processes: How many the command is to start.

    Raises:
        UsageError: It is no task of GLUE, or there are several processes.
    """
    if processes > 1 or os.environ.get("WORLD_SIZE", "1") != "1":
        hint = "leave it out here; the same command without --gpus or torchrun adds it"
        raise UsageError("is written by one process", where="--submission", hint=hint)
    if task.lower() != ALL and not (is_known_task(task) and find_task(task).server_files):
        raise UsageError(
            "the GLUE server has no such task", where=f"--submission for {task}", hint="leave it out: predictions are written anyway"
        )


def submit(tasks: Sequence[Finetuned], experiment: Experiment, path: Path, *, device: Device = "auto") -> list[str]:
    """Write the zip for the GLUE server from the predictions of each task's best model; AX is predicted by MNLI's, on `device`.

    Returns:
        What the server still needs.

    Raises:
        UsageError: None of the tasks has a test split here.
    """
    files: dict[str, list[tuple[Any, Any]]] = {}
    for done in tasks:
        for split, name in done.task.server_files.items():
            predicted = done.out / f"predictions-{split}.jsonl"
            if predicted.is_file():
                files[name] = [_pair(from_json(line)) for line in predicted.read_text(encoding="utf-8").splitlines()]
        if done.task.name == MNLI:
            files |= _predict_ax(done, experiment, device)
    if not files:
        names = ", ".join(done.task.name for done in tasks)
        raise UsageError("no test split was predicted", where=f"--submission for {names}", hint="the task's files need a test split")
    return write_submission(path, files)


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
        if task.kind == TaskKind.REGRESSION:
            number = float(value)
            if not math.isfinite(number):
                raise DataError(f"the prediction of example {row} is {number}", where=name, hint="has training diverged?")
            lines.append(f"{row}\t{min(max(number, _LOWEST), _HIGHEST):.3f}")
        else:
            assert value in known, f"{name}: {value!r} is not one of {known}"
            lines.append(f"{row}\t{int(value) if isinstance(value, (bool, int, float)) else value}")
    return "\n".join(lines) + "\n"


def _predict_ax(mnli: Finetuned, experiment: Experiment, device: Device) -> dict[str, list[tuple[Any, Any]]]:
    """Predict the diagnostic set where it is at hand."""
    try:
        found = evaluate_task(mnli.model, TaskSource(AX, Path(experiment.data_dir) if experiment.data_dir else None), device=device)
    except MissingDataError:
        return {}
    [(split, (examples, scored))] = found.splits.items()
    return {find_task(AX).server_files[split]: [_pair(line) for line in as_json_lines(scored.predictions, examples)]}


def _pair(line: Mapping[str, Any]) -> tuple[Any, Any]:
    return line["index"], line["label"]
