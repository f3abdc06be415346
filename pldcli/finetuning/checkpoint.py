"""How far a fine-tuning run is, in memory and on the disk: saved whole or not at all, verified when it is read."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pldcli.engine.trainer import Trainer
from pldcli.errors import CheckpointError
from pldcli.evaluation.prediction import ScoredSplit
from pldcli.finetuning.config import FinetuneConfig
from pldcli.runs import checkpoint
from pldcli.runs.checkpoint import Position
from pldcli.system.json_text import from_json
from pldcli.tasks.batches import TaskBatches

__all__ = ["Best", "Course", "Unfinished", "forget", "read", "write"]

_FILES = ("model.safetensors", "optimizer.safetensors", "best.safetensors", "state.json")


@dataclass(frozen=True)
class Best:
    """The evaluation whose weights the result has."""

    step: int
    score: float
    splits: dict[str, ScoredSplit]
    weights: dict[str, Tensor]


@dataclass
class Course:
    """How far a run is."""

    position: Position = field(default_factory=Position)
    history: list[dict[str, Any]] = field(default_factory=list)
    """One row per evaluation."""
    losses: list[float] = field(default_factory=list)
    """Training losses since the last evaluation."""
    best: Best | None = None

    @property
    def without_better(self) -> int:
        """Count the evaluations in a row that brought no better score; of equal scores the lower RMSE is better."""
        scores = [(row["eval/score"], -sum(value for key, value in row.items() if key.endswith("/rmse"))) for row in self.history]
        return len(scores) - 1 - scores.index(max(scores)) if scores else 0

    def evaluated(self, splits: dict[str, ScoredSplit], score: float, trainer: Trainer[TaskBatches], *, keep_last: bool) -> None:
        """Note an evaluation, and hold on to the weights if they are the ones to keep."""
        self.history.append(
            {
                "step": self.position.step,
                "epoch": self.position.step / trainer.batches.steps_per_epoch,
                "train/loss": sum(self.losses) / len(self.losses),
                "eval/score": score,
                **{f"eval/{name}/{metric}": value for name, scored in splits.items() for metric, value in scored.scores.items()},
                "progress/train_seconds": self.position.train_seconds,
                "progress/tokens": self.position.tokens,
            }
        )
        self.losses.clear()
        if keep_last or self.without_better == 0:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in trainer.model.state_dict().items()}
            self.best = Best(self.position.step, score, splits, weights)


@dataclass(frozen=True, kw_only=True)
class Unfinished:
    """What was saved of a run; everything random is a function of its position."""

    course: Course
    """Without its best evaluation, whose predictions are not saved."""
    best_step: int | None
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    best_weights: dict[str, Tensor]
    """Empty before the first evaluation."""
    scaler: dict[str, Any]


def write(place: Path, settings: FinetuneConfig, course: Course, trainer: Trainer[TaskBatches]) -> None:
    """Save a run that is under way beside the place where its result will be.

    Raises:
        OutputError: The disk is full or not writable.
    """
    state = {
        "settings": dict(settings),
        "position": asdict(course.position),
        "history": course.history,
        "losses": course.losses,
        "best_step": course.best.step if course.best else None,
        "scaler": trainer.scaler.state_dict(),
    }
    tensors = {
        "model": trainer.model.state_dict(),
        "optimizer": {**checkpoint.optimizer_tensors(trainer.model, trainer.optimizer), **trainer.guard.state()},
        "best": course.best.weights if course.best else {},
    }
    checkpoint.write_sealed(_beside(place), tensors, {"state.json": json.dumps(state)})


def read(place: Path, settings: FinetuneConfig) -> Unfinished | None:
    """Read what an earlier call saved of this run; None where that is incomplete, or of other settings."""
    source = _beside(place)
    if not source.is_dir():
        return None
    try:
        checkpoint.verify(source, needed=frozenset(_FILES))
        state = from_json((source / "state.json").read_text(encoding="utf-8"))
        if FinetuneConfig(**state["settings"]) != settings:
            return None
        weights, optimizer, best = (load((source / name).read_bytes()) for name in _FILES[:3])
        return Unfinished(
            course=Course(Position(**state["position"]), state["history"], state["losses"]),
            best_step=state["best_step"],
            weights=weights,
            optimizer=optimizer,
            best_weights=best,
            scaler=state["scaler"],
        )
    except (CheckpointError, OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None  # the run begins anew


def forget(place: Path) -> None:
    """Remove what was saved of a run that is done."""
    shutil.rmtree(_beside(place), ignore_errors=True)


def _beside(place: Path) -> Path:
    return place.with_name(f".{place.name}.unfinished")
