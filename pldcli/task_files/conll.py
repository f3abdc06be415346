"""Files with one word a line and a blank line after each sentence, as CoNLL's shared tasks publish them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pldcli.corpus.decoding import open_text
from pldcli.errors import DataError

__all__ = ["read_conll", "usual_columns"]

_DOCUMENT = "-DOCSTART-"
_KEY_AND_VALUE = re.compile(r"#\s*\S+\s*=\s")
_NOT_A_WORD = re.compile(r"\d+[-.]\d+")
"""The number of a range of words, or of an empty node, in CoNLL-U: the line repeats words or adds one that is not in the text."""
_COLUMNS_OF_CONLLU = 10
_LEAST_NUMBERED = 3
"""Columns of a file that numbers its words: number, word, label."""
_WHITE_SPACE = " \t\r"
_NAMES_OF_WORDS = ("word", "words", "token", "tokens", "form", "text")
"""What a heading calls the first column."""


def read_conll(
    path: Path, *, text_column: int = 0, label_column: int = -1, bad: list[DataError] | None = None
) -> tuple[list[list[str]], list[list[str]] | None]:
    """Read the sentences of a file.

    Columns are parted by tabs if the first word's line has one, else by spaces. `-DOCSTART-` lines are skipped; so are lines before a
    sentence that begin with `#` and have another number of columns than words have, or read like `# key = value`, and those with a `#`
    alone in the first column where none of them, of several, has a word's label; a heading, whose first cell is `word`, `token`, `form` or
    `text` and whose label no word has; and, where there are ten columns, CoNLL-U's ranges of words (`1-2`) and empty nodes (`8.1`).

    Args:
        path: The file, in UTF-8.
        text_column: Which column holds the words, from 0; negative from the end.
        label_column: Which column holds the labels.
        bad: Collects what is wrong with sentences, which are left out; None: it is an error.

    Returns:
        The words of each sentence, and their labels; no labels where there is a single column.

    Raises:
        DataError: The file is missing, empty or not UTF-8, lines have different numbers of columns, a column is missing or empty.
    """
    sentences: list[list[str]] = []
    labels: list[list[str]] = []
    begun = is_bad = single = False
    for where, cells in _word_lines(path, label_column):
        if not cells:
            begun = False
            continue
        if not begun:
            sentences.append([])
            labels.append([])
            begun, is_bad = True, False
        if is_bad:
            continue
        try:
            if isinstance(cells, DataError):
                raise cells
            single = len(cells) == 1
            word = _cell(cells, text_column if not single else 0, "word", where)
            label = [] if single else [_cell(cells, label_column, "label", where)]
        except DataError as error:
            if bad is None:
                raise
            bad.append(error)
            is_bad = True
            del sentences[-1], labels[-1]
            continue
        sentences[-1].append(word)
        labels[-1] += label
    if not sentences:
        what = f"all {len(bad):,} sentences are unusable; the first: {bad[0]}" if bad else "holds no words"
        raise DataError(what, where=str(path), hint="one word a line is needed, and a blank line after each sentence")
    return sentences, None if single else labels


def usual_columns(path: Path) -> tuple[int, int | None]:
    """Return where words and labels stand by convention: the first column and the last, but behind one that numbers the words the next.

    Of ten columns with numbers, as CoNLL-U has them, labels are the parts of speech (UPOS); of three they are the last; of more, None.
    """
    width = 0
    expected: int | None = 1
    for _, cells in _word_lines(path):
        if isinstance(cells, DataError):
            expected = None  # of this sentence nothing else tells
        elif not cells:
            expected = 1
        elif len(cells) < _LEAST_NUMBERED or (expected is not None and cells[0] != str(expected)):
            return 0, -1
        else:
            width, expected = len(cells), None if expected is None else expected + 1
    return (1, {_LEAST_NUMBERED: 2, _COLUMNS_OF_CONLLU: 3}.get(width)) if width else (0, -1)


def _word_lines(path: Path, label_column: int = -1) -> Iterator[tuple[str, list[str] | DataError]]:
    """Yield each word's place and columns, or what is wrong with its line, and no columns where a sentence ends."""
    with open_text(path, hint="one word a line is needed, and a blank line after each sentence") as file:
        lines = file.read().split("\n")
    model = next((line for line in lines if line.strip(_WHITE_SPACE) and not line.startswith(("#", _DOCUMENT))), None)
    if model is None:
        model = next((line for line in lines if line.strip(_WHITE_SPACE) and not line.startswith(_DOCUMENT)), "")
    with_tabs = "\t" in model.strip(_WHITE_SPACE)
    cells = _columns(model, with_tabs=with_tabs)
    num_columns, may_be_heading = len(cells), bool(cells) and cells[0].lower() in _NAMES_OF_WORDS
    labels, of_comments = set[str](), list[str]()
    if may_be_heading or any(line.startswith(("# ", "#\t")) for line in lines):  # only then all lines are parted twice
        labels, of_comments = _labels_of_words(lines, label_column, num_columns, with_tabs=with_tabs)
    has_comments = len(of_comments) > 1 and labels.isdisjoint(of_comments)
    before_sentence, is_first = True, True
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        cells = _columns(line, with_tabs=with_tabs)
        if not cells or cells[0] == _DOCUMENT:
            before_sentence = True
            yield where, []
            continue
        is_whole = len(cells) == num_columns
        has_own_label = is_whole and bool(labels) and cells[label_column] not in labels
        if before_sentence and line.startswith("#") and (not is_whole or (cells[0] == "#" and has_comments) or _KEY_AND_VALUE.match(line)):
            continue
        is_heading = is_first and may_be_heading and has_own_label
        is_first = False
        if is_heading:
            continue
        if not is_whole:
            what = f"has {_counted(len(cells))}, and the first word's line has {num_columns}"
            yield where, DataError(what, where=where, hint="give every word the same columns, and end a sentence with a blank line")
            continue
        before_sentence = False
        if num_columns != _COLUMNS_OF_CONLLU or not _NOT_A_WORD.fullmatch(cells[0]):
            yield where, cells


