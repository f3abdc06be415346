"""The loss of an encoder as a function of its parameters and of the tokens that it was trained on.

Source: Hoffmann et al. 2022 (arXiv 2203.15556), section 3.3, for the form; Muennighoff et al. 2023 (arXiv 2305.16264), section 3.1, for
what repeated text is worth. Both measured decoders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

__all__ = ["Law", "Point", "fit", "fresh_tokens", "leave_one_out"]

_Floats = npt.NDArray[np.float64]
_EXPONENTS = np.geomspace(0.05, 2.0, 9)
"""Tried for parameters and for tokens first."""
_FINER, _ROUNDS = 9, 3
"""Exponents around the best ones, tried next, and how often."""
_REFINED = 5
"""Of the pairs of the next two exponents, those with the least error by the first exponents, for which that is done."""
_VOCABULARY_EXPONENTS, _SHARE_EXPONENTS = np.linspace(0.0, 1.0, 11), np.linspace(0.0, 0.5, 11)
"""Tried for the size of the vocabulary, and for the share of it that a step predicts over; the first for its having no effect."""
_COEFFICIENTS = 5
"""Of the law, without the two that tell what the vocabulary costs: those are fitted where it differs among the runs."""
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
    softmax_share: float = 1.0
    """Of the vocabulary, that a training step predicts over."""


@dataclass(frozen=True)
class Law:
    """loss = floor + a / parameters^alpha + b / (tokens share^delta / entries^gamma)^beta, in millions and in ten thousands of entries.

    With more entries each is seen less often: to learn as much takes more tokens. Of a sampled softmax, over a share of the vocabulary, a
    step teaches less than of the whole. Both factors are not of the sources.
    """

    floor: float
    a: float
    alpha: float
    b: float
    beta: float
    gamma: float = 0.0
    delta: float = 0.0

    def loss(self, point: Point) -> float:
        """Predict the loss of a model."""
        tokens = point.tokens * point.softmax_share**self.delta * (point.vocab_size / _ENTRIES) ** -self.gamma
        return float(self.floor + self.a * (point.parameters / _MILLION) ** -self.alpha + self.b * (tokens / _MILLION) ** -self.beta)


def fit(points: Sequence[Point]) -> Law:
    """Fit the law by least squares of relative errors, all three terms at least zero.

    A grid of exponents has no start and no local minimum.

    Raises:
        ValueError: There are fewer points than the law has coefficients, and one.
    """
    parameters, entries, shares, tokens, losses = (
        np.array([getattr(point, name) for point in points], dtype=np.float64)
        for name in ("parameters", "vocab_size", "softmax_share", "tokens", "loss")
    )
    gammas, deltas = (
        grid[: None if len(set(values)) > 1 else 1] for grid, values in ((_VOCABULARY_EXPONENTS, entries), (_SHARE_EXPONENTS, shares))
    )
    least = 1 + _COEFFICIENTS + (len(gammas) > 1) + (len(deltas) > 1)
    if len(points) < least:
        raise ValueError(f"{len(points)} runs are too few, {least} are needed")
    gamma, delta = (grid.ravel()[:, None] for grid in np.meshgrid(gammas, deltas))
    worth = tokens * shares**delta * (entries / _ENTRIES) ** -gamma
    coarse = _best_laws(parameters, worth, losses, _EXPONENTS, _EXPONENTS)
    promising = sorted(range(len(worth)), key=lambda choice: coarse[choice][0])[:_REFINED]
    refined = {choice: _refined(coarse[choice], parameters, worth[[choice]], losses) for choice in promising}
    best = min(refined, key=lambda choice: refined[choice][0])
    return replace(refined[best][1], gamma=float(gamma[best, 0]), delta=float(delta[best, 0]))


def _refined(found: tuple[float, Law], parameters: _Floats, tokens: _Floats, losses: _Floats) -> tuple[float, Law]:
    """Try exponents between those of the first grid."""
    step = float(_EXPONENTS[1] / _EXPONENTS[0])
    for _ in range(_ROUNDS):
        alphas, betas = (np.geomspace(exponent / step, exponent * step, _FINER) for exponent in (found[1].alpha, found[1].beta))
        [found] = _best_laws(parameters, tokens, losses, alphas, betas)
        step **= 2.0 / (_FINER - 1)
    return found


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


def _best_laws(
    parameters: _Floats,
    tokens: _Floats,
    losses: _Floats,
    alphas: _Floats,
    betas: _Floats,
) -> list[tuple[float, Law]]:
    """Find the best fit among exponents, and its squared error, to each row of tokens: for each pair the law is linear in the rest."""
    num_rows, exponents = len(tokens), np.array(list(product(alphas, betas)))
    shape = (num_rows, len(exponents), len(losses))
    powers = [
        np.ones(shape),
        np.broadcast_to((parameters / _MILLION) ** -exponents[:, :1], shape),
        (tokens[:, None] / _MILLION) ** -exponents[:, 1:],
    ]
    errors, coefficients = np.full(shape[:2], math.inf), np.zeros((*shape[:2], len(powers)))
    for chosen in product((True, False), repeat=len(powers)):  # with three terms, those at zero can be tried one by one
        if not any(chosen):
            continue
        columns = np.stack([power / losses for power, is_in in zip(powers, chosen, strict=True) if is_in], -1)
        gram = columns.mT @ columns
        gram += _RIDGE * np.trace(gram, axis1=-2, axis2=-1)[..., None, None] * np.eye(sum(chosen))
        solutions = np.linalg.solve(gram, columns.sum(-2)[..., None])
        total = (((columns @ solutions)[..., 0] - 1.0) ** 2).sum(-1)
        better = (solutions[..., 0] >= 0).all(-1) & (total < errors)
        whole = np.zeros_like(coefficients)
        whole[..., list(chosen)] = solutions[..., 0]
        errors, coefficients = np.where(better, total, errors), np.where(better[..., None], whole, coefficients)
    found = []
    for row, place in enumerate(errors.argmin(-1)):
        (floor, a, b), (alpha, beta) = coefficients[row, place].tolist(), exponents[place].tolist()
        found.append((float(errors[row, place]), Law(floor, a, alpha, b, beta)))
    return found
