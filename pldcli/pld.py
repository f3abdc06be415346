"""Progressive Layer Dropping as a value: schedules, keep probabilities and gates.

Pure functions of the step. No state, no torch: every rank, every resumed run, the trainer and the plot call the same
object and get the same answer. Blocks are numbered 1..L as in the paper, steps t = 0..T-1.

Source: Zhang & He, "Accelerating Training of Transformer-Based Language Models with Progressive Layer Dropping",
NeurIPS 2020, arXiv 2010.13369.
"""

from __future__ import annotations

import bisect
import hashlib
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = [
    "RESIDUALS",
    "DepthRule",
    "Draw",
    "Dropping",
    "Growth",
    "GrowthState",
    "NewBlocks",
    "Plan",
    "ResidualScale",
    "Schedule",
    "TimeSchedule",
]

TimeSchedule = Literal["exponential", "constant", "linear", "growing"]
DepthRule = Literal["paper", "algorithm1", "uniform"]
Draw = Literal["bernoulli", "fixed-depth"]
ResidualScale = Literal["sublayer", "block", "none"]
"""What is multiplied by 1 / keep probability: the output of each sublayer, the whole update of a block, or nothing."""
NewBlocks = Literal["initialised", "copied", "zero-output"]
"""How blocks begin that have not run before: with their first weights, as the nearest block that has, or so that they change nothing."""
GrowthState = Literal["kept", "copied", "fresh"]
"""The optimizer's state when blocks are added: that of the others stays, is copied to the new ones too, or all begins anew."""
RESIDUALS: dict[ResidualScale, list[str]] = {"sublayer": [], "block": ["whole updates scaled"], "none": ["residuals not scaled"]}
"""What is said of each."""


@dataclass(frozen=True)
class Plan:
    """What one gate group does in one step: which blocks run, and what their residuals are multiplied by.

    Gates and scales come together from one schedule, so drawing with one probability and scaling with another, as the released code did,
    cannot happen.
    """

    gates: tuple[bool, ...]
    """Per block: does it run."""
    keep_probs: tuple[float, ...]
    """Per block: the probability with which its gate was drawn."""
    residual_scales: tuple[float, ...]
    """Per block: the factor of its sublayers' outputs or its update, 1 / keep probability (1 with scaling off, or where it never runs)."""

    @property
    def kept_blocks(self) -> int:
        """Number of blocks that run."""
        return sum(self.gates)


@dataclass(frozen=True)
class Growth:
    """Blocks that have never run begin to."""

    running: tuple[int, ...]
    """Blocks that ran until now, from 0."""
    new: tuple[int, ...]
    weights: NewBlocks
    state: GrowthState