def _labels_of_words(lines: list[str], label_column: int, num_columns: int, *, with_tabs: bool) -> tuple[set[str], list[str]]:
    """Collect the labels of words, and what stands in their place behind a `#` alone in the first column, in lines that may be comments.

    The first line, which may be a heading, is left out. Where there is a single column there are none.
    """
    found, of_comments = set[str](), list[str]()
    if num_columns == 1 or not -num_columns <= label_column < num_columns:
        return found, of_comments
    before_sentence = is_first = True
    for cells in (_columns(line, with_tabs=with_tabs) for line in lines):
        if not cells or cells[0] == _DOCUMENT:
            before_sentence = True
            continue
        before_sentence = before_sentence and cells[0] == "#"
        if len(cells) == num_columns and before_sentence:
            of_comments.append(cells[label_column])
        elif len(cells) == num_columns and not is_first:
            found.add(cells[label_column])
        is_first = False
    return found, of_comments


def _columns(line: str, *, with_tabs: bool) -> list[str]:
    """Part a line; of Unicode's many spaces only the space itself and the tab count, others may be words."""
    if with_tabs and line.strip(_WHITE_SPACE):
        return [cell.strip(" ") for cell in line.rstrip("\r").split("\t")]
    return [cell for cell in re.split(f"[{_WHITE_SPACE}]+", line) if cell]


def _cell(cells: list[str], column: int, what: str, where: str) -> str:
    if not -len(cells) <= column < len(cells):
        raise DataError(f"has {_counted(len(cells))}, so none for the {what} at {column}", where=where, hint="columns count from 0")
    if not cells[column]:
        raise DataError(f"has an empty {what}", where=where, hint="give every word a label, or O where there is nothing to say")
    return cells[column]


def _counted(number: int) -> str:
    return "1 column" if number == 1 else f"{number} columns"
