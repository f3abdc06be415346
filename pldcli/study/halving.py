"""Successive halving: which candidates go on from one rung to the next."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pldcli.study.outcome import Outcome, rank
from pldcli.study.plan import Plan, PlannedRun
from pldcli.study.spec import Rung

__all__ = ["RungResult", "climb"]


@dataclass(frozen=True)
class RungResult:
    """A rung whose candidates are known."""

    number: int
    """From 1."""
    rung: Rung
    runs: tuple[PlannedRun, ...]
    standing: tuple[tuple[str, float], ...]
    """Candidate and mean final validation loss (infinite where a run diverged), the best first; none until every run is settled."""


def climb(plan: Plan, outcome_of: Callable[[PlannedRun], Outcome]) -> list[RungResult]:
    """Follow the rungs as far as their candidates are known.

    A candidate that diverged does not go on, even where fewer than wanted are left.

    Args:
        plan: The study.
        outcome_of: What became of a run.
    """
    halving = plan.spec.halving
    if halving is None:
        return []
    candidates, results = halving.candidates, list[RungResult]()
    for number, rung in enumerate(halving.rungs):
        if results:
            alive = [name for name, loss in results[-1].standing if math.isfinite(loss)]
            candidates = tuple(alive[: halving.takes_part(number)])
        runs = plan.rung(number, candidates)
        outcomes = {run.name: outcome_of(run) for run in runs}
        if not runs:
            break
        standing: tuple[tuple[str, float], ...] = ()
        if all(outcome.is_settled for outcome in outcomes.values()):
            standing = tuple(rank({name: [outcomes[run.name] for run in runs if run.system == name] for name in candidates}))
        results.append(RungResult(number + 1, rung, tuple(runs), standing))
        if not standing:
            break
    return results
