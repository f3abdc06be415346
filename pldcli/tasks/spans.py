"""Answers within a text: windows over question and context, the best span of all windows, the scores of SQuAD."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pldcli.tasks.metrics import squad_scores
from pldcli.tasks.reading import encodings, reader_of
from pldcli.tasks.task import Examples, Features, Head, Prediction, Task
from pldcli.tasks.windows import frame_of, window_starts
from pldcli.tokenization.conversion import SPACE
from pldcli.tokenization.tokenizer import Tokenizer

__all__ = ["Spans", "without_white_space"]

_MAX_QUESTION_TOKENS = 64
_MAX_ANSWER_TOKENS = 30
"""As in the official BERT code."""

_NULL_THRESHOLD = 0.0
"""How much better "no answer" must score than the best answer to be given."""


@dataclass(frozen=True)
class _Text:
    """A text as tokens, and the characters that each stands for, white space around them left out."""

    ids: npt.NDArray[np.int32]
    begins: npt.NDArray[np.int32]
    ends: npt.NDArray[np.int32]
    """Not after `begins` where a token stands for no character, or white space only."""


@dataclass(frozen=True)
class _Details:
    """What it takes to turn tokens into answers, per row."""

    texts: list[_Text]
    """The context."""
    starts: npt.NDArray[np.int64]
    """Which token of the context the window begins with."""
    places: npt.NDArray[np.int64]
    """Where that token stands in the row."""
    counts: npt.NDArray[np.int64]
    """Tokens of the context in the window."""
    may_refuse: bool
    """Whether "no answer" is an answer."""


class Spans:
    """Extractive question answering: two outputs per token, how well an answer begins and ends there."""

    head: Head = "token"

    def num_outputs(self, task: Task) -> int:
        """Count the outputs of the head: the start's logit, then the end's."""
        return 2

    def encode(self, examples: Examples, task: Task, tokenizer: Tokenizer, *, max_seq_len: int, stride: int) -> Features:
        """Tokenize a split into windows: the question, at most 64 tokens of it, and a part of the context.

        A question longer than 64 tokens, or half a row, loses its end and is counted in `num_truncated`. Neighbouring windows share
        `stride` tokens, half of their part of the context at most. The answer to learn is the first of the right answers; a window
        that does not hold all of it learns that token 0 is the answer, which stands for "none".

        Raises:
            UsageError: A row has no room for text.
        """
        frame = frame_of(tokenizer, 2)
        room = frame.room(max_seq_len)
        most = min(_MAX_QUESTION_TOKENS, room // 2)
        questions, contexts = (_encode_texts(texts, tokenizer) for texts in examples.inputs)
        ids, types, texts, rows = [], [], [], []
        labels = []
        for i, (asked, context) in enumerate(zip(examples.inputs[0], examples.inputs[1], strict=True)):
            question, text = questions[asked].ids[:most], contexts[context]
            right = examples.labels[i] if examples.labels is not None else []
            answer = _tokens_of(text, *right[0]) if right else None
            size, place = room - len(question), len(frame.gaps[0]) + len(question) + len(frame.gaps[1])
            for start in window_starts(len(text.ids), size, stride):
                part = text.ids[start : start + size]
                row_ids, row_types = frame.row(question, part)
                ids.append(row_ids)
                types.append(row_types)
                texts.append(text)
                rows.append((i, start, place, len(part)))
                held = answer is not None and start <= answer[0] and answer[1] < start + len(part)
                labels.append((answer[0] - start + place, answer[1] - start + place) if answer is not None and held else (0, 0))
        columns = np.array(rows, np.int64).reshape(-1, 4).T
        may_refuse = task.unanswerable or not all(examples.labels or [True])
        return Features.of_rows(
            ids,
            types,
            labels=None if examples.labels is None else np.array(labels, np.int64).reshape(-1, 2),
            example_of_row=columns[0],
            num_truncated=sum(len(questions[asked].ids) > most for asked in examples.inputs[0]),
            details=_Details(texts, columns[1], columns[2], columns[3], may_refuse),
        )

    def predict(self, outputs: Sequence[npt.NDArray[np.float32]], features: Features, examples: Examples, task: Task) -> list[Prediction]:
        """Find the best span of at most 30 tokens over all windows of each question.

        Where a task has questions without an answer, "" is predicted if token 0, in the window where it scores least, scores more than
        the best span. `scores["answer"]` is None where a context holds nothing that could be an answer.
        """
        details: _Details = features.details
        best: list[tuple[float, int, int] | None] = [None] * len(examples)
        null = [np.inf] * len(examples)
        for row, (i, output) in enumerate(zip(features.example_of_row.tolist(), outputs, strict=True)):
            null[i] = min(null[i], float(output[0].sum()))
            window = slice(details.starts[row], details.starts[row] + details.counts[row])
            text, place = details.texts[row], int(details.places[row])
            begins, ends = text.begins[window], text.ends[window]
            logits = np.where((begins < ends)[:, None], output[place : place + len(begins)], -np.inf)
            found = _best_span(logits[:, 0], logits[:, 1])
            if found is not None and ((known := best[i]) is None or found[0] > known[0]):
                best[i] = (found[0], int(begins[found[1]]), int(ends[found[2]]))
        return [
            _prediction(one, none, context, may_refuse=details.may_refuse)
            for one, none, context in zip(best, null, examples.inputs[1], strict=True)
        ]

    def score(self, predictions: Sequence[Prediction], examples: Examples, task: Task) -> dict[str, float]:
        """Compute exact match and F1 as the official evaluation of SQuAD does; see `squad_scores`."""
        assert examples.labels is not None
        return squad_scores([one.label for one in predictions], [[text for _, text in right] for right in examples.labels])


def _encode_texts(texts: Sequence[str], tokenizer: Tokenizer) -> dict[str, _Text]:
    """Tokenize each distinct text once, without special tokens."""
    fast = reader_of(tokenizer)
    space, found = fast.token_to_id(SPACE), {}
    for text, encoding in encodings(texts, fast, with_offsets=True):
        ids, spans = np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int32).reshape(-1, 2)
        begins, ends = without_white_space(text, spans[:, 0], spans[:, 1])
        found[text] = _Text(ids, begins, np.where(ids == space, begins, ends))
    return found


def without_white_space(
    text: str, begins: npt.NDArray[np.int32], ends: npt.NDArray[np.int32]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Move the ends of spans of characters inwards to where no white space is."""
    is_space = np.fromiter(map(str.isspace, text), bool, len(text))
    position = np.arange(len(text) + 1, dtype=np.int32)
    next_one = np.minimum.accumulate(np.where(np.append(is_space, False), len(text), position)[::-1])[::-1]
    last_end = np.maximum.accumulate(np.where(np.append(False, is_space), 0, position))
    return next_one[begins].astype(np.int32), last_end[ends].astype(np.int32)


