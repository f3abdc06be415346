"""A task of the user's own: files with texts and labels, columns named or told by their names, labels found in the data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pldcli.choices import TaskKind
from pldcli.data import order
from pldcli.errors import DataError, UsageError
from pldcli.system.input_files import bare_name, ending
from pldcli.task_files.examples import EmptyRule, LabelRule, left_out, read_examples, select
from pldcli.task_files.own_columns import choose_columns, find_labels, guess_columns, separator_in
from pldcli.task_files.sources import is_squad_json, open_table, span_rows
from pldcli.task_files.table import Table
from pldcli.tasks.task import Examples, Task, TaskData

__all__ = ["load_own", "load_split"]

_CONLL = (".conll", ".iob", ".iob2", ".bio", ".conllu")
_PLAIN_TEXT = (".txt", ".tsv", "")
"""Endings of files that are CoNLL columns where the user says that the task is tags."""
_QUESTION_AND_CONTEXT = 2


def load_own(
    train: Path,
    *,
    validation: Path | None = None,
    test: Path | None = None,
    text_columns: Sequence[str] = (),
    label_column: str | None = None,
    kind: TaskKind | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    skip_bad: bool = False,
) -> TaskData:
    """Read a task from files.

    Args:
        train: CSV, TSV, JSON lines, Parquet, Arrow, a directory that `datasets` saved, CoNLL columns, or JSON as SQuAD has it.
        validation: Another such file; None: rows of `train` are held out.
        test: Another such file, with labels or without.
        text_columns: One or two; a number from 0 in CoNLL files. Empty: told by their names.
        label_column: None: told by its name.
        kind: What the labels are; None: told by them.
        validation_fraction: How much of `train` to hold out.
        seed: Which rows those are.
        skip_bad: Leave out rows that cannot be used, with a note, instead of failing.

    Raises:
        DataError: A file is not as it should be.
        UsageError: The options do not fit together.
    """
    if validation is None and not 0 < validation_fraction < 1:
        raise UsageError(f"a validation fraction of {validation_fraction} leaves nothing", hint="it lies between 0 and 1")
    for path in (train, validation, test):
        if path is not None and not path.exists():
            raise DataError("no such file", where=str(path))
    start = _unknown_task(train, has_test=test is not None)
    if kind == TaskKind.SPANS or (kind is None and is_squad_json(train)):
        task, found = _own_spans(start, train, text_columns, label_column, skip_bad=skip_bad)
    else:
        task, found = _own_table(start, train, text_columns, label_column, kind, skip_bad=skip_bad)
    if validation is None:
        found, held_out = _hold_out(found, task, validation_fraction, seed)
    else:
        held_out = _read(validation, task, "validation", labels="required", skip_bad=skip_bad)
    tests = {} if test is None else {"test": _read(test, task, "test", labels="optional", skip_bad=skip_bad)}
    return TaskData(task, found, {"validation": held_out}, tests)


def load_split(task: Task, path: Path, *, split: str = "validation", skip_bad: bool = False) -> Examples:
    """Read one file for a task that is known already, for example that of a fine-tuned model; without labels where the file has none.

    The file has the task's columns, or others whose names tell as clearly what they hold; of the label only where the task knows no column.
    Examples are named as the file does. `skip_bad` leaves out rows that cannot be used, with a note, instead of failing.

    Raises:
        DataError: The file is not as it should be.
    """
    examples = _read(path, replace(task, train=None), split, labels="optional", skip_bad=skip_bad, guess=True)
    if examples.labels is not None:
        return examples
    place = f"in {task.label_column!r}" if task.label_column else "in a column that is called so"
    return replace(examples, notes=(*examples.notes, f"{path}: there are no labels {place}, so nothing is scored"))


def _unknown_task(train: Path, *, has_test: bool) -> Task:
    return Task(
        name=bare_name(train).stem or train.resolve().name,
        kind=TaskKind.CLASSIFICATION,
        text_columns=(),
        label_column="",
        title=f"What {train.name} asks",
        test=("test",) if has_test else (),
    )


def _own_table(
    start: Task, train: Path, text_columns: Sequence[str], label_column: str | None, kind: TaskKind | None, *, skip_bad: bool
) -> tuple[Task, Examples]:
    if _is_conll(train, kind):
        for name in (*text_columns, *([] if label_column is None else [label_column])):
            if not _is_number(name):
                raise UsageError(f"{name!r} is not the number of a column", where=str(train), hint="they count from 0, the last is -1")
        word, tag = _conll_columns(train, next(iter(text_columns), ""), label_column or "")
        text_columns, label_column = tuple(text_columns) or (str(word),), label_column or str(tag)
        table = _conll_table(train, text_columns[0], label_column, skip_bad=skip_bad)
        if label_column not in table.columns:
            raise DataError("has a single column, so no labels", where=str(train), hint="training needs a label beside every word")
    else:
        table = open_table(train, start, "train", skip_broken_rows=skip_bad)
    texts, label = choose_columns(table, text_columns, label_column)
    if kind is None and len(texts) == _QUESTION_AND_CONTEXT and any(map(_is_answer, table.column(label))):
        return _own_spans(start, train, texts, label, skip_bad=skip_bad)
    is_tags = kind == TaskKind.TAGS or (kind is None and any(isinstance(value, list) for value in table.column(texts[0])))
    if is_tags and len(texts) != 1:
        raise UsageError("labels of words need one text column", where=str(train), hint="name it with --text-column")
    found = TaskKind.TAGS if is_tags else TaskKind.MULTI_LABEL if kind == TaskKind.MULTI_LABEL else TaskKind.CLASSIFICATION
    task = replace(start, kind=found, text_columns=texts, label_column=label)
    task, labels = find_labels(table, task, kind, skip_bad=skip_bad)
    empty: EmptyRule = "skip" if skip_bad else "error"
    examples = read_examples(table, task, split="train", labels="required", empty=empty)
    note = f"{train}: {labels} (column {label!r}); text: {' and '.join(map(repr, texts))}"
    return task, replace(examples, notes=(note, *examples.notes))


def _own_spans(start: Task, train: Path, text_columns: Sequence[str], label_column: str | None, *, skip_bad: bool) -> tuple[Task, Examples]:
    if len(text_columns) not in (0, _QUESTION_AND_CONTEXT):
        raise UsageError("question answering needs two text columns, question and context", where=str(train))
    texts = tuple(text_columns) or ("question", "context")
    task = replace(
        start, kind=TaskKind.SPANS, text_columns=texts, label_column=label_column or "answers", metrics=("exact_match", "squad_f1")
    )
    examples = _read_spans(train, task, "train", skip_bad=skip_bad)
    if examples.labels is None:
        raise DataError("has questions without answers only", where=str(train), hint="training needs answers")
    num_without = sum(not answers for answers in examples.labels)
    note = f"{train}: {len(examples):,} questions, {num_without:,} of them without an answer"
    return replace(task, unanswerable=num_without > 0), replace(examples, notes=(note, *examples.notes))


def _hold_out(examples: Examples, task: Task, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Part the rows of a training file: those that stay, and those held out for validation, both in the order of the file.

    The last example of each class is drawn only where no others are left. Questions about one text stay together.
    """
    size = len(examples)
    num_held = round(size * fraction)
    if num_held < 1 or size - num_held < 1:
        rows = "1 row" if size == 1 else f"{size:,} rows"
        what = f"has {rows}, too few to hold out {100 * fraction:g} % of them for validation"
        raise DataError(what, where=examples.source, hint="add rows, or name a validation file")
    places = order.permute(np.arange(size), size, order.key(seed, "holdout"))
    last = {label: row for row in np.argsort(places).tolist() for label in _classes(examples, task, row)}
    places[list(set(last.values()))] += size
    if task.kind == TaskKind.SPANS:
        first: dict[str, int] = {}
        places = places[[first.setdefault(context, row) for row, context in enumerate(examples.inputs[1])]]
    held = places <= np.sort(places)[num_held - 1]
    if held.all():
        raise DataError("asks about too few texts to hold one out for validation", where=examples.source, hint="name a validation file")
    num_held = int(held.sum())
    training = select(examples, np.flatnonzero(~held).tolist(), split="train")
    validation = select(examples, np.flatnonzero(held).tolist(), split="validation")
    note = f"{examples.source}: {num_held:,} of {size:,} examples are held out for validation, {size - num_held:,} are left to train on"
    if num_lost := sum(held[row] for row in last.values()):
        note += f"; {num_lost:,} of {len(last):,} classes are in validation only"
    return replace(training, notes=(*examples.notes, note)), replace(validation, notes=())


