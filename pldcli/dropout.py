"""Dropout; on a CPU with masks from numpy's fastest generator, since torch draws one number at a time there."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Dropout", "dropout"]

_BITS = 15
"""A value is dropped when so many random bits, as a number, are below a threshold: probabilities are exact to 2^-16."""


class Dropout(nn.Module):
    """`dropout` as a layer: acts in training mode only."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Apply dropout in training mode."""
        return dropout(x, self.p) if self.training else x

    def extra_repr(self) -> str:
        """Show the probability when printed."""
        return f"p={self.p}"


def dropout(x: Tensor, p: float) -> Tensor:
    """Set each value to 0 with probability `p`, and divide the others by 1 - p.

    The masks are a function of torch's generator on every path, and draw nothing from it when `p` is 0.
    """
    if p == 0.0:
        return x
    if x.device.type != "cpu" or x.element_size() not in _INTEGERS or torch.compiler.is_compiling():
        return functional.dropout(x, p)
    return x * _factors(x, p)


_INTEGERS = {2: torch.int16, 4: torch.int32}
"""By the bytes of a float."""


def _factors(x: Tensor, p: float) -> Tensor:
    """Draw 0 with probability `p`, else 1 / (1 - p), for each value of x."""
    # In integer arithmetic, which torch vectorises on a CPU, as it does not with booleans: 15 random bits minus the threshold are
    # negative where a value is dropped, and the sign bit, spread over the word, masks the bits of 1 / (1 - p).
    seed = int(torch.randint(2**63 - 1, ()))
    words = np.random.SFC64(seed).random_raw(-(-x.numel() // 4))
    random = torch.from_numpy(words.view(np.int16))[: x.numel()].view(x.shape)
    dropped = random.bitwise_and_(2**_BITS - 1).sub_(round(p * 2**_BITS)).bitwise_right_shift_(_BITS)
    integer = _INTEGERS[x.element_size()]
    return dropped.bitwise_not_().to(integer).bitwise_and_(_bits(1.0 / (1.0 - p), x.dtype)).view(x.dtype)


@lru_cache(maxsize=64)
def _bits(value: float, dtype: torch.dtype) -> int:
    """Read the bits of a floating-point number as an integer of its size."""
    return int(torch.tensor(value, dtype=dtype).view(_INTEGERS[dtype.itemsize]))
