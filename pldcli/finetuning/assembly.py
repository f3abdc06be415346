"""The parts of a fine-tuning run put together: model with a head, batches, optimizer, trainer."""

from __future__ import annotations

import math

from pldcli.choices import TaskKind
from pldcli.engine.objectives import TaskLoss
from pldcli.engine.precision import resolve_precision
from pldcli.engine.runtime import Runtime
from pldcli.engine.trainer import Trainer
from pldcli.finetuning.config import FinetuneConfig
from pldcli.finetuning.inputs import RunInputs
from pldcli.optimizers.build import build_optimizer, learning_rate
from pldcli.pld import Dropping
from pldcli.tasks.batches import TaskBatches
from pldcli.tasks.kinds import head_of

__all__ = ["build_trainer", "num_steps"]

_CUDA_LENGTH_MULTIPLE = 8
"""Tensor cores want sizes that are multiples of it."""


def num_steps(inputs: RunInputs, settings: FinetuneConfig) -> int:
    """Count the optimizer steps of a run; for spans and tags this tokenizes the task, since a long text has several rows."""
    rows = inputs.rows(settings).train.num_rows if inputs.data.task.kind in (TaskKind.SPANS, TaskKind.TAGS) else len(inputs.train)
    return _num_steps(rows, settings)


def build_trainer(inputs: RunInputs, settings: FinetuneConfig, runtime: Runtime) -> Trainer[TaskBatches]:
    """Put the parts of one fine-tuning run together at its first step."""
    train, start, task = inputs.rows(settings).train, inputs.start, inputs.data.task
    shape, on_cuda = start.settings, runtime.device.type == "cuda"
    dropout = shape.dropout if settings.dropout == "auto" else settings.dropout
    precision = resolve_precision(settings.precision, runtime.device)
    model = start.with_head(head_of(task, dropout=dropout), seed=settings.seed, dropout=dropout)
    common = {"precision": precision.name, "the number of training rows": train.num_rows}
    runtime.check_agreement(settings.model_dump(mode="json") | common, model)
    model.to(runtime.device).train()
    if runtime.is_on(settings.compile):
        model.compile_parts(dynamic=True)  # rows of each batch have a length of their own
    share = math.ceil(settings.batch_size / runtime.world_size)
    total = _num_steps(train.num_rows, settings)
    return Trainer(
        model,
        objective=TaskLoss(task.kind),
        schedule=Dropping(num_blocks=shape.num_hidden_layers, total_steps=total, theta_bar=1.0),
        optimizer=build_optimizer(model, settings.optim),
        batches=TaskBatches(
            train,
            batch_size=settings.batch_size,
            seed=settings.seed,
            pad_id=start.tokenizer.special.pad_id,
            micro_batch_size=share if settings.micro_batch_size == "auto" else min(share, settings.micro_batch_size),
            rank=runtime.rank,
            world_size=runtime.world_size,
            multiple=_CUDA_LENGTH_MULTIPLE if on_cuda else 1,
            pin_memory=on_cuda,
        ),
        learning_rate=lambda step: learning_rate(step, total, settings.optim, warmup_steps=round(settings.warmup_fraction * total)),
        max_grad_norm=settings.max_grad_norm,
        precision=precision,
        runtime=runtime,
        flops=shape.flops(round(float(train.lengths.mean())), mask_rate=0.0),
        seed=settings.seed,
        remedy="lower learning_rate, or raise warmup_fraction",
    )


def _num_steps(num_rows: int, settings: FinetuneConfig) -> int:
    return max(1, math.ceil(math.ceil(num_rows / settings.batch_size) * settings.epochs))
