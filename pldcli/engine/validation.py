"""Validation: the loss on fixed masks or of next tokens, at full depth or with some blocks, and the unigram baseline beside it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from pldcli.data.loader import NO_TARGET, Batch, Inputs, SpanSamples, count_tokens, validation_batches
from pldcli.data.masking import KEPT_SHARE, RANDOM_SHARE, Masking
from pldcli.data.next_token import NextTokens
from pldcli.data.prepared import PreparedData
from pldcli.data.stream import TokenStream
from pldcli.engine.objectives import encode, token_loss
from pldcli.engine.precision import Precision
from pldcli.engine.runtime import Runtime
from pldcli.model import StBert
from pldcli.sharding import reshard
from pldcli.tokenization.tokenizer import SpecialTokens

__all__ = [
    "LmScore",
    "count_attended",
    "fixed_batches",
    "score_lm",
    "stream_batches",
    "token_shares",
    "unigram_baseline",
    "unigram_loss",
]

_SEED, _MASK_PROBABILITY, _BATCH_SIZE = 20201, 0.15, 32
"""The same for every model and run, so that the same model gets the same number."""


_LOGITS_AT_ONCE = 4096
"""Targets whose logits are in memory together: a causal model has one at every token."""


@dataclass(frozen=True)
class LmScore:
    """Quality of a language model over a set of targets."""

    loss: float
    """Nats per target."""
    accuracy: float
    num_targets: int
    num_tokens: int
    """Tokens read, padding not counted."""
    seconds: float
    kind: str = "mlm"
    """What the targets are: masked tokens (`mlm`) or next ones (`clm`)."""

    @property
    def perplexity(self) -> float:
        """Exponential of the loss; capped, so that it is finite."""
        return math.exp(min(self.loss, 700.0))

    @property
    def tokens_per_second(self) -> float:
        """Speed of the forward passes; 0 where no time was measured."""
        return self.num_tokens / self.seconds if self.seconds else 0.0

    @property
    def values(self) -> dict[str, float]:
        """Quality by name, the headline first."""
        return {f"{self.kind}_loss": self.loss, "perplexity": self.perplexity, f"{self.kind}_accuracy": self.accuracy}


def fixed_batches(
    prepared: PreparedData, seq_len: int, *, causal: bool = False, max_sequences: int | None = None, batch_size: int = _BATCH_SIZE
) -> Iterator[Batch]:
    """Cut the validation split into sequences whose masks depend on the data and the length alone; for a causal model without masks."""
    stream = prepared.stream("validation")
    return stream_batches(
        stream,
        prepared.special,
        seq_len,
        vocab_size=prepared.vocab_size,
        causal=causal,
        max_sequences=max_sequences,
        batch_size=batch_size,
    )


def stream_batches(
    stream: TokenStream,
    special: SpecialTokens,
    seq_len: int,
    *,
    vocab_size: int,
    causal: bool = False,
    max_sequences: int | None = None,
    batch_size: int = _BATCH_SIZE,
) -> Iterator[Batch]:
    """Cut any token stream into sequences, in order, with the targets of `fixed_batches`.

    Args:
        stream: The tokens.
        special: Ids of the special tokens.
        seq_len: Tokens per sequence with [CLS] and [SEP].
        vocab_size: Of the tokenizer; random replacements are drawn from it.
        causal: The targets are next tokens.
        max_sequences: Stop after so many sequences.
        batch_size: Sequences per batch; they and their masks do not depend on it.
    """
    samples = SpanSamples(stream, special, seq_len, seed=_SEED, shuffle=False)
    targets = NextTokens(special) if causal else Masking.of(_MASK_PROBABILITY, special, vocab_size)
    return validation_batches(samples, targets, batch_size=batch_size, max_sequences=max_sequences)


@torch.no_grad()
def score_lm(
    model: StBert,
    batches: Iterable[Batch],
    precision: Precision,
    runtime: Runtime,
    gates: Sequence[bool] | None = None,
    *,
    check: Callable[[], None] = lambda: None,
) -> LmScore:
    """Score a model, without residual scales; processes share the batches.

    Args:
        model: Its training mode is restored afterwards, also where `check` ends this.
        batches: The same on every process.
        precision: Number format of the forward passes.
        runtime: Device and processes.
        gates: Which blocks run; None for all.
        check: Called before each batch, equally often on every process; what it raises ends the scoring.
    """
    was_training = model.training
    model.eval()
    totals = torch.zeros(2, dtype=torch.float64, device=runtime.device)
    num_targets = num_tokens = 0
    kind = "mlm"
    runtime.synchronize()
    started = time.perf_counter()
    try:
        for host_batch, is_ours in _shared_out(batches, runtime, check):
            kind = token_loss(host_batch)
            batch = host_batch.to(runtime.device)
            with precision.autocast():
                hidden_ND = encode(model, batch, gates).flatten(0, 1)
            if not is_ours:
                continue
            for start in range(0, len(batch.target_ids), _LOGITS_AT_ONCE):
                chosen = slice(start, start + _LOGITS_AT_ONCE)
                with precision.autocast():
                    logits_MV = model.mlm_logits(hidden_ND.index_select(0, batch.positions[chosen])).float()
                totals[0] += functional.cross_entropy(logits_MV, batch.target_ids[chosen], reduction="sum")
                totals[1] += (logits_MV.argmax(-1) == batch.target_ids[chosen]).sum()
            num_targets += len(host_batch.target_ids)
            num_tokens += count_tokens(host_batch)
    finally:
        reshard(model)
        model.train(was_training)
    runtime.synchronize()
    seconds = time.perf_counter() - started
    loss, hits, targets, tokens = runtime.sum_on_host([*totals.tolist(), num_targets, num_tokens])
    return LmScore(loss / max(1, targets), hits / max(1, targets), int(targets), int(tokens), seconds, kind)


def _shared_out(batches: Iterable[Batch], runtime: Runtime, check: Callable[[], None]) -> Iterator[tuple[Batch, bool]]:
    """Deal batches out to the processes; yield those of this one, and whether they count.

    Processes that hold shards run every forward pass together: one for which none is left runs one of another process once more.
    """
    dealt = iter(batches)
    while round_ := list(islice(dealt, runtime.world_size)):
        check()
        if runtime.rank < len(round_):
            yield round_[runtime.rank], True
        elif runtime.num_shards > 1:
            yield round_[0], False


def count_attended(batch: Inputs, attended_tokens: float) -> float:
    """Sum over the tokens of a batch, padding not counted, the number of tokens that each attends to.

    Args:
        batch: On the host; tokens of a packed document attend to those of the document.
        attended_tokens: What every token of a task's rows attends to, which are padded to the longest of their batch.
    """
    num_tokens = count_tokens(batch)
    if not isinstance(batch, Batch):
        return num_tokens * attended_tokens
    attended = float(num_tokens * batch.input_ids.shape[1])
    if batch.boundaries is not None:
        assert batch.segments is not None
        lengths, last = batch.boundaries.diff().long(), batch.segments.numel() - 1
        documents = batch.segments.flatten()[batch.boundaries[:-1].clamp(max=last)] > 0  # the others are padding
        attended = float((lengths.square() * documents).sum())
    if not batch.causal:
        return attended
    among_prefixes = 0 if batch.prefix_lengths is None else int((batch.prefix_lengths * (batch.prefix_lengths - 1)).sum())
    return (attended + num_tokens + among_prefixes) / 2  # each token to itself, and of each pair one to the other, or both in a prefix


_MOST_TOKENS, _NUM_CHUNKS = 5_000_000, 64


def unigram_baseline(prepared: PreparedData, batches: Iterable[Batch], *, causal: bool = False) -> float:
    """Return the loss of the training text's token frequencies on batches of the validation text, in nats per target."""
    shares_V = token_shares(prepared.stream("train"), prepared.vocab_size, prepared.special, causal=causal)
    return unigram_loss(shares_V, batches, prepared.special)


