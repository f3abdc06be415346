"""How a fine-tuning goes: where it is, what its evaluations said, and the weights to keep."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pldcli.engine.checkpoint import Position
from pldcli.engine.prediction import ScoredSplit
from pldcli.engine.trainer import Trainer
from pldcli.tasks.batches import TaskBatches

__all__ = ["Best", "Course"]


@dataclass(frozen=True)
class Best:
    """The evaluation whose weights the result has."""

    step: int
    score: float
    splits: dict[str, ScoredSplit]
    weights: dict[str, Tensor]


@dataclass
class Course:
    """Where a fine-tuning is."""

    position: Position = field(default_factory=Position)
    history: list[dict[str, Any]] = field(default_factory=list)
    """One row per evaluation."""
    losses: list[float] = field(default_factory=list)
    """Training losses since the last evaluation."""
    best: Best | None = None

    @property
    def without_better(self) -> int:
        """Count the evaluations in a row that brought no better score."""
        scores = [row["eval/score"] for row in self.history]
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
