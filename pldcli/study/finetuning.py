"""From a study's finished runs to their fine-tunings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pldcli.study.plan import PlannedRun
from pldcli.study.spec import Spec
from pldcli.tasks.registry import is_known_task, task_name

__all__ = ["PlannedTuning", "TuningOutcome", "plan_tunings"]


@dataclass(frozen=True)
class PlannedTuning:
    """One run to fine-tune on one task, with every seed and setting."""

    run: PlannedRun
    task: str
    data_dir: str | None
    settings: tuple[str, ...]
    """`KEY=VALUE` of its command line."""

    @property
    def name(self) -> str:
        """Give its directory under that of all fine-tunings: RUN/TASK."""
        return f"{self.run.name}/{task_name(self.task)}"


@dataclass(frozen=True)
class TuningOutcome:
    """What became of a fine-tuning."""

    state: Literal["finished", "failed", "stopped", "not started"]
    score: float | None = None
    """In [0, 1]: the mean over seeds, of the best setting; None where all diverged, or of what has not finished."""
    note: str = ""
    """Why it failed."""
    exit_code: int = 0
    """Of its process, where it failed."""

    @property
    def is_settled(self) -> bool:
        """Tell whether there is nothing left to do for it."""
        return self.state == "finished"

    def __str__(self) -> str:
        """Say it in a few words."""
        if self.state != "finished":
            return f"{self.state}: {self.note}" if self.note else self.state
        return "diverged" if self.score is None else f"score {100 * self.score:.2f}"


def plan_tunings(spec: Spec, runs: Sequence[PlannedRun]) -> list[PlannedTuning]:
    """List what is to be fine-tuned: every task of every run, but for the halving's earlier rungs and systems left out.

    Args:
        spec: The study.
        runs: Those that have finished.
    """
    if spec.finetuning is None:
        return []
    last = len(spec.halving.rungs) if spec.halving else 0
    chosen = [run for run in runs if run.system in spec.finetuning.systems and run.rung in (0, last)]
    return [
        PlannedTuning(run, task, spec.finetuning.data_dir if is_known_task(task) else None, spec.finetuning.settings)
        for run in chosen
        for task in spec.finetuning.tasks
    ]
