"""What a study came to: its runs grouped by system, compared with their baselines, and its checks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pldcli.comparison.comparison import Comparison, Contrast, compare_systems
from pldcli.comparison.read import read_run
from pldcli.comparison.runs import Run, System
from pldcli.runs.metrics import read_metrics, validation_key
from pldcli.runs.run_directory import RunDirectory
from pldcli.study.directory import Study
from pldcli.study.finetuning import PlannedScoring
from pldcli.study.halving import RungResult
from pldcli.study.jobs import Outcome, State
from pldcli.study.plan import PlannedRun
from pldcli.study.spec import Spec
from pldcli.study_report.checks import CheckResult, judge
from pldcli.study_report.thinning import calibrated

__all__ = ["Results", "read_results", "verdict"]


@dataclass(frozen=True, kw_only=True)
class Results:
    """A study with what became of its runs so far."""

    study: Study
    runs: tuple[PlannedRun, ...]
    """All that are known to be wanted, those of rungs among them."""
    outcomes: Mapping[str, Outcome]
    """Of each run."""
    trained: Mapping[str, Run]
    """Runs that finished, with seconds as measured alone."""
    diverged: Mapping[str, Run]
    """Runs that diverged after their first validation, likewise."""
    rungs: tuple[RungResult, ...]
    scorings: Mapping[PlannedScoring, Outcome]
    """Every fine-tuning of a finished run, its minimal pairs, and what became of each."""

    @property
    def spec(self) -> Spec:
        """Return what the file says."""
        return self.study.plan.spec

    @cached_property
    def groups(self) -> dict[str, list[PlannedRun]]:
        """Group runs that differ in their seed alone, in the order of the file; rungs follow."""
        found: dict[str, list[PlannedRun]] = {name: [] for name in self.spec.systems if name not in self.spec.candidates}
        for run in self.runs:
            found.setdefault(run.group, []).append(run)
        return found

    @cached_property
    def systems(self) -> dict[str, System]:
        """Return the finished runs of each group; none where none has finished."""
        found = {}
        for group, runs in self.groups.items():
            done = tuple(self.trained[run.name] for run in runs if run.name in self.trained)
            if done:
                found[group] = System(group, done)
        return found

    @cached_property
    def comparisons(self) -> dict[str, Comparison]:
        """Compare each group with its baseline, where both have a finished run; earlier rungs are too short for that."""
        found = {}
        for baseline in dict.fromkeys(self._baseline(group) for group in self.groups):
            if baseline not in self.systems:
                continue
            held = [group for group in self.systems if group != baseline and self._baseline(group) == baseline and self._counts(group)]
            if held:
                systems = [self.systems[group] for group in (baseline, *held)]
                found[baseline] = compare_systems(systems, systems[0])
        return found

    @cached_property
    def checks(self) -> list[CheckResult]:
        """Judge every check by the runs that finished."""
        return [
            judge(check, self._losses(check.better), self._losses(check.than), num_diverged=self.num_diverged(check.better))
            for check in self.spec.checks
        ]

    def num_diverged(self, *groups: str) -> int:
        """Count the runs of groups that diverged."""
        return sum(self.outcomes[run.name].state == State.DIVERGED for group in groups for run in self.groups[group])

    def contrast(self, group: str) -> Contrast | None:
        """Return what a group came to beside its baseline."""
        comparison = self.comparisons.get(self._baseline(group))
        if comparison is None:
            return None
        return next((contrast for contrast in comparison.contrasts if contrast.system.name == group), None)

    def baseline_of(self, group: str) -> str | None:
        """Return what a group is compared with; None for a baseline itself."""
        baseline = self._baseline(group)
        return None if baseline == group else baseline

    def count(self, state: State) -> int:
        """Count the runs in a state."""
        return sum(self.outcomes[run.name].state == state for run in self.runs)

    @property
    def is_complete(self) -> bool:
        """Return whether nothing is left to train or to score."""
        halving = self.spec.halving
        settled = all(outcome.is_settled for outcome in (*self.outcomes.values(), *self.scorings.values()))
        last = not halving or len(self.rungs) == len(halving.rungs) or not any(math.isfinite(loss) for _, loss in self.rungs[-1].standing)
        return settled and last

    def _baseline(self, group: str) -> str:
        return self.spec.systems[self.groups[group][0].system].baseline

    def _counts(self, group: str) -> bool:
        """Return whether a group is a system of its own, or of the last rung."""
        halving, rung = self.spec.halving, self.groups[group][0].rung
        return rung == 0 or (halving is not None and rung == len(halving.rungs))

    def _losses(self, group: str) -> dict[int, float]:
        runs = self.systems[group].runs if group in self.systems else ()
        return {run.seed: run.final.loss for run in runs if run.final.loss is not None}


def verdict(contrast: Contrast, *, num_diverged: int = 0) -> str:
    """Return in a few words what a difference is worth; where runs of either system diverged, those that are left say too little."""
    difference = contrast.difference
    if num_diverged:
        return f"no verdict: {num_diverged} {'run' if num_diverged == 1 else 'runs'} diverged"
    if difference is None:
        return "does not compare"
    if not contrast.equal:
        return "no verdict: neither equal tokens nor equal time"
    at = f"at equal {' and '.join(contrast.equal)}"
    interval = difference.interval
    if interval.n < 2:
        return f"{'higher' if interval.mean > 0 else 'lower'} {at}, perhaps by chance: {interval.n or 'no'} pair"
    if interval.holds_zero:
        return f"no difference seen {at}"
    return f"{'worse' if interval.mean > 0 else 'better'} {at}"


def read_results(study: Study, ended: Mapping[str, Outcome]) -> Results:
    """Collect a study's finished runs.

    Args:
        study: The study.
        ended: What became of jobs, by name, as carrying them out told; the others are read from the disk.

    Raises:
        DataError: The metrics of a run are damaged.
    """
    runs = study.runs()
    outcomes = {run.name: ended.get(run.name) or study.outcome(run) for run in runs}
    scorings = {planned: ended.get(planned.name) or outcome for planned, outcome in study.scorings().items()}
    read: dict[State, dict[str, Run]] = {State.FINISHED: {}, State.DIVERGED: {}}
    for run in runs:
        state, place = outcomes[run.name].state, study.place(run)
        if state == State.FINISHED or (state == State.DIVERGED and _was_validated(place)):
            scored = [one.result(study.out) for one, outcome in scorings.items() if one.run == run and outcome.state == State.FINISHED]
            found = read_run(place, name=run.name, results=scored)
            read[state][run.name] = calibrated(found, study.plan.times[run.system])
    return Results(
        study=study,
        runs=tuple(runs),
        outcomes=outcomes,
        trained=read[State.FINISHED],
        diverged=read[State.DIVERGED],
        rungs=tuple(study.rungs()),
        scorings=scorings,
    )


def _was_validated(run: Path) -> bool:
    return any(map(validation_key, read_metrics(RunDirectory(run).metrics)))
