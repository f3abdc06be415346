"""Every task of GLUE from one model: the order and the averages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pldcli.comparison.scores import best_group
from pldcli.errors import DataError, DivergedError, MissingDataError, OutputError, PldError, UsageError
from pldcli.finetuning.config import FinetuneConfig
from pldcli.finetuning.experiment import AFTER_MNLI, Experiment
from pldcli.finetuning.finetune import Finetuned, finetune
from pldcli.finetuning.results import flat_scores
from pldcli.system import atomic
from pldcli.tasks.metrics import glue_average, paper_geometric_mean
from pldcli.tasks.registry import ALL, AX, MNLI, glue_tasks, task_name

__all__ = ["GlueResult", "finetune_glue"]


@dataclass(frozen=True)
class GlueResult:
    """What came out of several tasks."""

    tasks: list[Finetuned]
    skipped: list[str] = field(default_factory=list)
    """Tasks whose files are not there, a line each."""
    failed: dict[str, PldError] = field(default_factory=dict)
    """Tasks that could not be done, and why; the others were done all the same."""

    @property
    def average(self) -> float | None:
        """The leaderboard's average, in [0, 1]; None where a task is missing."""
        return glue_average(self._scores)

    @property
    def geometric_mean(self) -> float | None:
        """The geometric mean of the paper's 12 numbers; None where a task is missing."""
        return paper_geometric_mean(self._scores)

    @property
    def _scores(self) -> dict[str, dict[str, float]]:
        return {one.task.name: _mean_scores(one) for one in self.tasks}

    @property
    def error(self) -> PldError | None:
        """What to end with: an error that speaks of every task that failed, of the kind of the first that can be mended."""
        if not self.failed:
            return None
        first = min(self.failed.values(), key=lambda error: isinstance(error, DivergedError))
        lines = [_named(name, error) for name, error in self.failed.items()]
        return type(first)(f"{len(lines)} of the tasks failed, the others are done: {' | '.join(lines)}", where=ALL)


def finetune_glue(
    experiment: Experiment, settings: Sequence[FinetuneConfig], *, base: Path, from_mnli: bool = False, **how: Any
) -> GlueResult:
    """Fine-tune on every task of GLUE that has data here; wrong data or divergence in one does not stop the others.

    Args:
        experiment: What on what; the model is read once for all tasks.
        settings: One per cell.
        base: Each task gets a directory in it.
        from_mnli: Start MRPC, RTE and STS-B from the model that was fine-tuned on MNLI in `base`, which then comes first.
        how: What `finetune` takes besides.

    Raises:
        PldError: As `finetune`, where that concerns every task (`GlueResult.failed` has what concerns some).
    """
    if experiment.files:
        options = " and ".join(f"--{split}" for split in experiment.files)
        raise UsageError(f"{options} would be read for every task", where=ALL, hint="name the tasks' directory with --data-dir")
    start = experiment.open_model()
    names = [task.name for task in glue_tasks() if task.name != AX]
    done: dict[str, Finetuned] = {}
    skipped: list[str] = []
    failed: dict[str, PldError] = {}
    for name in sorted(names, key=lambda name: name != MNLI) if from_mnli else names:
        one = replace(experiment, task=name)
        try:
            if not from_mnli or name not in AFTER_MNLI:
                done[name] = finetune(one, settings, out=base / task_name(name), start=start, **how)
            elif MNLI in failed:
                failed[name] = type(failed[MNLI])(f"would start from the model of {MNLI}, which failed", where=name)
            elif MNLI not in done and not (base / task_name(MNLI) / "model").is_dir():
                skipped.append(f"{name}: would start from the model of {MNLI}, whose files are not here")
            else:
                done[name] = finetune(one.after_mnli(base), settings, out=base / f"{task_name(name)}-from-mnli", **how)
        except MissingDataError as error:
            skipped.append(_named(name, error))
        except (DataError, DivergedError) as error:
            failed[name] = error
        except OutputError as error:  # results that began with another model of MNLI
            if not from_mnli or name not in AFTER_MNLI:
                raise
            failed[name] = error
    result = GlueResult([done[name] for name in names if name in done], skipped, {name: failed[name] for name in names if name in failed})
    if not done:
        raise result.error or MissingDataError("no task of GLUE has training examples here", hint=skipped[0])
    if result.tasks[0].is_main:
        _write_summary(base, result)
    return result


def _named(task: str, error: PldError) -> str:
    return str(error) if task in str(error) else f"{task}: {error}"


def _mean_scores(done: Finetuned) -> dict[str, float]:
    """Average each metric over the seeds of the best setting."""
    best = best_group([asdict(group) for group in done.groups])
    assert best is not None
    return {name: values["mean"] for name, values in best["metrics"].items()}


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
