"""What a study came to: its runs grouped by system, held against their baselines, and its checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pldcli.comparison.comparison import Comparison, Contrast, compare_systems
from pldcli.comparison.read import read_run
from pldcli.comparison.runs import Run, System
from pldcli.engine.metrics import read_metrics
from pldcli.engine.run_directory import RunDirectory
from pldcli.study.checks import CheckResult, judge
from pldcli.study.halving import Outcome, RungResult
from pldcli.study.plan import Plan, PlannedRun
from pldcli.study.study import Study
from pldcli.study.thinning import calibrated
from pldcli.study.timings import Timings
from pldcli.study.tunings import FINETUNED, PlannedTuning, TuningOutcome

__all__ = ["Results", "read_results", "verdict"]


@dataclass(frozen=True)
class Results:
    """A study with what became of its runs so far."""

    plan: Plan
    timings: Timings
    data: str
    """The prepared directory."""
    runs: tuple[PlannedRun, ...]
    """All that are known to be wanted, those of rungs among them."""
    outcomes: Mapping[str, Outcome]
    """Of each run."""
    trained: Mapping[str, Run]
    """Runs that finished, with seconds as measured alone."""
    diverged: Mapping[str, Run]
    """Runs that diverged after their first validation, likewise."""
    rungs: tuple[RungResult, ...]
    tunings: Mapping[PlannedTuning, TuningOutcome]
    """Every fine-tuning of a finished run, and what became of it."""

    @cached_property
    def groups(self) -> dict[str, list[PlannedRun]]:
        """Put runs together that differ in their seed alone, in the order of the file; rungs follow."""
        found: dict[str, list[PlannedRun]] = {name: [] for name in self.plan.spec.systems if name not in self.plan.spec.candidates}
        for run in self.runs:
            found.setdefault(run.group, []).append(run)
        return found

    @cached_property
    def systems(self) -> dict[str, System]:
        """Give the finished runs of each group; none where none has finished."""
        found = {}
        for group, runs in self.groups.items():
            done = tuple(self.trained[run.name] for run in runs if run.name in self.trained)
            if done:
                found[group] = System(group, done)
        return found

    @cached_property
    def comparisons(self) -> dict[str, Comparison]:
        """Hold each group against its baseline, where both have a finished run; earlier rungs are too short to be held."""
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
        return [judge(check, self._losses(check.better), self._losses(check.than)) for check in self.plan.spec.checks]

    def contrast(self, group: str) -> Contrast | None:
        """Give what a group came to beside its baseline."""
        comparison = self.comparisons.get(self._baseline(group))
        if comparison is None:
            return None
        return next((contrast for contrast in comparison.contrasts if contrast.system.name == group), None)

    def baseline_of(self, group: str) -> str | None:
        """Name what a group is held against; None for a baseline itself."""
        baseline = self._baseline(group)
        return None if baseline == group else baseline

    def count(self, *states: str) -> int:
        """Count the runs in some states."""
        return sum(self.outcomes[run.name].state in states for run in self.runs)

    @property
    def is_complete(self) -> bool:
        """Tell whether nothing is left to train or to fine-tune."""
        halving = self.plan.spec.halving
        settled = all(run.is_settled for run in self.outcomes.values()) and all(tuning.is_settled for tuning in self.tunings.values())
        last = not halving or len(self.rungs) == len(halving.rungs) or not any(loss < float("inf") for _, loss in self.rungs[-1].standing)
        return settled and last

    def _baseline(self, group: str) -> str:
        return self.plan.spec.systems[self.groups[group][0].system].baseline

    def _counts(self, group: str) -> bool:
        """Tell whether a group is a system of its own, or of the last rung."""
        halving, rung = self.plan.spec.halving, self.groups[group][0].rung
        return rung == 0 or (halving is not None and rung == len(halving.rungs))

    def _losses(self, group: str) -> dict[int, float]:
        runs = self.systems[group].runs if group in self.systems else ()
        return {run.seed: run.final.loss for run in runs if run.final.loss is not None}


def verdict(contrast: Contrast) -> str:
    """Say in a few words what a difference is worth."""
    difference = contrast.difference
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


def read_results(study: Study, outcomes: Mapping[str, Outcome] | None = None, tuned: Mapping[str, TuningOutcome] | None = None) -> Results:
    """Collect a study's finished runs.

    Args:
        study: The study.
        outcomes: What became of its runs, as training told; read from the disk by default.
        tuned: What became of its fine-tunings, likewise.

    Raises:
        DataError: The metrics of a run are damaged.
    """
    runs = study.runs()
    known = {run.name: (outcomes or {}).get(run.name) or study.outcome(run) for run in runs}
    trained: dict[str, Run] = {}
    diverged: dict[str, Run] = {}
    for run in runs:
        state, place = known[run.name].state, study.place(run)
        if state == "finished" or (state == "diverged" and _was_validated(place)):
            read = read_run(place, name=run.name, finetuned=study.out / FINETUNED)
            (trained if state == "finished" else diverged)[run.name] = calibrated(read, study.plan.times[run.system])
    tunings = {tuning: (tuned or {}).get(tuning.name) or outcome for tuning, outcome in study.tunings().items()}
    return Results(study.plan, study.timings, str(study.data), tuple(runs), known, trained, diverged, tuple(study.rungs()), tunings)


def _was_validated(run: Path) -> bool:
    return any("eval/mlm_loss" in row for row in read_metrics(RunDirectory(run).metrics))