def _classes(examples: Examples, task: Task, row: int) -> Iterable[int]:
    """List the classes that an example teaches; none of numbers and answers."""
    if examples.labels is None or task.kind in (TaskKind.REGRESSION, TaskKind.SPANS):
        return ()
    label = examples.labels[row]
    return label if isinstance(label, list) else (label,)


def _read(path: Path, task: Task, split: str, *, labels: LabelRule, skip_bad: bool, guess: bool = False) -> Examples:
    if task.kind == TaskKind.SPANS:
        examples = _read_spans(path, task, split, skip_bad=skip_bad)
        if labels == "required" and examples.labels is None:
            raise DataError("has questions without answers only", where=str(path), hint="validation needs answers")
        return examples
    if task.kind == TaskKind.TAGS and _is_conll(path, TaskKind.TAGS):
        table = _conll_table(path, task.text_columns[0], task.label_column, skip_bad=skip_bad)
    else:
        table = open_table(path, task, split, skip_broken_rows=skip_bad)
    notes: tuple[str, ...] = ()
    if guess:
        task, notes = _with_columns_of(table, task)
    examples = read_examples(table, task, split=split, labels=labels, empty="skip" if skip_bad else "error", named=guess)
    return replace(examples, notes=(*notes, *examples.notes))


def _read_spans(path: Path, task: Task, split: str, *, skip_bad: bool) -> Examples:
    from pldcli.task_files.squad import read_squad, squad_examples

    if is_squad_json(path):
        return read_squad(path, split=split, skip_bad=skip_bad)
    table = open_table(path, task, split, skip_broken_rows=skip_bad)
    found = squad_examples(span_rows(table, task), split=split, source=str(path), skip_bad=skip_bad)
    return replace(found, notes=(*table.notes, *found.notes))


