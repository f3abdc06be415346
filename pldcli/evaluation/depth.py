"""Models with only some of their blocks: which ones to keep, and what that does to score and speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING

from pldcli import presets
from pldcli.choices import BlockChoice
from pldcli.config import ModelConfig
from pldcli.errors import PldError, UsageError
from pldcli.expansion import Expansion, spread
from pldcli.pld import Dropping

if TYPE_CHECKING:
    from pldcli.engine.runtime import Runtime

__all__ = [
    "DepthChoice",
    "DepthReport",
    "DepthScore",
    "Gates",
    "KeepProbs",
    "Measure",
    "check_depth",
    "choose_depths",
    "keep_probs_of",
    "kept_blocks",
    "measure_depths",
    "parse_depths",
]

Gates = tuple[bool, ...]
"""Per block: does it run."""

_MIN_ROUNDS, _MAX_ROUNDS, _MIN_SECONDS = 5, 100, 1.0
"""Timed rounds over all depths; they end after the least number once the full model has run for this long in all."""


@dataclass(frozen=True)
class Measure:
    """Something that a model is scored on, with any of its blocks."""

    score: Callable[[Gates], Mapping[str, float]]
    """Values by name, the headline first."""
    forward: Callable[[Gates], int]
    """Run one typical batch; give its number of tokens."""


@dataclass(frozen=True)
class DepthScore:
    """A model with some of its blocks."""

    gates: Gates
    values: Mapping[str, float]
    tokens_per_second: float
    """Of forward passes alone, median over rounds."""
    relative_speed: float
    """1 for the model with all of its blocks."""

    @property
    def num_blocks(self) -> int:
        """Count the blocks that run."""
        return sum(self.gates)


@dataclass(frozen=True)
class DepthChoice:
    """Which blocks run, for one depth after the other."""

    gates: tuple[Gates, ...]
    reason: str
    """Why these blocks, in words."""


@dataclass(frozen=True)
class DepthReport:
    """Scores with more and fewer blocks."""

    scores: tuple[DepthScore, ...]
    num_blocks: int
    """Of the whole model."""
    reason: str
    """Why these blocks, in words."""


@dataclass(frozen=True)
class KeepProbs:
    """The keep probability of each block at the end of training, and where it is known from."""

    probs: tuple[float, ...]
    origin: str


def parse_depths(text: str) -> tuple[int, ...]:
    """Read `6,8,10,12`.

    Raises:
        UsageError: It is no list of different numbers from 1 up.
    """
    depths: list[int] = []
    for part in (part.strip() for part in text.split(",")):
        if not (part.isascii() and part.isdecimal() and int(part)):
            raise UsageError(
                f"{part!r} is not a number of blocks", where="--depth", hint="give numbers from 1 up, for example --depth 6,9,12"
            )
        if int(part) in depths:
            raise UsageError(f"{int(part)} is there twice", where="--depth", hint="name each number once")
        depths.append(int(part))
    return tuple(depths)


def check_depth(depth: int, num_blocks: int, *, where: str) -> None:
    """Refuse a number of blocks that the model does not have.

    Raises:
        UsageError: It is not from 1 to `num_blocks`.
    """
    if not 1 <= depth <= num_blocks:
        raise UsageError(f"{depth} is not between 1 and the {num_blocks} blocks of this model", where=where)


def kept_blocks(num_blocks: int, depth: int, how: BlockChoice, keep_probs: Sequence[float], *, keep_first: bool = False) -> Gates:
    """Choose which blocks run.

    Args:
        num_blocks: Blocks of the model.
        depth: How many run, 1 to `num_blocks`.
        how: `first`: the lowest ones. `even`: evenly spread, the first and the last one among them. `keep-prob`: those with the
            highest keep probability, of equal ones the lower.
        keep_probs: Per block; used by `keep-prob` only.
        keep_first: Keep the first block in any case.
    """
    if how == "first":
        chosen = set(range(depth))
    elif how == "even":
        chosen = set(spread(depth, num_blocks))
    else:
        chosen = set(sorted(range(num_blocks), key=lambda block: (not (keep_first and block == 0), -keep_probs[block]))[:depth])
    return tuple(block in chosen for block in range(num_blocks))


def keep_probs_of(target: Path, num_blocks: int) -> KeepProbs:
    """Find the keep probabilities that a model of `num_blocks` was trained with, at its run's last step.

    `target` is a run, or a model or checkpoint in one; anything else is taken to follow the paper's rule.
    """
    for place in (target, *target.absolute().parents[:2]):
        if not (place / "config.yaml").is_file():
            continue
        try:
            config = presets.load(place / "config.yaml")
        except PldError:
            continue  # a configuration of something else
        schedule = config.pld_schedule
        if isinstance(schedule, Expansion) and (gates := schedule.gates_of_depth(num_blocks)):
            shares = tuple(compress(schedule.shares_of_run, gates))
            return KeepProbs(shares, f"the part of the run in which {place} trained each")
        if schedule.num_blocks != num_blocks:
            continue
        if isinstance(schedule, Dropping) and not schedule.is_dense:
            rule = f"{schedule.time} schedule, {schedule.depth_rule} rule"
            last = schedule.keep_probs(schedule.total_steps - 1)
            if len(set(last)) > 1:
                return KeepProbs(last, f"keep probabilities of {place} at its last step ({rule})")
            # A run that ends with every block tells them not apart there.
            mean = schedule.keep_probs_at(schedule.mean_theta(schedule.total_steps))
            return KeepProbs(mean, f"mean keep probabilities of {place} ({rule})")
        return KeepProbs(_papers(num_blocks), f"{place} was trained without layer dropping, so the paper's rule is taken")
    return KeepProbs(_papers(num_blocks), "how it was trained is not known here, so the paper's rule is taken")


def choose_depths(target: Path, depths: Sequence[int], how: BlockChoice, model: ModelConfig, *, where: str = "--depth") -> DepthChoice:
    """Choose the blocks of each depth as `kept_blocks` does, with the keep probabilities of `target`.

    A first block without a norm before its attention always stays: exported without it, the model would lose the norm of the next one.

    Args:
        target: Where the model is.
        depths: Numbers of blocks.
        how: Which blocks are kept.
        model: The model's configuration.
        where: What named the depths, for the error.

    Raises:
        UsageError: The model does not have so many blocks.
    """
    num_blocks = model.num_hidden_layers
    for depth in depths:
        check_depth(depth, num_blocks, where=where)
    keep, keep_first = keep_probs_of(target, num_blocks), not model.first_attention_norm
    reason = {"first": "the first blocks", "even": "evenly spread blocks"}.get(how, f"the blocks kept most often: {keep.origin}")
    if how == "keep-prob" and keep_first and keep.probs[0] < max(keep.probs):
        reason = f"the first block, without which the next would lose its norm, and {reason}"
    return DepthChoice(tuple(kept_blocks(num_blocks, depth, how, keep.probs, keep_first=keep_first) for depth in depths), reason)


def measure_depths(measure: Measure, choice: DepthChoice, runtime: Runtime) -> DepthReport:
    """Score a model and time its forward passes with each choice of blocks."""
    full = (True,) * len(choice.gates[0])
    speeds = _speeds(measure.forward, list(dict.fromkeys([*choice.gates, full])), runtime)
    scores = [DepthScore(gates, measure.score(gates), speeds[gates], speeds[gates] / speeds[full]) for gates in choice.gates]
    return DepthReport(tuple(scores), len(full), choice.reason)


def _speeds(forward: Callable[[Gates], int], choices: Sequence[Gates], runtime: Runtime) -> dict[Gates, float]:
    """Time every choice in turn, round after round, so that whatever else the machine does hits all alike; medians."""
    seconds: dict[Gates, list[float]] = {gates: [] for gates in choices}
    num_tokens = {gates: forward(gates) for gates in choices}  # a first round, to warm up
    slowest = seconds[choices[-1]]
    while len(slowest) < _MIN_ROUNDS or (sum(slowest) < _MIN_SECONDS and len(slowest) < _MAX_ROUNDS):
        for gates, found in seconds.items():
            runtime.synchronize()
            started = time.perf_counter()
            forward(gates)
            runtime.synchronize()
            found.append(time.perf_counter() - started)
    return {gates: num_tokens[gates] / statistics.median(found) for gates, found in seconds.items()}


def _papers(num_blocks: int) -> tuple[float, ...]:
    return Dropping(num_blocks, 1).keep_probs_at(0.5)
