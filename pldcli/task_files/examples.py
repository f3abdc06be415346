"""From a table to the examples of a task: texts checked, labels turned into ids, every bad row named by its line."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import compress
from typing import Any, Literal

import numpy as np

from pldcli.choices import TaskKind
from pldcli.errors import DataError
from pldcli.task_files.table import Table
from pldcli.tasks.task import Examples, Label, Task

__all__ = [
    "ONE_HOT",
    "EmptyRule",
    "LabelRule",
    "check_labels",
    "has_decimal_comma",
    "is_missing",
    "join",
    "label_ids",
    "label_parts",
    "left_out",
    "needed_columns",
    "printed_list",
    "read_examples",
    "select",
    "target_of",
]

LabelRule = Literal["required", "optional", "ignored"]
"""Every row has a label; all rows have one or none has; labels are not read."""

EmptyRule = Literal["keep", "error", "skip"]
"""What becomes of a row that lacks text, or a label that is required; `skip` leaves out rows that are otherwise unusable, too."""

_INDEX_COLUMNS = ("index", "idx")
_NO_NAME = re.compile(r"(?:LABEL_)?-?\d+")
"""A label that is only the number of a class."""
_MAX_LISTED = 10
_NO_AGREEMENT = "-"
"""The label of natural-language-inference pairs on which the annotators did not agree."""
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]+,[0-9]+")
_LARGEST_TARGET = float(np.finfo(np.float32).max)
_ESCAPE = r"""\\(?:['"\\nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U000[0-9a-f]{5}|U0010[0-9a-f]{4})"""
_PLAIN_ITEM = rf"""(?:'(?:[^'\\\n\r\0]|{_ESCAPE})*'|"(?:[^"\\\n\r\0]|{_ESCAPE})*"|-?(?:0|[1-9][0-9]{{0,17}})(?:\.[0-9]{{1,17}})?)"""
_ITEM = rf"""(?:np\.\w+\({_PLAIN_ITEM}\)|{_PLAIN_ITEM})"""
_ITEMS = rf"(?:{_ITEM}(?: *, *{_ITEM})*)?"
_PRINTED_LIST = re.compile(rf"\[ *{_ITEMS} *\]|\( *{_ITEMS} *,? *\)|\{{ *{_ITEMS} *\}}|set\(\)")
"""A list, tuple or set of texts and numbers as Python prints it, numpy's numbers among them."""
ONE_HOT = "list the labels that an example has, not a 0 or 1 for each label there is"
_LIKE_A_LIST = re.compile(r"\[.*\]|\(.*['\",].*\)|\{.*['\",].*\}", re.DOTALL)


def read_examples(
    table: Table, task: Task, *, split: str, labels: LabelRule, empty: EmptyRule = "keep", first_index: int = 0, named: bool = False
) -> Examples:
    """Read a split of any kind but spans; the task's labels are known.

    Args:
        table: The file.
        task: Its task.
        split: Its name.
        labels: Whether the file must have labels.
        empty: What becomes of rows without text.
        first_index: The name of the first example, where the file does not name them.
        named: Name the examples as the file does, whatever split they are; else only those of test splits.

    Raises:
        DataError: A column is missing, a text is empty or no text, or a label is missing or not one of the task's.
    """
    inputs = [table.column(name, *task.aliases.get(name, ())) for name in task.text_columns]
    values = _label_values(table, task, labels)
    keep = np.ones(len(table), bool)
    notes = list(table.notes)
    bad: dict[int, DataError] | None = {} if empty == "skip" else None
    for name, column in zip(task.text_columns, inputs, strict=True):
        _drop(keep, _rows_without_text(table, task, name, column, empty, bad), table, f"an empty {name!r}", empty, notes)
    if values is not None:
        _drop_without_label(keep, values, table, task, labels, empty, notes)
    rows = [row for row in np.flatnonzero(keep).tolist() if not bad or row not in bad]
    found = None if values is None else _labels(table, task, _with_class_names(values, table, task, notes), rows, bad)
    if bad:
        keep[list(bad)] = False
        notes += _notes_on(bad, table)
    if not keep.any():
        raise DataError("no row is left to use", where=str(table.path), hint="; ".join(notes))
    indices = _indices(table, task, first_index, notes, named=named or split in task.test)
    return Examples(
        split=split,
        source=str(table.path),
        inputs=tuple(list(compress(column, keep)) for column in inputs),
        labels=found,
        indices=list(compress(indices, keep)),
        notes=tuple(notes),
    )


def select(examples: Examples, rows: Sequence[int], *, split: str) -> Examples:
    """Select examples as a split of their own."""
    return Examples(
        split=split,
        source=examples.source,
        inputs=tuple([column[row] for row in rows] for column in examples.inputs),
        labels=None if examples.labels is None else [examples.labels[row] for row in rows],
        indices=[examples.indices[row] for row in rows],
        notes=examples.notes,
    )


def join(parts: Sequence[Examples]) -> Examples:
    """Concatenate the parts of a split."""
    first = parts[0]
    if len(parts) == 1:
        return first
    labelled = [part.labels for part in parts if part.labels is not None]
    if labelled and len(labelled) < len(parts):
        bare = next(part for part in parts if part.labels is None)
        raise DataError("has no labels, other parts of the same split have", where=bare.source)
    return Examples(
        split=first.split,
        source=f"{first.source} and {len(parts) - 1} more",
        inputs=tuple([value for part in parts for value in part.inputs[number]] for number in range(len(first.inputs))),
        labels=[label for labels in labelled for label in labels] if labelled else None,
        indices=[index for part in parts for index in part.indices],
        notes=tuple(note for part in parts for note in part.notes),
    )


def label_ids(task: Task) -> dict[Any, int]:
    """Map every way to write a label to its id: as the files do, by name, and for tasks of the hub as the number there.

    Where a name is the number of another label, numbers in texts are names only.
    """
    ids: dict[Any, int] = {}
    if task.hub and not any(isinstance(spelled, (int, float)) for spelled in task.written):
        ids.update({number: number for number in range(len(task.labels))})
        ids.update({str(number): number for number in range(len(task.labels))})
    by_number = {str(spelled): number for number, spelled in enumerate(task.written)}
    if all(by_number.get(name, number) == number for number, name in enumerate(task.labels)):
        ids.update(by_number)
    ids.update({name: number for number, name in enumerate(task.labels)})
    ids.update({spelled: number for number, spelled in enumerate(task.written)})
    return ids


def is_missing(value: Any, task: Task, table: Table) -> bool:
    """Return whether a row has no label; data sets of the hub write -1 for that, and of several labels there may be none."""
    if isinstance(value, str):
        return not value.strip() and task.kind != TaskKind.MULTI_LABEL
    if value is None:
        return True
    if isinstance(value, float) and math.isnan(value):
        return task.kind != TaskKind.REGRESSION
    return value == -1 and task.kind == TaskKind.CLASSIFICATION and (bool(task.hub) or task.label_column in table.class_names)


def label_parts(value: Any, separator: str) -> list[Any]:
    """Take the labels of an example apart: a list as it is, printed or not, a text at its separators."""
    if isinstance(value, str) and (printed := printed_list(value)) is not None:
        value = printed
    elif isinstance(value, str):
        value = value.split(separator) if separator else [value]
    parts = value if isinstance(value, list) else [value]
    return [part.strip() if isinstance(part, str) else part for part in parts if not (isinstance(part, str) and not part.strip())]


def printed_list(text: str) -> list[str | int | float] | None:
    """Read a list, a tuple or a set as pandas writes it into a cell; None where the text is something else."""
    if not _PRINTED_LIST.fullmatch(text.strip()):
        return None
    items = [ast.literal_eval(re.sub(r"^np\.\w+\((.*)\)$", r"\1", item, flags=re.DOTALL)) for item in re.findall(_ITEM, text)]
    # JSON writes what lies beyond 16 bits as two escapes.
    return [item.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(item, str) else item for item in items]


def check_labels(labels: Sequence[Any], task: Task, where: str) -> None:
    """Check that the labels of an example are text or numbers.

    Raises:
        DataError: One is neither, or looks like a list that lacks its commas.
    """
    for place, label in enumerate(labels, 1):
        if not isinstance(label, (str, int, float)):
            whose = f"the label of word {place}" if task.kind == TaskKind.TAGS else "the label"
            what = f"{whose} is neither a word nor a number but {'null' if label is None else type(label).__name__}"
            raise DataError(what, where=where, hint="mend it, or name another label column")
        if task.kind == TaskKind.MULTI_LABEL and isinstance(label, str) and _LIKE_A_LIST.fullmatch(label) and printed_list(label) is None:
            what = f"the label {_short(label)} is no list, but looks like one"
            raise DataError(what, where=where, hint="write it as ['a', 'b'], or a|b")


def left_out(source: object, errors: Sequence[DataError], unit: str = "row") -> str:
    """Tell of examples that cannot be used, and what is wrong with the first."""
    count = f"1 {unit}" if len(errors) == 1 else f"{len(errors):,} {unit}s"
    return f"{source}: left out {count} that cannot be used; the first: {errors[0]}"


def target_of(value: Any) -> float | None:
    """Read a regression target: a finite number as models compute with, or None where it is something else."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if abs(number) <= _LARGEST_TARGET else None


def has_decimal_comma(value: Any) -> bool:
    """Return whether a text is a number as much of Europe writes it."""
    return isinstance(value, str) and bool(_DECIMAL_COMMA.fullmatch(value.strip()))


def needed_columns(task: Task) -> Iterable[str]:
    """List every name that a column of the task may have in a file."""
    for name in (*task.text_columns, task.label_column, *_INDEX_COLUMNS):
        yield name
        yield from task.aliases.get(name, ())
    yield from task.aliases.get("index", ())


def _label_columns(task: Task) -> tuple[str, ...]:
    return (task.label_column, *task.aliases.get(task.label_column, ()))


def _label_values(table: Table, task: Task, rule: LabelRule) -> list[Any] | None:
    if rule == "ignored":
        return None
    names = _label_columns(task)
    if rule == "optional" and not any(name in table.columns for name in names):
        return None
    values = table.column(*names)
    if rule == "optional" and all(is_missing(value, task, table) or value in ("", []) or value != value for value in values):
        return None  # the last: NaN
    return values


def _with_class_names(values: list[Any], table: Table, task: Task, notes: list[str]) -> list[Any]:
    """Replace the numbers of classes by the names that the file has for them, where the labels of the task have names, too."""
    names = next((table.class_names[name] for name in _label_columns(task) if name in table.class_names), ())
    is_named = bool(set(names) & set(task.labels)) or not all(map(_NO_NAME.fullmatch, task.labels))
    if not names or not is_named:
        return values
    if names != task.labels[: len(names)]:
        notes.append(f"{table.path}: its classes have other numbers than the task's; labels are matched by name")

    def name_of(value: Any) -> Any:
        if isinstance(value, list):
            return [name_of(one) for one in value]
        return names[value] if type(value) is int and 0 <= value < len(names) else value

    return [name_of(value) for value in values]


def _drop_without_label(
    keep: Any, values: list[Any], table: Table, task: Task, labels: LabelRule, empty: EmptyRule, notes: list[str]
) -> None:
    missing = [row for row, value in enumerate(values) if is_missing(value, task, table)]
    if missing and (labels == "optional" or empty == "keep"):
        hint = "other rows have one: fill all, or none" if labels == "optional" else "fill it"
        raise DataError("has no label", where=table.where(missing[0]), hint=hint)
    _drop(keep, missing, table, "no label", empty, notes)
    if task.kind == TaskKind.REGRESSION and empty == "skip":
        gone = set(missing)
        rows = [row for row, value in enumerate(values) if row not in gone and target_of(value) is None]
        _drop(keep, rows, table, "a target that is no finite number", "skip", notes)
    if task.kind == TaskKind.CLASSIFICATION and task.hub:
        _drop(keep, [row for row, value in enumerate(values) if value == _NO_AGREEMENT], table, "the label '-'", "skip", notes)


def _drop(keep: Any, rows: Sequence[int], table: Table, what: str, rule: EmptyRule, notes: list[str]) -> None:
    if not rows or rule == "keep":
        return
    first = table.where(rows[0])
    if rule == "error":
        count = "mend it" if len(rows) == 1 else f"so have {len(rows):,} rows; mend them"
        raise DataError(f"has {what}", where=first, hint=f"{count}, or leave such rows out with --skip-bad")
    keep[list(rows)] = False
    unit, place = "line" if table.by_line else "row", table.places[rows[0]]
    if len(rows) == 1:
        notes.append(f"{table.path}: left out {unit} {place}, which has {what}")
    else:
        notes.append(f"{table.path}: left out {len(rows):,} rows that have {what} (the first is {unit} {place})")


def _rows_without_text(
    table: Table, task: Task, name: str, column: list[Any], rule: EmptyRule, bad: dict[int, DataError] | None
) -> list[int]:
    """List the rows without text; what is something else, or is missing where empty text is kept, is an error, or collected in `bad`."""
    wanted = list if task.kind == TaskKind.TAGS else str
    empty = []
    for row, value in enumerate(column):
        what = hint = ""
        if value is None and rule == "keep":
            what, hint = f"has no {name!r}", "fill it"
        elif value is None:
            empty.append(row)
        elif type(value) is not wanted:
            what = f"{name!r} is not {'a list of words' if wanted is list else 'text'} but {_short(value)}"
            hint = "name the right column"
        elif not value or (isinstance(value, str) and value.isspace()):
            empty.append(row)
        elif isinstance(value, list) and (wrong := [word for word in value if not isinstance(word, str) or not word.strip()]):
            what = f"{name!r} holds {_short(wrong[0])}, which is not a word"
            hint = "every word must be text, and not empty"
        if what:
            error = DataError(what, where=table.where(row), hint=hint)
            if bad is None:
                raise error
            bad[row] = error
    return empty


def _labels(table: Table, task: Task, values: list[Any], rows: list[int], bad: dict[int, DataError] | None) -> list[Any]:
    """Read the labels of rows; those that cannot be used are an error, or left out and collected in `bad`."""
    if task.kind == TaskKind.REGRESSION:
        return _each(rows, lambda row: _target(table, values[row], row), bad)
    ids = label_ids(task)
    if task.kind == TaskKind.MULTI_LABEL:
        return _each(rows, lambda row: _several(table, task, ids, values[row], row), bad)
    if task.kind == TaskKind.TAGS:
        return _each(rows, lambda row: _tags(table, task, ids, values[row], row), bad)
    try:
        return [ids[values[row]] for row in rows]
    except (KeyError, TypeError):
        return _each(rows, lambda row: _label_id(table, task, ids, values[row], row), bad)


def _each(rows: list[int], read: Callable[[int], Any], bad: dict[int, DataError] | None) -> list[Any]:
    found = []
    for row in rows:
        try:
            found.append(read(row))
        except DataError as error:
            if bad is None:
                raise
            bad[row] = error
    return found


def _notes_on(bad: Mapping[int, DataError], table: Table) -> list[str]:
    by_hint: dict[str, list[DataError]] = {}  # errors of one cause have one hint
    for row in sorted(bad):
        by_hint.setdefault(bad[row].hint, []).append(bad[row])
    return [left_out(table.path, errors) for errors in by_hint.values()]


def _target(table: Table, value: Any, row: int) -> float:
    number = target_of(value)
    if number is None:
        hint = "write decimals with a point" if has_decimal_comma(value) else "regression needs numbers"
        raise DataError(f"the target {_short(value)} is not a finite float32 number", where=table.where(row), hint=hint)
    return number


def _label_id(table: Table, task: Task, ids: Mapping[Any, int], value: Any, row: int) -> int:
    if not isinstance(value, (str, int, float)):
        check_labels([value], task, table.where(row))
    spelled = value.strip() if isinstance(value, str) else value
    number = ids.get(spelled)
    if number is None and not (task.written and isinstance(task.written[0], int)):
        number = ids.get(str(spelled))
    if number is not None:
        return number
    known = ", ".join(task.labels[:_MAX_LISTED]) + (f" and {len(task.labels) - _MAX_LISTED} more" if len(task.labels) > _MAX_LISTED else "")
    counted = "; as numbers they count from 0" if isinstance(value, int) and str(value) in ids else ""
    whose = f"is not one of {task.name}" if task.hub else "does not occur in training" if task.train else "is not one of the model's labels"
    raise DataError(f"the label {_short(value)} {whose}", where=table.where(row), hint=f"known labels are: {known}{counted}")


def _several(table: Table, task: Task, ids: Mapping[Any, int], value: Any, row: int) -> list[int]:
    check_labels(value if isinstance(value, list) else [value], task, table.where(row))
    parts = label_parts(value, task.separator)
    found = {_label_id(table, task, ids, part, row) for part in parts}
    if len(found) < len(parts) and all(target_of(part) is not None for part in parts):
        raise DataError("names the number of a label twice", where=table.where(row), hint=ONE_HOT)
    return sorted(found)


def _tags(table: Table, task: Task, ids: Mapping[Any, int], value: Any, row: int) -> list[int]:
    words = table.column(task.text_columns[0], *task.aliases.get(task.text_columns[0], ()))[row]
    if not isinstance(value, list) or len(value) != len(words):
        found = f"{len(value)} labels" if isinstance(value, list) else _short(value)
        raise DataError(
            f"has {len(words)} {'word' if len(words) == 1 else 'words'} but {found}",
            where=table.where(row),
            hint="every word needs one label",
        )
    check_labels(value, task, table.where(row))
    return [_label_id(table, task, ids, tag, row) for tag in value]


def _indices(table: Table, task: Task, first_index: int, notes: list[str], *, named: bool) -> list[Label]:
    """Name examples as their file does, or by their row."""
    running: list[Label] = list(range(first_index, first_index + len(table)))
    names = (*_INDEX_COLUMNS, *task.aliases.get("index", ()))
    column = next((table.columns[name] for name in names if name in table.columns), None)
    if not named or column is None:
        return running
    indices = [_index(value) for value in column]
    if any(not isinstance(index, (str, int)) for index in indices) or len(set(indices)) < len(indices):
        notes.append(f"{table.path}: its index does not name each example; predictions are named by their row, from 0")
        return running
    return indices


def _index(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isdecimal() and str(int(value)) == value else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
