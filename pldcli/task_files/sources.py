"""Where the data of a named task come from: files in any layout that people have, else the hub."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pldcli.choices import TaskKind
from pldcli.errors import DataError, MissingDataError, UsageError
from pldcli.system.input_files import compression_of, ending, head_of
from pldcli.task_files.examples import LabelRule, join, needed_columns, read_examples
from pldcli.task_files.layouts import SplitFiles, find_split_files, splits_of
from pldcli.task_files.table import Table, read_table
from pldcli.tasks.task import Examples, Task, TaskData

__all__ = ["is_squad_json", "load_task", "open_table", "read_file", "span_rows"]

_SCALAR = rb'(?:"(?:[^"\\]|\\.)*"|-?[0-9.]+|true|false|null)'
_SQUAD_JSON = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*(?:"[a-z_]+"\s*:\s*%b\s*,\s*){0,9}"data"\s*:\s*\[\s*[{\]]' % _SCALAR)
"""A version, a name and the like may stand before the articles."""


def load_task(task: Task, *, data_dir: Path | None = None, files: Mapping[str, Path] | None = None) -> TaskData:
    """Read every split of a task that is there.

    Args:
        task: A task of the registry.
        data_dir: A directory with its files; None: the hub.
        files: Files for single splits, by the split's name; `validation` and `test` stand for the first of several.

    Returns:
        The splits; a split that is not there is left out, and notes tell of rows left out and of row counts that are not
        the official ones.

    Raises:
        DataError: Nothing is there, or a file is not as it should be.
        UsageError: `files` names a split that the task does not have.
    """
    given = {_split_called(name, task): SplitFiles((path,)) for name, path in (files or {}).items()}
    if data_dir is not None:
        given = {**_found(data_dir, task, optional=bool(given)), **given}
    found = {split: _read(some, task, split) for split, some in given.items()}
    if not found:
        found = _from_hub(task)
    found = {split: _with_count(examples, task) for split, examples in found.items()}
    return TaskData(
        task,
        train=found.get(task.train) if task.train else None,
        validation={split: found[split] for split in task.validation if split in found},
        test={split: found[split] for split in task.test if split in found},
    )


def read_file(path: Path, task: Task, *, split: str, first_index: int = 0) -> Examples:
    """Read a published file, or one with the same columns in another format; the splits of the test set have no labels.

    Raises:
        DataError: It is not as it should be.
    """
    if task.kind == TaskKind.SPANS and is_squad_json(path):
        from pldcli.task_files.squad import read_squad

        return read_squad(path, split=split)
    return _from_table(open_table(path, task, split, keep=_needed(task)), task, split, first_index)


def open_table(path: Path, task: Task, split: str, *, skip_broken_rows: bool = False, keep: Collection[str] | None = None) -> Table:
    """Open a file of rows; the published TSV files of a task with a name are read by their own rules.

    `skip_broken_rows` leaves out rows with a wrong number of columns, whatever the task says; `keep` names the columns to keep.

    Raises:
        DataError: It cannot be read.
    """
    is_published = task.hub is not None and path.is_file() and ending(path) in (".tsv", ".txt")
    return read_table(
        path,
        columns=task.headless.get(split) if is_published else None,
        quoted=False if is_published else None,
        skip_broken_rows=skip_broken_rows or task.skip_broken_rows,
        keep=keep,
    )


def is_squad_json(path: Path) -> bool:
    """Return whether a file is one JSON object as SQuAD publishes it, rather than rows."""
    return path.is_file() and ending(path) == ".json" and bool(_SQUAD_JSON.match(head_of(path, compression_of(path))))


def span_rows(table: Table, task: Task) -> Iterator[dict[str, Any]]:
    """Yield the questions of a table with columns id, question, context and answers, one by one; id and answers may be missing."""
    columns = {name: table.column(one) for name, one in zip(("question", "context"), task.text_columns, strict=True)}
    columns.update({name: table.columns[name] for name in ("id", "is_impossible") if name in table.columns})
    if task.label_column in table.columns:
        columns["answers"] = table.columns[task.label_column]
    columns["id"] = [None if name is None else str(name) for name in columns.get("id", range(len(table)))]
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


def _needed(task: Task) -> frozenset[str]:
    return frozenset(("id", "is_impossible", *needed_columns(task)))


def _from_table(table: Table, task: Task, split: str, first_index: int = 0) -> Examples:
    if task.kind == TaskKind.SPANS:
        from pldcli.task_files.squad import squad_examples

        return squad_examples(span_rows(table, task), split=split, source=str(table.path))
    rule: LabelRule = "ignored" if split in task.test else "required"
    return read_examples(table, task, split=split, labels=rule, first_index=first_index)


def _read(files: SplitFiles, task: Task, split: str) -> Examples:
    parts: list[Examples] = []
    for path in files.paths:
        parts.append(read_file(path, task, split=split, first_index=sum(map(len, parts))))
    examples = join(parts)
    return replace(examples, notes=(files.note, *examples.notes)) if files.note else examples


def _found(data_dir: Path, task: Task, *, optional: bool) -> dict[str, SplitFiles]:
    try:
        return find_split_files(data_dir, task)
    except DataError:
        if optional and data_dir.is_dir():
            return {}
        raise


def _from_hub(task: Task) -> dict[str, Examples]:
    from pldcli.task_files.hub import load_hub

    tables = load_hub(task, _needed(task))
    found = {split: _from_table(tables[split], task, split) for split in splits_of(task) if split in tables}
    if not found:
        raise MissingDataError(
            f"the hub has no split of {task.name}", where=str(task.hub and task.hub[0]), hint="name files with --data-dir"
        )
    return found


def _split_called(name: str, task: Task) -> str:
    splits = splits_of(task)
    if name in splits:
        return name
    several = {"validation": task.validation, "test": task.test}.get(name, ())
    if several:
        return several[0]
    raise UsageError(f"{task.name} has no split {name!r}", hint=f"its splits are: {', '.join(splits)}")


def _with_count(examples: Examples, task: Task) -> Examples:
    official = task.num_rows.get(examples.split, len(examples))
    if len(examples) == official:
        return examples
    what = {"train": "training", "validation": "validation", "test": "test"}.get(examples.split, examples.split)
    if len(examples) < official:
        note = f"{examples.source}: reads {len(examples):,} of the official {official:,} {what} examples"
    else:
        note = f"{examples.source}: reads {len(examples):,} {what} examples, officially there are {official:,}"
    return replace(examples, notes=(*examples.notes, note))
