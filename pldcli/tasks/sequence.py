"""One label, several, or a number per example, from one text or a pair."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pldcli.tasks.metrics import ERRORS, METRICS, multi_label_scores
from pldcli.tasks.reading import reader_of
from pldcli.tasks.task import Examples, Features, Head, Prediction, Task
from pldcli.tokenization.tokenizer import Tokenizer

__all__ = ["Classification", "MultiLabel", "Regression"]

_TEXTS_AT_ONCE = 10_000
_PROBABLE = 0.5
_MOST_SCORES = 20
"""Of more labels than this, predictions hold the most probable ones: thousands per example would fill the memory."""


class Classification:
    """One of several labels."""

    head: Head = "sequence"

    def num_outputs(self, task: Task) -> int:
        """Count the labels."""
        return len(task.labels)

    def encode(self, examples: Examples, task: Task, tokenizer: Tokenizer, *, max_seq_len: int, stride: int) -> Features:
        """Tokenize; of a pair that is too long the longer text loses its end, token by token."""
        return _encode(examples, tokenizer, max_seq_len, np.int64)

    def predict(self, outputs: Sequence[npt.NDArray[np.float32]], features: Features, examples: Examples, task: Task) -> list[Prediction]:
        """Take the most probable label."""
        predictions = []
        for logits in outputs:
            probabilities = _softmax(logits.astype(np.float64))
            best = int(probabilities.argmax())
            predictions.append(Prediction(task.spelled(best), _named(probabilities, task), best))
        return predictions

    def score(self, predictions: Sequence[Prediction], examples: Examples, task: Task) -> dict[str, float]:
        """Compute the task's metrics from label ids."""
        return _metrics(task, examples.labels, [prediction.label_id for prediction in predictions])


class MultiLabel:
    """Any number of labels, none too."""

    head: Head = "sequence"

    def num_outputs(self, task: Task) -> int:
        """Count the labels."""
        return len(task.labels)

    def encode(self, examples: Examples, task: Task, tokenizer: Tokenizer, *, max_seq_len: int, stride: int) -> Features:
        """Tokenize; of a pair that is too long the longer text loses its end, token by token."""
        features = _encode(replace(examples, labels=None), tokenizer, max_seq_len, np.float32)
        return features if examples.labels is None else replace(features, labels=_indicators(examples.labels, task))

    def predict(self, outputs: Sequence[npt.NDArray[np.float32]], features: Features, examples: Examples, task: Task) -> list[Prediction]:
        """Take every label that is more probable than not."""
        predictions = []
        for logits in outputs:
            probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
            chosen = np.flatnonzero(probabilities > _PROBABLE).tolist()
            scores = _named(probabilities, task, at_least=len(chosen))
            predictions.append(Prediction([task.spelled(number) for number in chosen], scores, chosen))
        return predictions

    def score(self, predictions: Sequence[Prediction], examples: Examples, task: Task) -> dict[str, float]:
        """Compute the F1 over all labels together, its mean over labels, and the share of examples with all labels right."""
        assert examples.labels is not None
        predicted = [prediction.label_id for prediction in predictions]
        return multi_label_scores(_indicators(examples.labels, task), _indicators(predicted, task))


class Regression:
    """A number."""

    head: Head = "sequence"

    def num_outputs(self, task: Task) -> int:
        """Count the outputs: one."""
        return 1

    def encode(self, examples: Examples, task: Task, tokenizer: Tokenizer, *, max_seq_len: int, stride: int) -> Features:
        """Tokenize; of a pair that is too long the longer text loses its end, token by token."""
        return _encode(examples, tokenizer, max_seq_len, np.float32)

    def predict(self, outputs: Sequence[npt.NDArray[np.float32]], features: Features, examples: Examples, task: Task) -> list[Prediction]:
        """Take the output as it is."""
        return [Prediction(float(value[0]), [float(value[0])]) for value in outputs]

    def score(self, predictions: Sequence[Prediction], examples: Examples, task: Task) -> dict[str, float]:
        """Compute the task's metrics, and beside them the errors in the units of the target."""
        predicted = [prediction.label for prediction in predictions]
        errors = {name: error(np.array(examples.labels), np.array(predicted)) for name, error in ERRORS.items()}
        return _metrics(task, examples.labels, predicted) | errors


def _indicators(labels: Sequence[Sequence[int]], task: Task) -> npt.NDArray[np.bool_]:
    """Mark the labels of each example, [N, L]."""
    found_NL = np.zeros((len(labels), len(task.labels)), bool)
    for row, ids in enumerate(labels):
        found_NL[row, list(ids)] = True
    return found_NL


def _encode(examples: Examples, tokenizer: Tokenizer, max_seq_len: int, label_type: Any) -> Features:
    """Build rows of [CLS] a [SEP] or [CLS] a [SEP] b [SEP], as the tokenizer's own template has them."""
    fast = _truncating(tokenizer, max_seq_len)
    ids: list[npt.NDArray[np.int32]] = [np.empty(0, np.int32)]
    types: list[npt.NDArray[np.int8]] = [np.empty(0, np.int8)]
    lengths: list[int] = []
    num_truncated = 0
    for start in range(0, len(examples), _TEXTS_AT_ONCE):
        columns = [column[start : start + _TEXTS_AT_ONCE] for column in examples.inputs]
        encoded = fast.encode_batch_fast(columns[0] if len(columns) == 1 else list(zip(*columns, strict=True)))
        ids.append(np.array([i for row in encoded for i in row.ids], np.int32))
        types.append(np.array([i for row in encoded for i in row.type_ids], np.int8))
        lengths += [len(row) for row in encoded]
        num_truncated += sum(bool(row.overflowing) for row in encoded)
    return Features(
        np.concatenate(ids),
        np.concatenate(types),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        None if examples.labels is None else np.array(examples.labels, label_type),
        np.arange(len(examples)),
        num_truncated,
    )


def _truncating(tokenizer: Tokenizer, max_seq_len: int) -> Any:
    """Copy the tokenizer, set to wrap texts as the model expects and to cut them."""
    fast = reader_of(tokenizer)
    fast.enable_truncation(max_seq_len, strategy="longest_first")
    return fast


def _named(probabilities: npt.NDArray[np.float64], task: Task, *, at_least: int = 0) -> dict[str, float]:
    """Name the probabilities of the labels, or of many the highest ones, in falling order."""
    count = max(_MOST_SCORES, at_least)
    shown = range(len(task.labels)) if len(task.labels) <= count else np.argsort(-probabilities, kind="stable")[:count].tolist()
    return {task.labels[number]: float(probabilities[number]) for number in shown}


def _softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    exponents: npt.NDArray[np.float64] = np.exp(logits - logits.max(-1, keepdims=True))
    shares: npt.NDArray[np.float64] = exponents / exponents.sum(-1, keepdims=True)
    return shares


def _metrics(task: Task, labels: list[Any] | None, predicted: list[Any]) -> dict[str, float]:
    assert labels is not None
    found: dict[str, Callable[..., float]] = {name: METRICS[name] for name in task.metrics}
    return {name: metric(np.array(labels), np.array(predicted)) for name, metric in found.items()}
