"""Measure a model on fixed masks, with all of its blocks or some."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pldcli.data.loader import NO_TARGET, Batch, SpanSamples, Stream, validation_batches
from pldcli.data.masking import KEPT_SHARE, RANDOM_SHARE, Masking
from pldcli.data.shards import PreparedData
from pldcli.data.tokenizer import SpecialTokens
from pldcli.engine.objectives import Inputs, encode, masked_logits
from pldcli.engine.precision import Precision
from pldcli.engine.runtime import Runtime
from pldcli.model import StBert

__all__ = [
    "MaskedLmScore",
    "count_attended",
    "count_tokens",
    "fixed_batches",
    "frequencies_alone",
    "frequency_loss",
    "score_masked_lm",
    "stream_batches",
    "token_shares",
]

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


_MOST_TOKENS, _NUM_CHUNKS = 5_000_000, 64


def frequencies_alone(prepared: PreparedData, batches: Iterable[Batch]) -> float:
    """Score what the training text's token frequencies are worth on batches of the validation text, in nats per target."""
    return frequency_loss(token_shares(prepared.stream("train"), prepared.vocab_size, prepared.special), batches, prepared.special)


def token_shares(stream: Stream, vocab_size: int, special: SpecialTokens) -> npt.NDArray[np.float64]:
    """Estimate how frequent each token is, special ones left out, from five million tokens in evenly spaced pieces.

    Args:
        stream: The training text.
        vocab_size: Of the tokenizer.
        special: Tokens that are never targets.

    Returns:
        Shares with a half added to each count, so that a token never met has one too; [V], 0 for special tokens.
    """
    size = -(-min(_MOST_TOKENS, stream.num_tokens) // _NUM_CHUNKS)
    counts = np.zeros(vocab_size)
    for start in np.linspace(0, stream.num_tokens - size, _NUM_CHUNKS).astype(np.int64).tolist():
        counts += np.bincount(stream.slice(start, start + size), minlength=vocab_size)[:vocab_size]
    counts += 0.5
    counts[list(special.ids)] = 0.0
    shares: npt.NDArray[np.float64] = counts / counts.sum()
    return shares


def frequency_loss(shares_V: npt.NDArray[np.float64], batches: Iterable[Batch], special: SpecialTokens) -> float:
    """Score the best model that reads nothing but the place that it fills: nats per target.

    It answers [MASK] with the frequencies of tokens. Of another token it knows how often a target that shows it was left as it is
    (Devlin et al. 2019, section 3.1), and answers with the frequencies otherwise.

    Args:
        shares_V: Of the training text, [V].
        batches: What models are scored on.
        special: Tells [MASK].
    """
    drawn = RANDOM_SHARE / np.count_nonzero(shares_V)
    left_V = KEPT_SHARE * shares_V / (KEPT_SHARE * shares_V + drawn)  # the probability that a token shown is the target
    left_V[special.mask_id] = 0.0
    loss, num_targets = 0.0, 0
    for batch in batches:
        is_target = batch.target_ids.numpy() != NO_TARGET
        targets = batch.target_ids.numpy()[is_target]
        shown = batch.input_ids.numpy().reshape(-1)[batch.positions.numpy()[is_target]]
        left = left_V[shown]
        loss -= float(np.log(left * (shown == targets) + (1.0 - left) * shares_V[targets]).sum())
        num_targets += len(targets)
    return loss / max(1, num_targets)
