"""How well predictions fit labels, as the GLUE authors measure it, and what several such numbers come to.

Everything here is plain numpy. Values lie in [0, 1], correlations and `matthews` in [-1, 1], errors are in the units of the target; nothing
is multiplied by 100.
"""

from __future__ import annotations

import math
import re
import statistics
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "ERRORS",
    "METRICS",
    "Summary",
    "accuracy",
    "exact_match",
    "f1",
    "glue_average",
    "macro_f1",
    "matthews",
    "mean_absolute_error",
    "multi_label_scores",
    "normalised",
    "paper_geometric_mean",
    "pearson",
    "root_mean_squared_error",
    "shown",
    "spearman",
    "squad_f1",
    "squad_scores",
    "summary",
    "task_score",
]

_LEADERBOARD: Mapping[str, tuple[str, ...]] = {
    "glue/cola": ("matthews",),
    "glue/sst2": ("accuracy",),
    "glue/mrpc": ("accuracy", "f1"),
    "glue/stsb": ("pearson", "spearman"),
    "glue/qqp": ("accuracy", "f1"),
    "glue/mnli": ("accuracy", "accuracy_mismatched"),
    "glue/qnli": ("accuracy",),
    "glue/rte": ("accuracy",),
    "glue/wnli": ("accuracy",),
}
"""The nine tasks of the leaderboard's average with their metrics. MNLI is one task; AX is not among them."""

_NOT_IN_THE_PAPER = ("glue/wnli",)


