"""SQuAD: questions whose answers are parts of a text, in the published layout, and how the official evaluation scores them.

Source: Rajpurkar et al., 2016 (SQuAD 1.1) and 2018 (SQuAD 2.0), with the evaluation scripts of both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pldcli.errors import DataError, json_type
from pldcli.task_files.text_file import open_text, parse_json
from pldcli.tasks.task import Examples

__all__ = ["read_squad", "squad_examples"]

_MAX_SHIFT = 2
"""Characters by which a published `answer_start` may be wrong: in SQuAD 1.1 a few are, by one."""


def read_squad(path: Path, *, split: str) -> Examples:
    """Read a file in the layout of SQuAD 1.1 or 2.0.

    Returns:
        Questions and contexts; for each question its different right answers in the order of the file, none where
        `is_impossible` is set. Labels are None where no question has an answer and none is called impossible: a test set.

    Raises:
        DataError: The file is missing, damaged or of another layout, or an answer does not stand where it should.
    """
    with open_text(path) as file:
        content = parse_json(file.read(), str(path), hint="the file may be cut off; fetch it again")
    return squad_examples(_rows(content, str(path)), split=split, source=str(path))


def squad_examples(rows: Iterable[Mapping[str, Any]], *, split: str, source: str) -> Examples:
    """Check questions as the Hugging Face hub has them.

    Args:
        rows: Each with `id`, `question`, `context` and, unless it is a test set, `answers`: `text` and `answer_start`, two lists of
            one length, empty where the context holds no answer. A true `is_impossible` says so outright.
        split: What to call them.
        source: Where they come from, for messages.

    Raises:
        DataError: A key is missing, an id occurs twice, a context is empty, or an answer does not stand in its context.
    """
    ids: dict[str, None] = {}
    questions: list[str] = []
    contexts: list[str] = []
    labels: list[list[tuple[int, str]] | None] = []
    num_moved = 0
    num_impossible = 0
    for number, row in enumerate(rows):
        name = _string(row, "id", f"{source}: question number {number + 1}")
        where = f"{source}: question {name}"
        if name in ids:
            raise DataError("the id is there twice", where=where, hint="give every question an id of its own")
        ids[name] = None
        questions.append(_string(row, "question", where).strip())
        contexts.append(_string(row, "context", where))
        if not contexts[-1].strip():
            raise DataError("the context is empty", where=where, hint="leave the question out")
        impossible = row.get("is_impossible") is True
        answers = [] if impossible else _answers(row, where)
        found = None if answers is None else [_standing(text, start, contexts[-1], where) for text, start in answers]
        num_impossible += impossible
        num_moved += sum(moved for *_, moved in found or [])
        labels.append(None if found is None else list(dict.fromkeys((start, text) for start, text, _ in found)))
    if not ids:
        raise DataError("holds no questions", where=source)
    has_labels = num_impossible > 0 or any(labels)
    if has_labels and None in labels:
        where = f"{source}: question {list(ids)[labels.index(None)]}"
        raise DataError("has no 'answers', and other questions have", where=where, hint="give an empty list where there is no answer")
    notes = []
    if num_moved:
        notes.append(f"{source}: answers found a character or two beside their answer_start: {num_moved:,}")
    if blank := sum(not question for question in questions):
        notes.append(f"{source}: empty questions: {blank:,}")
    return Examples(split, source, (questions, contexts), list(labels) if has_labels else None, list(ids), tuple(notes))


def _rows(content: Any, source: str) -> Iterator[dict[str, Any]]:
    """Unfold articles and paragraphs; answers become two lists, as on the hub."""
    for a, article in enumerate(_list(content, "data", source)):
        for p, paragraph in enumerate(_list(article, "paragraphs", f"{source}: data[{a}]")):
            where = f"{source}: data[{a}].paragraphs[{p}]"
            for q, question in enumerate(_list(paragraph, "qas", where)):
                if not isinstance(question, dict):
                    raise DataError(f"is {json_type(question)}, not an object with a question", where=f"{where}.qas[{q}]")
                row = {**question, "context": _string(paragraph, "context", where)}
                if isinstance(given := question.get("answers"), list):
                    one = f"{source}: question {question.get('id', f'{where}.qas[{q}]')}"
                    row["answers"] = {key: [_get(answer, key, one) for answer in given] for key in ("text", "answer_start")}
                yield row


def _answers(row: Mapping[str, Any], where: str) -> list[tuple[str, int]] | None:
    """Read the right answers of a hub row; None where there is no such key."""
    if (given := row.get("answers")) is None:
        return None
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
