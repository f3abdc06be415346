"""Adam over lists of tensors, in the variants that torch lacks: LAMB, StableAdamW, and Adam without bias correction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, MutableMapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from pldcli.sharding import norms, own_parts

__all__ = ["Adam", "Scaling", "adam_parts", "with_moments"]

Scaling = Literal["none", "trust-ratio", "clipped"]
"""What the update of a whole tensor is multiplied by."""


class Adam(torch.optim.Optimizer):
    """Adam with decoupled weight decay, whose update of a tensor, decay included, may be scaled as a whole.

    The option `scaling` of a group: `trust-ratio` is LAMB's, the norm of the weights over that of the update; `clipped` is StableAdamW's,
    1 / max(1, RMS of gradient / root of the second moment), so that a gradient far above what the moments expect moves little.

    Source: You et al., "Large Batch Optimization for Deep Learning", ICLR 2020, algorithm 2 (LAMB); Wortsman et al., "Stable and
    low-precision training for large-scale vision-language models", NeurIPS 2023, algorithm 2 (StableAdamW).
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        bias_correction: bool = True,
        scaling: Scaling = "none",
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "scaling": scaling, "bias_correction": bias_correction}
        super().__init__(params, defaults)
        self.found_inf: Tensor | None = None
        """As of torch's fused optimizers: where this 0-d tensor is not 0, a step changes nothing. The host does not wait to see."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, group)

    def _update(self, whole: list[Tensor], group: dict[str, Any]) -> None:
        beta1, beta2 = group["betas"]
        is_left_out = None if self.found_inf is None else self.found_inf != 0
        states = with_moments(self.state, whole, steps_on_device=is_left_out is not None)
        parameters, gradients, first, second = adam_parts(whole, states)
        if is_left_out is not None:
            gradients = [torch.where(is_left_out, *both) for both in zip(first, gradients, strict=True)]  # then first moments stay
        before = [] if is_left_out is None else [moment.clone() for moment in second]
        for state in states:
            state["step"] += 1 if is_left_out is None else ~is_left_out
        torch._foreach_lerp_(first, gradients, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1.0 - beta2)
        if is_left_out is not None:
            for moment, earlier in zip(second, before, strict=True):
                torch.where(is_left_out, earlier, moment, out=moment)

        steps: list[Any] = []
        if group["bias_correction"]:
            steps = [int(state["step"]) if is_left_out is None else state["step"].double() for state in states]
        denominators = torch._foreach_sqrt(second)
        if steps:
            torch._foreach_div_(denominators, [(1.0 - beta2**step) ** 0.5 for step in steps])
        factors = _clip_factors(gradients, denominators, group["eps"], whole) if group["scaling"] == "clipped" else None
        torch._foreach_add_(denominators, group["eps"])
        if steps:
            torch._foreach_mul_(denominators, [1.0 - beta1**step for step in steps])
        updates = torch._foreach_div(first, denominators)
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        if group["scaling"] == "trust-ratio":
            factors = _trust_ratios(parameters, updates, whole)
        if factors is not None:
            torch._foreach_mul_(updates, factors)
        if is_left_out is not None:
            updates = tuple(torch.where(is_left_out, 0.0, update) for update in updates)
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])


def with_moments(state: MutableMapping[Any, Any], parameters: Sequence[Tensor], *, steps_on_device: bool) -> list[dict[str, Tensor]]:
    """Return Adam's state of each parameter, begun where there is none.

    Args:
        state: Of an optimizer.
        parameters: Those to update.
        steps_on_device: Keep step counters beside the parameters, as fused kernels want them, and not on the host.
    """
    for parameter in parameters:
        if not state[parameter]:
            step = torch.zeros((), device=parameter.device if steps_on_device else None)
            state[parameter] = {"step": step, "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
        if steps_on_device:  # those of a checkpoint may lie on the host
            state[parameter]["step"] = state[parameter]["step"].to(parameter.device)
    return [state[parameter] for parameter in parameters]


def adam_parts(
    whole: Sequence[Tensor], states: Sequence[dict[str, Tensor]]
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Return this process's parts of parameters, gradients and both moments."""
    gradients = [parameter.grad for parameter in whole if parameter.grad is not None]
    first, second = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
    return own_parts(whole), own_parts(gradients), own_parts(first), own_parts(second)


def _trust_ratios(parameters: list[Tensor], updates: tuple[Tensor, ...], whole: Sequence[Tensor]) -> list[Tensor]:
    """Divide the norm of each tensor by that of its update; 1 where either is zero."""
    weights, sizes = torch.stack(norms(parameters, whole)), torch.stack(norms(updates, whole))
    return list(torch.where((weights > 0) & (sizes > 0), weights / sizes, torch.ones_like(weights)).unbind())


def _clip_factors(gradients: list[Tensor], roots: tuple[Tensor, ...], eps: float, whole: Sequence[Tensor]) -> list[Tensor]:
    """Compute 1 / max(1, RMS) of each tensor, where RMS is that of its gradient over the root of the second moment (`roots`)."""
    ratios = torch._foreach_div(gradients, torch._foreach_clamp_min(roots, eps))
    factors = norms(ratios, whole)
    torch._foreach_div_(factors, [math.sqrt(tensor.numel()) for tensor in whole])  # 0-d tensors: a CUDA device is not waited for
    torch._foreach_clamp_min_(factors, 1.0)
    torch._foreach_reciprocal_(factors)
    return factors
