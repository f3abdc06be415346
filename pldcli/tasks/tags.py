"""A label for each word: words to pieces and windows, labels back to words, entities as conlleval counts them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pldcli.tasks.metrics import accuracy
from pldcli.tasks.reading import encodings, reader_of, reading_words
from pldcli.tasks.task import Examples, Features, Head, Prediction, Task
from pldcli.tasks.windows import frame_of, word_windows
from pldcli.tokenization.tokenizer import Tokenizer

__all__ = ["Tags", "completed", "default_metrics", "entities", "notes_on_labels"]

_IGNORED = -100
"""The label of tokens that no loss is computed for."""

_PREFIXES = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S"}
"""The letters of IOB, IOBES, BMES and BILOU: begin, inside (middle), end (last), single (unit)."""

_OUTSIDE = "O"
_MARKED = re.compile("([BIMESLU][-_])(.+)", re.IGNORECASE)
"""A tag of a word at the beginning, inside, at the end of an entity, or alone in it; as CoNLL spells it or otherwise."""
_NO_TOKEN = -1


@dataclass(frozen=True)
class _Details:
    """Which token speaks for each word."""

    tokens: npt.NDArray[np.int64]
    """Of the words of all examples, one after the other: its place in `Features.input_ids`; -1 for a word that comes to no token."""


class Tags:
    """Token classification: one output per label and token; the first piece of a word speaks for it."""

    head: Head = "token"

    def num_outputs(self, task: Task) -> int:
        """Count the labels."""
        return len(task.labels)

    def encode(self, examples: Examples, task: Task, tokenizer: Tokenizer, *, max_seq_len: int, stride: int) -> Features:
        """Tokenize a split word by word.

        A sentence that does not fit a row is cut between words into windows. Neighbours share words of up to `stride` tokens, half
        a row at most; of these the earlier window labels the first half and the later one the rest, so that every word is labelled
        exactly once, where there is context on both sides. A single word longer than a row loses its end, and its sentence is counted
        in `num_truncated`. A word that comes to no token, such as a zero-width space, teaches nothing.

        Raises:
            UsageError: A row has no room for text.
        """
        frame = frame_of(tokenizer, 1)
        room = frame.room(max_seq_len)
        reader = reader_of(reading_words(tokenizer))
        words_of_all = (word for sentence in examples.inputs[0] for word in sentence)
        pieces = {word: np.array(encoding.ids, np.int32) for word, encoding in encodings(words_of_all, reader)}
        ids, types, labels, example_of_row = [], [], [], []
        tokens: list[npt.NDArray[np.int64]] = []
        num_truncated = offset = 0
        for i, words in enumerate(examples.inputs[0]):
            encoded = [pieces[word][:room] for word in words]
            num_truncated += any(len(pieces[word]) > room for word in words)
            starts = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
            for window in word_windows(starts, room, stride):
                row_ids, row_types = frame.row(np.concatenate([*encoded[window.first : window.end], np.zeros(0, np.int32)]))
                labelled = slice(window.labels_from, window.labels_to)
                places = starts[labelled] - starts[window.first] + len(frame.gaps[0])
                has_token = np.diff(starts)[labelled] > 0
                row_labels = np.full(len(row_ids), _IGNORED, np.int64)
                if examples.labels is not None:
                    row_labels[places[has_token]] = np.array(examples.labels[i][labelled], np.int64)[has_token]
                ids.append(row_ids)
                types.append(row_types)
                labels.append(row_labels)
                tokens.append(np.where(has_token, places + offset, _NO_TOKEN))
                example_of_row.append(i)
                offset += len(row_ids)
        return Features.of_rows(
            ids,
            types,
            labels=None if examples.labels is None else np.concatenate([*labels, np.zeros(0, np.int64)]),
            example_of_row=np.array(example_of_row, np.int64),
            num_truncated=num_truncated,
            details=_Details(np.concatenate([*tokens, np.zeros(0, np.int64)])),
        )

    def predict(self, outputs: Sequence[npt.NDArray[np.float32]], features: Features, examples: Examples, task: Task) -> list[Prediction]:
        """Take each word's most probable label; one without a token is "O", or the first label, with probability 0."""
        details: _Details = features.details
        empty = np.zeros((0, len(task.labels)), np.float32)
        has_token = details.tokens != _NO_TOKEN
        logits = np.concatenate([empty, *outputs])[details.tokens].astype(np.float64)
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        labels = _as_conll(task.labels)
        outside = labels.index(_OUTSIDE) if _OUTSIDE in labels else 0
        probabilities = np.where(has_token, exponentials.max(axis=1) / exponentials.sum(axis=1), 0.0).tolist()
        label_ids = np.where(has_token, logits.argmax(axis=1), outside).tolist()
        predictions, start = [], 0
        for words in examples.inputs[0]:
            of_words = slice(start, start + len(words))
            chosen = label_ids[of_words]
            predictions.append(Prediction([task.spelled(one) for one in chosen], probabilities[of_words], chosen))
            start += len(words)
        return predictions

    def score(self, predictions: Sequence[Prediction], examples: Examples, task: Task) -> dict[str, float]:
        """Compute the share of words with the right label, and how well the entities were found, as conlleval does.

        Returns:
            `accuracy`, and, where the labels mark entities, `entity_precision`, `entity_recall` and `entity_f1` over all entities.
        """
        assert examples.labels is not None
        right = [label_id for one in examples.labels for label_id in one]
        scores = {"accuracy": accuracy(right, [label_id for one in predictions for label_id in one.label_id])}
        names = _as_conll(task.labels)
        if not _mark_entities(names):
            return scores
        num_right = num_found = num_both = 0
        for prediction, label_ids in zip(predictions, examples.labels, strict=True):
            expected, found = (entities([names[one] for one in ids]) for ids in (label_ids, prediction.label_id))
            num_right += len(expected)
            num_found += len(found)
            num_both += len(expected & found)
        scores["entity_precision"] = num_both / num_found if num_found else 0.0
        scores["entity_recall"] = num_both / num_right if num_right else 0.0
        scores["entity_f1"] = 2 * num_both / (num_right + num_found) if num_both else 0.0
        return scores


