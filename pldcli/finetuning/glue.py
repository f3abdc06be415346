"""Several tasks of GLUE from one model: the order, the averages, and the zip for the server."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from pldcli.choices import Device
from pldcli.errors import DataError, DivergedError, MissingDataError, PldError, UsageError
from pldcli.evaluation.prediction import as_json_lines
from pldcli.evaluation.task import TaskSource, evaluate_task
from pldcli.finetuning.config import FinetuneConfig
from pldcli.finetuning.experiment import Experiment
from pldcli.finetuning.finetune import Finetuned, finetune
from pldcli.finetuning.results import flat_scores
from pldcli.system import atomic
from pldcli.tasks.metrics import glue_average, paper_geometric_mean
from pldcli.tasks.registry import find_task, glue_tasks, is_known_task, task_name
from pldcli.tasks.submission import write_submission

__all__ = ["ALL", "GlueResult", "check_submission", "finetune_tasks", "submit"]

ALL = "glue/all"
_MNLI, _AX = "glue/mnli", "glue/ax"
_AFTER_MNLI = ("glue/mrpc", "glue/rte", "glue/stsb")
"""The small tasks that may start from the model fine-tuned on MNLI (Liu et al. 2019, section 5.1)."""


@dataclass(frozen=True)
class GlueResult:
    """What came out of one or several tasks."""

    tasks: list[Finetuned]
    skipped: list[str]
    """Tasks of glue/all whose files are not there, a line each."""
    average: float | None
    """The leaderboard's average, in [0, 1]; None where a task is missing."""
    geometric_mean: float | None
    """The geometric mean of the paper's 12 numbers; None where a task is missing."""
    failed: dict[str, PldError] = field(default_factory=dict)
    """Tasks of glue/all that could not be done, and why; the others were done all the same."""

    @property
    def error(self) -> PldError | None:
        """What to end with: an error that speaks of every task that failed, of the kind of the first that can be mended."""
        if not self.failed:
            return None
        first = min(self.failed.values(), key=lambda error: isinstance(error, DivergedError))
        lines = [_named(name, error) for name, error in self.failed.items()]
        return type(first)(f"{len(lines)} of the tasks failed, the others are done: {' | '.join(lines)}", where=ALL)


def finetune_tasks(
    experiment: Experiment,
    settings: Sequence[FinetuneConfig],
    *,
    base: Path,
    out: Path | None = None,
    from_mnli: bool = False,
    jobs: int | Literal["auto"] = "auto",
    device: Device = "auto",
    overwrite: bool = False,
    console: Console | None = None,
) -> GlueResult:
    """Fine-tune on one task, or on every task of GLUE that has data here.

    Args:
        experiment: What on what; its task may be `glue/all`.
        settings: One per cell.
        base: Each task gets a directory in it.
        out: The directory itself, for a single task; the base, for all.
        from_mnli: Start MRPC, RTE and STS-B from the model that was fine-tuned on MNLI in `base`.
        jobs: Cells at once.
        device: Where to run.
        overwrite: Begin anew where other results lie.
        console: Where to speak.

    Raises:
        PldError: As `finetune`, for `glue/all` only where that concerns every task (`GlueResult.failed` has what concerns some); or there
            is no MNLI model to start from.
    """

    def run(one: Experiment, place: Path) -> Finetuned:
        return finetune(one, settings, out=place, jobs=jobs, device=device, overwrite=overwrite, console=console)

    if experiment.task.lower() == ALL:
        return _every_task(experiment, out or base, run, from_mnli=from_mnli)
    if not from_mnli:
        return GlueResult([run(experiment, out or base / task_name(experiment.task))], [], None, None)
    name = find_task(experiment.task).name if is_known_task(experiment.task) else experiment.task
    if name not in _AFTER_MNLI:
        raise UsageError(f"--from-mnli is for {', '.join(_AFTER_MNLI)}", where=name)
    return GlueResult([run(_after_mnli(experiment, base), out or base / f"{task_name(name)}-from-mnli")], [], None, None)


def check_submission(task: str) -> None:
    """Refuse a submission of something that the GLUE server does not know.

    Raises:
        UsageError: It is no task of GLUE.
    """
    if task.lower() != ALL and not (is_known_task(task) and find_task(task).server_files):
        raise UsageError(
            "the GLUE server has no such task", where=f"--submission for {task}", hint="leave it out: predictions are written anyway"
        )


