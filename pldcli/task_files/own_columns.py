"""What a user's own file asks: which columns hold the text and the label, whether labels are classes or numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from pldcli.choices import TaskKind
from pldcli.errors import DataError, UsageError
from pldcli.task_files.examples import ONE_HOT, check_labels, has_decimal_comma, is_missing, label_parts, printed_list, target_of
from pldcli.task_files.table import UNNAMED, Table
from pldcli.tasks.task import Label, Task

__all__ = ["choose_columns", "find_labels", "guess_columns", "separator_in"]

_TEXTS: tuple[tuple[str, ...], ...] = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("question", "sentence"),
    ("question", "context"),
    ("text",),
    ("sentence",),
    ("content",),
    ("document",),
    ("review",),
    ("tokens",),
    ("words",),
)
"""Columns that are the text where they are there and no others of these are."""

_LABELS = ("label", "labels", "target", "score", "class", "category", "tags", "ner_tags", "answers")
_NUMBERS = ("", "index", "idx", "id")
"""Columns that number the rows."""

_MANY = 20
"""More labels than this need a reason to be taken for classes."""

_MAX_LISTED = 10

_SEPARATORS = ("|", ";", ",")
"""Between labels that stand in one text: the one that occurs in most texts."""


def guess_columns(table: Table) -> tuple[tuple[str, ...], str | None]:
    """Guess the columns of the text (none where they cannot be told) and that of the label (None) by their names."""
    by_lower = {name.lower(): name for name in table.headings}
    labels = [name for name in _LABELS if name in by_lower]
    label = by_lower[labels[0]] if len(labels) == 1 else None
    found = [group for group in _TEXTS if all(name in by_lower for name in group)]
    largest = [group for group in found if not any(set(group) < set(other) for other in found)]
    if len(largest) == 1:
        return tuple(by_lower[name] for name in largest[0]), label
    rest = [name for name in table.headings if name != label and name.lower() not in _NUMBERS and not name.startswith(UNNAMED)]
    return (tuple(rest) if label is not None and not found and len(rest) == 1 else ()), label


def choose_columns(table: Table, text_columns: Sequence[str], label_column: str | None) -> tuple[tuple[str, ...], str]:
    """Take the columns that the user names and guess the rest.

    Raises:
        DataError: A named column is not there, or one that is not named cannot be told.
        UsageError: More than two text columns are named, or one twice.
    """
    if len(text_columns) > 2 or len({*text_columns, label_column}) <= len(text_columns):
        raise UsageError("one or two text columns and another for the label are needed", where="--text-column")
    for name in (*text_columns, *([label_column] if label_column is not None else ())):
        table.column(name)
    guessed_texts, guessed_label = guess_columns(table)
    texts = tuple(text_columns) or guessed_texts
    label = label_column if label_column is not None else guessed_label
    listed = f"its columns are: {', '.join(table.headings)}"
    if not texts or (not text_columns and label in texts):
        raise DataError("cannot tell which column holds the text", where=str(table.path), hint=f"name it with --text-column; {listed}")
    if label is None or label in texts:
        raise DataError("cannot tell which column holds the label", where=str(table.path), hint=f"name it with --label-column; {listed}")
    return texts, label


def find_labels(table: Table, task: Task, kind: TaskKind | None, *, skip_bad: bool = False) -> tuple[Task, str]:
    """Find the labels of a training file, and whether they are classes or numbers where `kind` does not say so.

    Args:
        table: The file.
        task: Its task, with columns.
        kind: What its labels are, if the user says so.
        skip_bad: Pass over labels that are neither text nor numbers.

    Returns:
        The task with kind, labels and metrics, and what was found in words.

    Raises:
        DataError: There is one label only, or it cannot be told whether they are classes or numbers.
    """
    column = table.column(task.label_column)
    is_tags = task.kind == TaskKind.TAGS
    is_multi = kind == TaskKind.MULTI_LABEL or (kind is None and not is_tags and any(isinstance(value, list) for value in column))
    values: list[Any] = []
    for row, value in enumerate(column):
        if is_missing(value, task, table):
            continue
        try:
            check_labels(value if isinstance(value, list) and (is_tags or is_multi) else [value], task, table.where(row))
        except DataError:
            if not skip_bad:
                raise
        else:
            values.append(value.strip() if isinstance(value, str) else value)
    if not values:
        raise DataError(f"has no labels in column {task.label_column!r}", where=str(table.path), hint="training needs them")
    if is_tags:
        return _tags(table, task, values)
    if is_multi:
        return _multi_label(table, task, values)
    if kind is None and sum(map(has_decimal_comma, values)) > 0.9 * len(values):
        what = f"column {task.label_column!r} holds numbers with a decimal comma, such as {values[0]}"
        raise DataError(what, where=str(table.path), hint="write decimals with a point; if they are names, say --kind classification")
    named = _with_named_classes(table, task)
    if kind == TaskKind.REGRESSION or (kind is None and named is None and _are_numbers(values)):
        return _regression(task, values)
    found = named or task.with_labels(_distinct(table, task, values, sure=kind is not None))
    if len(set(map(str, values))) < 2 or len(found.labels) < 2:
        what = f"has only one label, {str(values[0])!r}, in column {task.label_column!r}"
        raise DataError(what, where=str(table.path), hint="classification needs two or more")
    return replace(found, kind=TaskKind.CLASSIFICATION, metrics=("accuracy", "macro_f1")), _listed(found.labels)


def _with_named_classes(table: Table, task: Task) -> Task | None:
    """Take the labels whose names the file holds, whether they occur or not; None where it holds none."""
    names = table.class_names.get(task.label_column)
    return None if names is None else replace(task, labels=names, written=tuple(range(len(names))))


def _regression(task: Task, values: list[Any]) -> tuple[Task, str]:
    numbers = [number for value in values if (number := target_of(value)) is not None]
    spread = f"regression, {min(numbers)} to {max(numbers)}" if numbers else "regression"
    return replace(task, kind=TaskKind.REGRESSION, labels=(), written=(), metrics=("pearson", "spearman")), spread


def _are_numbers(values: list[Any]) -> bool:
    """Return whether labels are numbers with a fractional part somewhere; a few that are no numbers are mistakes, not classes."""
    if any(isinstance(value, bool) for value in values):
        return False
    numbers = [number for value in values if (number := target_of(value)) is not None]
    return len(numbers) > 0.9 * len(values) and any(number != int(number) for number in numbers)


def separator_in(values: Iterable[Any]) -> str:
    """Find what stands between labels that are written in one text; empty where nothing does."""
    texts = [value for value in values if isinstance(value, str) and printed_list(value) is None]
    separator = max(_SEPARATORS, key=lambda one: sum(one in text for text in texts))
    return separator if any(separator in text for text in texts) else ""


def _multi_label(table: Table, task: Task, values: list[Any]) -> tuple[Task, str]:
    """Find the labels of which an example may have several, and what stands between them."""
    separator = separator_in(values)
    parts = [label_parts(value, separator) for value in values]
    _check_not_one_hot(table, task, parts)
    found = _with_named_classes(table, task) or task.with_labels(
        _distinct(table, task, [part for some in parts for part in some], sure=True)
    )
    if len(found.labels) < 2:
        what = f"has fewer than two different labels in column {task.label_column!r}"
        raise DataError(what, where=str(table.path), hint=f"labels are lists, or stand in one text between {' or '.join(_SEPARATORS)}")
    each = sum(map(len, parts)) / len(parts)
    told = f"any of {_listed(found.labels)}, {each:.2g} on average" + (f", between {separator!r}" if separator else "")
    return replace(found, kind=TaskKind.MULTI_LABEL, metrics=("micro_f1", "macro_f1"), separator=separator), told


def _check_not_one_hot(table: Table, task: Task, parts: Sequence[list[Any]]) -> None:
    """Refuse lists that hold a 0 or 1 for each label there is; of three labels and more one stands there twice, and that is noticed anyway.

    Raises:
        DataError: Such lists are there, of two labels.
    """
    numbers = [[target_of(part) for part in some] for some in parts]
    if all(len(some) == 2 and {*some} <= {0, 1} for some in numbers) and any(some != [0, 1] for some in numbers):
        raise DataError(f"column {task.label_column!r} holds a 0 or a 1 for each of two labels", where=str(table.path), hint=ONE_HOT)


def _distinct(table: Table, task: Task, values: list[Any], *, sure: bool) -> list[Label]:
    """List the labels in order: whole numbers by size, others by spelling."""
    where = str(table.path)
    spelled: list[Label] = list(dict.fromkeys(values))
    if all(isinstance(one, str) and _is_whole(one) for one in spelled):
        spelled = [int(one) for one in spelled]
    by_name: dict[str, Label] = {}
    for one in spelled:
        other = by_name.setdefault(str(one), one)
        if type(other) is not type(one):
            raise DataError(f"the label {str(one)!r} stands both in quotes and without", where=where, hint="write it one way")
    whole = all(_is_whole(str(one).removesuffix(".0")) for one in spelled)  # 18.0: as pandas writes whole numbers with gaps
    ordered = sorted(spelled, key=float if whole else str)
    contiguous = whole and list(map(float, ordered)) == list(range(len(ordered)))
    if len(ordered) > _MANY and not sure and (2 * len(ordered) > len(values) or (whole and not contiguous)):
        noun = "whole numbers" if whole else "labels"
        what = f"column {task.label_column!r} has {len(ordered):,} different {noun} in {len(values):,} rows"
        raise DataError(what, where=where, hint="say --kind classification or --kind regression, or name another --label-column")
    return ordered


def _tags(table: Table, task: Task, values: list[Any]) -> tuple[Task, str]:
    from pldcli.tasks.tags import completed, default_metrics

    found = _with_named_classes(table, task)
    if found is None:
        if not any(isinstance(value, list) for value in values):
            hint = "JSON lines, Parquet and CoNLL files can hold a label for each word; --kind multi-label is for labels of a text"
            raise DataError(f"column {task.label_column!r} holds no lists, which tags of words are", where=str(table.path), hint=hint)
        tags = _distinct(table, task, [tag for row in values if isinstance(row, list) for tag in row], sure=True)
        found = task.with_labels(tags if all(isinstance(tag, int) for tag in tags) else sorted(completed(set(tags)), key=str))
    if len(found.labels) < 2:
        raise DataError("has fewer than two different labels of words", where=str(table.path), hint="name another --label-column")
    return replace(found, metrics=default_metrics(found.labels)), _listed(found.labels)


def _is_whole(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdecimal() and str(int(text)) == text


def _listed(labels: Sequence[str]) -> str:
    more = f" and {len(labels) - _MAX_LISTED} more" if len(labels) > _MAX_LISTED else ""
    return f"{len(labels)} labels: {', '.join(labels[:_MAX_LISTED])}{more}"
