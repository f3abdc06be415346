"""Measure a model on fixed masks, with all of its blocks or some."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from pldcli.data.loader import Batch, SpanSamples, Stream, validation_batches
from pldcli.data.masking import Masking
from pldcli.data.shards import PreparedData
from pldcli.data.tokenizer import SpecialTokens
from pldcli.engine.objectives import Inputs, encode, masked_logits
from pldcli.engine.precision import Precision
from pldcli.engine.runtime import Runtime
from pldcli.model import StBert

__all__ = ["MaskedLmScore", "count_attended", "count_tokens", "fixed_batches", "score_masked_lm", "stream_batches"]

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

    @property
    def values(self) -> dict[str, float]:
        """Name what says how good the model is, the headline first."""
        return {"mlm_loss": self.mlm_loss, "perplexity": self.perplexity, "mlm_accuracy": self.mlm_accuracy}


def fixed_batches(
    prepared: PreparedData, seq_len: int, *, max_sequences: int | None = None, batch_size: int = _BATCH_SIZE
) -> Iterator[Batch]:
    """Cut the validation split into rows under masks that depend on nothing but the data and the length."""
    stream = prepared.stream("validation")
    return stream_batches(
        stream, prepared.special, seq_len, vocab_size=prepared.vocab_size, max_sequences=max_sequences, batch_size=batch_size
    )


def stream_batches(
    stream: Stream,
    special: SpecialTokens,
    seq_len: int,
    *,
    vocab_size: int,
    max_sequences: int | None = None,
    batch_size: int = _BATCH_SIZE,
) -> Iterator[Batch]:
    """Cut any stream of tokens into rows, in order, under the masks of `fixed_batches`.

    Args:
        stream: The tokens.
        special: Ids of the special tokens.
        seq_len: Tokens per row with [CLS] and [SEP].
        vocab_size: Of the tokenizer; random replacements are drawn from it.
        max_sequences: Stop after so many rows.
        batch_size: Rows of a batch; the rows and their masks do not depend on it.
    """
    samples = SpanSamples(stream, special, seq_len, seed=_SEED, shuffle=False)
    masking = Masking.of(_MASK_PROBABILITY, special, vocab_size)
    return validation_batches(samples, masking, batch_size=batch_size, max_sequences=max_sequences)


@torch.no_grad()
def score_masked_lm(
    model: StBert, batches: Iterable[Batch], precision: Precision, runtime: Runtime, gates: Sequence[bool] | None = None
) -> MaskedLmScore:
    """Score a model; processes share the batches. Nothing is scaled.

    Args:
        model: Its training mode is restored afterwards.
        batches: The same on every process.
        precision: Number format of the forward passes.
        runtime: Device and processes.
        gates: Which blocks run; None for all.
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
            logits_MV = masked_logits(model, encode(model, batch, gates), batch).float()
        totals[0] += functional.cross_entropy(logits_MV, batch.target_ids, reduction="sum")
        totals[1] += (logits_MV.argmax(-1) == batch.target_ids).sum()
        num_targets += len(host_batch.target_ids)
        num_tokens += count_tokens(host_batch)
    runtime.synchronize()
    seconds = time.perf_counter() - started
    model.train(was_training)
    loss, hits, targets, tokens = runtime.sum_on_host([*totals.tolist(), num_targets, num_tokens])
    return MaskedLmScore(loss / max(1, targets), hits / max(1, targets), int(targets), int(tokens), seconds)


def count_tokens(batch: Inputs) -> int:
    """Count the tokens of a batch, padding not counted."""
    return batch.input_ids.numel() if batch.attention_mask is None else int(batch.attention_mask.sum())


def count_attended(batch: Inputs, attended_tokens: float) -> float:
    """Add up over the tokens of a batch on the host, padding not counted, how many tokens each attends to.

    Args:
        batch: A packed document's tokens attend to its own.
        attended_tokens: What every token attends to where rows are not packed.
    """
    if not isinstance(batch, Batch) or batch.boundaries is None:
        return count_tokens(batch) * attended_tokens
    assert batch.segments is not None
    lengths, last = batch.boundaries.diff().long(), batch.segments.numel() - 1
    documents = batch.segments.flatten()[batch.boundaries[:-1].clamp(max=last)] > 0  # the others are padding
    return float((lengths.square() * documents).sum())
