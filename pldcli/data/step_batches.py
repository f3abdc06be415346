"""The batches of each training step: which sequences, in which gate group, on which process, in which forward pass.

A step's batches are a function of (step, rank, world size), and their union over the ranks does not depend on the world size. There is no
other state: a position in a run is one integer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from pldcli.curriculum import Curriculum, Stretch, largest_divisor
from pldcli.data.loader import Batch, Samples, pinned, to_batch
from pldcli.data.masking import Masking
from pldcli.data.next_token import NextTokenSteps

__all__ = ["StepBatches", "built_ahead"]

StepT = TypeVar("StepT")


@dataclass(frozen=True, kw_only=True)
class StepBatches:
    """The batches of one process, step by step: gate groups of micro-batches."""

    samples: Mapping[int, Samples]
    """By length of sequences."""
    masking: Masking
    curriculum: Curriculum
    num_groups: int
    micro_batch_size: int
    """Most sequences of the run's length per forward pass; shorter ones are more, with as many tokens."""
    rank: int = 0
    world_size: int = 1
    pin_memory: bool = False
    """Return batches in pinned memory, for CUDA."""
    next_tokens: NextTokenSteps | None = None
    """Which steps predict the next token instead of masked ones; None for none."""
    shift: int = 0
    """Sequences that are passed over before every step."""

    def step(self, step: int) -> list[list[Batch]]:
        """Build the batches of a step: per gate group, per micro-step."""
        # A step's sequences are consecutive indices; its gate groups part them, then the processes part each group, then micro-steps part
        # a share. So a sequence is in the same group, under the same gates, with any number of processes and any micro-batch.
        stretch = self.curriculum.at(step)
        group_size = stretch.num_sequences // self.num_groups
        share = group_size // self.world_size
        size = self._sequences_per_forward(stretch)
        groups = []
        for group in range(self.num_groups):
            first = self.curriculum.first_sequence(step) + self.shift + group * group_size + self.rank * share
            groups.append([self.batch(step, start, size) for start in range(first, first + share, size)])
        return pinned(groups) if self.pin_memory else groups

    def num_sequences(self, step: int) -> int:
        """Return the sequences of a step, over all processes."""
        return self.curriculum.at(step).num_sequences

    def sequences(self, first: int, stop: int) -> str:
        """Name the sequences that steps first..stop-1 read, over all processes, by their index; by length, too, where lengths differ."""
        read: dict[int, tuple[int, int]] = {}
        for step in range(first, stop):
            start, length = self.curriculum.first_sequence(step) + self.shift, self.seq_len(step)
            read[length] = (read.get(length, (start,))[0], start + self.num_sequences(step) - 1)
        several = len(self.curriculum.sequences_by_length) > 1
        return " and ".join(
            f"sequences {one} to {last} of {f'{length} tokens' if several else 'the run'}" for length, (one, last) in read.items()
        )

    def seq_len(self, step: int) -> int:
        """Return the tokens per sequence of a step."""
        return self.curriculum.at(step).seq_len

    @property
    def micro_steps(self) -> int:
        """Forward passes per gate group on one process, in the last step."""
        last = self.curriculum.stretches[-1]
        return last.num_sequences // (self.num_groups * self.world_size * self._sequences_per_forward(last))

    @property
    def attended_tokens(self) -> dict[int, float]:
        """Return what a token attends to on average, by length of sequences."""
        return {length: samples.attended_tokens for length, samples in self.samples.items()}

    def from_step(self, first: int, stop: int) -> Iterator[list[list[Batch]]]:
        """Yield the batches of steps first..stop-1, built ahead in a thread."""
        return built_ahead(self.step, first, stop)

    def _sequences_per_forward(self, stretch: Stretch) -> int:
        times = self.curriculum.seq_len // stretch.seq_len
        return times * largest_divisor(stretch.num_sequences // (times * self.num_groups * self.world_size), self.micro_batch_size)

    def batch(self, step: int, start: int, size: int) -> Batch:
        """Build a batch of sequences `start` and following, as a step reads them: of its length."""
        targets = (self.next_tokens and self.next_tokens.at(step)) or self.masking
        return to_batch(self.samples[self.seq_len(step)].rows(np.arange(start, start + size)), targets, step=step, fixed_targets=True)


def built_ahead(build: Callable[[int], StepT], first: int, stop: int, *, ahead: int = 2) -> Iterator[StepT]:
    """Yield what `build` makes of steps first..stop-1, in order, built ahead in a thread.

    Args:
        build: Builds the batches of a step, as a function of the step alone.
        first: The first step.
        stop: The step behind the last one.
        ahead: Steps that are built or wait at most.
    """
    # One thread: numpy and torch release the lock of the interpreter where it takes time, and a process would have to send its tensors.
    # What is built ahead and never used is lost without harm, since a step's batches do not depend on what was built before.
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as builder:
        pending = [builder.submit(build, step) for step in range(first, min(first + ahead, stop))]
        for step in range(first, stop):
            batches = pending.pop(0).result()
            if step + ahead < stop:
                pending.append(builder.submit(build, step + ahead))
            yield batches
