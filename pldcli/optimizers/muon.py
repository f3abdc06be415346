"""Muon: momentum whose matrices are orthogonalised before they update the weights; AdamW for everything that is no hidden matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from pldcli.optimizers.adam import adam_parts, with_moments
from pldcli.sharding import map_matrices, own_parts

__all__ = ["Muon", "orthogonalize"]

_COEFFICIENTS = 3.4445, -4.7750, 2.0315
"""Of the quintic polynomial: steep at zero, so that five iterations are enough; singular values end between about 0.7 and 1.2."""
_ITERATIONS = 5
_LEAST_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    """Muon for hidden matrices and AdamW for the rest: one optimizer, since one loss scaler and one learning-rate schedule serve both.

    torch's own Muon is not used: it orthogonalises fused matrices as one, always rounds to bf16 (20 times slower on a CPU without
    instructions for it), and takes one matrix at a time.

    Its products of matrices do not depend on the batch: with blocks of width D they take about as long as 3 D tokens of a training step.

    Args:
        params: Groups. One with the option `pieces` is Muon's: parameters of one shape, each of so many equal matrices above one another
            that are orthogonalised apart. The others are AdamW's.
        lr: Of AdamW. Muon's groups bring their own, which is multiplied by sqrt(max(1, rows / columns)) of the matrix.
        betas: Of AdamW.
        eps: Of AdamW.
        momentum: Of Muon, after Nesterov.
        dtype: In which Muon orthogonalises; None for that of the parameters. In bf16, as published, an update differs by about a hundredth.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024, https://kellerjordan.github.io/posts/muon/;
    weight decay as Liu et al., "Muon is Scalable for LLM Training", 2025, arXiv 2502.16982.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        momentum: float = 0.95,
        dtype: torch.dtype | None = None,
    ) -> None:
        # "fused" is what a restored checkpoint goes by: AdamW's step counters lie beside the parameter.
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0, "momentum": momentum, "pieces": 0, "fused": True}
        super().__init__(params, defaults)
        self._dtype = dtype
        self.found_inf: Tensor | None = None
        """As of torch's fused optimizers: where this 0-d tensor is not 0, a step changes nothing. The host does not wait to see."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                (self._update_matrices if group["pieces"] else self._update_others)(parameters, group)

    def _update_matrices(self, whole: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in whole:
            if not self.state[parameter]:
                self.state[parameter] = {"momentum": torch.zeros_like(parameter)}
        momenta = own_parts([self.state[parameter]["momentum"] for parameter in whole])
        gradients = own_parts([parameter.grad for parameter in whole if parameter.grad is not None])
        decay: float | Tensor = 1.0 - group["lr"] * group["weight_decay"]
        is_left_out = None if self.found_inf is None else self.found_inf != 0
        if is_left_out is not None:
            gradients = [torch.where(is_left_out, *both) for both in zip(momenta, gradients, strict=True)]  # then momenta stay
            decay = torch.where(is_left_out, 1.0, decay)
        torch._foreach_lerp_(momenta, gradients, 1.0 - group["momentum"])
        directions = torch.stack(torch._foreach_lerp(gradients, momenta, group["momentum"]))  # Nesterov's: one step ahead
        stacked_rows, columns = whole[0].shape
        rows = stacked_rows // group["pieces"]

        def orthogonal(stacked: Tensor) -> Tensor:
            return orthogonalize(stacked.view(-1, rows, columns).to(self._dtype or stacked.dtype)).to(stacked.dtype).reshape(stacked.shape)

        updates, parameters = map_matrices(orthogonal, directions, whole), own_parts(whole)
        if is_left_out is not None:
            updates = updates * ~is_left_out
        torch._foreach_mul_(parameters, decay)
        torch._foreach_add_(parameters, updates.unbind(), alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)

    def _update_others(self, whole: list[Tensor], group: dict[str, Any]) -> None:
        states = with_moments(self.state, whole, steps_on_device=True)
        beta1, beta2 = group["betas"]
        adamw(
            *adam_parts(whole, states),
            [],
            [state["step"] for state in states],
            fused=True,
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring the singular values of each matrix of a batch, [..., rows, columns], close to 1, and leave its singular vectors.

    Newton-Schulz iteration with a quintic polynomial; a matrix of zeros stays one.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if is_tall else matrices  # wide: products of rows are then the smaller ones
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=_LEAST_NORM)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
