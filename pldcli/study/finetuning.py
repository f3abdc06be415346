"""What is done with a study's finished runs: fine-tunings, and choices between minimal pairs.

Each is done by the ordinary command, and what it wrote says what became of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pldcli.comparison.read import MINIMAL_PAIRS
from pldcli.errors import DivergedError
from pldcli.finetuning import config as finetune_config
from pldcli.finetuning.finetune import cell_name
from pldcli.study.jobs import Job, Outcome, State
from pldcli.study.plan import PlannedRun
from pldcli.study.spec import Spec
from pldcli.system.json_text import from_json
from pldcli.tasks.registry import is_known_task, task_name

__all__ = ["FINETUNED", "PlannedFinetuning", "PlannedPairs", "PlannedScoring", "plan_scorings"]

FINETUNED = "finetuned"
"""Directory of a study that holds RUN/TASK and RUN/minimal-pairs.json."""


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

    def job(self, out: Path) -> Job:
        """Make the job that does it, in a study's directory."""
        directory = out / FINETUNED / self.name
        data = ("--data-dir", self.data_dir) if self.data_dir else ()
        start = ("--model", str(out / "runs" / self.run.name))
        anew = ("--overwrite",) if self._is_of_an_earlier_run(out) else ()
        arguments = ("finetune", self.task, *start, *data, "--out", str(directory), "--jobs", "1", *anew, *self.settings)
        return _job(self, arguments, directory, out, settled=(0, DivergedError.exit_code))

    def outcome(self, out: Path) -> Outcome:
        """Read from the disk what became of it; results under other settings than those that are wanted now do not count."""
        try:
            content = from_json((out / FINETUNED / self.name / "results.json").read_text(encoding="utf-8"))
            wanted = {cell_name(settings) for settings in finetune_config.cells(self.settings)}
            if set(content["cells"]) != wanted or self._is_of_an_earlier_run(out):
                return Outcome(State.NOT_STARTED)
            scores = [group["score"]["mean"] for group in content["groups"] if group["score"]]
            return Outcome(State.FINISHED, score=max(scores, default=None))
        except (OSError, ValueError, KeyError, TypeError):
            return Outcome(State.NOT_STARTED)

    def _is_of_an_earlier_run(self, out: Path) -> bool:
        return _is_older(out / FINETUNED / self.name / "results.json", out, self.run)


@dataclass(frozen=True)
class PlannedPairs:
    """One run to choose between minimal pairs, without fine-tuning."""

    run: PlannedRun
    files: tuple[str, ...]
    """Files and directories of pairs."""

    @property
    def task(self) -> str:
        """Name it as fine-tunings are named."""
        return MINIMAL_PAIRS

    @property
    def name(self) -> str:
        """Return where its result is, without the ending."""
        return f"{self.run.name}/{MINIMAL_PAIRS}"

    def job(self, out: Path) -> Job:
        """Make the job that does it, in a study's directory."""
        pairs = [word for file in self.files for word in ("--minimal-pairs", file)]
        run = out / "runs" / self.run.name
        return _job(self, ("evaluate", str(run), *pairs, "--save", str(self._place(out))), run, out, settled=(0,))

    def outcome(self, out: Path) -> Outcome:
        """Read from the disk what became of it; the result on other files does not count."""
        try:
            content = from_json(self._place(out).read_text(encoding="utf-8"))
            if content["inputs"] != list(self.files) or _is_older(self._place(out), out, self.run):
                return Outcome(State.NOT_STARTED)
            return Outcome(State.FINISHED, score=float(content["mean_accuracy"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Outcome(State.NOT_STARTED)

    def _place(self, out: Path) -> Path:
        return out / FINETUNED / f"{self.name}.json"


PlannedScoring = PlannedFinetuning | PlannedPairs


def plan_scorings(spec: Spec, runs: Sequence[PlannedRun]) -> list[PlannedScoring]:
    """List what is to be done: every task of every run, but for the halving's earlier rungs and systems left out.

    Args:
        spec: The study.
        runs: Those that have finished.
    """
    last = len(spec.halving.rungs) if spec.halving else 0
    found: list[PlannedScoring] = []
    for run in (run for run in runs if run.rung in (0, last)):
        if spec.finetuning is not None and run.system in spec.finetuning.systems:
            given = spec.finetuning
            found += [PlannedFinetuning(run, task, given.data_dir if is_known_task(task) else None, given.settings) for task in given.tasks]
        if spec.minimal_pairs:
            found.append(PlannedPairs(run, spec.minimal_pairs))
    return found


def _is_older(result: Path, out: Path, run: PlannedRun) -> bool:
    """Return whether a result was there before the model of the run, which was trained anew since."""
    model = out / "runs" / run.name / "model" / "config.json"
    return result.is_file() and model.is_file() and result.stat().st_mtime_ns < model.stat().st_mtime_ns


def _job(planned: PlannedScoring, arguments: tuple[str, ...], directory: Path, out: Path, *, settled: Sequence[int]) -> Job:
    def settle(code: int, line: str) -> Outcome:
        return planned.outcome(out) if code in settled else Outcome(State.FAILED)

    log = out / "logs" / f"{planned.name.replace('/', '-')}.log"
    return Job(name=planned.name, arguments=arguments, directory=directory, log=log, settle=settle)
