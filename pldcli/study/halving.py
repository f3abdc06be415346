"""Successive halving: which candidates advance from one rung to the next."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pldcli.study.jobs import Outcome
from pldcli.study.plan import Plan, PlannedRun
from pldcli.study.spec import Rung

__all__ = ["RungResult", "climb", "rank"]


@dataclass(frozen=True)
class RungResult:
    """A rung whose candidates are known."""

    number: int
    """From 1."""
    rung: Rung
    runs: tuple[PlannedRun, ...]
    standing: tuple[tuple[str, float], ...]
    """Candidate and mean final validation loss (infinite where a run diverged), the best first; none until every run is settled."""

    def place(self, name: str) -> int | None:
        """Return the rank of a candidate, from 1; None where there is no standing, or it did not take part."""
        return next((place for place, (one, _) in enumerate(self.standing, 1) if one == name), None)


def climb(plan: Plan, outcome_of: Callable[[PlannedRun], Outcome]) -> list[RungResult]:
    """Follow the rungs as far as their candidates are known.

    A candidate that diverged does not advance, even where fewer than wanted are left.

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