@dataclass(frozen=True)
class Schedule(ABC):
    """The keep probabilities of every block over a run, and the gates drawn from them."""

    num_blocks: int
    total_steps: int
    draw: Draw = "bernoulli"
    residual: ResidualScale = "sublayer"
    keep_first: int = 0
    """So many blocks at the input run in every draw."""
    keep_last: int = 0

    @property
    def always_kept(self) -> list[str]:
        """Say in a phrase which blocks are never dropped; none where all may be."""
        always = [f"the {end} {count}" for end, count in (("first", self.keep_first), ("last", self.keep_last)) if count]
        return [f"{' and '.join(always)} always kept"] if always else []

    @property
    @abstractmethod
    def is_dense(self) -> bool:
        """Whether every block runs in every step."""

    @property
    def scales(self) -> bool:
        """Whether any residual scale of the run differs from 1."""
        return self.residual != "none" and not self.is_dense

    @abstractmethod
    def theta(self, step: int) -> float:
        """Return one number for how much runs after `step` completed updates, 1 where everything does."""

    @property
    @abstractmethod
    def lowest_theta(self) -> float:
        """Theta in the step that drops most."""

    @abstractmethod
    def keep_probs(self, step: int) -> tuple[float, ...]:
        """Return the keep probability of each block at `step`, [L]."""

    @abstractmethod
    def mean_kept_fraction_until(self, steps: int) -> float:
        """Average the expected fraction of blocks that run over the first `steps` steps."""

    @abstractmethod
    def describe(self) -> list[str]:
        """Say in a few phrases what is left out."""

    def first_step_dropping(self, fraction: float) -> int | None:
        """Return the first step with so much of the dropping that comes in gradually; None where none does."""
        return None

    def growth_at(self, step: int) -> Growth | None:
        """Return which blocks begin to run at `step`, of those that never ran before, if the run waits for that to prepare them."""
        return None

    def trained_gates(self, steps: int) -> tuple[bool, ...]:
        """Return the gates of the model that there is after `steps` completed updates: off for blocks that could not run yet."""
        return (True,) * self.num_blocks

    def expected_kept_blocks(self, step: int) -> float:
        """Return the expected number of blocks that run at `step`."""
        return math.fsum(self.keep_probs(step))

    def plan(self, step: int, group: int, *, seed: int) -> Plan:
        """Draw the gates of one gate group.

        Args:
            step: Completed updates, 0..T-1.
            group: Number of the gate group, an equal slice of the global batch.
            seed: The run's seed.
        """
        probs = self.keep_probs(step)
        rng = _generator(seed, step, group)
        gates = _fixed_depth(probs, rng) if self.draw == "fixed-depth" else tuple(rng.random() < p for p in probs)
        return Plan(gates, probs, tuple(1.0 / p if p and self.residual != "none" else 1.0 for p in probs))

    def _with_ends(self, probs: tuple[float, ...]) -> tuple[float, ...]:
        """Let the blocks at both ends run in any case."""
        return (1.0,) * self.keep_first + probs[self.keep_first : self.num_blocks - self.keep_last] + (1.0,) * self.keep_last

    def mean_kept_fraction_between(self, first: int, stop: int) -> float:
        """Average the expected fraction of blocks that run over steps first..stop-1."""
        before = first * self.mean_kept_fraction_until(first) if first else 0.0
        return (stop * self.mean_kept_fraction_until(stop) - before) / (stop - first)

    @property
    def mean_kept_fraction(self) -> float:
        """Expected fraction of blocks that run, averaged over the run."""
        return self.mean_kept_fraction_until(self.total_steps)