def submit(result: GlueResult, experiment: Experiment, path: Path) -> list[str]:
    """Write the zip for the GLUE server from the predictions of each task's best model; AX is predicted by MNLI's.

    Returns:
        What the server still needs.

    Raises:
        UsageError: None of the tasks has a test split here.
    """
    files: dict[str, list[tuple[Any, Any]]] = {}
    for done in result.tasks:
        for split, name in done.task.server_files.items():
            predicted = done.out / f"predictions-{split}.jsonl"
            if predicted.is_file():
                files[name] = [_pair(json.loads(line)) for line in predicted.read_text(encoding="utf-8").splitlines()]
        if done.task.name == _MNLI:
            files |= _predict_ax(done, experiment)
    if not files:
        names = ", ".join(done.task.name for done in result.tasks)
        raise UsageError("no test split was predicted", where=f"--submission for {names}", hint="the task's files need a test split")
    return write_submission(path, files)


def _every_task(experiment: Experiment, base: Path, run: Callable[[Experiment, Path], Finetuned], *, from_mnli: bool) -> GlueResult:
    """Run what has data, MNLI first where others start from it; wrong data or divergence in one task does not stop the others."""
    names = [task.name for task in glue_tasks() if task.name != _AX]
    order = sorted(names, key=lambda name: name != _MNLI) if from_mnli else names
    done: dict[str, Finetuned] = {}
    skipped: list[str] = []
    failed: dict[str, PldError] = {}
    for name in order:
        one, place = replace(experiment, task=name), base / task_name(name)
        if from_mnli and name in _AFTER_MNLI:
            if _MNLI in failed:
                failed[name] = type(failed[_MNLI])(f"would start from the model of {_MNLI}, which failed", where=name)
                continue
            one, place = _after_mnli(one, base), base / f"{task_name(name)}-from-mnli"
        try:
            done[name] = run(one, place)
        except MissingDataError as error:
            skipped.append(_named(name, error))
        except (DataError, DivergedError) as error:
            failed[name] = error
    in_order = [done[name] for name in names if name in done]
    result = GlueResult(in_order, skipped, *_averages(in_order), {name: failed[name] for name in names if name in failed})
    if not in_order:
        raise result.error or MissingDataError("no task of GLUE has training examples here", hint=skipped[0])
    if in_order[0].is_main:
        _write_summary(base, result)
    return result


def _named(task: str, error: PldError) -> str:
    return str(error) if task in str(error) else f"{task}: {error}"


def _after_mnli(experiment: Experiment, base: Path) -> Experiment:
    model = base / task_name(_MNLI) / "model"
    if not model.is_dir():
        raise UsageError(f"no model fine-tuned on MNLI in {model}", hint="run `pld finetune glue/mnli` from the same start first")
    return replace(experiment, model=str(model))


def _averages(done: Sequence[Finetuned]) -> tuple[float | None, float | None]:
    scores = {one.task.name: _mean_scores(one) for one in done}
    return glue_average(scores), paper_geometric_mean(scores)


def _mean_scores(done: Finetuned) -> dict[str, float]:
    """Average each metric over the seeds of the best setting."""
    group = max((group for group in done.groups if group.score), key=lambda group: group.score.mean if group.score else 0.0)
    return {name: values.mean for name, values in group.metrics.items()}


def _write_summary(base: Path, result: GlueResult) -> None:
    content = {
        "leaderboard_average": result.average,
        "paper_geometric_mean": result.geometric_mean,
        "tasks": {
            one.task.name: {"start": one.start, "scores": _mean_scores(one), "best": flat_scores(one.cells[one.best])}
            for one in result.tasks
        },
        "skipped": result.skipped,
        "failed": {name: str(error) for name, error in result.failed.items()},
    }
    atomic.write_text(base / "glue.json", json.dumps(content, indent=1) + "\n")


def _predict_ax(mnli: Finetuned, experiment: Experiment) -> dict[str, list[tuple[Any, Any]]]:
    """Predict the diagnostic set where it is at hand."""
    try:
        found = evaluate_task(mnli.model, TaskSource(_AX, Path(experiment.data_dir) if experiment.data_dir else None))
    except DataError:
        return {}
    [(split, (examples, scored))] = found.splits.items()
    return {find_task(_AX).server_files[split]: [_pair(line) for line in as_json_lines(scored.predictions, examples)]}


def _pair(line: Mapping[str, Any]) -> tuple[Any, Any]:
    return line["index"], line["label"]
