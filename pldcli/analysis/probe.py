"""Measure the blocks of one model: gradients, what each block does to its input, and what the model is without it.

Everything is computed in evaluation mode, without dropout, on given sequences under given masks, so that the same weights give the same
numbers. The loss is the mean masked-LM loss over all targets; a next-sentence loss is left out.

Shapes: B batch, T tokens, D hidden, M masked positions, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from pldcli.analysis.results import BlockProbe, Probe, Removal
from pldcli.data.loader import Batch, count_tokens
from pldcli.engine.objectives import encode, masked_logits
from pldcli.engine.precision import Precision
from pldcli.engine.runtime import Runtime
from pldcli.engine.validation import score_lm
from pldcli.evaluation.depth import Gates, kept_blocks
from pldcli.model import StBert
from pldcli.pld import Plan

__all__ = ["probe", "remove_blocks"]


def probe(model: StBert, batches: Sequence[Batch], device: torch.device, plan: Plan | None = None) -> Probe:
    """Measure every block in one pass over the sequences, without dropout.

    Under a plan the blocks that it closes are skipped, and the outputs of the others are scaled as in training. The weights and their
    `grad` stay as they are, and the model's training mode is restored.

    Args:
        model: On `device`, in float32 or float64.
        batches: On the host; the gradients are of their mean loss over all targets.
        device: Where the model is.
        plan: Gates and residual scales; None for every block, nothing scaled.

    Source: Zhang & He 2020, section 3.
    """
    was_training = model.training
    model.eval()
    gates = (True,) * len(model.blocks) if plan is None else plan.gates
    scales_L = None if plan is None else torch.tensor(plan.residual_scales, device=device)
    sums = _Sums(model, gates)
    num_targets = max(1, sum(len(batch.target_ids) for batch in batches))
    for host_batch in batches:
        batch = host_batch.to(device)
        with _inputs_kept(model) as inputs:
            logits_MV = masked_logits(model, encode(model, batch, gates, scales_L), batch)
        sums.add(batch, inputs, functional.cross_entropy(logits_MV, batch.target_ids, reduction="sum") / num_targets)
    model.train(was_training)
    return sums.probe()


def remove_blocks(
    model: StBert, batches: Sequence[Batch], runtime: Runtime, *, step: int, done: Callable[[], None] = lambda: None
) -> Removal:
    """Score a model without each of its blocks in turn, and without each and all after it, nothing scaled, without dropout.

    Args:
        model: On the runtime's device.
        batches: On the host.
        runtime: The device.
        step: Completed updates of the model, for the record.
        done: Called after each pass over the sequences, of which there are 2 L + 1.

    Source: Zhang & He 2020, section 3.
    """
    precision = Precision("fp32", runtime.device)
    num_blocks = len(model.blocks)

    def loss(gates: Gates) -> float:
        scored = score_lm(model, batches, precision, runtime, gates)
        done()
        return scored.loss

    return Removal(
        step,
        loss((True,) * num_blocks),
        tuple(loss(tuple(other != block for other in range(num_blocks))) for block in range(num_blocks)),
        tuple(loss(kept_blocks(num_blocks, block, "first", ())) for block in range(num_blocks)),
    )


class _Sums:
    """Sums over batches: gradients of weights as they are, everything else as numbers per block."""

    def __init__(self, model: StBert, gates: Sequence[bool]) -> None:
        self.gates = tuple(gates)
        self.parameters = [list(block.parameters()) if runs else [] for block, runs in zip(model.blocks, gates, strict=True)]
        self.gradients: list[list[Tensor]] = [[torch.zeros_like(parameter) for parameter in block] for block in self.parameters]
        self.loss, self.num_tokens = 0.0, 0
        self.squared_input_gradients = [0.0] * len(self.gates)
        self.changes = [[0.0, 0.0, 0.0] for _ in self.gates]

    def add(self, batch: Batch, inputs: Sequence[Tensor], loss: Tensor) -> None:
        """Add a batch.

        Args:
            batch: On the device.
            inputs: What entered each block that ran, and what left the last one, [B, T, D] each.
            loss: The batch's share of the mean loss.
        """
        weights = [parameter for block in self.parameters for parameter in block]
        found = torch.autograd.grad(loss, [*inputs, *weights])
        of_inputs, of_weights = found[: len(inputs)], iter(found[len(inputs) :])
        for total in (total for block in self.gradients for total in block):
            total += next(of_weights)
        self.loss += float(loss.detach())
        self.num_tokens += count_tokens(batch)
        place = 0  # of what enters the block; a block that is skipped hands it on
        for block, runs in enumerate(self.gates):
            self.squared_input_gradients[block] += _squared_norm(of_inputs[place])
            if runs:
                for number, change in enumerate(_changes(inputs[place].detach(), inputs[place + 1].detach(), batch.attention_mask)):
                    self.changes[block][number] += change
                place += 1

    def probe(self) -> Probe:
        """Turn sums into norms and means."""
        blocks = []
        for block, runs in enumerate(self.gates):
            weights = sum(_squared_norm(gradient) for gradient in self.gradients[block]) ** 0.5 if runs else None
            distance, relative, angle = (total / self.num_tokens if runs else None for total in self.changes[block])
            blocks.append(BlockProbe(weights, self.squared_input_gradients[block] ** 0.5, distance, relative, angle))
        return Probe(self.gates, self.loss, tuple(blocks))


@contextmanager
def _inputs_kept(model: StBert) -> Iterator[list[Tensor]]:
    """Collect what enters each block that runs, and what leaves the last one, in the order of the pass."""
    found: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        found.append(arguments[0])

    handles = [module.register_forward_pre_hook(keep) for module in (*model.blocks, model.final_norm)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _squared_norm(tensor: Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor, dtype=torch.float64)) ** 2


def _changes(before_BTD: Tensor, after_BTD: Tensor, attention_mask_BT: Tensor | None) -> tuple[float, float, float]:
    """Add up over real tokens: distance, distance as a multiple of the norm before, angle in degrees.

    The angle is the arccosine of the cosine, computed from both halves of an isosceles triangle: the arccosine itself loses half of
    the digits of a small angle.

    Source: Kahan, "How Futile are Mindless Assessments of Roundoff", 2006.
    """
    before_BTD, after_BTD = before_BTD.double(), after_BTD.double()
    distance_BT = (after_BTD - before_BTD).norm(dim=-1)
    relative_BT = distance_BT / before_BTD.norm(dim=-1)
    one_BTD, other_BTD = functional.normalize(before_BTD, dim=-1), functional.normalize(after_BTD, dim=-1)
    angle_BT = 2.0 * torch.atan2((one_BTD - other_BTD).norm(dim=-1), (one_BTD + other_BTD).norm(dim=-1)).rad2deg()
    values_3BT = torch.stack([distance_BT, relative_BT, angle_BT])
    if attention_mask_BT is not None:
        values_3BT = values_3BT.masked_fill(~attention_mask_BT.bool(), 0.0)
    distance, relative, angle = values_3BT.sum((1, 2)).tolist()
    return distance, relative, angle
