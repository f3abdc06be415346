"""Measure a model at full depth on fixed masks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from pldcli.data.loader import Batch, SpanSamples, validation_batches
from pldcli.data.masking import Masking
from pldcli.data.shards import PreparedData
from pldcli.engine.objectives import encode, masked_logits
from pldcli.engine.precision import Precision
from pldcli.engine.runtime import Runtime
from pldcli.model import StBert

__all__ = ["MaskedLmScore", "count_tokens", "fixed_batches", "score_masked_lm"]

_SEED, _MASK_PROBABILITY, _BATCH_SIZE = 20201, 0.15, 32
"""The same for every model and run, so that the same model gets the same number."""


@dataclass(frozen=True)
class MaskedLmScore:
    """Masked-LM quality over a set of targets."""

    mlm_loss: float
    """Nats per target."""
    mlm_accuracy: float
    num_targets: int
    num_tokens: int
    """Tokens read, padding not counted."""
    seconds: float

    @property
    def perplexity(self) -> float:
        """Exponentiate the loss."""
        return math.exp(min(self.mlm_loss, 700.0))

    @property
    def tokens_per_second(self) -> float:
        """Divide."""
        return self.num_tokens / self.seconds if self.seconds else 0.0


def fixed_batches(prepared: PreparedData, seq_len: int, *, max_sequences: int | None = None) -> Iterator[Batch]:
    """Cut the validation split into rows under masks that depend on nothing but the data and the length."""
    special = prepared.special
    samples = SpanSamples(prepared.stream("validation"), special, seq_len, seed=_SEED, shuffle=False)
    masking = Masking(_MASK_PROBABILITY, special.mask_id, special.ids, prepared.vocab_size)
    return validation_batches(samples, masking, batch_size=_BATCH_SIZE, max_sequences=max_sequences)


@torch.no_grad()
def score_masked_lm(model: StBert, batches: Iterable[Batch], precision: Precision, runtime: Runtime) -> MaskedLmScore:
    """Score a model; processes share the batches. Every block runs and nothing is scaled.

    Args:
        model: Its training mode is restored afterwards.
        batches: The same on every process.
        precision: Number format of the forward passes.
        runtime: Device and processes.
    """
    was_training = model.training
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=runtime.device)
    num_targets = num_tokens = 0
    runtime.synchronize()
    started = time.perf_counter()
    for index, host_batch in enumerate(batches):
        if index % runtime.world_size != runtime.rank:
            continue
        batch = host_batch.to(runtime.device)
        with precision.autocast():
            logits_MV = masked_logits(model, encode(model, batch), batch).float()
        totals[0] += functional.cross_entropy(logits_MV, batch.target_ids, reduction="sum")
        totals[1] += (logits_MV.argmax(-1) == batch.target_ids).sum()
        num_targets += len(host_batch.target_ids)
        num_tokens += count_tokens(host_batch)
    runtime.synchronize()
    seconds = time.perf_counter() - started
    model.train(was_training)
    loss, hits, targets, tokens = runtime.sum_on_host([*totals.tolist(), num_targets, num_tokens])
    return MaskedLmScore(loss / max(1, targets), hits / max(1, targets), int(targets), int(tokens), seconds)


def count_tokens(batch: Batch) -> int:
    """Count the tokens of a batch, padding not counted."""
    return batch.input_ids.numel() if batch.attention_mask is None else int(batch.attention_mask.sum())
