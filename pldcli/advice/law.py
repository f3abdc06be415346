"""The loss of an encoder as a function of its parameters and of the tokens that it was trained on.

Source: Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3, for the form; Muennighoff et al. 2023 (arXiv 2305.16264), section 3.1, for
what repeated text is worth. Both measured decoders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from operator import itemgetter

import numpy as np
import numpy.typing as npt

__all__ = ["Law", "Point", "fit", "fresh_tokens", "leave_one_out"]

_Floats = npt.NDArray[np.float64]
_EXPONENTS = np.geomspace(0.05, 2.0, 25)
"""Tried for parameters and for tokens first."""
_FINER, _ROUNDS = 9, 2
"""Exponents around the best ones, tried next, and how often."""
_VOCABULARY_EXPONENTS = np.linspace(0.0, 1.0, 11)
"""Tried for the size of the vocabulary, the first for its having no effect."""
_LEAST_POINTS = 7
"""One more than the law has coefficients."""
_REPEATS_WORTH = 15.4
"""Repeats after which more of them are worth little."""
_MILLION = 1e6
_ENTRIES = 10_000
"""Vocabulary in which tokens are counted."""
_RIDGE = 1e-12
"""Of the trace: enough where all models have as many parameters, and a floor and their term are the same thing."""


@dataclass(frozen=True)
class Point:
    """A model, trained or to be trained."""

    parameters: float
    """Without what grows with the vocabulary."""
    vocab_size: float
    tokens: float
    """Read in training; repeated ones count as `fresh_tokens` says."""
    loss: float = math.nan
    """In any unit that all points share; NaN before it is known."""


@dataclass(frozen=True)
class Law:
    """loss = floor + a / parameters^alpha + b / (tokens / entries^gamma)^beta, in millions and in ten thousands of entries.

    With more entries each is seen less often: to learn as much takes more tokens. The last term is not of the sources.
    """

    floor: float
    a: float
    alpha: float
    b: float
    beta: float
    gamma: float = 0.0

    def loss(self, point: Point) -> float:
        """Predict the loss of a model."""
        tokens = point.tokens * (point.vocab_size / _ENTRIES) ** -self.gamma
        return float(self.floor + self.a * (point.parameters / _MILLION) ** -self.alpha + self.b * (tokens / _MILLION) ** -self.beta)


def fit(points: Sequence[Point]) -> Law:
    """Fit the law by least squares of relative errors, all three terms at least zero.

    A grid of exponents has no start and no local minimum.

    Raises:
        ValueError: There are fewer points than the law has coefficients, and one.
    """
    if len(points) < _LEAST_POINTS:
        raise ValueError(f"{len(points)} runs are too few, {_LEAST_POINTS} are needed")
    parameters, entries, tokens, losses = (
        np.array([getattr(point, name) for point in points], dtype=np.float64) for name in ("parameters", "vocab_size", "tokens", "loss")
    )
    gammas = _VOCABULARY_EXPONENTS if len(set(entries)) > 1 else _VOCABULARY_EXPONENTS[:1]
    return min((_fit_with(gamma, parameters, entries, tokens, losses) for gamma in gammas), key=itemgetter(0))[1]


def _fit_with(gamma: float, parameters: _Floats, entries: _Floats, tokens: _Floats, losses: _Floats) -> tuple[float, Law]:
    """Fit the rest of the law; return how far off it is, too."""
    tokens = tokens * (entries / _ENTRIES) ** -gamma
    error, law = _best_law(parameters, tokens, losses, _EXPONENTS, _EXPONENTS)
    step = float(_EXPONENTS[1] / _EXPONENTS[0])
    for _ in range(_ROUNDS):
        alphas, betas = (np.geomspace(exponent / step, exponent * step, _FINER) for exponent in (law.alpha, law.beta))
        error, law = _best_law(parameters, tokens, losses, alphas, betas)
        step **= 2.0 / (_FINER - 1)
    return error, replace(law, gamma=float(gamma))


def leave_one_out(points: Sequence[Point]) -> float:
    """Return the root mean square of the relative errors at points that the fit had not seen, each in its turn."""
    errors = []
    for number, point in enumerate(points):
        law = fit([*points[:number], *points[number + 1 :]])
        errors.append(law.loss(point) / point.loss - 1.0)
    return math.sqrt(sum(error**2 for error in errors) / len(errors))


def fresh_tokens(tokens: float, unique_tokens: float) -> float:
    """Return how many tokens of a text that never repeats would teach as much.

    Args:
        tokens: Read in training.
        unique_tokens: Of the text.
    """
    repeats = tokens / unique_tokens - 1.0
    if repeats <= 0:
        return tokens
    return unique_tokens * (1.0 + _REPEATS_WORTH * (1.0 - math.exp(-repeats / _REPEATS_WORTH)))


def _best_law(
    parameters: _Floats,
    tokens: _Floats,
    losses: _Floats,
    alphas: _Floats,
    betas: _Floats,
) -> tuple[float, Law]:
    """Find the best fit among exponents, and its squared error: for each pair the law is linear in the rest."""
    exponents = np.array(list(product(alphas, betas)))
    powers = [np.ones((len(exponents), len(losses)))]
    powers += [(values / _MILLION) ** -exponents[:, which, None] for which, values in enumerate((parameters, tokens))]
    best, least = None, math.inf
    for chosen in product((True, False), repeat=len(powers)):  # with three terms, those at zero can be tried one by one
        if not any(chosen):
            continue
        columns = np.stack([power / losses for power, is_in in zip(powers, chosen, strict=True) if is_in], -1)
        gram = columns.mT @ columns
        gram += _RIDGE * np.trace(gram, axis1=-2, axis2=-1)[:, None, None] * np.eye(sum(chosen))
        solutions = np.linalg.solve(gram, columns.sum(-2)[..., None])[..., 0]
        errors = ((columns @ solutions[..., None])[..., 0] - 1.0) ** 2
        total = np.where((solutions >= 0).all(-1), errors.sum(-1), math.inf)
        if total.min() < least:
            least, place = float(total.min()), int(total.argmin())
            found = iter(solutions[place].tolist())
            floor, a, b = (next(found) if is_in else 0.0 for is_in in chosen)
            best = Law(floor, a, float(exponents[place, 0]), b, float(exponents[place, 1]))
    assert best is not None
    return least, best