def token_shares(stream: TokenStream, vocab_size: int, special: SpecialTokens, *, causal: bool = False) -> npt.NDArray[np.float64]:
    """Estimate token frequencies, special tokens left out, from five million tokens in evenly spaced pieces.

    Args:
        stream: The training text.
        vocab_size: Of the tokenizer.
        special: Tokens that are never targets.
        causal: For next tokens, of which the separator is one.

    Returns:
        Shares that sum to 1, [V], with a half added to each count so that unseen tokens have one too; 0 for what is never a target.
    """
    size = -(-min(_MOST_TOKENS, stream.num_tokens) // _NUM_CHUNKS)
    counts = np.zeros(vocab_size)
    for start in np.linspace(0, stream.num_tokens - size, _NUM_CHUNKS).astype(np.int64).tolist():
        counts += np.bincount(stream.slice(start, start + size), minlength=vocab_size)[:vocab_size]
    counts += 0.5
    counts[NextTokens(special).never_ids if causal else list(special.ids)] = 0.0
    shares: npt.NDArray[np.float64] = counts / counts.sum()
    return shares


def unigram_loss(shares_V: npt.NDArray[np.float64], batches: Iterable[Batch], special: SpecialTokens) -> float:
    """Return the loss of the best model without context, which reads only the position itself: nats per target.

    It predicts the token frequencies behind any token, and at [MASK]. At another token it takes into account how often a masked target is
    left as it is (Devlin et al. 2019, section 3.1), and predicts the frequencies otherwise.

    Args:
        shares_V: Token frequencies of the training text, [V].
        batches: What models are scored on.
        special: Ids of the special tokens.
    """
    drawn = RANDOM_SHARE / np.count_nonzero(shares_V)
    left_V = KEPT_SHARE * shares_V / (KEPT_SHARE * shares_V + drawn)  # the probability that a token shown is the target
    left_V[special.mask_id] = 0.0
    loss, num_targets = 0.0, 0
    for batch in batches:
        is_target = batch.target_ids.numpy() != NO_TARGET
        targets = batch.target_ids.numpy()[is_target]
        shown = batch.input_ids.numpy().reshape(-1)[batch.positions.numpy()[is_target]]
        left = 0.0 if batch.causal else left_V[shown]
        loss -= float(np.log(left * (shown == targets) + (1.0 - left) * shares_V[targets]).sum())
        num_targets += len(targets)
    return loss / max(1, num_targets)
