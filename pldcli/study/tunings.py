"""Fine-tune the finished runs of a study, each by the ordinary command, and read what became of that."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pldcli.errors import DivergedError
from pldcli.finetuning import config as finetune_config
from pldcli.finetuning.finetune import cell_name
from pldcli.study.jobs import STOPPED_CODES, Command, Slot, describe_failure, last_line, run_commands
from pldcli.study.plan import PlannedRun
from pldcli.study.spec import Spec
from pldcli.system.signals import StopRequest
from pldcli.tasks.registry import is_known_task, task_name

__all__ = ["FINETUNED", "PlannedTuning", "TuningOutcome", "plan_tunings", "read_tuning", "tune_runs"]

FINETUNED = "finetuned"
"""Directory of a study that holds RUN/TASK."""


def tune_runs(
    tunings: Sequence[PlannedTuning],
    *,
    out: Path,
    slots: Sequence[Slot],
    tell: Callable[[PlannedTuning, TuningOutcome | None], None],
    stop: StopRequest,
) -> dict[str, TuningOutcome]:
    """Do fine-tunings that are not done yet, one in each slot at a time, until all have ended or a stop is asked for.

    Args:
        tunings: In the order in which to begin.
        out: The study's directory.
        slots: Where to train.
        tell: Told of each as it begins (None) and ends.
        stop: Looked at all the time; what is at work is asked to save and end.

    Returns:
        Name to outcome of everything that was begun.
    """
    named = {tuning.name: tuning for tuning in tunings}
    return run_commands(
        [_command(tuning, out) for tuning in tunings],
        slots=slots,
        settle=lambda name, code: _settle(named[name], out, code),
        tell=lambda name, outcome: tell(named[name], outcome),
        stop=stop,
    )


def read_tuning(tuning: PlannedTuning, out: Path) -> TuningOutcome:
    """Read from the disk what became of a fine-tuning.

    Args:
        tuning: With the settings that are wanted now: results under others do not count.
        out: The study's directory.
    """
    try:
        content = json.loads((out / FINETUNED / tuning.name / "results.json").read_text(encoding="utf-8"))
        wanted = {cell_name(settings) for settings in finetune_config.cells(tuning.settings)}
        if set(content["cells"]) != wanted:
            return TuningOutcome("not started")
        scores = [group["score"]["mean"] for group in content["groups"] if group["score"]]
        return TuningOutcome("finished", max(scores, default=None))
    except (OSError, ValueError, KeyError, TypeError):
        return TuningOutcome("not started")


def _command(tuning: PlannedTuning, out: Path) -> Command:
    place = out / FINETUNED / tuning.name
    data = ("--data-dir", tuning.data_dir) if tuning.data_dir else ()
    start = ("--model", str(out / "runs" / tuning.run.name))
    arguments = ("finetune", tuning.task, *start, *data, "--out", str(place), "--jobs", "1", *tuning.settings)
    return Command(tuning.name, arguments, place, _log(tuning, out))


def _settle(tuning: PlannedTuning, out: Path, code: int) -> TuningOutcome:
    """Say what became of a fine-tuning whose process has ended."""
    outcome = read_tuning(tuning, out)
    if outcome.is_settled and code in (0, DivergedError.exit_code):
        return outcome
    line = last_line(_log(tuning, out))
    if code in STOPPED_CODES:
        return TuningOutcome("stopped", note=line, exit_code=code)
    return TuningOutcome("failed", note=describe_failure(line, code), exit_code=code)


def _log(tuning: PlannedTuning, out: Path) -> Path:
    return out / "logs" / f"{tuning.name.replace('/', '-')}.log"


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
