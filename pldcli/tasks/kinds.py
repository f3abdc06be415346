"""The kinds of tasks, by name, and the head that a task needs."""

from __future__ import annotations

from pldcli.choices import TaskKind
from pldcli.model import TaskHead
from pldcli.tasks.sequence import Classification, MultiLabel, Regression
from pldcli.tasks.spans import Spans
from pldcli.tasks.tags import Tags
from pldcli.tasks.task import KindCode, Task

__all__ = ["KINDS", "head_of", "usual_row_tokens"]

KINDS: dict[TaskKind, KindCode] = {
    TaskKind.CLASSIFICATION: Classification(),
    TaskKind.MULTI_LABEL: MultiLabel(),
    TaskKind.REGRESSION: Regression(),
    TaskKind.TAGS: Tags(),
    TaskKind.SPANS: Spans(),
}
"""What differs between tasks; everything else is data."""


def head_of(task: Task, *, dropout: float = 0.0) -> TaskHead:
    """Shape the head for a task; the two outputs of a span have no dropout.

    Source: Devlin et al. 2019, section 4.2, as released.
    """
    kind = KINDS[task.kind]
    return TaskHead(kind.head, kind.num_outputs(task), 0.0 if task.kind == TaskKind.SPANS else dropout)


def usual_row_tokens(kind: TaskKind, positions: int) -> int:
    """Choose the row length where nothing says it."""
    return min(384 if kind == TaskKind.SPANS else 128, positions)