def accuracy(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """Compute the share of predictions that equal their label; 0 of no examples."""
    y, z = _pair(labels, predictions)
    return float((y == z).mean()) if y.size else 0.0


def f1(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """Compute the F1 of class 1 against all others, as for MRPC and QQP; 0 where neither side has a 1."""
    y, z = _pair(labels, predictions)
    return _f1_of_class(y, z, 1)


def macro_f1(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """Compute the unweighted mean of the F1 of every class that occurs in labels or predictions; 0 of no examples."""
    y, z = _pair(labels, predictions)
    classes = np.union1d(y, z)
    return float(np.mean([_f1_of_class(y, z, one) for one in classes])) if classes.size else 0.0


def matthews(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """Compute the Matthews correlation of two or more classes; 0 where labels or predictions are all the same.

    Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient", 2004, eq. 8.
    """
    y, z = _pair(labels, predictions)
    classes = np.union1d(y, z)
    of_label = np.array([np.count_nonzero(y == one) for one in classes], np.float64)
    of_prediction = np.array([np.count_nonzero(z == one) for one in classes], np.float64)
    n, correct = float(y.size), float(np.count_nonzero(y == z))
    spread = (n * n - of_label @ of_label) * (n * n - of_prediction @ of_prediction)
    return float((correct * n - of_label @ of_prediction) / math.sqrt(spread)) if spread > 0 else 0.0


def pearson(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """Compute the linear correlation; 0 where labels or predictions are all the same, NaN where one is not finite."""
    y, z = (_direction(values) for values in _pair(labels, predictions, np.float64))
    return float(np.clip(y @ z, -1.0, 1.0))


def spearman(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """Compute the correlation of ranks, ties sharing their mean rank; 0 where one side is constant, NaN as for `pearson`."""
    y, z = _pair(labels, predictions, np.float64)
    if not (np.isfinite(y).all() and np.isfinite(z).all()):
        return math.nan
    return pearson(_ranks(y), _ranks(z))


def mean_absolute_error(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """Compute the mean distance of predictions from their targets, in the units of the target."""
    y, z = _pair(labels, predictions, np.float64)
    return float(np.abs(y - z).mean())


def root_mean_squared_error(labels: npt.ArrayLike, predictions: npt.ArrayLike) -> float:
    """Compute the root of the mean squared distance of predictions from their targets, in the units of the target."""
    y, z = _pair(labels, predictions, np.float64)
    return float(np.sqrt(np.square(y - z).mean()))


METRICS: Mapping[str, Callable[[npt.ArrayLike, npt.ArrayLike], float]] = {
    "accuracy": accuracy,
    "f1": f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}
"""Each metric under its name: a function of label ids (or numbers) and predictions, in this order."""

ERRORS: Mapping[str, Callable[[npt.ArrayLike, npt.ArrayLike], float]] = {"mae": mean_absolute_error, "rmse": root_mean_squared_error}
"""What is reported beside the metrics of a regression: the lower the better, and no part of a task's score."""


def multi_label_scores(labels_NL: npt.NDArray[np.bool_], predictions_NL: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Score sets of labels, marked by example and label.

    Returns:
        `micro_f1` over all marks together; `macro_f1`, the mean over labels of each one's F1, 0 for one that occurs on neither side;
        `subset_accuracy`, the share of examples whose labels are all right.
    """
    both_L = (labels_NL & predictions_NL).sum(0)
    either_L = labels_NL.sum(0) + predictions_NL.sum(0)
    f1_L = np.divide(2 * both_L, either_L, out=np.zeros(len(both_L)), where=either_L > 0)
    return {
        "micro_f1": float(2 * both_L.sum() / either_L.sum()) if either_L.any() else 0.0,
        "macro_f1": float(f1_L.mean()) if len(f1_L) else 0.0,
        "subset_accuracy": float((labels_NL == predictions_NL).all(1).mean()) if len(labels_NL) else 0.0,
    }


def shown(name: str, value: float) -> str:
    """Write a metric times 100, an error as it is; a second validation split's name may stand behind the metric's."""
    return f"{value:,.5g}" if name.partition("_")[0] in ERRORS else f"{100 * value:.2f}"


@dataclass(frozen=True)
class Summary:
    """What several runs of the same thing gave."""

    mean: float
    std: float
    """Of the sample (n - 1); 0 for a single run."""
    median: float
    minimum: float
    maximum: float
    values: tuple[float, ...]
    """Every run, in the order given."""


def summary(values: Sequence[float]) -> Summary:
    """Summarise at least one value."""
    numbers = tuple(float(value) for value in values)
    assert numbers, "there is nothing to summarise"
    std = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    return Summary(statistics.fmean(numbers), std, statistics.median(numbers), min(numbers), max(numbers), numbers)


def task_score(values: Mapping[str, float], names: Sequence[str]) -> float:
    """Compute a task's one number: the unweighted mean of the metrics in `names`, at least one."""
    return statistics.fmean(values[name] for name in names)


def glue_average(scores: Mapping[str, Mapping[str, float]]) -> float | None:
    """Compute the average as the GLUE leaderboard does: the mean over nine tasks of the mean of a task's metrics.

    WNLI counts, AX does not, and MNLI is one task with two numbers.

    Args:
        scores: Task name, such as `glue/mrpc`, to metric name to value; of `glue/mnli` the matched set is `accuracy` and the
            mismatched one `accuracy_mismatched`.

    Returns:
        The average, or None where a task or one of its metrics is missing.

    Source: Wang et al., "GLUE", ICLR 2019, section 4 and gluebenchmark.com/leaderboard.
    """
    if not all(name in scores.get(task, {}) for task, names in _LEADERBOARD.items() for name in names):
        return None
    return statistics.fmean(task_score(scores[task], names) for task, names in _LEADERBOARD.items())


def paper_geometric_mean(scores: Mapping[str, Mapping[str, float]]) -> float | None:
    """Compute the geometric mean of the 12 numbers in the paper's table of GLUE.

    They are those of RTE, MRPC (2), STS-B (2), CoLA, SST-2, QNLI, QQP (2) and MNLI (2: matched, mismatched); each counts once, so
    a task with two numbers counts twice.

    Args:
        scores: As for `glue_average`.

    Returns:
        The mean, or None where a number is missing or negative (a Matthews correlation may be).

    Source: Zhang & He, "Accelerating Training of Transformer-Based Language Models with Progressive Layer Dropping", 2020, the
        table of GLUE results: the geometric mean is the one that its last column comes close to.
    """
    wanted = [(task, name) for task, names in _LEADERBOARD.items() if task not in _NOT_IN_THE_PAPER for name in names]
    if not all(scores.get(task, {}).get(name, -1.0) >= 0 for task, name in wanted):
        return None
    return statistics.geometric_mean(numbers) if all(numbers := [scores[task][name] for task, name in wanted]) else 0.0


def _pair(labels: npt.ArrayLike, predictions: npt.ArrayLike, dtype: type | None = None) -> tuple[npt.NDArray[Any], ...]:
    y, z = np.asarray(labels, dtype), np.asarray(predictions, dtype)
    assert y.ndim == 1 and y.shape == z.shape, f"{y.shape} labels, {z.shape} predictions"
    return y, z


def _f1_of_class(y: npt.NDArray[np.generic], z: npt.NDArray[np.generic], one: object) -> float:
    both, either = np.count_nonzero((y == one) & (z == one)), np.count_nonzero(y == one) + np.count_nonzero(z == one)
    return float(2 * both / either) if either else 0.0


def _direction(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Scale the deviations from the mean to length 1; to zeros where there are none, to NaN where a value is not finite."""
    x: npt.NDArray[np.float64] = values.astype(np.float64)
    if not np.isfinite(x).all():
        return np.full_like(x, np.nan)
    if x.size == 0 or (x == x[0]).all():
        return np.zeros_like(x)
    x = np.ldexp(x, -np.frexp(np.abs(x).max())[1])
    x -= x[0]
    x /= np.abs(x).max()
    x -= x.mean()
    x /= np.linalg.norm(x)
    return x


def _ranks(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Number the values from 1 in rising order, equal ones with the mean of their numbers."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank = last - (counts - 1) / 2
    return np.asarray(mean_rank[place], np.float64)


_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Normalise an answer for comparison: lower case, no punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def exact_match(answer: str, reference: str) -> float:
    """Compare an answer with a right one; 1 where they are equal once normalised, else 0."""
    return float(normalised(answer) == normalised(reference))


def squad_f1(answer: str, reference: str) -> float:
    """Compute the F1 of the words that an answer shares with a right one; where either has no words, 1 if neither has, else 0."""
    words, right = normalised(answer).split(), normalised(reference).split()
    if not words or not right:
        return float(words == right)
    shared = (Counter(words) & Counter(right)).total()
    return 2 * shared / (len(words) + len(right))


def squad_scores(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Score answers as the official evaluation does, in [0, 1].

    An answer counts as much as against the right answer that fits it best. Where some question has none, the rules of SQuAD 2.0
    hold: right answers of articles and punctuation only are left out, and "no answer" is right only for a question without any.

    Args:
        answers: One per question; "" says that the text holds none.
        references: The right answers of each question; none where the text holds none.

    Returns:
        `exact_match` and `squad_f1`; where some question has no right answer, also `has_answer_exact_match` and `has_answer_f1`
        over the other questions (where there are any), and `no_answer_accuracy` over those without.
    """
    assert len(answers) == len(references), f"{len(answers)} answers, {len(references)} questions"
    with_refusals = not all(references)
    exact, overlap = [], []
    for answer, right in zip(answers, references, strict=True):
        candidates = [one for one in right if normalised(one)] or [""] if with_refusals else right
        exact.append(max(exact_match(answer, one) for one in candidates))
        overlap.append(max(squad_f1(answer, one) if with_refusals or normalised(one) else 0.0 for one in candidates))
    scores = {"exact_match": _mean(exact), "squad_f1": _mean(overlap)}
    if with_refusals:
        if any(references):
            scores["has_answer_exact_match"] = _mean([value for value, right in zip(exact, references, strict=True) if right])
            scores["has_answer_f1"] = _mean([value for value, right in zip(overlap, references, strict=True) if right])
        scores["no_answer_accuracy"] = _mean([value for value, right in zip(exact, references, strict=True) if not right])
    return scores


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
