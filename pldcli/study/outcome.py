"""What became of a run, and who is best among those that did well."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Outcome", "State", "rank"]

State = Literal["finished", "diverged", "failed", "stopped", "running", "not started"]


@dataclass(frozen=True)
class Outcome:
    """How far a run came."""

    state: State
    step: int = 0
    loss: float | None = None
    """Its final validation loss, of a finished run alone."""
    note: str = ""
    """Why it diverged or failed."""
    exit_code: int = 0
    """Of its process, where it failed."""

    @property
    def is_settled(self) -> bool:
        """Tell whether there is nothing left to do for it."""
        return self.state in ("finished", "diverged")

    def __str__(self) -> str:
        """Say it in a few words."""
        return f"diverged at step {self.step:,}" if self.state == "diverged" else self.state


def rank(outcomes: Mapping[str, Sequence[Outcome]]) -> list[tuple[str, float]]:
    """Order the candidates of a rung by their final validation loss, the mean over its seeds.

    Args:
        outcomes: Candidate to the outcome of each of its runs, all of them settled.

    Returns:
        Candidate and mean, the best first; a candidate with a run that diverged has an infinite one and comes last.
    """
    means = {}
    for name, runs in outcomes.items():
        losses = [run.loss for run in runs if run.loss is not None]
        means[name] = statistics.fmean(losses) if losses and len(losses) == len(runs) else math.inf
    return sorted(means.items(), key=lambda item: item[1])
