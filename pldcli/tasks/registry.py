"""The tasks that have a name here: GLUE and SQuAD, as data in one table.

Columns have the names of the data sets on the Hugging Face hub; `aliases` are those of the published files. Labels are in the
hub's order of ids.

Source: Wang et al. 2019 (arXiv:1804.07461), Table 1, and the published files; Rajpurkar et al. 2016, 2018 (SQuAD).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pldcli.choices import TaskKind
from pldcli.errors import UsageError
from pldcli.tasks.task import Label, Task

__all__ = ["ALL", "AX", "MNLI", "TASKS", "find_task", "glue_tasks", "is_known_task", "task_name"]

ALL = "glue/all"
"""Stands for every task of GLUE."""
MNLI, AX = "glue/mnli", "glue/ax"
_GLUE = "nyu-mll/glue"
_BINARY: tuple[Label, ...] = (0, 1)
_INFERENCE = ("entailment", "not_entailment")
_INFERENCE_OF_THREE = ("entailment", "neutral", "contradiction")


def _glue(
    folder: str,
    title: str,
    text_columns: tuple[str, ...],
    labels: tuple[str, ...],
    *,
    rows: Mapping[str, int] | tuple[int, int, int],
    metrics: tuple[str, ...] = ("accuracy",),
    **more: Any,
) -> Task:
    """Fill in what most tasks of GLUE have in common.

    Args:
        folder: Its directory in the published files; without dashes and in lower case its name, with `.tsv` the server's file.
        title: What it asks.
        text_columns: One or two.
        labels: In the hub's order of ids; none for a regression.
        rows: Official numbers of examples by split; three of them are those of training, validation and test.
        metrics: Names of its metrics.
        more: Other fields of a task.
    """
    key = folder.replace("-", "").lower()
    usual: dict[str, Any] = {
        "kind": TaskKind.CLASSIFICATION if labels else TaskKind.REGRESSION,
        "hub": (_GLUE, key),
        "num_rows": rows if isinstance(rows, Mapping) else dict(zip(("train", "validation", "test"), rows, strict=True)),
        "server_files": {"test": f"{folder}.tsv"},
    }
    shape: dict[str, Any] = {"title": title, "text_columns": text_columns, "label_column": "label", "labels": labels}
    return Task(f"glue/{key}", **(usual | shape | {"metrics": metrics, "folder": folder} | more))


def _squad(name: str, title: str, version: str, *, rows: tuple[int, int], unanswerable: bool = False) -> Task:
    return Task(
        name,
        kind=TaskKind.SPANS,
        title=title,
        text_columns=("question", "context"),
        label_column="answers",
        metrics=("exact_match", "squad_f1"),
        folder="squad",
        test=(),
        aliases={"index": ("id",)},
        stems={"train": (f"train-v{version}",), "validation": (f"dev-v{version}",)},
        unanswerable=unanswerable,
        num_rows=dict(zip(("train", "validation"), rows, strict=True)),
        hub=(f"rajpurkar/{name}", None),
    )


_SENTENCES = ("sentence1", "sentence2")
_NLI_ALIASES = {"premise": ("sentence1",), "hypothesis": ("sentence2",)}

_TABLE = (
    _glue(
        "CoLA",
        "Is the sentence acceptable English?",
        ("sentence",),
        ("unacceptable", "acceptable"),
        written=_BINARY,
        metrics=("matthews",),
        rows=(8_551, 1_043, 1_063),
        headless=dict.fromkeys(("train", "validation"), ("source", "label", "star", "sentence")),
    ),
    _glue("SST-2", "Is the film review positive?", ("sentence",), ("negative", "positive"), written=_BINARY, rows=(67_349, 872, 1_821)),
    _glue(
        "MRPC",
        "Do the two sentences mean the same?",
        _SENTENCES,
        ("not_equivalent", "equivalent"),
        written=_BINARY,
        metrics=("f1", "accuracy"),
        aliases={"sentence1": ("#1 String",), "sentence2": ("#2 String",), "label": ("Quality",)},
        rows=(3_668, 408, 1_725),
    ),
    _glue(
        "STS-B",
        "How similar are the two sentences, 0 to 5?",
        _SENTENCES,
        (),
        metrics=("pearson", "spearman"),
        aliases={"label": ("score",)},
        rows=(5_749, 1_500, 1_379),
    ),
    _glue(
        "QQP",
        "Do the two questions ask the same?",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        written=_BINARY,
        metrics=("f1", "accuracy"),
        aliases={"label": ("is_duplicate",), "index": ("id",)},
        rows=(363_846, 40_430, 390_965),
        skip_broken_rows=True,
    ),
    _glue(
        "MNLI",
        "Does the premise entail the hypothesis?",
        ("premise", "hypothesis"),
        _INFERENCE_OF_THREE,
        validation=("validation_matched", "validation_mismatched"),
        test=("test_matched", "test_mismatched"),
        aliases=_NLI_ALIASES | {"label": ("gold_label",)},
        rows={
            "train": 392_702,
            "validation_matched": 9_815,
            "validation_mismatched": 9_832,
            "test_matched": 9_796,
            "test_mismatched": 9_847,
        },
        server_files={"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"},
    ),
    _glue("QNLI", "Does the sentence answer the question?", ("question", "sentence"), _INFERENCE, rows=(104_743, 5_463, 5_463)),
    _glue("RTE", "Does the first sentence entail the second?", _SENTENCES, _INFERENCE, rows=(2_490, 277, 3_000)),
    _glue(
        "WNLI",
        "Does the sentence with the pronoun replaced follow?",
        _SENTENCES,
        ("not_entailment", "entailment"),
        written=_BINARY,
        rows=(635, 71, 146),
    ),
    _glue(
        "AX",
        "Diagnostic pairs for a model of mnli",
        ("premise", "hypothesis"),
        _INFERENCE_OF_THREE,
        metrics=("matthews",),
        train=None,
        validation=(),
        aliases=_NLI_ALIASES,
        stems={"test": ("AX", "diagnostic")},
        rows={"test": 1_104},
    ),
    _squad("squad", "Which words of the text answer the question?", "1.1", rows=(87_599, 10_570)),
    _squad("squad_v2", "Which words answer the question, if any do?", "2.0", rows=(130_319, 11_873), unanswerable=True),
)

TASKS: dict[str, Task] = {task.name: task for task in _TABLE}
"""Every task with a name, GLUE first and in the order of its leaderboard."""


def find_task(name: str) -> Task:
    """Find a task; upper and lower case are the same.

    Raises:
        UsageError: There is no such task.
    """
    lower = name.strip().lower()
    if lower in TASKS:
        return TASKS[lower]
    if lower == ALL:
        raise UsageError("stands for every task of GLUE, and only `pld finetune` takes it", where=ALL, hint="name one of them")
    by_short = {one.rpartition("/")[2]: one for one in TASKS}
    short = difflib.get_close_matches(lower.rpartition("/")[2].replace("-", ""), by_short, n=1, cutoff=0.6)
    hint = f"did you mean {by_short[short[0]]!r}? " if short else ""
    raise UsageError(f"there is no task {name!r}", hint=f"{hint}`pld tasks` lists all; a task of your own is named by its file")


def glue_tasks() -> tuple[Task, ...]:
    """List the tasks of `glue/all`, in the order of the leaderboard."""
    return tuple(task for task in TASKS.values() if task.name.startswith("glue/"))


def is_known_task(task: str) -> bool:
    """Return whether this names a task, not a file; what is neither counts as a name, so that the error speaks of tasks."""
    return task.lower() in TASKS or not (Path(task).exists() or Path(task).suffix)


def task_name(task: str) -> str:
    """Name a task in directory names: `mrpc` for `glue/mrpc`, `reviews` for `data/reviews.csv`."""
    return find_task(task).name.rpartition("/")[2] if is_known_task(task) else Path(task).name.partition(".")[0]
