"""What knowing how frequent tokens are is worth: the mark that a model must get below before its loss says anything."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pldcli.data.loader import NO_TARGET, Batch, Stream
from pldcli.data.masking import KEPT_SHARE, RANDOM_SHARE
from pldcli.data.shards import PreparedData
from pldcli.data.tokenizer import SpecialTokens

__all__ = ["frequencies_alone", "frequency_loss", "token_shares"]

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
