"""Every knob of fine-tuning: its default, unit and local check."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from pldcli.choices import PrecisionChoice
from pldcli.config import OptimConfig
from pldcli.errors import UsageError
from pldcli.settings import AS_NUMBER, Count, Natural, NonNegative, Off, Positive, Settings, Share, Switch, parse_value, split, validate

__all__ = ["FinetuneConfig", "cells", "changed"]


class FinetuneConfig(Settings):
    """How a model is fine-tuned once. Defaults follow common practice for GLUE."""

    learning_rate: Positive = 3e-5
    """Peak learning rate of AdamW. Models of less than about 100 M parameters like 5e-5 to 1e-4."""
    batch_size: Count = 32
    """Examples (spans: windows) per optimizer step, over all processes."""
    epochs: Positive = 3.0
    """Passes over the training examples; may be a fraction."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """After warm-up: `linear` or `cosine` to zero, or `constant`."""
    warmup_fraction: Share = 0.06
    """Linear warm-up, as a fraction of all steps."""
    weight_decay: NonNegative = 0.01
    """Decoupled weight decay; not applied to biases and norms."""
    beta2: Share = 0.999
    """Decay of AdamW's second moment."""
    eps: Positive = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: NonNegative = 1.0
    """Clip the global gradient norm to this; 0 clips nothing."""
    dropout: Share | Literal["auto"] = "auto"
    """Dropout everywhere; `auto` is the checkpoint's own."""
    max_seq_len: Annotated[int, Field(ge=8), AS_NUMBER] | Literal["auto"] = "auto"
    """Tokens of a row at most, special tokens included; `auto` is 384 for spans and 128 for everything else."""
    stride: Natural = 128
    """Tokens that two windows of a long text share (spans and tags), at most a third of a row; the default gives way to shorter rows."""
    evaluations_per_epoch: Count = 1
    """How often the validation split is scored."""
    keep: Literal["best", "last"] = "best"
    """Which weights the result has: the best evaluation's, or the last."""
    patience: Count | Off = "off"
    """Stop after so many evaluations in a row without a better score."""
    seed: Annotated[int, Field(ge=0, lt=2**63), AS_NUMBER] = 0
    """Seed of the head's initial weights, the order of examples and dropout."""
    micro_batch_size: Count | Literal["auto"] = "auto"
    """Most examples per forward pass and process; `auto` is the whole batch. Lower it when memory runs out."""
    precision: PrecisionChoice = "auto"
    """Autocast format of training; weights stay fp32. Evaluation is fp32."""
    compile: Switch = "auto"
    """torch.compile of each block and the embeddings in training; `auto` is on for CUDA and off for CPU."""

    @property
    def optim(self) -> OptimConfig:
        """Build the optimizer's configuration."""
        shared = OptimConfig.model_fields.keys() & FinetuneConfig.model_fields.keys()
        return OptimConfig(**self.model_dump(include=shared))


def cells(overrides: Sequence[str], *, grid: Sequence[str] = (), num_seeds: int = 1) -> list[FinetuneConfig]:
    """Build one configuration per cell of the grid and seed; the grid in the order of its keys, seeds innermost.

    Args:
        overrides: `KEY=VALUE`, or `KEY=VALUE,VALUE,...` for an axis of the grid; of several for one key the last counts.
        grid: The same, whose keys are not named again.
        num_seeds: Seeds of each cell: `seed`, `seed` + 1, ...

    Raises:
        UsageError: Unknown key, wrong type, or a value that a check refuses.
    """
    axes: dict[str, list[Any]] = {}
    named = [*map(split, [*grid, *overrides])]
    for place, (key, text) in enumerate(named):
        if key in axes and (place < len(grid) or key in dict(named[: len(grid)])):
            raise UsageError("is named twice", where=key, hint=f"write one axis: {key}={axes[key][0]},{text}")
        values = [parse_value(part, key) for part in text.split(",")]
        axes[key] = list(dict.fromkeys(getattr(validate(FinetuneConfig, {key: value}), key) for value in values))
    if len(axes.get("micro_batch_size", [])) > 1:
        raise UsageError("is no axis of a grid: it changes no result", where="micro_batch_size", hint="name one")
    if num_seeds > 1 and len(axes.get("seed", [])) > 1:
        raise UsageError("a list of seeds and --seeds exclude each other", where="seed", hint="leave one of them out")
    found = []
    for combination in itertools.product(*axes.values()):
        chosen = dict(zip(axes, combination, strict=True))
        first = FinetuneConfig(**chosen)
        found += [validate(FinetuneConfig, chosen | {"seed": first.seed + offset}) for offset in range(num_seeds)]
    return found


def changed(settings: FinetuneConfig) -> dict[str, Any]:
    """List the settings that are not the default, without the seed."""
    return settings.model_dump(mode="json", exclude_defaults=True, exclude={"seed"})
