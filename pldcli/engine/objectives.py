"""What a model is trained for: sums of losses over targets, and how many targets there are.

Sums, not means: the trainer divides by the number of targets of the whole step, so that accumulation and several
processes change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from pldcli.data.loader import Batch
from pldcli.model import StBert

__all__ = ["MaskedLm", "Objective", "encode", "masked_logits"]


class Objective(Protocol):
    """Losses by name; the total is the sum over names of (sum of losses / number of targets)."""

    @property
    def names(self) -> tuple[str, ...]:
        """Name the losses."""
        ...

    def num_targets(self, batch: Batch) -> list[int]:
        """Count the targets of each loss, from shapes alone."""
        ...

    def loss_sums(self, model: StBert, batch: Batch, gates: Sequence[bool] | None, residual_scales_L: Tensor | None) -> Tensor:
        """Run the model and add up each loss over its targets; one float32 entry per name."""
        ...


@dataclass(frozen=True)
class MaskedLm:
    """BERT's objective: masked tokens, and the next sentence when the model has the head."""

    next_sentence: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Name the losses."""
        return ("mlm", "nsp") if self.next_sentence else ("mlm",)

    def num_targets(self, batch: Batch) -> list[int]:
        """Count masked positions, and sequences."""
        return [len(batch.target_ids)] + [len(batch.input_ids)] * self.next_sentence

    def loss_sums(self, model: StBert, batch: Batch, gates: Sequence[bool] | None, residual_scales_L: Tensor | None) -> Tensor:
        """Run the model and add up each loss over its targets."""
        hidden_BTD = encode(model, batch, gates, residual_scales_L)
        logits_MV = masked_logits(model, hidden_BTD, batch)
        sums = [functional.cross_entropy(logits_MV.float(), batch.target_ids, reduction="sum")]
        if self.next_sentence:
            assert model.nsp_head is not None
            assert batch.next_sentence_labels is not None
            sums.append(functional.cross_entropy(model.nsp_head(hidden_BTD).float(), batch.next_sentence_labels, reduction="sum"))
        return torch.stack(sums)


def encode(model: StBert, batch: Batch, gates: Sequence[bool] | None = None, residual_scales_L: Tensor | None = None) -> Tensor:
    """Run the encoder on a batch, [B, T, D]."""
    return model(  # type: ignore[no-any-return]
        batch.input_ids,
        token_type_ids_BT=batch.token_type_ids,
        attention_mask_BT=batch.attention_mask,
        gates=gates,
        residual_scales_L=residual_scales_L,
    )


def masked_logits(model: StBert, hidden_BTD: Tensor, batch: Batch) -> Tensor:
    """Score the vocabulary at the masked positions only, [M, V]."""
    return model.mlm_logits(hidden_BTD.flatten(0, 1).index_select(0, batch.positions))
