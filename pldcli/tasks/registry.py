"""The tasks that have a name here: GLUE and SQuAD, as data in one table.

Columns have the names of the data sets on the Hugging Face hub; `aliases` are those of the published files. Labels are in the
hub's order of ids.

Source: Wang et al. 2019 (arXiv:1804.07461), Table 1, and the published files; Rajpurkar et al. 2016, 2018 (SQuAD).
"""

from __future__ import annotations

import difflib
from pathlib import Path

from pldcli.errors import UsageError
from pldcli.tasks.task import Label, Task

__all__ = ["TASKS", "find_task", "glue_tasks", "is_known_task", "task_name"]

_GLUE = "nyu-mll/glue"
_BINARY: tuple[Label, ...] = (0, 1)
_INFERENCE = ("entailment", "not_entailment")
_INFERENCE_OF_THREE = ("entailment", "neutral", "contradiction")


def _rows(train: int, validation: int, test: int) -> dict[str, int]:
    return {"train": train, "validation": validation, "test": test}


_TABLE = (
    Task(
        name="glue/cola",
        kind="classification",
        title="Is the sentence acceptable English?",
        text_columns=("sentence",),
        label_column="label",
        labels=("unacceptable", "acceptable"),
        written=_BINARY,
        metrics=("matthews",),
        folder="CoLA",
        num_rows=_rows(8_551, 1_043, 1_063),
        headless=dict.fromkeys(("train", "validation"), ("source", "label", "star", "sentence")),
        hub=(_GLUE, "cola"),
        server_files={"test": "CoLA.tsv"},
    ),
    Task(
        name="glue/sst2",
        kind="classification",
        title="Is the film review positive?",
        text_columns=("sentence",),
        label_column="label",
        labels=("negative", "positive"),
        written=_BINARY,
        metrics=("accuracy",),
        folder="SST-2",
        num_rows=_rows(67_349, 872, 1_821),
        hub=(_GLUE, "sst2"),
        server_files={"test": "SST-2.tsv"},
    ),
    Task(
        name="glue/mrpc",
        kind="classification",
        title="Do the two sentences mean the same?",
        text_columns=("sentence1", "sentence2"),
        label_column="label",
        labels=("not_equivalent", "equivalent"),
        written=_BINARY,
        metrics=("f1", "accuracy"),
        folder="MRPC",
        aliases={"sentence1": ("#1 String",), "sentence2": ("#2 String",), "label": ("Quality",)},
        num_rows=_rows(3_668, 408, 1_725),
        hub=(_GLUE, "mrpc"),
        server_files={"test": "MRPC.tsv"},
    ),
    Task(
        name="glue/stsb",
        kind="regression",
        title="How similar are the two sentences, 0 to 5?",
        text_columns=("sentence1", "sentence2"),
        label_column="label",
        metrics=("pearson", "spearman"),
        folder="STS-B",
        aliases={"label": ("score",)},
        num_rows=_rows(5_749, 1_500, 1_379),
        hub=(_GLUE, "stsb"),
        server_files={"test": "STS-B.tsv"},
    ),
    Task(
        name="glue/qqp",
        kind="classification",
        title="Do the two questions ask the same?",
        text_columns=("question1", "question2"),
        label_column="label",
        labels=("not_duplicate", "duplicate"),
        written=_BINARY,
        metrics=("f1", "accuracy"),
        folder="QQP",
        aliases={"label": ("is_duplicate",), "index": ("id",)},
        num_rows=_rows(363_846, 40_430, 390_965),
        skip_broken_rows=True,
        hub=(_GLUE, "qqp"),
        server_files={"test": "QQP.tsv"},
    ),
    Task(
        name="glue/mnli",
        kind="classification",
        title="Does the premise entail the hypothesis?",
        text_columns=("premise", "hypothesis"),
        label_column="label",
        labels=_INFERENCE_OF_THREE,
        metrics=("accuracy",),
        folder="MNLI",
        validation=("validation_matched", "validation_mismatched"),
        test=("test_matched", "test_mismatched"),
        aliases={"premise": ("sentence1",), "hypothesis": ("sentence2",), "label": ("gold_label",)},
        num_rows={
            "train": 392_702,
            "validation_matched": 9_815,
            "validation_mismatched": 9_832,
            "test_matched": 9_796,
            "test_mismatched": 9_847,
        },
        hub=(_GLUE, "mnli"),
        server_files={"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"},
    ),
    Task(
        name="glue/qnli",
        kind="classification",
        title="Does the sentence answer the question?",
        text_columns=("question", "sentence"),
        label_column="label",
        labels=_INFERENCE,
        metrics=("accuracy",),
        folder="QNLI",
        num_rows=_rows(104_743, 5_463, 5_463),
        hub=(_GLUE, "qnli"),
        server_files={"test": "QNLI.tsv"},
    ),
    Task(
        name="glue/rte",
        kind="classification",
        title="Does the first sentence entail the second?",
        text_columns=("sentence1", "sentence2"),
        label_column="label",
        labels=_INFERENCE,
        metrics=("accuracy",),
        folder="RTE",
        num_rows=_rows(2_490, 277, 3_000),
        hub=(_GLUE, "rte"),
        server_files={"test": "RTE.tsv"},
    ),
    Task(
        name="glue/wnli",
        kind="classification",
        title="Does the sentence with the pronoun replaced follow?",
        text_columns=("sentence1", "sentence2"),
        label_column="label",
        labels=("not_entailment", "entailment"),
        written=_BINARY,
        metrics=("accuracy",),
        folder="WNLI",
        num_rows=_rows(635, 71, 146),
        hub=(_GLUE, "wnli"),
        server_files={"test": "WNLI.tsv"},
    ),
    Task(
        name="glue/ax",
        kind="classification",
        title="Diagnostic pairs for a model of mnli",
        text_columns=("premise", "hypothesis"),
        label_column="label",
        labels=_INFERENCE_OF_THREE,
        metrics=("matthews",),
        folder="AX",
        train=None,
        validation=(),
        aliases={"premise": ("sentence1",), "hypothesis": ("sentence2",)},
        stems={"test": ("AX", "diagnostic")},
        num_rows={"test": 1_104},
        hub=(_GLUE, "ax"),
        server_files={"test": "AX.tsv"},
    ),
    Task(
        name="squad",
        kind="spans",
        title="Which words of the text answer the question?",
        text_columns=("question", "context"),
        label_column="answers",
        metrics=("exact_match", "squad_f1"),
        folder="squad",
        test=(),
        aliases={"index": ("id",)},
        stems={"train": ("train-v1.1",), "validation": ("dev-v1.1",)},
        num_rows={"train": 87_599, "validation": 10_570},
        hub=("rajpurkar/squad", None),
    ),
    Task(
        name="squad_v2",
        kind="spans",
        title="Which words answer the question, if any do?",
        text_columns=("question", "context"),
        label_column="answers",
        metrics=("exact_match", "squad_f1"),
        folder="squad",
        test=(),
        aliases={"index": ("id",)},
        stems={"train": ("train-v2.0",), "validation": ("dev-v2.0",)},
        unanswerable=True,
        num_rows={"train": 130_319, "validation": 11_873},
        hub=("rajpurkar/squad_v2", None),
    ),
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
    by_short = {one.rpartition("/")[2]: one for one in TASKS}
    short = difflib.get_close_matches(lower.rpartition("/")[2].replace("-", ""), by_short, n=1, cutoff=0.6)
    hint = f"did you mean {by_short[short[0]]!r}? " if short else ""
    raise UsageError(f"there is no task {name!r}", hint=f"{hint}`pld tasks` lists all; a task of your own is named by its file")


def glue_tasks() -> tuple[Task, ...]:
    """List the tasks of `glue/all`, in the order of the leaderboard."""
    return tuple(task for task in TASKS.values() if task.name.startswith("glue/"))


def is_known_task(task: str) -> bool:
    """Tell a task's name from a file's; what is neither counts as a name, so that the error speaks of tasks."""
    return task.lower() in TASKS or not (Path(task).exists() or Path(task).suffix)


def task_name(task: str) -> str:
    """Name a task in directory names: `mrpc` for `glue/mrpc`, `reviews` for `data/reviews.csv`."""
    return find_task(task).name.rpartition("/")[2] if is_known_task(task) else Path(task).name.partition(".")[0]
