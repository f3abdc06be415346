"""`pld tasks`: what can be fine-tuned and evaluated by name."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pldcli.choices import TaskKind

if TYPE_CHECKING:
    from pldcli.tasks.task import Task

__all__ = ["tasks"]

_BESIDE = 140
"""Below this many columns there are two tables: how large the tasks are, then what they ask."""


def tasks(as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False) -> None:
    """List the tasks that have a name: what each asks, its columns and labels, its metrics, and how many examples it has.

    A task of your own needs no name here: give its file instead.
    """
    from pldcli.tasks.registry import TASKS

    if as_json:
        typer.echo(json.dumps([_described(task) for task in TASKS.values()]))
        return
    from pldcli.console.screen import screen, table

    console = screen()
    sizes, meaning = ["train", "validation", "test"], ["what it asks", "columns", "labels"]
    rows = [
        [task.name, task.title, ", ".join(task.text_columns), _labels(task), ", ".join(task.metrics), *_sizes(task)]
        for task in TASKS.values()
    ]
    if console.width >= _BESIDE:
        console.print(table(["task", *meaning, "metrics", *sizes], rows, right=sizes, fold=[*meaning, "metrics"]))
    else:
        console.print(table(["task", *sizes, "metrics"], [[row[0], *row[5:], row[4]] for row in rows], right=sizes))
        console.print()
        console.print(table(["task", *meaning], [row[:4] for row in rows], fold=meaning))
    console.print("glue/all stands for every task of GLUE. A task of your own is a file: CSV, TSV, JSON lines, Parquet or CoNLL.")


def _labels(task: Task) -> str:
    if task.kind == TaskKind.REGRESSION:
        return "a number"
    return "a span of the context" + (", or none" if task.unanswerable else "") if task.kind == TaskKind.SPANS else ", ".join(task.labels)


def _sizes(task: Task) -> list[str]:
    """Count the official examples of training, validation and test; several validation or test sets stand side by side."""
    splits = ((task.train,) if task.train else (), task.validation, task.test)
    return [" + ".join(f"{task.num_rows[split]:,}" for split in some) or "-" for some in splits]


def _described(task: Task) -> dict[str, Any]:
    return {
        "task": task.name,
        "kind": task.kind,
        "title": task.title,
        "text_columns": task.text_columns,
        "label_column": task.label_column,
        "labels": task.labels,
        "metrics": task.metrics,
        "rows": task.num_rows,
        "hub": task.hub and "/".join(part for part in task.hub if part),
        "folder": task.folder,
    }
