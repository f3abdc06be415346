"""A study on the disk: OUT/plan.json, runs/RUN, finetuned/RUN/TASK and logs/, and what became of each job so far."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pldcli.study.calibration import Timings
from pldcli.study.finetuning import PlannedScoring, plan_scorings
from pldcli.study.halving import RungResult, climb
from pldcli.study.jobs import Outcome, State
from pldcli.study.plan import Plan, PlannedRun
from pldcli.study.runs import read_outcome

__all__ = ["Study"]


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study whose runs are known."""

    plan: Plan
    timings: Timings
    out: Path
    data: Path
    is_measured_for_good: bool = True
    """What was measured lies on the disk; otherwise it will be measured anew when the study begins."""

    def place(self, run: PlannedRun) -> Path:
        """Return the directory of a run."""
        return self.out / "runs" / run.name

    def outcome(self, run: PlannedRun) -> Outcome:
        """Read what became of a run."""
        return read_outcome(self.place(run))

    def rungs(self) -> list[RungResult]:
        """List the rungs whose candidates are known."""
        return climb(self.plan, self.outcome)

    def runs(self) -> list[PlannedRun]:
        """List every run that is known to be wanted, in the order in which they begin."""
        return [*self.plan.runs(), *(run for rung in self.rungs() for run in rung.runs)]

    def scorings(self) -> dict[PlannedScoring, Outcome]:
        """List every fine-tuning of a finished run, and its minimal pairs, and what became of each."""
        finished = [run for run in self.runs() if self.outcome(run).state == State.FINISHED]
        return {planned: planned.outcome(self.out) for planned in plan_scorings(self.plan.spec, finished)}