@dataclass(frozen=True)
class Dropping(Schedule):
    """Blocks drawn at random, each with a probability that depends on its depth and on the time."""

    time: TimeSchedule = "exponential"
    theta_bar: float = 0.5
    gamma: float | Literal["auto"] = "auto"
    depth_rule: DepthRule = "paper"
    recovery_fraction: float = 0.0

    @property
    def gamma_per_step(self) -> float:
        """Gamma in 1/steps; `auto` is the paper's 100 / T."""
        return 100.0 / self.total_steps if self.gamma == "auto" else self.gamma

    @property
    def is_dense(self) -> bool:
        """Whether every block runs in every step."""
        return self.theta_bar == 1.0

    def theta(self, step: int) -> float:
        """Return theta, the keep probability of the deepest block, after `step` completed updates.

        Source: paper, equation 6 for `exponential`; section 5's "Rand" for `constant`.
        """
        dropped = 1.0 - self.theta_bar
        if step >= self.dropping_steps:
            return 1.0
        if self.time == "exponential":
            return dropped * math.exp(-self.gamma_per_step * step) + self.theta_bar
        if self.time == "constant":
            return self.theta_bar
        if self.time == "linear":
            return 1.0 - dropped * step / self.dropping_steps
        return self.theta_bar + dropped * step / self.dropping_steps

    @property
    def lowest_theta(self) -> float:
        """Theta in the step that drops most: before the recovery, a schedule rises or falls throughout."""
        return min(self.theta(0), self.theta(max(0, self.dropping_steps - 1)))

    @property
    def dropping_steps(self) -> int:
        """Number of steps before the last part of the run, at full depth."""
        # Rounded first: 0.1 x 70 is a little over 7 in floating point, and its ceiling would be 8.
        return self.total_steps - math.ceil(round(self.recovery_fraction * self.total_steps, 6))

    def keep_probs_at(self, theta: float) -> tuple[float, ...]:
        """Spread `theta` over the depth: return the keep probability of each block, [L].

        Source: `paper` is the paper's equation in section 4.2, `algorithm1` the loop of its released code.
        """
        blocks = self.num_blocks
        first = 1 if self.depth_rule == "paper" else 0
        depths = [1.0 if self.depth_rule == "uniform" else (i + first) / blocks for i in range(blocks)]
        # 1 - depth (1 - theta), rearranged: exactly 1 at theta = 1 and exactly theta at full depth, never 0 for a tiny theta.
        probs = tuple((1.0 - depth) + depth * theta for depth in depths)
        return self._with_ends(probs)

    def keep_probs(self, step: int) -> tuple[float, ...]:
        """Return the keep probability of each block at `step`, [L]."""
        return self.keep_probs_at(self.theta(step))

    def describe(self) -> list[str]:
        """Say in a few phrases what is left out."""
        growing = self.time == "growing"
        parts = [f"growing from theta {self.theta_bar:g}" if growing else f"{self.time} to theta_bar {self.theta_bar:g}"]
        if self.recovery_fraction:
            parts.append(f"the last {self.recovery_fraction:.0%} at full depth")
        parts += self.always_kept
        if self.gamma != "auto" and self.time == "exponential":
            parts.append(f"gamma {self.gamma:g}")
        return [*parts, f"depth rule {self.depth_rule}", f"draw {self.draw}", *RESIDUALS[self.residual]]

    def mean_theta(self, steps: int) -> float:
        """Average theta over the first `steps` steps (1..T), in closed form, since a run may have millions of steps."""
        dropping = min(steps, self.dropping_steps)
        return 1.0 - (1.0 - self.theta_bar) * self._summed_share(dropping) / steps

    def _summed_share(self, steps: int) -> float:
        """Sum (1 - theta) / (1 - theta_bar) over the first `steps` steps, none of them at full depth."""
        if self.time == "exponential":
            gamma = self.gamma_per_step
            return steps - (math.expm1(-gamma * steps) / math.expm1(-gamma) if gamma else steps)
        if self.time == "constant":
            return steps
        risen = steps * (steps - 1) / 2 / max(1, self.dropping_steps)
        return risen if self.time == "linear" else steps - risen

    def mean_kept_fraction_until(self, steps: int) -> float:
        """Average the expected fraction of blocks that run over the first `steps` steps."""
        # Keep probabilities are linear in theta, so their mean over steps is that at the mean theta.
        return math.fsum(self.keep_probs_at(self.mean_theta(steps))) / self.num_blocks

    def first_step_dropping(self, fraction: float) -> int | None:
        """Return the first step with 1 - theta >= fraction x (1 - theta_bar).

        Returns:
            The step, or None where nothing is dropped, the run ends earlier, or theta grows.
        """
        if self.theta_bar == 1.0 or self.time == "growing":
            return None
        # Less a rounding error, so that `linear` is half on exactly halfway.
        wanted = fraction * (1.0 - self.theta_bar) - 1e-12
        dropping = self.dropping_steps
        step = bisect.bisect_left(range(dropping), True, key=lambda step: 1.0 - self.theta(step) >= wanted)
        return step if step < dropping else None


def _generator(seed: int, step: int, group: int) -> random.Random:
    """Make a generator that is seeded with the position of the draw."""
    # Python's own: random() of its Mersenne Twister gives the same numbers in every version, on every machine, without torch.
    key = hashlib.blake2b(f"gates/{seed}/{step}/{group}".encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(key, "little"))


def _fixed_depth(probs: Sequence[float], rng: random.Random) -> tuple[bool, ...]:
    """Draw gates with exactly these probabilities whose number is the floor or the ceiling of their sum.

    Systematic sampling: the probabilities laid end to end in a random order, one uniform offset, and every block in
    whose stretch a point offset + k falls is kept. Source: Madow, Annals of Mathematical Statistics 20 (1949).
    """
    gates = [p >= 1.0 for p in probs]
    order = [block for block, kept in enumerate(gates) if not kept]
    for last in range(len(order) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        order[last], order[other] = order[other], order[last]
    point, end = rng.random(), 0.0
    for block in order:
        end += probs[block]
        if point < end:
            gates[block] = True
            point += 1.0
    return tuple(gates)
