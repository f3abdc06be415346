"""One fine-tuning run, from a start and a seed to scored predictions: a cell of a grid, a seed of several."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from pldcli import __version__
from pldcli.console.units import quantity
from pldcli.engine.precision import Precision
from pldcli.engine.runtime import Runtime, out_of_memory
from pldcli.engine.trainer import Trainer
from pldcli.errors import DivergedError
from pldcli.evaluation.prediction import ScoredSplit, as_json_lines, json_lines, notes_on_predictions, score_split
from pldcli.finetuning import checkpoint
from pldcli.finetuning.assembly import build_trainer
from pldcli.finetuning.checkpoint import Best, Course
from pldcli.finetuning.config import FinetuneConfig
from pldcli.finetuning.inputs import RunInputs
from pldcli.huggingface.save import save_pretrained
from pldcli.model import StBert
from pldcli.system import atomic
from pldcli.system.hardware import hardware_name
from pldcli.system.json_text import finite, from_json
from pldcli.system.signals import StopRequest, stop_error
from pldcli.tasks.batches import TaskBatches
from pldcli.tasks.metrics import task_score

__all__ = ["Report", "mean_score", "predict_tests", "read_result", "run_cell"]

_LOG_EVERY_STEPS = 10
_SAVE_EVERY_SECONDS = 300.0
"""The state is saved at evaluations, this long after the last time at least, and when a signal stops it."""

Report = Callable[[int, int, str], None]
"""Progress callback (step, total_steps, message) of a run."""


def run_cell(
    inputs: RunInputs, settings: FinetuneConfig, place: Path, runtime: Runtime, *, report: Report, stop: StopRequest
) -> dict[str, Any]:
    """Fine-tune once and write the result, the predictions and the model, replacing `place` when everything is done.

    A training that diverges is a result too: one without scores. Returns what `result.json` holds.

    Raises:
        StoppedError, PreemptedError: A signal arrived; the state is saved beside `place`, and the next call resumes from it.
        DeviceError: Memory ran out.
    """
    cell = _Cell(inputs, settings, place, build_trainer(inputs, settings, runtime))
    error: str | None = None
    size, hint = cell.trainer.batches.micro_batch_size, "lower max_seq_len, or choose a smaller model"
    with out_of_memory(size, runtime.device, key="micro_batch_size", otherwise=hint):
        try:
            course = cell.train(report, stop)
        except DivergedError as diverged:
            course, error = Course(), diverged.what
    result: dict[str, Any] = finite(cell.result(course, error))
    if runtime.is_main:
        with atomic.directory(place, overwrite=True) as temporary:
            if course.best is not None:
                cell.write_best(temporary, course.best)
            (temporary / "result.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        checkpoint.forget(place)
    runtime.wait_for_all()
    return result


def read_result(place: Path) -> dict[str, Any] | None:
    """Read a finished cell; None where there is none."""
    try:
        result = from_json((place / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def predict_tests(inputs: RunInputs, settings: FinetuneConfig, model: StBert, runtime: Runtime) -> dict[str, list[dict[str, Any]]]:
    """Predict the test splits with a finished model, as lines of JSON per split."""
    return {
        name: as_json_lines(_score(inputs, settings, model, runtime, name).predictions, test) for name, test in inputs.data.test.items()
    }


def mean_score(splits: Mapping[str, ScoredSplit], metrics: tuple[str, ...]) -> float:
    """Average a task's metrics over its validation splits."""
    scores = [task_score(scored.scores, metrics) for scored in splits.values()]
    return sum(scores) / len(scores)


