"""Prepare blocks that begin to run in the middle of a run, and the optimizer's state."""

from __future__ import annotations

from typing import Any

import torch

from pldcli.model import Block, StBert
from pldcli.pld import Growth

__all__ = ["grow"]

_OUTPUTS = ("attention_output", "ffn_output")


@torch.no_grad()
def grow(model: StBert, optimizer: torch.optim.Optimizer, growth: Growth) -> None:
    """Give new blocks their weights, and the optimizer the state that it goes on with.

    Done twice, it is as done once: a run that is stopped in the step of its growth does it again when it is resumed.

    Args:
        model: A block that never ran has its initial weights.
        optimizer: Of the model.
        growth: What is new, and how it begins.

    Source: arXiv 2511.04981, which compares these ways to begin.
    """
    if growth.state == "fresh":
        optimizer.state.clear()
    for number in growth.new:
        block = model.blocks[number]
        assert isinstance(block, Block)
        if growth.weights == "zero-output":
            for parameter in (parameter for name in _OUTPUTS for parameter in getattr(block, name).parameters()):
                parameter.zero_()
        elif growth.weights == "copied":
            nearest = min(growth.running, key=lambda other: (abs(other - number), other))
            theirs = dict(model.blocks[nearest].named_parameters())
            for name, parameter in block.named_parameters():
                if name in theirs:  # a first block may have no norm before its attention
                    parameter.copy_(theirs[name])
                    if growth.state == "copied" and (state := optimizer.state.get(theirs[name])):
                        optimizer.state[parameter] = {key: _copy(value) for key, value in state.items()}


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
