"""Every knob of fine-tuning: its default, unit and local check."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_type_hints

from pldcli.config import OptimConfig
from pldcli.errors import UsageError
from pldcli.settings import convert, nearest, parse_value, split

__all__ = ["FinetuneConfig", "cells", "changed", "from_dict"]


@dataclass(frozen=True)
class FinetuneConfig:
    """How a model is fine-tuned once. Defaults follow common practice for GLUE."""

    learning_rate: float = 3e-5
    """Peak learning rate of AdamW. Models of less than about 100 M parameters like 5e-5 to 1e-4."""
    batch_size: int = 32
    """Examples (spans: windows) per optimizer step, over all processes."""
    epochs: float = 3.0
    """Passes over the training examples; may be a fraction."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """After warm-up: `linear` or `cosine` to zero, or `constant`."""
    warmup_fraction: float = 0.06
    """Linear warm-up, as a fraction of all steps."""
    weight_decay: float = 0.01
    """Decoupled weight decay; not applied to biases and norms."""
    beta2: float = 0.999
    """Decay of AdamW's second moment."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: float = 1.0
    """Clip the global gradient norm to this; 0 clips nothing."""
    dropout: float | Literal["auto"] = "auto"
    """Dropout everywhere; `auto` is the checkpoint's own in the encoder, and 0.1 before the head."""
    max_seq_len: int | Literal["auto"] = "auto"
    """Tokens of a row at most, special tokens included; `auto` is 384 for spans and 128 for everything else."""
    stride: int = 128
    """Tokens that two windows of a long text share (spans and tags)."""
    evaluations_per_epoch: int = 1
    """How often the validation split is scored."""
    keep: Literal["best", "last"] = "best"
    """Which weights the result has: the best evaluation's, or the last."""
    patience: int | Literal["off"] = "off"
    """Stop after so many evaluations in a row without a better score."""
    seed: int = 0
    """Seed of the head's initial weights, the order of examples and dropout."""
    micro_batch_size: int | Literal["auto"] = "auto"
    """Most examples per forward pass and process; `auto` is the whole batch. Lower it when memory runs out."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Autocast format of training; weights stay fp32. Evaluation is fp32."""

    def __post_init__(self) -> None:
        """Check what can be checked here."""
        for name in ("batch_size", "evaluations_per_epoch"):
            _require(getattr(self, name) >= 1, name, f"must be at least 1, not {getattr(self, name)}")
        _require(self.epochs > 0, "epochs", f"must be positive, not {self.epochs}")
        for name in ("stride", "seed"):
            _require(getattr(self, name) >= 0, name, f"must be at least 0, not {getattr(self, name)}")
        _require(self.dropout == "auto" or 0.0 <= self.dropout < 1.0, "dropout", f"must be `auto` or in [0, 1), not {self.dropout}")
        _require(
            self.max_seq_len == "auto" or self.max_seq_len >= 8, "max_seq_len", f"must be `auto` or at least 8, not {self.max_seq_len}"
        )
        _require(self.patience == "off" or self.patience >= 1, "patience", f"must be `off` or at least 1, not {self.patience}")
        _require(
            self.micro_batch_size == "auto" or self.micro_batch_size >= 1,
            "micro_batch_size",
            f"must be `auto` or at least 1, not {self.micro_batch_size}",
        )
        try:
            self.optim  # noqa: B018 - its own checks
        except UsageError as error:
            raise UsageError(error.what, where=error.where.removeprefix("optim."), hint=error.hint) from error

    @property
    def optim(self) -> OptimConfig:
        """Build the optimizer's configuration."""
        return OptimConfig(
            learning_rate=self.learning_rate,
            schedule=self.schedule,
            warmup_fraction=self.warmup_fraction,
            beta2=self.beta2,
            eps=self.eps,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
        )


def cells(overrides: Sequence[str], *, num_seeds: int = 1) -> list[FinetuneConfig]:
    """Build one configuration per cell of the grid and seed; the grid in the order of its keys, seeds innermost.

    Args:
        overrides: `KEY=VALUE`, or `KEY=VALUE,VALUE,...` for an axis of the grid.
        num_seeds: Seeds of each cell: `seed`, `seed` + 1, ...

    Raises:
        UsageError: Unknown key, wrong type, or a value that a check refuses.
    """
    axes: dict[str, list[Any]] = {}
    for key, text in map(split, overrides):
        values = [parse_value(part, key) for part in text.split(",")]
        axes[key] = list(dict.fromkeys(_checked(key, value) for value in values))
    if num_seeds > 1 and len(axes.get("seed", [])) > 1:
        raise UsageError("a list of seeds and --seeds exclude each other", where="seed", hint="leave one of them out")
    found = []
    for combination in itertools.product(*axes.values()):
        chosen = dict(zip(axes, combination, strict=True))
        first = FinetuneConfig(**chosen)
        found += [FinetuneConfig(**(chosen | {"seed": first.seed + offset})) for offset in range(num_seeds)]
    return found


def from_dict(values: dict[str, Any]) -> FinetuneConfig:
    """Rebuild a configuration from `asdict`.

    Raises:
        UsageError: Unknown key or wrong type.
    """
    return FinetuneConfig(**{key: _checked(key, value) for key, value in values.items()})


def _checked(key: str, value: Any) -> Any:
    types = get_type_hints(FinetuneConfig)
    if key not in types:
        raise UsageError("unknown key", where=key, hint=nearest(key, types))
    return convert(types[key], value, key)


def _require(condition: bool, key: str, what: str) -> None:
    if not condition:
        raise UsageError(what, where=key)


def changed(settings: FinetuneConfig) -> dict[str, Any]:
    """List the settings that are not the default, without the seed."""
    default = asdict(FinetuneConfig())
    return {key: value for key, value in asdict(settings).items() if value != default[key] and key != "seed"}