def _with_columns_of(table: Table, task: Task) -> tuple[Task, tuple[str, ...]]:
    """Take the columns that a file's names point to where those of the task are not there, or not known.

    Raises:
        DataError: The task knows none, and the names point to none.
    """

    def is_there(name: str) -> bool:
        return any(one in table.columns for one in (name, *task.aliases.get(name, ())))

    texts, label = guess_columns(table)
    chosen = task
    if not task.text_columns and not texts:
        listed = ", ".join(table.headings)
        raise DataError("cannot tell which column holds the text", where=str(table.path), hint=f"call it text; its columns are: {listed}")
    if not task.text_columns or (not all(map(is_there, task.text_columns)) and len(texts) == len(task.text_columns)):
        chosen = replace(chosen, text_columns=texts)
    if not task.label_column and label is not None and label not in chosen.text_columns:
        chosen = replace(chosen, label_column=label)
        if task.kind == TaskKind.MULTI_LABEL and not task.label_column:
            chosen = replace(chosen, separator=separator_in(table.column(label)))
    if chosen is task:
        return task, ()
    names = " and ".join(map(repr, chosen.text_columns))
    labels = f", labels from {chosen.label_column!r}" if is_there(chosen.label_column) else ""
    return chosen, (f"{table.path}: the text is taken from {names}{labels}",)


def _is_conll(path: Path, kind: TaskKind | None) -> bool:
    return path.is_file() and (ending(path) in _CONLL or (kind == TaskKind.TAGS and ending(path) in _PLAIN_TEXT))


def _is_answer(value: object) -> bool:
    """Return whether this is what stands beside a question: a text and where it begins."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, dict) for one in value))


def _conll_columns(path: Path, text_column: str, label_column: str) -> tuple[int, int]:
    """Choose the columns of words and labels; those that are not called by numbers are the usual ones.

    Raises:
        DataError: The labels could be in several.
    """
    from pldcli.task_files.conll import usual_columns

    word, tag = (int(name) if _is_number(name) else None for name in (text_column, label_column))
    if word is None or tag is None:
        usual_word, usual_tag = usual_columns(path)
        word, tag = usual_word if word is None else word, usual_tag if tag is None else tag
    if tag is None:
        hint = "name it with --label-column (columns count from 0), or leave others out"
        raise DataError("numbers its words, and it cannot be told which column holds the labels", where=str(path), hint=hint)
    return word, tag


def _is_number(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def _conll_table(path: Path, text_column: str, label_column: str, *, skip_bad: bool) -> Table:
    """Make a table of sentences."""
    from pldcli.task_files.conll import read_conll

    bad: list[DataError] = []
    word, tag = _conll_columns(path, text_column, label_column)
    words, tags = read_conll(path, text_column=word, label_column=tag, bad=bad if skip_bad else None)
    columns = {text_column: list(words)} if tags is None else {text_column: list(words), label_column: list(tags)}
    notes = (left_out(path, bad, "sentence"),) if bad else ()
    return Table(path, dict(columns), range(1, len(words) + 1), by_line=False, notes=notes, headings=tuple(columns))
