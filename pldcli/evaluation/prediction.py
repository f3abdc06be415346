"""Run a fine-tuned model over tokenized rows, and score a split with it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pldcli.choices import TaskKind
from pldcli.engine.objectives import encode
from pldcli.engine.precision import Precision
from pldcli.engine.runtime import Runtime
from pldcli.model import StBert
from pldcli.tasks.batches import batches_in_order
from pldcli.tasks.kinds import KINDS
from pldcli.tasks.task import Examples, Features, Prediction, Task

__all__ = ["ScoredSplit", "as_json_lines", "json_lines", "notes_on_predictions", "outputs_of", "score_split"]

_LEAST_VARIATION = 0.01
"""Standard deviation of predicted numbers, as a share of that of the targets, below which they count as all the same."""
_TOKENS_PER_FORWARD = {"cpu": 4096, "cuda": 65536}


@dataclass(frozen=True)
class ScoredSplit:
    """What a model makes of a split."""

    predictions: list[Prediction]
    scores: dict[str, float]
    """The task's metrics; empty where the split has no labels."""
    num_tokens: int
    """Tokens read, padding not counted."""
    seconds: float
    """Of the forward passes."""


@torch.no_grad()
def outputs_of(
    model: StBert,
    features: Features,
    precision: Precision,
    runtime: Runtime,
    *,
    pad_id: int,
    gates: Sequence[bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[npt.NDArray[np.float32]]:
    """Run the model over every row; processes share them, and all get everything.

    Args:
        model: With a task head; its training mode is restored afterwards.
        features: The rows.
        precision: Number format of the forward passes.
        runtime: Device and processes.
        pad_id: What padding is.
        gates: Which blocks run; None for all.
        progress: Told the number of rows that were just read.

    Returns:
        Per row, [C] for a sequence head or [tokens, C] for a token head.
    """
    assert model.task_head is not None
    was_training = model.training
    model.eval()
    flat: torch.Tensor | None = None
    per_token = False
    batches = batches_in_order(features, most_tokens=_TOKENS_PER_FORWARD[runtime.device.type], pad_id=pad_id)
    for index, (rows, host_batch) in enumerate(batches):
        if index % runtime.world_size == runtime.rank or flat is None:  # the first batch everywhere, for the outputs' shape
            batch = host_batch.to(runtime.device)
            with precision.autocast():
                outputs = model.task_head(encode(model, batch, gates), batch.attention_mask).float().cpu()
            per_token = outputs.ndim == 3
            if flat is None:
                flat = torch.zeros(len(features.input_ids) if per_token else features.num_rows, outputs.shape[-1])
            if index % runtime.world_size == runtime.rank:
                _store(flat, outputs, rows, features)
        if progress is not None:
            progress(len(rows))
    model.train(was_training)
    if flat is None:
        return []
    everything = _sum_on_host(flat, runtime).numpy()
    return np.split(everything, features.offsets[1:-1]) if per_token else list(everything)


def score_split(
    model: StBert,
    examples: Examples,
    features: Features,
    task: Task,
    precision: Precision,
    runtime: Runtime,
    *,
    pad_id: int,
    gates: Sequence[bool] | None = None,
    progress: Callable[[int], None] | None = None,
) -> ScoredSplit:
    """Predict every example of a split, and score the predictions where it has labels."""
    runtime.synchronize()
    started = time.perf_counter()
    outputs = outputs_of(model, features, precision, runtime, pad_id=pad_id, gates=gates, progress=progress)
    seconds = time.perf_counter() - started
    kind = KINDS[task.kind]
    predictions = kind.predict(outputs, features, examples, task)
    scores = kind.score(predictions, examples, task) if examples.labels is not None else {}
    return ScoredSplit(predictions, scores, len(features.input_ids), seconds)


def notes_on_predictions(scored: ScoredSplit, examples: Examples, task: Task, split: str) -> list[str]:
    """List what the scores of a split hide: numbers that are all the same, or nearly, have correlations that mean nothing."""
    if task.kind != TaskKind.REGRESSION or not examples.labels:
        return []
    predicted, targets = np.array([one.label for one in scored.predictions], np.float64), np.array(examples.labels, np.float64)
    if np.ptp(targets) == 0:
        what = f"the target of the only example in {split}" if len(targets) == 1 else f"every target in {split}"
        return [f"{what} is {targets[0]:,.6g}: correlations are 0 whatever is predicted, so the lowest rmse is the best"]
    if predicted.std() >= _LEAST_VARIATION * targets.std():
        return []
    ranges = [f"{values.min():,.6g} to {values.max():,.6g}" for values in (predicted, targets)]
    return [f"predictions hardly vary in {split}: {ranges[0]}, where the targets are {ranges[1]}; correlations mean nothing then"]


def as_json_lines(predictions: Sequence[Prediction], examples: Examples) -> list[dict[str, Any]]:
    """Name each prediction by its example's index."""
    return [
        {"index": index, "label": prediction.label, "scores": prediction.scores}
        for index, prediction in zip(examples.indices, predictions, strict=True)
    ]


def json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write one JSON object per line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _store(flat: torch.Tensor, outputs: torch.Tensor, rows: npt.NDArray[np.int64], features: Features) -> None:
    if outputs.ndim == 2:
        flat[torch.from_numpy(rows)] = outputs
        return
    for row, output in zip(rows.tolist(), outputs, strict=True):
        start, stop = features.offsets[row], features.offsets[row + 1]
        flat[start:stop] = output[: stop - start]


def _sum_on_host(tensor: torch.Tensor, runtime: Runtime) -> torch.Tensor:
    return runtime.sum(tensor) if runtime.world_size > 1 else tensor
