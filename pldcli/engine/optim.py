"""Optimizers and learning rates. A parameter without a gradient is left alone: value, moments, decay and step counter."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pldcli.config import OptimConfig

__all__ = ["Lamb", "build_optimizer", "clip_gradients", "learning_rate", "set_learning_rate"]

_PAPER_DECAYS = 200
"""The paper multiplies the rate by 0.99 every 1000 of its 200 K steps: 200 times per run. Continuous, not in stairs, as released."""


def learning_rate(step: int, total_steps: int, optim: OptimConfig) -> float:
    """Compute the learning rate of the update after `step` completed ones.

    Source: `paper-exponential` is Zhang & He 2020, section 5, tied to the run's length.
    """
    warmup = round(optim.warmup_fraction * total_steps)
    if step < warmup:
        return optim.learning_rate * (step + 1) / warmup
    left = (total_steps - step) / max(1, total_steps - warmup)
    if optim.schedule == "linear":
        factor = left
    elif optim.schedule == "cosine":
        factor = 0.5 * (1.0 - math.cos(math.pi * left))
    elif optim.schedule == "wsd":
        decay = max(1, round(optim.decay_fraction * total_steps))
        factor = min(1.0, (total_steps - step) / decay)
    elif optim.schedule == "paper-exponential":
        factor = 0.99 ** ((step - warmup) * _PAPER_DECAYS / total_steps)
    else:
        factor = 1.0
    return optim.learning_rate * factor


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def build_optimizer(model: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """Build the optimizer; biases and norms have no weight decay and no trust ratio of LAMB."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    plain = optim.name == "adamw" and optim.bias_correction
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": optim.weight_decay} | ({} if plain else {"trust_ratio": optim.name == "lamb"}),
        {"params": vectors, "weight_decay": 0.0} | ({} if plain else {"trust_ratio": False}),
    ]
    betas = (optim.beta1, optim.beta2)
    if plain:
        return torch.optim.AdamW(groups, lr=optim.learning_rate, betas=betas, eps=optim.eps, fused=True)
    return Lamb(groups, lr=optim.learning_rate, betas=betas, eps=optim.eps, bias_correction=optim.bias_correction)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Clip gradients to a global norm of `max_norm` (0: do not clip); return the norm before, a 0-d tensor."""
    return nn.utils.clip_grad_norm_(parameters, max_norm if max_norm > 0 else math.inf, foreach=True)


class Lamb(torch.optim.Optimizer):
    """LAMB over lists of tensors, and Adam without bias correction where the trust ratio is off.

    Source: You et al., "Large Batch Optimization for Deep Learning", ICLR 2020, algorithm 2.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        bias_correction: bool = True,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "trust_ratio": True, "bias_correction": bias_correction}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, group)

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = {
                    "step": torch.zeros(()),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        states = [self.state[parameter] for parameter in parameters]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        first, second = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
        for state in states:
            state["step"] += 1
        torch._foreach_lerp_(first, gradients, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1.0 - beta2)

        denominators = torch._foreach_sqrt(second)
        if group["bias_correction"]:
            steps = [int(state["step"]) for state in states]
            torch._foreach_div_(denominators, [math.sqrt(1.0 - beta2**step) for step in steps])
            torch._foreach_add_(denominators, group["eps"])
            torch._foreach_mul_(denominators, [1.0 - beta1**step for step in steps])
        else:
            torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(first, denominators)
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        if group["trust_ratio"]:
            weights, sizes = torch.stack(torch._foreach_norm(parameters)), torch.stack(torch._foreach_norm(updates))
            ratios = torch.where((weights > 0) & (sizes > 0), weights / sizes, torch.ones_like(weights))
            torch._foreach_mul_(updates, list(ratios.unbind()))
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])