def default_metrics(labels: Sequence[str]) -> tuple[str, ...]:
    """Choose what a task is scored by: the F1 of entities where the labels mark some (`B-PER`, `I-PER`), else accuracy."""
    return ("entity_f1",) if _mark_entities(_as_conll(labels)) else ("accuracy",)


def completed(tags: set[Any]) -> set[Any]:
    """Add what follows from tags such as B-PER: every mark that occurs, with every type. Rare ones are missing in training files."""
    parts = [match.groups() for tag in tags if isinstance(tag, str) and (match := _MARKED.fullmatch(tag))]
    return tags | {f"{mark}{kind}" for mark, _ in parts for _, kind in parts}


def entities(labels: Sequence[str]) -> set[tuple[str, int, int]]:
    """Find the entities of a sentence, labelled by IOB1, IOB2, IOBES, BMES or BILOU.

    As in conlleval an ill-formed sequence has entities too: one begins at B and S (U), after O, E (L) or S (U), and wherever the type
    changes; it continues through I and E (L) of its type. A label without such a prefix is a type of its own, inside.

    Args:
        labels: One per word.

    Returns:
        The type, the first word, and the word after the last one, of each.

    Source: Tjong Kim Sang & Buchholz, "Introduction to the CoNLL-2000 shared task", and its evaluation script.
    """
    found = set()
    open_type, first = "", -1
    for i, (prefix, kind) in enumerate(map(_parted, [*labels, _OUTSIDE])):
        goes_on = first >= 0 and prefix in ("I", "E") and kind == open_type
        if first >= 0 and not goes_on:
            found.add((open_type, first, i))
            first = -1
        if prefix != _OUTSIDE and first < 0:
            open_type, first = kind, i
        if prefix in ("E", "S"):
            found.add((open_type, first, i + 1))
            first = -1
    return found


def notes_on_labels(splits: Iterable[Examples], task: Task) -> list[str]:
    """Say by which scheme the labels of each file mark entities."""
    names = _as_conll(task.labels)
    if not _mark_entities(names):
        return []
    labels: dict[str, list[list[str]]] = {}
    for examples in splits:
        labels.setdefault(examples.source, []).extend([names[i] for i in one] for one in examples.labels or ())
    return [f"{source}: entities are labelled by {_scheme(sentences)}" for source, sentences in labels.items() if sentences]


def _scheme(sentences: Iterable[Sequence[str]]) -> str:
    """Name the scheme that sentences are labelled by, as far as they tell.

    B begins every entity in IOB2; in IOB1 only those that follow one of their type, and I the others.
    """
    letters, begun_by_i, begun_by_b, apart = set[str](), 0, 0, 0
    for labels in sentences:
        before = ""
        for label in labels:
            letters.add(label.partition("-")[0])
            prefix, kind = _parted(label)
            begun_by_i += prefix == "I" and kind != before
            begun_by_b += prefix == "B" and kind != before
            apart += prefix == "B" and kind == before
            before = kind if prefix != _OUTSIDE else ""
    schemes = (("BMES" if "M" in letters else "IOBES", {"M", "E", "S"}), ("BILOU", {"L", "U"}))
    if with_ends := [name for name, own in schemes if letters & own]:
        return with_ends[0] if len(with_ends) == 1 else f"a mixture of {' and '.join(with_ends)}"
    if not begun_by_i:
        return "IOB2" if begun_by_b or apart else "nothing but O"
    if not begun_by_b:
        return "IOB1"
    return f"a mixture of IOB1 and IOB2 ({begun_by_i:,} begin with I, {begun_by_b:,} with B); they are counted as conlleval does"


def _parted(label: str) -> tuple[str, str]:
    """Part a label into its prefix, in the letters of IOBES, and its type."""
    if label == _OUTSIDE:
        return _OUTSIDE, ""
    letter, _, kind = label.partition("-")
    if letter in _PREFIXES:
        return _PREFIXES[letter], kind
    return "I", label


def _as_conll(labels: Sequence[str]) -> list[str]:
    """Spell labels that mark entities as CoNLL does: `b-org` and `B_ORG` as `B-org` and `B-ORG`, `o` as `O`; others stay as they are."""
    if not {"O", "o"} & {*labels}:
        return list(labels)
    parts = [(label, _MARKED.fullmatch(label)) for label in labels]
    if not all(match or label in ("O", "o") for label, match in parts):
        return list(labels)
    return [f"{match[1][0].upper()}-{match[2]}" if match else _OUTSIDE for label, match in parts]


def _mark_entities(labels: Sequence[str]) -> bool:
    """Return whether labels mark entities, not parts of speech or the like."""
    if any(label.startswith(("B-", "I-")) for label in labels):
        return True
    letters = {label.partition("-")[0] for label in labels}
    return _OUTSIDE in letters and len(letters) > 1 and letters <= {_OUTSIDE, *_PREFIXES}
