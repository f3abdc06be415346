"""One fine-tuning, from a start and a seed to scored predictions: a cell of a grid, a seed of several."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from pldcli import __version__
from pldcli.console.units import quantity
from pldcli.engine.checkpoint import Position
from pldcli.engine.hardware import hardware_name
from pldcli.engine.model_source import short_name
from pldcli.engine.objectives import TaskLoss
from pldcli.engine.optim import build_optimizer, learning_rate
from pldcli.engine.precision import Precision, resolve_precision
from pldcli.engine.runtime import Runtime, out_of_memory
from pldcli.engine.trainer import Trainer
from pldcli.errors import DivergedError
from pldcli.evaluation.prediction import ScoredSplit, as_json_lines, json_lines, notes_on_predictions, score_split
from pldcli.finetuning import checkpoint as finetune_checkpoint
from pldcli.finetuning.checkpoint import Best, Course
from pldcli.finetuning.config import FinetuneConfig
from pldcli.finetuning.experiment import Experiment, data_fingerprint, model_fingerprint
from pldcli.finetuning.rows import Rows, max_seq_len_of
from pldcli.finetuning.target_scale import TargetScale
from pldcli.flops import Flops
from pldcli.huggingface.load import load_pretrained
from pldcli.huggingface.save import save_pretrained
from pldcli.model import StBert
from pldcli.pld import Schedule
from pldcli.system import atomic
from pldcli.system.signals import StopRequest, stop_error
from pldcli.tasks.batches import TaskBatches
from pldcli.tasks.kinds import head_of
from pldcli.tasks.metrics import task_score
from pldcli.tasks.reading import notes_on_special_tokens, reading_words
from pldcli.tasks.task import Examples, TaskData

__all__ = ["CellRunner", "Report", "read_result"]

_LOG_EVERY_STEPS = 10
_SAVE_EVERY_SECONDS = 300.0
"""The state is saved at evaluations, this long after the last time at least, and when a signal stops it."""
_CUDA_LENGTH_MULTIPLE = 8

Report = Callable[[int, int, str], None]
"""Told (steps done, steps in all, what is going on) while a cell trains."""


class CellRunner:
    """Fine-tune one model on one task, as often as asked, with other settings each time.

    Args:
        experiment: What on what.
        runtime: Device and processes.

    Raises:
        PldError: Data or model that cannot be used.
    """

    def __init__(self, experiment: Experiment, runtime: Runtime) -> None:
        self.experiment, self.runtime = experiment, runtime
        self.start = experiment.open_model()
        self.data: TaskData = experiment.load_data()
        if self.data.task.kind == "tags":
            self.start = replace(self.start, tokenizer=reading_words(self.start.tokenizer))
        assert self.data.train is not None
        self.targets = TargetScale.of(self.data.task, self.data.train)
        self._rows: dict[tuple[int, int], Rows] = {}

    @property
    def start_name(self) -> str:
        """Name what fine-tuning starts from."""
        return f"random weights shaped like {short_name(Path(self.start.where))}" if self.start.from_scratch else self.start.where

    @property
    def fingerprints(self) -> dict[str, str]:
        """Hash the data and the model, so that results of another experiment are recognised."""
        return {"data": data_fingerprint(self.data), "model": model_fingerprint(self.start)}

    @property
    def notes(self) -> list[str]:
        """Say what the user should hear of model and data."""
        splits: list[Examples | None] = [self.data.train, *self.data.validation.values(), *self.data.test.values()]
        found = [examples for examples in splits if examples is not None]
        is_pre = self.start.settings.norm == "pre"  # exported with RoBERTa's positions
        of_text = notes_on_special_tokens(found, self.data.task, self.start.tokenizer, skips_padding=is_pre)
        return list(dict.fromkeys([*(note for examples in found for note in examples.notes), *of_text]))

    def num_steps(self, settings: FinetuneConfig) -> int:
        """Count a cell's optimizer steps; for spans this tokenises the task."""
        assert self.data.train is not None
        rows = self.rows(settings).train.num_rows if self.data.task.kind in ("spans", "tags") else len(self.data.train)
        return _total_steps(rows, settings)

    def rows(self, settings: FinetuneConfig) -> Rows:
        """Tokenise the task once for each row length."""
        length = max_seq_len_of(settings, self.data, self.start.settings.max_position_embeddings)
        key = (length, settings.stride)
        if key not in self._rows:
            self._rows[key] = Rows(self.data, self.start.tokenizer, length, min(settings.stride, length // 3), self.targets)
        return self._rows[key]

    def run(self, settings: FinetuneConfig, place: Path, *, report: Report, stop: StopRequest) -> dict[str, Any]:
        """Fine-tune once and write the result, the predictions and the model.

        A training that diverges is a result too: one without scores.

        Args:
            settings: How.
            place: A directory, replaced when everything is done.
            report: Told how far it is.
            stop: Looked at before every step.

        Returns:
            What `result.json` holds.

        Raises:
            StoppedError, PreemptedError: A signal arrived; the state is saved beside `place`, and the next call goes on from there.
            DeviceError: Memory ran out.
        """
        rows = self.rows(settings)
        trainer = self.trainer(settings)
        size = trainer.batches.micro_batch_size
        hint = "lower max_seq_len, or choose a smaller model"
        with out_of_memory(size, self.runtime.device, key="micro_batch_size", otherwise=hint):
            try:
                best, history, position = self._train(trainer, settings, rows, place, report, stop)
            except DivergedError as error:
                result = self._result(settings, rows, trainer, error=error.what)
                if self.runtime.is_main:
                    with atomic.directory(place, overwrite=True) as temporary:
                        _write_json(temporary / "result.json", result)
                    finetune_checkpoint.forget(place)
                return result
        trainer.model.load_state_dict(best.weights)
        if self.targets is not None:
            self.targets.fold_into(trainer.model)
        result = self._result(settings, rows, trainer, best=best, history=history, position=position)
        if self.runtime.is_main:
            self._write(place, result, best.splits, trainer.model, settings)
            finetune_checkpoint.forget(place)
        self.runtime.wait_for_all()
        return result

    def predict_tests(self, settings: FinetuneConfig, model_directory: Path) -> dict[str, list[dict[str, Any]]]:
        """Predict the test splits with a finished model, as lines of JSON per split."""
        model = load_pretrained(model_directory).with_head(head_of(self.data.task), trained=True).to(self.runtime.device)
        rows = self.rows(settings)
        return {name: as_json_lines(self._score(model, rows, name).predictions, test) for name, test in self.data.test.items()}

    def _score_trained(self, model: StBert, rows: Rows) -> dict[str, ScoredSplit]:
        """Score a model in training on every validation split."""
        with nullcontext() if self.targets is None else self.targets.folded(model):
            return {name: self._score(model, rows, name) for name in self.data.validation}

    def trainer(self, settings: FinetuneConfig) -> Trainer[TaskBatches]:
        """Put the parts of one fine-tuning together at its first step."""
        train = self.rows(settings).train
        runtime, task = self.runtime, self.data.task
        dropout = self.start.settings.dropout if settings.dropout == "auto" else settings.dropout
        model = self.start.with_head(head_of(task, dropout=dropout), seed=settings.seed, dropout=dropout).to(runtime.device).train()
        share = math.ceil(settings.batch_size / runtime.world_size)
        batches = TaskBatches(
            train,
            settings.batch_size,
            settings.seed,
            self.start.tokenizer.special.pad_id,
            share if settings.micro_batch_size == "auto" else min(share, settings.micro_batch_size),
            runtime.rank,
            runtime.world_size,
            _CUDA_LENGTH_MULTIPLE if runtime.device.type == "cuda" else 1,
            pin_memory=runtime.device.type == "cuda",
        )
        total = _total_steps(train.num_rows, settings)
        shape = self.start.settings
        flops = Flops.of_encoder(
            num_blocks=shape.num_hidden_layers,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            vocab_size=shape.vocab_size,
            seq_len=round(float(train.lengths.mean())),
            mask_rate=0.0,
        )
        return Trainer(
            model,
            objective=TaskLoss(task.kind),
            schedule=Schedule(num_blocks=shape.num_hidden_layers, total_steps=total, theta_bar=1.0),
            optimizer=build_optimizer(model, settings.optim),
            batches=batches,
            learning_rate=lambda step: learning_rate(step, total, settings.optim),
            max_grad_norm=settings.max_grad_norm,
            precision=resolve_precision(settings.precision, runtime.device),
            runtime=runtime,
            flops=flops,
            seed=settings.seed,
        )

    def _train(
        self, trainer: Trainer[TaskBatches], settings: FinetuneConfig, rows: Rows, place: Path, report: Report, stop: StopRequest
    ) -> tuple[Best, list[dict[str, Any]], Position]:
        """Train from where an earlier call stopped, evaluate on the way, and hold on to the best weights."""
        total, per_epoch = trainer.schedule.total_steps, trainer.batches.steps_per_epoch
        evaluated = _evaluation_steps(per_epoch, total, settings.evaluations_per_epoch)
        course = self._resumed(trainer, settings, rows, place)
        began, saved = time.perf_counter() - course.position.wall_seconds, time.perf_counter()
        for seen in trainer.steps(course.position, observe=lambda step: step in evaluated or step % _LOG_EVERY_STEPS == 0, stop=stop):
            position = course.position = replace(seen.position, wall_seconds=time.perf_counter() - began)
            if seen.stop_signal:
                self._save(course, trainer, settings, place)
                raise stop_error(seen.stop_signal)
            course.losses.append(seen.losses["loss"])
            rate = position.tokens / max(position.train_seconds, 1e-9)
            report(position.step, total, f"loss {course.losses[-1]:.3f}, {quantity(rate)} tokens/s")
            if position.step not in evaluated:
                continue
            splits = self._score_trained(trainer.model, rows)
            course.evaluated(splits, self._task_score(splits), trainer, keep_last=settings.keep == "last")
            if settings.patience != "off" and course.without_better >= settings.patience:
                break
            if time.perf_counter() - saved > _SAVE_EVERY_SECONDS and position.step < total:
                self._save(course, trainer, settings, place)
                saved = time.perf_counter()
        assert course.best is not None
        return course.best, course.history, course.position

    def _resumed(self, trainer: Trainer[TaskBatches], settings: FinetuneConfig, rows: Rows, place: Path) -> Course:
        """Go on where an earlier call stopped, or begin."""
        found = finetune_checkpoint.read(place, settings)
        if found is None:
            return Course()
        best = None
        if found.best_step is not None:
            trainer.model.load_state_dict(found.best_weights)
            splits = self._score_trained(trainer.model, rows)
            best = Best(found.best_step, self._task_score(splits), splits, found.best_weights)
        trainer.restore(found.weights, found.optimizer, found.scaler, where=str(place))
        return Course(found.position, found.history, found.losses, best)

    def _save(self, course: Course, trainer: Trainer[TaskBatches], settings: FinetuneConfig, place: Path) -> None:
        if self.runtime.is_main and course.position.step:
            finetune_checkpoint.write(place, settings, course, trainer)
        self.runtime.wait_for_all()

    def _score(self, model: StBert, rows: Rows, split: str) -> ScoredSplit:
        """Score at full depth in fp32, as `pld evaluate` does."""
        examples, features = rows.of(split)
        pad_id = self.start.tokenizer.special.pad_id
        return score_split(model, examples, features, self.data.task, Precision("fp32", self.runtime.device), self.runtime, pad_id=pad_id)

    def _task_score(self, splits: Mapping[str, ScoredSplit]) -> float:
        """Average the task's metrics over its validation splits."""
        scores = [task_score(scored.scores, self.data.task.metrics) for scored in splits.values()]
        return sum(scores) / len(scores)

    def _result(
        self,
        settings: FinetuneConfig,
        rows: Rows,
        trainer: Trainer[TaskBatches],
        *,
        best: Best | None = None,
        history: list[dict[str, Any]] | None = None,
        position: Position | None = None,
        error: str | None = None,
    ) -> dict[str, Any]:
        assert self.data.train is not None
        seconds, tokens = (position.train_seconds, position.tokens) if position else (0.0, 0)
        return {
            "task": self.data.task.name,
            "start": self.start_name,
            "settings": dict(settings),
            "score": best.score if best else None,
            "scores": {name: scored.scores for name, scored in best.splits.items()} if best else {},
            "best_step": best.step if best else None,
            "steps": position.step if position else None,
            "total_steps": trainer.schedule.total_steps,
            "error": error,
            "notes": self._notes_on(best) if best else [],
            "targets": asdict(self.targets) if self.targets else None,
            "examples": {"train": len(self.data.train)}
            | {name: len(split) for name, split in (self.data.validation | self.data.test).items()},
            "truncated": {"train": rows.train.num_truncated} | {name: rows.of(name)[1].num_truncated for name in self.data.validation},
            "unknown": rows.unknown,
            "train_tokens": tokens,
            "train_seconds": seconds,
            "tokens_per_second": tokens / seconds if seconds else None,
            "wall_seconds": position.wall_seconds if position else None,
            "history": history or [],
            "precision": trainer.precision.name,
            "device": str(self.runtime.device),
            "hardware": hardware_name(self.runtime.device),
            "processes": self.runtime.world_size,
            "threads": torch.get_num_threads(),
            "pldcli": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }

    def _notes_on(self, best: Best) -> list[str]:
        splits = best.splits.items()
        return [note for name, scored in splits for note in notes_on_predictions(scored, self.data.validation[name], self.data.task, name)]

    def _write(
        self, place: Path, result: dict[str, Any], splits: Mapping[str, ScoredSplit], model: StBert, settings: FinetuneConfig
    ) -> None:
        """Write everything a cell leaves behind, whole or not at all."""
        length = max_seq_len_of(settings, self.data, self.start.settings.max_position_embeddings)
        with atomic.directory(place, overwrite=True) as temporary:
            for name, scored in splits.items():
                text = json_lines(as_json_lines(scored.predictions, self.data.validation[name]))
                (temporary / f"predictions-{name}.jsonl").write_text(text, encoding="utf-8")
            (temporary / "model").mkdir()
            save_pretrained(
                temporary / "model",
                model,
                self.start.settings,
                tokenizer=self.start.tokenizer,
                seq_len=self.start.seq_len,
                task=self.data.task,
                max_seq_len=length,
                stride=settings.stride,
            )
            _write_json(temporary / "result.json", result)


def read_result(place: Path) -> dict[str, Any] | None:
    """Read a finished cell; None where there is none."""
    try:
        result = json.loads((place / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) else None


def _total_steps(num_rows: int, settings: FinetuneConfig) -> int:
    return max(1, math.ceil(math.ceil(num_rows / settings.batch_size) * settings.epochs))


def _evaluation_steps(steps_per_epoch: int, total: int, per_epoch: int) -> set[int]:
    """Spread evaluations evenly over each epoch; the last step is always one."""
    every = steps_per_epoch / per_epoch
    count = math.floor(total / every + 1e-9)
    return {max(1, round(every * (number + 1))) for number in range(count)} | {total}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