def _tokens_of(text: _Text, start: int, answer: str) -> tuple[int, int] | None:
    """Find the first and the last token that stand for some of an answer; None where its characters came to no token."""
    touched = np.flatnonzero((text.begins < text.ends) & (text.begins < start + len(answer)) & (text.ends > start))
    return (int(touched[0]), int(touched[-1])) if touched.size else None


def _best_span(starts: npt.NDArray[np.float32], ends: npt.NDArray[np.float32]) -> tuple[float, int, int] | None:
    """Find the span of at most 30 tokens with the highest sum.

    Args:
        starts: [T], minus infinity where no answer may begin.
        ends: [T].

    Returns:
        The sum, the first and the last token; None where no span is allowed.
    """
    if not len(starts):
        return None
    padded = np.concatenate([ends, np.full(_MAX_ANSWER_TOKENS - 1, -np.inf, ends.dtype)])
    sums = starts[:, None] + np.lib.stride_tricks.sliding_window_view(padded, _MAX_ANSWER_TOKENS)
    first, more = divmod(int(sums.argmax()), _MAX_ANSWER_TOKENS)
    return (float(sums[first, more]), first, first + more) if sums[first, more] > -np.inf else None


def _prediction(best: tuple[float, int, int] | None, null: float, context: str, *, may_refuse: bool) -> Prediction:
    if best is None:
        return Prediction("", {"answer": None, "no_answer": null})
    score, begin, end = best
    while end < len(context) and unicodedata.combining(context[end]):
        end += 1
    refused = may_refuse and null - score > _NULL_THRESHOLD
    return Prediction("" if refused else context[begin:end], {"answer": score, "no_answer": null})
