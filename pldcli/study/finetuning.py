"""The fine-tunings of a study's finished runs: each is done by the ordinary command, and its directory says what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pldcli.errors import DivergedError
from pldcli.finetuning import config as finetune_config
from pldcli.finetuning.finetune import cell_name
from pldcli.study.jobs import Job, Outcome, State
from pldcli.study.plan import PlannedRun
from pldcli.study.spec import Spec
from pldcli.system.json_text import from_json
from pldcli.tasks.registry import is_known_task, task_name

__all__ = ["FINETUNED", "PlannedFinetuning", "finetuning_job", "plan_finetunings", "read_finetuning"]

FINETUNED = "finetuned"
"""Directory of a study that holds RUN/TASK."""


@dataclass(frozen=True)
class PlannedFinetuning:
    """One run to fine-tune on one task, with every seed and setting."""

    run: PlannedRun
    task: str
    data_dir: str | None
    settings: tuple[str, ...]
    """`KEY=VALUE` of its command line."""

    @property
    def name(self) -> str:
        """Return its directory under that of all fine-tunings: RUN/TASK."""
        return f"{self.run.name}/{task_name(self.task)}"


def plan_finetunings(spec: Spec, runs: Sequence[PlannedRun]) -> list[PlannedFinetuning]:
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
        PlannedFinetuning(run, task, spec.finetuning.data_dir if is_known_task(task) else None, spec.finetuning.settings)
        for run in chosen
        for task in spec.finetuning.tasks
    ]


def finetuning_job(planned: PlannedFinetuning, *, out: Path) -> Job:
    """Make the job that fine-tunes a run on a task.

    Args:
        planned: What to do.
        out: The study's directory.
    """
    directory = out / FINETUNED / planned.name

    def settle(code: int, line: str) -> Outcome:
        return read_finetuning(planned, out) if code in (0, DivergedError.exit_code) else Outcome(State.FAILED)

    data = ("--data-dir", planned.data_dir) if planned.data_dir else ()
    start = ("--model", str(out / "runs" / planned.run.name))
    arguments = ("finetune", planned.task, *start, *data, "--out", str(directory), "--jobs", "1", *planned.settings)
    log = out / "logs" / f"{planned.name.replace('/', '-')}.log"
    return Job(name=planned.name, arguments=arguments, directory=directory, log=log, settle=settle)


def read_finetuning(planned: PlannedFinetuning, out: Path) -> Outcome:
    """Read from the disk what became of a fine-tuning.

    Args:
        planned: With the settings that are wanted now: results under others do not count.
        out: The study's directory.
    """
    try:
        content = from_json((out / FINETUNED / planned.name / "results.json").read_text(encoding="utf-8"))
        wanted = {cell_name(settings) for settings in finetune_config.cells(planned.settings)}
        if set(content["cells"]) != wanted:
            return Outcome(State.NOT_STARTED)
        scores = [group["score"]["mean"] for group in content["groups"] if group["score"]]
        return Outcome(State.FINISHED, score=max(scores, default=None))
    except (OSError, ValueError, KeyError, TypeError):
        return Outcome(State.NOT_STARTED)
