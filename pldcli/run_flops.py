"""FLOPs of a whole run or its first part: what each length of sequences costs, under the blocks that the schedule keeps meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pldcli.curriculum import Curriculum
from pldcli.flops import Flops
from pldcli.pld import Schedule

__all__ = ["RunFlops"]


@dataclass(frozen=True)
class RunFlops:
    """FLOPs as planned: blocks run as often as expected, and rows are full."""

    schedule: Schedule
    curriculum: Curriculum
    flops: Flops
    """Per token."""
    attended_tokens: Mapping[int, float] = field(default_factory=dict)
    """Tokens that a token attends to, by length of sequences; where a length is missing, all of the sequence."""

    def dense_until(self, steps: int) -> float:
        """FLOPs of the first `steps` steps with every block running."""
        return self._until(steps, dense=True)

    def executed_until(self, steps: int) -> float:
        """FLOPs of the first `steps` steps, dropped blocks not counted."""
        return self._until(steps, dense=False)

    @property
    def dense_per_token(self) -> float:
        """Mean over the run with every block running."""
        return self.dense_until(self.schedule.total_steps) / self.curriculum.num_tokens

    @property
    def executed_per_token(self) -> float:
        """Mean over the run, dropped blocks not counted."""
        return self.executed_until(self.schedule.total_steps) / self.curriculum.num_tokens

    @property
    def saved(self) -> float:
        """The fraction of all FLOPs that dropping saves."""
        return 1.0 - self.executed_per_token / self.dense_per_token

    @property
    def saved_of_blocks(self) -> float:
        """The fraction of the blocks' FLOPs that dropping saves."""
        dense, executed = (count(self.schedule.total_steps) for count in (self.dense_until, self.executed_until))
        return (dense - executed) / (dense - self.flops.head * self.curriculum.num_tokens)

    def _until(self, steps: int, *, dense: bool) -> float:
        total = 0.0
        for stretch in self.curriculum.stretches:
            first, stop = stretch.first_step, min(steps, stretch.stop)
            if first >= stop:
                break
            kept = 1.0 if dense else self.schedule.mean_kept_fraction_between(first, stop)
            per_token = self.flops.attending_to(self.attended_tokens.get(stretch.seq_len, stretch.seq_len))
            total += (stop - first) * stretch.num_sequences * stretch.seq_len * per_token.executed(kept * self.schedule.num_blocks)
        return total
