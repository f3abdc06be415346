"""Optimizers and learning rates. A parameter without a gradient is left alone: value, moments, decay and step counter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pldcli.config import OptimConfig
from pldcli.model import Block, StBert
from pldcli.optimizers.adam import Adam, Scaling
from pldcli.optimizers.muon import Muon
from pldcli.sharding import whole

__all__ = ["build_optimizer", "clip_gradients", "learning_rate", "set_learning_rate"]

_PAPER_DECAYS = 200
"""The paper multiplies the rate by 0.99 every 1000 of its 200 K steps: 200 times per run. Continuous, not in stairs, as released."""


def learning_rate(step: int, total_steps: int, optim: OptimConfig, *, warmup_steps: int) -> float:
    """Compute the learning rate of the update after `step` completed ones.

    Args:
        step: Completed steps.
        total_steps: Of the run.
        optim: Peak and schedule.
        warmup_steps: Steps of warm-up: `Config.warmup_steps` of a pre-training run.

    Source: `paper-exponential` is Zhang & He 2020, section 5, tied to the run's length; `1-sqrt` is Haegele et al. 2024, arXiv 2405.18392,
    section 3.
    """
    if step < warmup_steps:
        return optim.learning_rate * (step + 1) / warmup_steps
    left = (total_steps - step) / max(1, total_steps - warmup_steps)
    if optim.schedule == "linear":
        factor = left
    elif optim.schedule == "cosine":
        factor = 0.5 * (1.0 - math.cos(math.pi * left))
    elif optim.schedule == "wsd":
        decay = max(1, round(optim.decay_fraction * total_steps))
        left = min(1.0, (total_steps - step) / decay)
        factor = left if optim.decay_shape == "linear" else 1.0 - math.sqrt(1.0 - left)
    elif optim.schedule == "paper-exponential":
        factor = 0.99 ** ((step - warmup_steps) * _PAPER_DECAYS / total_steps)
    else:
        factor = 1.0
    return optim.learning_rate * factor


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group, times the group's own `lr_ratio` where it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_ratio", 1.0)


def build_optimizer(model: nn.Module, optim: OptimConfig, matrix_dtype: torch.dtype | None = None) -> torch.optim.Optimizer:
    """Build the optimizer; biases and norms have no weight decay and no trust ratio of LAMB.

    Args:
        model: On its device; for Muon an `StBert`, whose blocks' matrices are known.
        optim: Which one, and its settings.
        matrix_dtype: In which Muon orthogonalises; None for that of the parameters.
    """
    shared: dict[str, Any] = {"lr": optim.learning_rate, "betas": (optim.beta1, optim.beta2), "eps": optim.eps}
    if optim.name == "muon":
        assert isinstance(model, StBert)
        muon_groups = _muon_groups(model, optim)
        groups = muon_groups + _decay_groups(model, optim, taken=[weight for group in muon_groups for weight in group["params"]])
        return Muon(groups, **shared, momentum=optim.muon_momentum, dtype=matrix_dtype)
    groups = _decay_groups(model, optim)
    if optim.name == "adamw" and optim.bias_correction:
        return torch.optim.AdamW(groups, **shared, fused=True)
    if optim.name == "lamb":
        groups[0]["scaling"] = "trust-ratio"
    scaling: Scaling = "clipped" if optim.name == "stable-adamw" else "none"
    return Adam(groups, **shared, bias_correction=optim.bias_correction, scaling=scaling)


def _decay_groups(model: nn.Module, optim: OptimConfig, *, taken: Sequence[Tensor] = ()) -> list[dict[str, Any]]:
    """Group the parameters that are not `taken` into matrices with weight decay, and vectors without."""
    others = set(map(id, taken))
    parameters = [parameter for parameter in model.parameters() if id(parameter) not in others]
    return [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": optim.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def _muon_groups(model: StBert, optim: OptimConfig) -> list[dict[str, Any]]:
    """Group the blocks' matrices by kind; fused ones are several matrices: queries, keys and values, or the halves of a gated layer."""
    blocks = [block for block in model.blocks if isinstance(block, Block)]
    kinds = [
        ([block.qkv.weight for block in blocks], 3),
        ([block.attention_output.weight for block in blocks], 1),
        ([block.ffn_input.weight for block in blocks], 2 if blocks[0].is_gated else 1),
        ([block.ffn_output.weight for block in blocks], 1),
    ]
    rate = {"lr": optim.muon_learning_rate, "lr_ratio": optim.muon_learning_rate / optim.learning_rate}
    return [{"params": weights, "pieces": pieces, "weight_decay": optim.weight_decay} | rate for weights, pieces in kinds]


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Clip gradients to a global norm of `max_norm` (0: do not clip); return the norm before, a 0-d tensor."""
    return whole(nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else math.inf, foreach=True))
