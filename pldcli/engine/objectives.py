"""Training objectives: sums of losses over targets, and the number of targets.

Sums, not means: the trainer divides by the number of targets of the whole step, so that accumulation and several
processes change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from pldcli.choices import TaskKind
from pldcli.data.loader import NO_TARGET, Batch, Inputs
from pldcli.errors import UsageError
from pldcli.heads import draw_entries
from pldcli.model import MaskedLmHead, SpanBoundaryHead, StBert
from pldcli.tasks.batches import TaskBatch

__all__ = ["MaskedLm", "Objective", "TaskLoss", "encode", "masked_logits", "token_loss"]


class Objective(Protocol):
    """Losses by name; the total is the sum over names of (sum of losses / number of targets)."""

    @property
    def names(self) -> tuple[str, ...]:
        """Name the losses."""
        ...

    def num_targets(self, batch: Any) -> list[int]:
        """Count the targets of each loss in a batch on the host."""
        ...

    def loss_sums(self, model: StBert, batch: Any, gates: Sequence[bool] | None, residual_scales_L: Tensor | None) -> Tensor:
        """Run the model and sum each loss over its targets: float32, one entry per name."""
        ...


@dataclass(frozen=True)
class MaskedLm:
    """BERT's objective: masked tokens, and the next sentence or SpanBERT's span boundaries where the model has those heads.

    Losses of exits after Xin et al. 2020 (DeeBERT, arXiv 2004.12993) and Zhuang et al. 2024 (Starbucks, arXiv 2410.13230), at fixed depths
    and with the one head.
    """

    next_sentence: bool = False
    compiled: bool = False
    """Compile head and loss together."""
    vocab_multiple: int = 1
    """Pad the vocabulary to a multiple of this; added entries have no probability."""
    span_boundary: bool = False
    token_losses: tuple[str, ...] = ("mlm",)
    """Of masked tokens (`mlm`) and of next ones (`clm`), those that occur in the run; a batch has one of them."""
    exits: tuple[int, ...] = ()
    """After how many blocks tokens are predicted as well, ascending."""
    exit_weight: float = 1.0
    """What the loss of each exit is multiplied by."""
    sampled_softmax: int | None = None
    """Entries of the vocabulary over which a step predicts tokens; None for all."""

    @property
    def names(self) -> tuple[str, ...]:
        """Name the losses."""
        others = (*(["nsp"] if self.next_sentence else []), *(["sbo"] if self.span_boundary else []))
        return (*self.token_losses, *others, *(f"{name}_after_{depth}" for depth in self.exits for name in self.token_losses))

    def num_targets(self, batch: Batch) -> list[int]:
        """Count the tokens to predict, sequences, masked positions again, and for each exit the tokens to predict."""
        count = int((batch.target_ids != NO_TARGET).sum())
        tokens = [count if name == token_loss(batch) else 0 for name in self.token_losses]
        return tokens + [len(batch.input_ids)] * self.next_sentence + [count] * self.span_boundary + tokens * len(self.exits)

    def loss_sums(self, model: StBert, batch: Batch, gates: Sequence[bool] | None, residual_scales_L: Tensor | None) -> Tensor:
        """Run the model and sum each loss over its targets."""
        assert model.mlm_head is not None
        states = encode(model, batch, gates, residual_scales_L, exits=self.exits)
        *at_exits, hidden_BTD = states.unbind() if self.exits else [states]
        functions: tuple[Callable[..., Tensor], ...] = masked_loss_sum, boundary_loss_sum
        masked, boundary = (compiled_once(loss_sum) if self.compiled else loss_sum for loss_sum in functions)
        words = model.embeddings.word.weight
        targets = {"positions_M": batch.positions, "target_ids_M": batch.target_ids}
        if self.sampled_softmax and len(batch.target_ids) >= self.sampled_softmax:
            what = f"must exceed the {len(batch.target_ids):,} targets of a micro-batch, not {self.sampled_softmax:,}"
            raise UsageError(what, where="objective.sampled_softmax", hint="raise it, or lower train.micro_batch_size")
        extent = {"vocab_multiple": self.vocab_multiple, "num_entries": self.sampled_softmax}

        def of_tokens(hidden_BTD: Tensor) -> list[Tensor]:
            total = masked(model.mlm_head, hidden_BTD, words, **targets, **extent)
            return [total if name == token_loss(batch) else torch.zeros_like(total) for name in self.token_losses]

        sums = of_tokens(hidden_BTD)
        if self.next_sentence:
            assert model.nsp_head is not None
            assert batch.next_sentence_labels is not None
            sums.append(functional.cross_entropy(model.nsp_head(hidden_BTD).float(), batch.next_sentence_labels, reduction="sum"))
        if self.span_boundary:
            assert model.sbo_head is not None
            sums.append(boundary(model.sbo_head, hidden_BTD, words, **targets, vocab_multiple=self.vocab_multiple))
        sums += [self.exit_weight * total for hidden in at_exits for total in of_tokens(hidden)]
        return torch.stack(sums)


def token_loss(batch: Batch) -> str:
    """Name the loss that a batch has."""
    return "clm" if batch.causal else "mlm"


@dataclass(frozen=True)
class TaskLoss:
    """Fine-tuning: cross-entropy of labels, of each label by itself where there are several, or squared error of numbers."""

    kind: TaskKind

    @property
    def names(self) -> tuple[str, ...]:
        """Name the loss after the kind of task."""
        return (self.kind,)

    def num_targets(self, batch: TaskBatch) -> list[int]:
        """Count the labels that are not ignored; a span is one."""
        assert batch.labels is not None
        if batch.labels.is_floating_point():
            return [int(batch.labels.isfinite().sum())]
        return [int((batch.labels[:, 0] if self.kind == "spans" else batch.labels).ge(0).sum())]

    def loss_sums(self, model: StBert, batch: TaskBatch, gates: Sequence[bool] | None, residual_scales_L: Tensor | None) -> Tensor:
        """Run the model and sum the loss over its targets."""
        assert model.task_head is not None
        assert batch.labels is not None
        outputs = model.task_head(encode(model, batch, gates, residual_scales_L), batch.attention_mask).float()
        if self.kind == "multi-label":
            is_known = batch.labels.isfinite()
            losses = functional.binary_cross_entropy_with_logits(outputs, torch.where(is_known, batch.labels, 0.0), reduction="none")
            return torch.where(is_known, losses, 0.0).sum()[None]
        if self.kind == "regression":
            errors_B = outputs[:, 0] - batch.labels
            # A missing number is NaN: masked before it is squared, since a gradient of NaN times 0 is NaN.
            return torch.where(batch.labels.isfinite(), errors_B, 0.0).square().sum()[None]
        if self.kind == "spans":  # start and end are two classifications among the sequence's tokens; their mean is the loss
            hidden = outputs if batch.attention_mask is None else outputs.masked_fill(~batch.attention_mask[..., None], -1e9)
            return functional.cross_entropy(hidden, batch.labels, reduction="sum")[None] / 2
        return functional.cross_entropy(outputs.flatten(0, -2), batch.labels.flatten(), reduction="sum")[None]


def masked_loss_sum(
    head: MaskedLmHead,
    hidden_BTD: Tensor,
    word_embeddings_VD: Tensor,
    *,
    positions_M: Tensor,
    target_ids_M: Tensor,
    vocab_multiple: int,
    num_entries: int | None = None,
) -> Tensor:
    """Sum the cross-entropy over masked positions: over the vocabulary, or an estimate of it over `num_entries` that are drawn."""
    # Masked positions are selected before the head: logits of every token would take most of the memory and be thrown away.
    hidden_MD = hidden_BTD.flatten(0, 1).index_select(0, positions_M)
    if num_entries is None or num_entries >= len(word_embeddings_VD):
        logits = head(hidden_MD, word_embeddings_VD, vocab_multiple)
    else:
        entries_E, stand_for_E, target_ids_M = draw_entries(target_ids_M, head.log_frequencies(word_embeddings_VD), num_entries)
        logits = head.of_entries(hidden_MD, word_embeddings_VD, entries_E) + stand_for_E.log()
    return functional.cross_entropy(logits.float(), target_ids_M, ignore_index=NO_TARGET, reduction="sum")


def boundary_loss_sum(
    head: SpanBoundaryHead,
    hidden_BTD: Tensor,
    word_embeddings_VD: Tensor,
    *,
    positions_M: Tensor,
    target_ids_M: Tensor,
    vocab_multiple: int,
) -> Tensor:
    """Sum the cross-entropy of masked positions as their spans' boundaries predict them.

    A span is a run of masked positions. Rows begin and end with tokens that are never masked, so that there are such on both sides.
    """
    places_M = torch.arange(len(positions_M), device=positions_M.device)
    starts_M = functional.pad(positions_M.diff() != 1, (1, 0), value=True)
    ends_M = functional.pad(starts_M[1:], (0, 1), value=True)
    first_M = torch.where(starts_M, places_M, 0).cummax(0).values
    last_M = torch.where(ends_M, places_M, len(positions_M)).flip(0).cummin(0).values.flip(0)
    # Where targets are padded, position 0 is masked without anything around it: these are left out of the loss as anywhere.
    around = (positions_M[first_M] - 1).clamp(min=0), positions_M[last_M] + 1
    left_MD, right_MD = (hidden_BTD.flatten(0, 1).index_select(0, token_M) for token_M in around)
    logits_MV = head(left_MD, right_MD, places_M - first_M, word_embeddings_VD, vocab_multiple)
    return functional.cross_entropy(logits_MV.float(), target_ids_M, ignore_index=NO_TARGET, reduction="sum")


@cache
def compiled_once(loss_sum: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile a head and its loss together, once."""
    # Fused with the loss, the float32 copy of the logits is never in memory.
    return torch.compile(loss_sum)


def encode(
    model: StBert,
    batch: Inputs,
    gates: Sequence[bool] | None = None,
    residual_scales_L: Tensor | None = None,
    *,
    exits: Sequence[int] = (),
) -> Tensor:
    """Run the encoder on a batch, [B, T, D], or with exits [E + 1, B, T, D]."""
    return model(  # type: ignore[no-any-return]
        batch.input_ids,
        token_type_ids_BT=batch.token_type_ids,
        attention_mask_BT=batch.attention_mask,
        **_attention(batch),
        gates=gates,
        residual_scales_L=residual_scales_L,
        exits=exits,
    )


def _attention(batch: Inputs) -> dict[str, Any]:
    if not isinstance(batch, Batch):
        return {}
    documents = {"segments_BT": batch.segments, "position_ids_BT": batch.position_ids, "boundaries_N": batch.boundaries}
    return documents | {"causal": batch.causal, "prefix_lengths_B": batch.prefix_lengths}


def masked_logits(model: StBert, hidden_BTD: Tensor, batch: Batch) -> Tensor:
    """Score the vocabulary at the masked positions only, [M, V]."""
    return model.mlm_logits(hidden_BTD.flatten(0, 1).index_select(0, batch.positions))
