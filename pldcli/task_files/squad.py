"""SQuAD: questions whose answers are parts of a text, in the published layout, and how the official evaluation scores them.

Source: Rajpurkar et al., 2016 (SQuAD 1.1) and 2018 (SQuAD 2.0), with the evaluation scripts of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pldcli.corpus.decoding import open_text
from pldcli.errors import DataError, json_type
from pldcli.system.json_text import parse_json
from pldcli.task_files.examples import left_out
from pldcli.tasks.task import Examples

__all__ = ["read_squad", "squad_examples"]

_MAX_SHIFT = 2
"""Characters by which a published `answer_start` may be wrong: in SQuAD 1.1 a few are, by one."""


def read_squad(path: Path, *, split: str, skip_bad: bool = False) -> Examples:
    """Read a file in the layout of SQuAD 1.1 or 2.0.

    Args:
        path: The file.
        split: What to call the questions.
        skip_bad: Leave out questions that cannot be used, and say how many in a note.

    Returns:
        Questions and contexts; for each question its different right answers in the order of the file, none where
        `is_impossible` is set. Labels are None where no question has an answer and none is called impossible: a test set.

    Raises:
        DataError: The file is missing, damaged or of another layout, or an answer does not stand where it should.
    """
    with open_text(path, hint="the layout of SQuAD is needed") as file:
        content = parse_json(file.read(), str(path), hint="the file may be cut off; fetch it again")
    return squad_examples(_rows(content, str(path)), split=split, source=str(path), skip_bad=skip_bad)


def squad_examples(rows: Iterable[Mapping[str, Any] | DataError], *, split: str, source: str, skip_bad: bool = False) -> Examples:
    """Check questions as the Hugging Face hub has them.

    Args:
        rows: Each with `question`, `context` and, unless it is a test set, `answers`: `text` and `answer_start`, two lists of
            one length, empty where the context holds no answer. A true `is_impossible` says so outright. `id` is a string or a whole
            number; a question without one is called by its number.
        split: What to call them.
        source: Where they come from, for messages.
        skip_bad: Leave out questions that cannot be used, and say how many in a note.

    Raises:
        DataError: A key is missing, an id occurs twice, a context is empty, or an answer does not stand in its context.
    """
    found: dict[str, _Question] = {}
    bad: list[DataError] = []
    for number, row in enumerate(rows, 1):
        try:
            if isinstance(row, DataError):
                raise row
            name = _name(row, number, source)
            if name in found:
                hint = "give every question an id of its own"
                raise DataError("the id is there twice", where=f"{source}: question {name}", hint=hint)
            found[name] = _question(row, f"{source}: question {name}")
        except DataError as error:
            if not skip_bad:
                raise
            bad.append(error)
    if not found:
        what = f"all {len(bad):,} questions are unusable; the first: {bad[0].what}" if bad else "holds no questions"
        raise DataError(what, where=source)
    has_labels = any(question.answers or question.is_impossible for question in found.values())
    for name in [name for name, question in found.items() if has_labels and question.answers is None]:
        what, hint = "has no 'answers', and other questions have", "give an empty list where there is no answer"
        bad.append(DataError(what, where=f"{source}: question {name}", hint=hint))
        if not skip_bad:
            raise bad[-1]
        del found[name]
    notes = []
    if bad:
        notes.append(left_out(source, bad, "question"))
    if num_moved := sum(question.num_moved for question in found.values()):
        notes.append(f"{source}: answers found a character or two beside their answer_start: {num_moved:,}")
    if blank := sum(not question.text for question in found.values()):
        notes.append(f"{source}: empty questions: {blank:,}")
    texts = [question.text for question in found.values()], [question.context for question in found.values()]
    labels = [question.answers for question in found.values()] if has_labels else None
    return Examples(split, source, texts, labels, list(found), tuple(notes))


class _Question(NamedTuple):
    text: str
    context: str
    answers: list[tuple[int, str]] | None
    """Where each begins, and its text; None where nothing is said of answers."""
    is_impossible: bool
    num_moved: int
    """Of the answers, those found beside where they should stand."""


def _name(row: Mapping[str, Any], number: int, source: str) -> str:
    given = row.get("id")
    if given is None:
        return str(number)
    if isinstance(given, bool) or not isinstance(given, (str, int)):
        raise DataError(f"'id' is {json_type(given)}, neither a string nor a whole number", where=f"{source}: question number {number}")
    return str(given)


def _question(row: Mapping[str, Any], where: str) -> _Question:
    text, context = _string(row, "question", where).strip(), _string(row, "context", where)
    if not context.strip():
        raise DataError("the context is empty", where=where, hint="leave the question out")
    impossible = row.get("is_impossible") is True
    answers = [] if impossible else _answers(row, where)
    standing = None if answers is None else [_standing(answer, start, context, where) for answer, start in answers]
    num_moved = sum(moved for *_, moved in standing or [])
    distinct = None if standing is None else list(dict.fromkeys((start, answer) for start, answer, _ in standing))
    return _Question(text, context, distinct, impossible, num_moved)


def _rows(content: Any, source: str) -> Iterator[dict[str, Any] | DataError]:
    """Unfold articles and paragraphs; what is no question comes as the error that it is."""
    for a, article in enumerate(_list(content, "data", source)):
        for p, paragraph in enumerate(_list(article, "paragraphs", f"{source}: data[{a}]")):
            where = f"{source}: data[{a}].paragraphs[{p}]"
            for q, question in enumerate(_list(paragraph, "qas", where)):
                try:
                    if not isinstance(question, dict):
                        raise DataError(f"is {json_type(question)}, not an object with a question", where=f"{where}.qas[{q}]")
                    yield {**question, "context": _string(paragraph, "context", where)}
                except DataError as error:
                    yield error


def _answers(row: Mapping[str, Any], where: str) -> list[tuple[str, int]] | None:
    """Read the right answers of a hub row; None where there is no such key."""
    if (given := row.get("answers")) is None:
        return None
    if isinstance(given, list):  # as published; the hub has two lists
        given = {key: [_get(answer, key, where) for answer in given] for key in ("text", "answer_start")}
    texts, starts = (_list(given, key, f"{where}: answers") for key in ("text", "answer_start"))
    if len(texts) != len(starts):
        raise DataError(f"has {len(texts)} answer texts and {len(starts)} answer_start", where=where)
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
            what = f"an answer is {json_type(text)} at {json_type(start)}, not a string at a whole number"
            raise DataError(what, where=where)
    return list(zip(texts, starts, strict=True))


def _standing(text: str, start: int, context: str, where: str) -> tuple[int, str, bool]:
    """Find the answer, without white space around it, at its start or up to two characters beside it; say whether it was beside."""
    bare = text.strip()
    if not bare:
        raise DataError("an answer is empty", where=where, hint="leave it out; a question without an answer has none")
    begin = start + len(text) - len(text.lstrip())
    for shift in sorted(range(-_MAX_SHIFT, _MAX_SHIFT + 1), key=abs):
        if begin + shift >= 0 and context.startswith(bare, begin + shift):
            return begin + shift, bare, shift != 0
    shown = bare if len(bare) <= 40 else bare[:37] + "..."
    raise DataError(f"the answer {shown!r} does not stand at character {start} of its context", where=where, hint="correct answer_start")


def _list(content: Any, key: str, where: str) -> list[Any]:
    found = _get(content, key, where)
    if not isinstance(found, list):
        raise DataError(f"{key!r} is {json_type(found)}, not a list", where=where, hint="the layout of SQuAD is needed")
    return found


def _string(content: Any, key: str, where: str) -> str:
    found = _get(content, key, where)
    if not isinstance(found, str):
        raise DataError(f"{key!r} is {json_type(found)}, not a string", where=where)
    return found


def _get(content: Any, key: str, where: str) -> Any:
    if not isinstance(content, Mapping) or key not in content:
        what = f"has no {key!r}" if isinstance(content, Mapping) else f"is {json_type(content)}, not an object with {key!r}"
        raise DataError(what, where=where, hint="the layout of SQuAD is needed")
    return content[key]
