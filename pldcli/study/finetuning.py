"""What is done with a study's finished runs: fine-tunings, and choices between minimal pairs.

Each is done by the ordinary command, and what it wrote says what became of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pldcli.comparison.scores import MINIMAL_PAIRS, best_group
from pldcli.errors import DivergedError, PldError
from pldcli.finetuning import config as finetune_config
from pldcli.finetuning.experiment import Experiment, data_fingerprint, model_fingerprint
from pldcli.finetuning.finetune import cell_name
from pldcli.runs.model_source import open_model
from pldcli.study.jobs import Job, Outcome, State
from pldcli.study.plan import PlannedRun
from pldcli.study.spec import Spec
from pldcli.system.json_text import from_json
from pldcli.system.seal import files_at, paths_sha256
from pldcli.tasks.registry import is_known_task, task_name

__all__ = ["FINETUNED", "PlannedFinetuning", "PlannedPairs", "PlannedScoring", "plan_scorings"]

FINETUNED = "finetuned"
"""Directory of a study that holds RUN/TASK and RUN/minimal-pairs.json."""

_OTHER_DATA, _OTHER_MODEL = "what is there was scored on other data", "what is there is of an earlier training of this run"


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

    def result(self, out: Path) -> Path:
        """Return the file that holds its scores, in a study's directory."""
        return out / FINETUNED / self.name / "results.json"

    def job(self, out: Path) -> Job:
        """Make the job that does it, in a study's directory."""
        directory = out / FINETUNED / self.name
        data = ("--data-dir", self.data_dir) if self.data_dir else ()
        start = ("--model", str(out / "runs" / self.run.name))
        anew = ("--overwrite",) if self._outdated(out) else ()
        arguments = ("finetune", self.task, *start, *data, "--out", str(directory), "--jobs", "1", *anew, *self.settings)
        return _job(self, arguments, directory, out, settled=(0, DivergedError.exit_code))

    def outcome(self, out: Path) -> Outcome:
        """Read from the disk what became of it; results of other settings, data or weights than those that are wanted now do not count."""
        try:
            content = from_json(self.result(out).read_text(encoding="utf-8"))
            wanted = {cell_name(settings) for settings in finetune_config.cells(self.settings)}
            outdated = self._outdated(out)
            if set(content["cells"]) != wanted or outdated:
                return Outcome(State.NOT_STARTED, note=outdated)
            best = best_group(content["groups"])
            return Outcome(State.FINISHED, score=best["score"]["mean"] if best else None)
        except (OSError, ValueError, KeyError, TypeError):
            return Outcome(State.NOT_STARTED)

    def _outdated(self, out: Path) -> str:
        """Return why results that are there do not count; nothing where they do, or where there are none."""
        mark, model = self.result(out).with_name("experiment.json"), _model_of(self.run, out)
        try:
            before = from_json(mark.read_text(encoding="utf-8"))["fingerprints"]
            if before["data"] != (_data_now(self.task, self.data_dir) or before["data"]):
                return _OTHER_DATA
            return _OTHER_MODEL if _is_older(mark, model) and before["model"] != _model_now(model, _stamp(model)) else ""
        except (OSError, ValueError, KeyError, TypeError):
            return ""


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

    def result(self, out: Path) -> Path:
        """Return the file that holds its score, in a study's directory."""
        return out / FINETUNED / f"{self.name}.json"

    def job(self, out: Path) -> Job:
        """Make the job that does it, in a study's directory."""
        pairs = [word for file in self.files for word in ("--minimal-pairs", file)]
        run = out / "runs" / self.run.name
        return _job(self, ("evaluate", str(run), *pairs, "--save", str(self.result(out))), run, out, settled=(0,))

    def outcome(self, out: Path) -> Outcome:
        """Read from the disk what became of it; the result on other files, or of other weights, does not count."""
        try:
            content = from_json(self.result(out).read_text(encoding="utf-8"))
            before, model = content["fingerprints"], _model_of(self.run, out)
            if before["data"] != paths_sha256(map(Path, self.files)):
                return Outcome(State.NOT_STARTED, note=_OTHER_DATA)
            if _is_older(self.result(out), model) and before["model"] != paths_sha256([model / "model.safetensors"]):
                return Outcome(State.NOT_STARTED, note=_OTHER_MODEL)
            return Outcome(State.FINISHED, score=float(content["mean_accuracy"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Outcome(State.NOT_STARTED)


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


def _model_of(run: PlannedRun, out: Path) -> Path:
    return out / "runs" / run.name / "model"


def _is_older(result: Path, model: Path) -> bool:
    """Return whether a result may be that of an earlier model: copying a study can make one look so."""
    config = model / "config.json"
    return config.is_file() and result.stat().st_mtime_ns < config.stat().st_mtime_ns


def _data_now(task: str, data_dir: str | None) -> str | None:
    """Hash the data of a task as fine-tuning does; None where it lies on the hub, or cannot be read."""
    place = data_dir or (None if is_known_task(task) else task)
    return None if place is None else _data_fingerprint(task, data_dir, _stamp(Path(place)))


def _stamp(place: Path) -> tuple[tuple[str, int, int], ...]:
    """List the files at a place with size and time, which change with their content."""
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files_at(place))


@lru_cache
def _data_fingerprint(task: str, data_dir: str | None, _: object) -> str | None:
    try:
        return data_fingerprint(Experiment(task, "", data_dir=data_dir).load_data())
    except PldError:
        return None


@lru_cache
def _model_now(model: Path, _: object) -> str | None:
    try:
        return model_fingerprint(open_model(model))
    except PldError:
        return None


def _job(planned: PlannedScoring, arguments: tuple[str, ...], directory: Path, out: Path, *, settled: Sequence[int]) -> Job:
    def settle(code: int, line: str) -> Outcome:
        return planned.outcome(out) if code in settled else Outcome(State.FAILED)

    log = out / "logs" / f"{planned.name.replace('/', '-')}.log"
    return Job(name=planned.name, arguments=arguments, directory=directory, log=log, settle=settle)
