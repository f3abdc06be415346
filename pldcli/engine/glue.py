"""Several tasks of GLUE from one model: the order, the averages, and the zip for the server."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from pldcli import atomic
from pldcli.engine.evaluate_task import TaskSource, evaluate_task
from pldcli.engine.experiment import Experiment
from pldcli.engine.finetune import Finetuned, finetune
from pldcli.engine.finetune_results import flat_scores
from pldcli.engine.prediction import as_json_lines
from pldcli.errors import DataError, UsageError
from pldcli.finetune_config import FinetuneConfig
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
    """Why tasks of glue/all were left out, a line each."""
    average: float | None
    """The leaderboard's average, in [0, 1]; None where a task is missing."""
    geometric_mean: float | None
    """The geometric mean of the paper's 12 numbers; None where a task is missing."""


def finetune_tasks(
    experiment: Experiment,
    settings: Sequence[FinetuneConfig],
    *,
    base: Path,
    out: Path | None = None,
    from_mnli: bool = False,
    jobs: int | Literal["auto"] = "auto",
    device: Literal["auto", "cpu", "cuda"] = "auto",
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
        PldError: As `finetune`; or there is no MNLI model to start from.
    """

    def run(one: Experiment, place: Path) -> Finetuned:
        return finetune(one, settings, out=place, jobs=jobs, device=device, overwrite=overwrite, console=console)

    if experiment.task.lower() == ALL:
        done, skipped = _every_task(experiment, out or base, run, from_mnli=from_mnli)
        if not done:
            raise DataError("no task of GLUE has training examples here", hint=skipped[0] if skipped else "")
        result = GlueResult(done, skipped, *_averages(done))
        if done[0].is_main:
            _write_summary(out or base, result)
        return result
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


def _every_task(
    experiment: Experiment, base: Path, run: Callable[[Experiment, Path], Finetuned], *, from_mnli: bool
) -> tuple[list[Finetuned], list[str]]:
    """Run what has data, MNLI first where others start from it; give the results in the leaderboard's order."""
    names = [task.name for task in glue_tasks() if task.name != _AX]
    order = sorted(names, key=lambda name: name != _MNLI) if from_mnli else names
    done: dict[str, Finetuned] = {}
    skipped = []
    for name in order:
        one, place = replace(experiment, task=name), base / task_name(name)
        if from_mnli and name in _AFTER_MNLI:
            one, place = _after_mnli(one, base), base / f"{task_name(name)}-from-mnli"
        try:
            done[name] = run(one, place)
        except DataError as error:
            skipped.append(str(error) if name in str(error) else f"{name}: {error}")
    return [done[name] for name in names if name in done], skipped


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
