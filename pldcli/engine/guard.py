"""Decide on the device whether the update of a step is applied, so that the host waits for nothing.

A step whose loss or gradient is not finite is left out, and one far above the last ones where that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Guard", "Skipped"]

_REMEMBERED = 128
"""Steps whose losses and gradient norms say what is far above them. Source: OLMo (Groeneveld et al. 2024) for their number."""


class Skipped(NamedTuple):
    """What was left out since it was asked last."""

    steps: int
    longest: int
    """Steps in a row, among them those of a row that had begun before."""
    first_step: int
    """Of the longest row."""


class Guard:
    """Judge steps, and count those that are left out.

    Args:
        sigmas: Standard deviations above the mean of the last 128 steps from which on a loss or a gradient norm is a spike; None for none.
        device: Where losses and gradients are.
    """

    def __init__(self, *, sigmas: float | None, device: torch.device) -> None:
        self.sigmas = sigmas
        self._seen = {name: torch.zeros(_REMEMBERED, device=device) for name in ("loss", "grad_norm")}
        self._counts = {name: torch.zeros((), dtype=torch.int64, device=device) for name in ("remembered", "in_a_row", "first_step")}
        self._overflows = {name: torch.zeros((), dtype=torch.int64, device=device) for name in ("is_row", "first_step", "last_step")}
        self._since = {name: torch.zeros((), dtype=torch.int64, device=device) for name in ("steps", "longest", "first_step")}

    def judge(self, step: int, loss: Tensor, grad_norm: Tensor, *, may_overflow: bool = False) -> Tensor:
        """Return whether the update of a step is to be left out, a 0-d tensor.

        Args:
            step: Its number.
            loss: Of the whole step, the same on all processes; 0-d.
            grad_norm: Before clipping, likewise, and unscaled.
            may_overflow: Under loss scaling gradients overflow by design; the scaler leaves the update out, and lowers the scale.
        """
        values = {"loss": loss.detach(), "grad_norm": grad_norm.detach()}
        is_finite = values["loss"].isfinite() & values["grad_norm"].isfinite()
        is_bad = ~values["loss"].isfinite() if may_overflow else ~is_finite
        if self.sigmas is not None:
            is_bad = is_bad | self._is_spike(values, is_finite, self.sigmas)
        counts, since = self._counts, self._since
        counts["in_a_row"] = (counts["in_a_row"] + 1) * is_bad
        counts["first_step"] = torch.where(counts["in_a_row"] == 1, step, counts["first_step"])
        is_longest = counts["in_a_row"] > since["longest"]
        since["first_step"] = torch.where(is_longest, counts["first_step"], since["first_step"])
        since["longest"] = torch.maximum(since["longest"], counts["in_a_row"])
        since["steps"] = since["steps"] + is_bad
        return is_bad

    def watch_overflow(self, step: int, grad_norm: Tensor) -> None:
        """Remember which steps overflowed last under loss scaling, without a step between them that did not; `grad_norm` is 0-d."""
        seen, is_bad = self._overflows, ~grad_norm.detach().isfinite()
        seen["first_step"] = torch.where(is_bad & (seen["is_row"] == 0), step, seen["first_step"])
        seen["last_step"] = torch.where(is_bad, step, seen["last_step"])
        seen["is_row"] = is_bad.long()

    def last_overflows(self) -> tuple[int, int]:
        """Return the first and the last of the steps in a row that overflowed last; waits for the device."""
        return int(self._overflows["first_step"]), int(self._overflows["last_step"])

    def take_skipped(self) -> Skipped:
        """Read what was left out since this was called last; waits for the device."""
        skipped = Skipped(*(int(self._since[name]) for name in ("steps", "longest", "first_step")))
        for counter in self._since.values():
            counter.zero_()
        return skipped

    def state(self) -> dict[str, Tensor]:
        """Return what a resumed run needs to judge alike, by name."""
        spikes = {name: values for name, values in self._seen.items() if self.sigmas is not None}
        return {f"guard/{name}": tensor for name, tensor in (self._counts | spikes).items()}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Load what `state` returned; what a checkpoint lacks begins anew."""
        for group in (self._counts, self._seen):
            for name, tensor in group.items():
                if (one := saved.get(f"guard/{name}")) is not None:
                    group[name] = one.to(tensor.device, tensor.dtype).clone()

    def forget(self) -> None:
        """Take the losses that follow for what is usual: those of a model that grew, or of longer sequences, may be others."""
        self._counts["remembered"] = torch.zeros_like(self._counts["remembered"])

    def begin_row(self) -> None:
        """Begin to count steps in a row anew, since those that follow read other sequences."""
        self._counts["in_a_row"] = torch.zeros_like(self._counts["in_a_row"])

    def _is_spike(self, values: Mapping[str, Tensor], is_finite: Tensor, sigmas: float) -> Tensor:
        """Compare with the steps remembered, once there are enough, and remember what is no spike."""
        remembered = self._counts["remembered"]
        is_spike = torch.zeros((), dtype=torch.bool, device=remembered.device)
        for name, value in values.items():
            seen = self._seen[name]
            is_spike = is_spike | (value > seen.mean() + sigmas * seen.std())
        is_spike = is_spike & is_finite & (remembered >= _REMEMBERED)
        is_kept = ~is_spike & is_finite
        place = torch.arange(_REMEMBERED, device=remembered.device) == remembered % _REMEMBERED
        for name, value in values.items():
            self._seen[name] = torch.where(place & is_kept, value.float(), self._seen[name])
        self._counts["remembered"] = remembered + is_kept
        return is_spike
