"""How much a run reads in each step, as a value: length of its sequences (stages) and their number (batch-size ramp).

Pure functions of the step, without state and without torch, like the schedules of layer dropping: every process and every resumed run
reads the same. Batches count sequences of the length at the end of the run, and a stage of a quarter of it reads four times as many:
a step's tokens, and with them the learning rate that suits them, do not depend on the stage.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby, pairwise

from pldcli.errors import UsageError

__all__ = ["Curriculum", "Stage", "Stretch", "check_ends", "largest_divisor", "step_at"]


@dataclass(frozen=True)
class Stage:
    """A part of a run in which sequences have one length."""

    until: float
    """Where it ends, as a fraction of the run."""
    seq_len: int
    rope_theta: float = 0.0
    """Base of the global layers' rotary positions, where the model has any."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """Consecutive steps that read equally many sequences of one length."""

    first_step: int
    stop: int
    """The step behind the last one."""
    seq_len: int
    rope_theta: float
    num_sequences: int
    """Per step."""
    first_sequence: int
    """Index of the first step's first sequence, among all of this length in the run."""

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.stop - self.first_step

    @property
    def num_tokens(self) -> int:
        """Tokens of all its steps, padding included."""
        return self.steps * self.num_sequences * self.seq_len


@dataclass(frozen=True, kw_only=True)
class Curriculum:
    """Lengths and batches of a run.

    Args:
        total_steps: Steps of the run.
        seq_len: Tokens per sequence at its end.
        batch_size: Sequences of `seq_len` tokens per step at its end.
        rope_theta: Base of the global layers' rotary positions at its end.
        stages: What comes before the end, in order; their lengths divide `seq_len`.
        initial_batch_size: Batch of the first step, which divides `batch_size`; None for `batch_size`.
        ramp_fraction: The first part of the run in which the batch grows, in multiples of the initial one.
    """

    total_steps: int
    seq_len: int
    batch_size: int
    rope_theta: float = 0.0
    stages: Sequence[Stage] = ()
    initial_batch_size: int | None = None
    ramp_fraction: float = 0.0

    @cached_property
    def stretches(self) -> tuple[Stretch, ...]:
        """All steps, grouped: a few entries, over which sums and means are taken instead of over steps."""
        stages = [*self.stages, Stage(1.0, self.seq_len, self.rope_theta)]
        begins = [0, *(step_at(stage.until, self.total_steps) for stage in self.stages)]
        edges = sorted({*begins, *self._growth_steps})
        counted: Counter[int] = Counter()
        found = []
        for first, stop in pairwise([*edges, self.total_steps]):
            stage = stages[bisect_right(begins, first) - 1]
            sequences = self._batch_size_at(first) * (self.seq_len // stage.seq_len)
            stretch = Stretch(
                first_step=first,
                stop=stop,
                seq_len=stage.seq_len,
                rope_theta=stage.rope_theta,
                num_sequences=sequences,
                # Counted by length, not by stage: two stages of one length do not read the same sequences again.
                first_sequence=counted[stage.seq_len],
            )
            counted[stage.seq_len] += stretch.steps * sequences
            found.append(stretch)
        return tuple(found)

    def at(self, step: int) -> Stretch:
        """Return the stretch that a step belongs to; the last one has no end."""
        return self.stretches[self._number_at(step)]

    def first_sequence(self, step: int) -> int:
        """Return the index of a step's first sequence, among all of its length in the run."""
        stretch = self.at(step)
        return stretch.first_sequence + (step - stretch.first_step) * stretch.num_sequences

    def tokens_until(self, step: int) -> int:
        """Count the tokens of the first `step` steps, padding included."""
        stretch, before = self.at(step), self._tokens_before[self._number_at(step)]
        return before + (step - stretch.first_step) * stretch.num_sequences * stretch.seq_len

    def steps_for(self, tokens: int) -> int:
        """Count the first steps that together have at least so many tokens, padding included; the last ones go on beyond the run's end."""
        number = min(max(0, bisect_left(self._tokens_before, tokens) - 1), len(self.stretches) - 1)
        stretch, missing = self.stretches[number], tokens - self._tokens_before[number]
        return stretch.first_step - (-missing // (stretch.num_sequences * stretch.seq_len))

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole run, padding included."""
        return sum(stretch.num_tokens for stretch in self.stretches)

    @property
    def sequences_by_length(self) -> dict[int, int]:
        """Sequences of the whole run, by their length, in the order of the run."""
        counted: Counter[int] = Counter()
        for stretch in self.stretches:
            counted[stretch.seq_len] += stretch.steps * stretch.num_sequences
        return dict(counted)

    def describe(self) -> str:
        """Say in one phrase how many sequences of which length a step reads."""
        parts: list[str] = []
        for seq_len, group in groupby(self.stretches, key=lambda stretch: stretch.seq_len):
            first, *rest = group
            last = rest[-1] if rest else first
            number = f"{first.num_sequences:,} to {last.num_sequences:,}" if rest else f"{first.num_sequences:,}"
            parts.append(f"{number} x {seq_len:,}" + (f" (from step {first.first_step:,} on)" if parts else ""))
        return ", then ".join(parts)

    def _number_at(self, step: int) -> int:
        return bisect_right(self.stretches, step, key=lambda stretch: stretch.first_step) - 1

    @cached_property
    def _tokens_before(self) -> list[int]:
        return [0, *accumulate(stretch.num_tokens for stretch in self.stretches)]

    @cached_property
    def _growth_steps(self) -> list[int]:
        """Steps at which the batch grows: each size takes an equal share of the ramp."""
        times, ramp = self.batch_size // (self.initial_batch_size or self.batch_size), step_at(self.ramp_fraction, self.total_steps)
        return [-(-grown * ramp // (times - 1)) for grown in range(1, times)]

    def _batch_size_at(self, step: int) -> int:
        return (self.initial_batch_size or self.batch_size) * (1 + bisect_right(self._growth_steps, step))


def step_at(fraction: float, total_steps: int) -> int:
    """Return the first step behind such a part of a run."""
    # Rounded first: 0.29 x 100 is a little under 29 in floating point.
    return int(round(fraction * total_steps, 6))


def check_ends(ends: Sequence[float], *, key: str, rest: str) -> None:
    """Check that the stages of a run end in order, and within it.

    Args:
        ends: Fractions of the run.
        key: Of the list of stages.
        rest: What holds behind the last stage.

    Raises:
        UsageError: They do not.
    """
    for number, (before, end) in enumerate(pairwise((0.0, *ends))):
        if not before < end < 1:
            what = f"{end:g} does not lie between {before:g}, where the stage begins, and 1"
            raise UsageError(what, where=f"{key}[{number}].until", hint=f"list stages in order; {rest}")


def largest_divisor(number: int, most: int) -> int:
    """Return the largest divisor of a number that is at most so large."""
    return max(size for size in range(1, min(number, most) + 1) if number % size == 0)
