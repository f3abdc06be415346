"""Expansion as a value: a run in which few blocks run first, and more, at last all, later.

Pure functions of the step like all schedules. Blocks are numbered from 0 here.

Source: "Train shallow, then deep" in one late step, arXiv 2511.04981; stages of random subsets that grow: RaPTr, arXiv 2402.05913.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from operator import mul
from typing import Literal

from pldcli.curriculum import step_at
from pldcli.pld import RESIDUALS, Draw, Growth, GrowthState, NewBlocks, Schedule

__all__ = ["DepthStage", "Expansion", "StageBlocks", "spread"]

StageBlocks = Literal["first", "last", "spread", "random"]
"""Which blocks run in a stage: the lowest, the highest, evenly spaced ones with both ends among them, or others in every draw."""


_NEW_BLOCKS: dict[NewBlocks, list[str]] = {
    "initialised": [],
    "copied": ["new blocks are copies"],
    "zero-output": ["new blocks change nothing at first"],
}
_STATES: dict[GrowthState, list[str]] = {"kept": [], "copied": ["moments copied too"], "fresh": ["all moments begin anew"]}
"""What is said of each."""


@dataclass(frozen=True)
class DepthStage:
    """A part of a run in which only so many blocks run."""

    until: float
    """Where it ends, as a fraction of the run."""
    blocks: int


@dataclass(frozen=True)
class Expansion(Schedule):
    """Stages of fewer blocks, then all of them. The blocks of a stage are among those of the next, unless they are random."""

    draw: Draw = "fixed-depth"
    stages: tuple[DepthStage, ...] = ()
    """In order, each with more blocks than the one before."""
    which: StageBlocks = "spread"
    new_blocks: NewBlocks = "initialised"
    growth_state: GrowthState = "kept"

    @property
    def is_dense(self) -> bool:
        """Whether every block runs in every step."""
        return all(stage.blocks == self.num_blocks for stage in self.stages)

    @property
    def scales(self) -> bool:
        """Whether any residual scale of the run differs from 1: a block that is not drawn runs always or never."""
        return self.which == "random" and super().scales

    def theta(self, step: int) -> float:
        """Return the share of blocks that run after `step` completed updates."""
        return self._depths[self._stage_at(step)] / self.num_blocks

    @property
    def lowest_theta(self) -> float:
        """Theta in the first stage."""
        return self.theta(0)

    @property
    def shares_of_run(self) -> tuple[float, ...]:
        """In what share of the steps each block is expected to run, [L]."""
        steps = [stop - first for first, stop in pairwise((*self._begins, self.total_steps))]
        by_block = zip(*self._probs, strict=True)
        return tuple(sum(map(mul, probs, steps)) / self.total_steps for probs in by_block)

    def keep_probs(self, step: int) -> tuple[float, ...]:
        """Return the keep probability of each block at `step`, [L]: 0 or 1, but for random blocks."""
        return self._probs[self._stage_at(step)]

    def mean_kept_fraction_until(self, steps: int) -> float:
        """Average the fraction of blocks that run over the first `steps` steps."""
        edges = [min(edge, steps) for edge in (*self._begins, self.total_steps)]
        run = sum((stop - first) * depth for (first, stop), depth in zip(pairwise(edges), self._depths, strict=True))
        return run / steps / self.num_blocks

    def growth_at(self, step: int) -> Growth | None:
        """Return which blocks begin to run at `step`, of those that never ran before; None for random ones, which all have."""
        if step == 0 or self.which == "random":
            return None
        before, now = self.trained_gates(step), self.trained_gates(step + 1)
        if before == now:
            return None
        running = tuple(block for block, ran in enumerate(before) if ran)
        new = tuple(block for block, runs in enumerate(now) if runs and not before[block])
        return Growth(running, new, self.new_blocks, self.growth_state)

    def trained_gates(self, steps: int) -> tuple[bool, ...]:
        """Return the gates of the model that there is after `steps` completed updates: off for blocks that could not run yet."""
        return tuple(map(bool, self._probs[self._stage_at(max(0, steps - 1))]))

    def gates_of_depth(self, depth: int) -> tuple[bool, ...] | None:
        """Return the gates of the model while it has so many blocks; None where it never has."""
        return {sum(gates): gates for gates in (tuple(map(bool, probs)) for probs in self._probs)}.get(depth)

    def describe(self) -> list[str]:
        """Say in a few phrases what is left out."""
        stages = [f"{self._number(stage.blocks)} until {stage.until:.0%}" for stage in self.stages]
        how = RESIDUALS[self.residual] if self.which == "random" else _NEW_BLOCKS[self.new_blocks] + _STATES[self.growth_state]
        return [f"{', then '.join(stages)} of the run, then all", *self.always_kept, *how]

    def _number(self, blocks: int) -> str:
        words = {"spread": "evenly spaced", "random": "random"}
        return f"the {self.which} {blocks} blocks" if self.which in ("first", "last") else f"{blocks} {words[self.which]} blocks"

    def _stage_at(self, step: int) -> int:
        return bisect_right(self._begins, step) - 1

    @cached_property
    def _depths(self) -> tuple[int, ...]:
        return (*(stage.blocks for stage in self.stages), self.num_blocks)

    @cached_property
    def _begins(self) -> tuple[int, ...]:
        """First step of each stage and of the whole model; a stage of a very short run may have none."""
        return (0, *(step_at(stage.until, self.total_steps) for stage in self.stages))

    @cached_property
    def _probs(self) -> tuple[tuple[float, ...], ...]:
        """Keep probabilities by stage."""
        if self.which == "random":
            return tuple(self._drawn(depth) for depth in self._depths)
        chosen, found = tuple(range(self.num_blocks)), []
        for depth in reversed(self._depths):  # a stage's blocks are chosen among the next one's: what was trained goes on
            if self.which == "spread":
                chosen = tuple(chosen[place] for place in spread(depth, len(chosen)))
            else:
                chosen = chosen[:depth] if self.which == "first" else chosen[-depth:]
            found.append(tuple(float(block in chosen) for block in range(self.num_blocks)))
        return tuple(reversed(found))

    def _drawn(self, depth: int) -> tuple[float, ...]:
        middle = self.num_blocks - self.keep_first - self.keep_last
        prob = (depth - self.keep_first - self.keep_last) / middle if middle else 1.0
        return self._with_ends((prob,) * self.num_blocks)


def spread(chosen: int, among: int) -> tuple[int, ...]:
    """Choose evenly spaced places, the first and the last one among them; of one, the first."""
    gaps = max(1, chosen - 1)
    return tuple((2 * place * (among - 1) + gaps) // (2 * gaps) for place in range(chosen))