@dataclass(frozen=True)
class _Cell:
    """A run and what it is made of."""

    inputs: RunInputs
    settings: FinetuneConfig
    place: Path
    trainer: Trainer[TaskBatches]

    def train(self, report: Report, stop: StopRequest) -> Course:
        """Train from where an earlier call stopped, evaluate on the way, and keep the best weights."""
        trainer, settings = self.trainer, self.settings
        total = trainer.schedule.total_steps
        evaluated = _evaluation_steps(trainer.batches.steps_per_epoch, total, settings.evaluations_per_epoch)
        course = self.resume()
        began, saved = time.perf_counter() - course.position.wall_seconds, time.perf_counter()
        for seen in trainer.steps(course.position, observe=lambda step: step in evaluated or step % _LOG_EVERY_STEPS == 0, stop=stop):
            position = course.position = replace(seen.position, wall_seconds=time.perf_counter() - began)
            if seen.stop_signal:
                self.save(course)
                raise stop_error(seen.stop_signal)
            course.losses.append(seen.losses["loss"])
            rate = position.tokens / max(position.train_seconds, 1e-9)
            report(position.step, total, f"loss {course.losses[-1]:.3f}, {quantity(rate)} tokens/s")
            if position.step not in evaluated:
                continue
            course.evaluated(*self.evaluate(), trainer, keep_last=settings.keep == "last")
            if settings.patience != "off" and course.without_better >= settings.patience:
                break
            if time.perf_counter() - saved > _SAVE_EVERY_SECONDS and position.step < total:
                self.save(course)
                saved = time.perf_counter()
        return course

    def resume(self) -> Course:
        """Put back what an earlier call saved, or begin."""
        saved = checkpoint.read(self.place, self.settings)
        if saved is None:
            return Course()
        if saved.best_step is not None:
            # Predictions are not saved: they are made again, from the weights that made them.
            self.trainer.model.load_state_dict(saved.best_weights)
            splits, score = self.evaluate()
            saved.course.best = Best(saved.best_step, score, splits, saved.best_weights)
        self.trainer.restore(saved.weights, saved.optimizer, saved.scaler, where=str(self.place))
        return saved.course

    def save(self, course: Course) -> None:
        if self.trainer.runtime.is_main and course.position.step:
            checkpoint.write(self.place, self.settings, course, self.trainer)
        self.trainer.runtime.wait_for_all()

    def evaluate(self) -> tuple[dict[str, ScoredSplit], float]:
        """Score the model in training on every validation split, and as a whole."""
        inputs, model = self.inputs, self.trainer.model
        with nullcontext() if inputs.targets is None else inputs.targets.folded(model):
            splits = {name: _score(inputs, self.settings, model, self.trainer.runtime, name) for name in inputs.data.validation}
        return splits, mean_score(splits, inputs.data.task.metrics)

    def result(self, course: Course, error: str | None) -> dict[str, Any]:
        inputs, rows, runtime = self.inputs, self.inputs.rows(self.settings), self.trainer.runtime
        data, best = inputs.data, course.best
        position = course.position if best else None
        seconds, tokens = (position.train_seconds, position.tokens) if position else (0.0, 0)
        splits = best.splits if best else {}
        return {
            "task": data.task.name,
            "start": inputs.start_name,
            "settings": dict(self.settings),
            "score": best.score if best else None,
            "scores": {name: scored.scores for name, scored in splits.items()},
            "best_step": best.step if best else None,
            "steps": position.step if position else None,
            "total_steps": self.trainer.schedule.total_steps,
            "skipped_steps": position.skipped_steps if position else None,
            "error": error,
            "notes": [
                note for name, scored in splits.items() for note in notes_on_predictions(scored, data.validation[name], data.task, name)
            ],
            "targets": asdict(inputs.targets) if inputs.targets else None,
            "examples": {"train": len(inputs.train)} | {name: len(split) for name, split in (data.validation | data.test).items()},
            "truncated": {"train": rows.train.num_truncated} | {name: rows.of(name)[1].num_truncated for name in data.validation},
            "unknown": rows.unknown,
            "train_tokens": tokens,
            "train_seconds": seconds,
            "tokens_per_second": tokens / seconds if seconds else None,
            "wall_seconds": position.wall_seconds if position else None,
            "history": course.history,
            "precision": self.trainer.precision.name,
            "device": str(runtime.device),
            "hardware": hardware_name(runtime.device),
            "processes": runtime.world_size,
            "threads": torch.get_num_threads(),
            "pldcli": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }

    def write_best(self, directory: Path, best: Best) -> None:
        """Write the predictions and the model of an evaluation."""
        inputs, model = self.inputs, self.trainer.model
        model.load_state_dict(best.weights)
        if inputs.targets is not None:
            inputs.targets.fold_into(model)
        for name, scored in best.splits.items():
            text = json_lines(as_json_lines(scored.predictions, inputs.data.validation[name]))
            (directory / f"predictions-{name}.jsonl").write_text(text, encoding="utf-8")
        (directory / "model").mkdir()
        save_pretrained(
            directory / "model",
            model,
            inputs.start.settings,
            tokenizer=inputs.start.tokenizer,
            seq_len=inputs.start.seq_len,
            task=inputs.data.task,
            max_seq_len=inputs.max_seq_len(self.settings),
            stride=self.settings.stride,
        )


def _score(inputs: RunInputs, settings: FinetuneConfig, model: StBert, runtime: Runtime, split: str) -> ScoredSplit:
    """Score at full depth in fp32, as `pld evaluate` does."""
    examples, features = inputs.rows(settings).of(split)
    pad_id = inputs.start.tokenizer.special.pad_id
    # What is compiled for training is not compiled again for evaluation, in another number format and without gradients.
    with torch.compiler.set_stance("force_eager") if runtime.is_on(settings.compile) else nullcontext():
        return score_split(model, examples, features, inputs.data.task, Precision("fp32", runtime.device), runtime, pad_id=pad_id)


def _evaluation_steps(steps_per_epoch: int, total: int, per_epoch: int) -> set[int]:
    """Spread evaluations evenly over each epoch; the last step is always one."""
    every = steps_per_epoch / per_epoch
    count = math.floor(total / every + 1e-9)
    return {max(1, round(every * (number + 1))) for number in range(count)} | {total}
