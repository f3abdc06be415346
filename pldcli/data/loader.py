"""Cut sequences from the token stream, mask them, and make tensors of them.

A sample is a function of (seed, epoch, index in the epoch), and of nothing else.

Shapes: B batch, T tokens, M masked positions of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pldcli.data.masking import Masking
from pldcli.data.next_token import NextTokens
from pldcli.data.order import UInt64s, hashes, key, permute_near
from pldcli.data.stream import TokenStream, document_pieces, ranges
from pldcli.errors import DataError
from pldcli.tokenization.tokenizer import SpecialTokens

__all__ = [
    "NO_TARGET",
    "Batch",
    "Inputs",
    "PairSamples",
    "Rows",
    "Samples",
    "SpanSamples",
    "count_tokens",
    "drawn",
    "moved_to",
    "pinned",
    "to_batch",
    "validation_batches",
]

NO_TARGET = -100
"""In `target_ids`: what torch's cross-entropy leaves out."""

BatchT = TypeVar("BatchT")


class Inputs(Protocol):
    """What the encoder reads of a batch."""

    @property
    def input_ids(self) -> Tensor:
        """Token ids, [B, T]."""
        ...

    @property
    def token_type_ids(self) -> Tensor | None:
        """Segment of each token, [B, T]; None for all 0."""
        ...

    @property
    def attention_mask(self) -> Tensor | None:
        """True at real tokens, [B, T]; None when there is no padding."""
        ...

    def to(self, device: torch.device) -> Any:
        """Copy to a device."""
        ...


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one forward pass reads, as tensors."""

    input_ids: Tensor
    """[B, T], after masking."""
    token_type_ids: Tensor | None = None
    """[B, T]; None when every token has type 0."""
    attention_mask: Tensor | None = None
    """[B, T], True at real tokens; None when there is no padding."""
    positions: Tensor
    """[M], targets as indices into the flattened [B x T]."""
    target_ids: Tensor
    """[M], what stood there; NO_TARGET where targets were padded to a fixed number."""
    next_sentence_labels: Tensor | None = None
    """[B], 0 where the second segment continues the first."""
    segments: Tensor | None = None
    """[B, T], which document of its row a token belongs to, 0 for padding; None where a row is one text."""
    position_ids: Tensor | None = None
    """[B, T], places within the documents; None for places within the row."""
    boundaries: Tensor | None = None
    """[N + 1] int32, where each document, and padding, begins in the flattened [B x T], and its end; padded with the end to a fixed number,
    so that its shape is static too."""
    causal: bool = False
    """Tokens see what stands before them, and the target of a position is the token behind it."""
    prefix_lengths: Tensor | None = None
    """[B], with `causal`: tokens at the start of each row that all see each other; None for none."""

    def to(self, device: torch.device) -> Batch:
        """Copy to a device; asynchronously from pinned memory."""
        return moved_to(self, device)


def count_tokens(batch: Inputs) -> int:
    """Count the tokens of a batch, padding not counted."""
    return batch.input_ids.numel() if batch.attention_mask is None else int(batch.attention_mask.sum())


def moved_to(batch: BatchT, device: torch.device) -> BatchT:
    """Copy a dataclass of tensors to a device; asynchronously from pinned memory."""
    if device.type == "cpu":
        return batch
    # Without waiting: the copy runs beside the kernels of the step before, and what uses a tensor is queued behind its copy.
    return _each(batch, lambda tensor: tensor.to(device, non_blocking=True))


def pinned(groups: list[list[BatchT]]) -> list[list[BatchT]]:
    """Copy the batches of a step into pinned memory."""
    # From pageable memory the driver copies through a buffer of its own, and a copy is not asynchronous whatever is asked for.
    return [[_each(batch, Tensor.pin_memory) for batch in micro_batches] for micro_batches in groups]


def _each(batch: BatchT, change: Callable[[Tensor], Tensor]) -> BatchT:
    values: dict[str, Any] = vars(batch)
    return type(batch)(**{name: change(value) if isinstance(value, Tensor) else value for name, value in values.items()})


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Sequences before masking, as arrays; the fields of `Batch` that masking leaves alone mean the same here."""

    input_ids: npt.NDArray[np.int64]
    keys: UInt64s
    """[B], one key per sample for everything drawn later."""
    token_type_ids: npt.NDArray[np.int64] | None = None
    attention_mask: npt.NDArray[np.bool_] | None = None
    next_sentence_labels: npt.NDArray[np.int64] | None = None
    segments: npt.NDArray[np.int64] | None = None
    position_ids: npt.NDArray[np.int64] | None = None
    boundaries: npt.NDArray[np.int32] | None = None


class Samples(Protocol):
    """Sequences addressed by a running index over epochs."""

    @property
    def num_sequences(self) -> int:
        """Sequences of one epoch."""
        ...

    @property
    def efficiency(self) -> float:
        """The share of an epoch's tokens that is not padding."""
        ...

    @property
    def attended_tokens(self) -> float:
        """How many tokens a token attends to, on average over an epoch: its sequence's, padding included, or its document's."""
        ...

    def rows(self, indices: npt.NDArray[np.int64]) -> Rows:
        """Build the sequences with these running indices."""
        ...


def drawn(indices: npt.NDArray[np.int64], num_sequences: int, seed: int) -> tuple[UInt64s, npt.NDArray[np.int64]]:
    """Return the key of each sample with these running indices, [B], and its place in the order of its epoch, [B].

    Both depend on (seed, epoch, index in the epoch) and on nothing else, such as what was drawn before: a run resumes at any index, and
    any number of processes and threads sees the same samples.
    """
    epochs, within = np.divmod(indices, num_sequences)
    keys, places = np.empty(len(indices), np.uint64), np.empty(len(indices), np.int64)
    for epoch in np.unique(epochs).tolist():
        chosen = epochs == epoch
        keys[chosen] = hashes(key(seed, "sample", epoch), within[chosen])
        places[chosen] = permute_near(within[chosen], num_sequences, key(seed, "order", epoch))
    return keys, places


class SpanSamples:
    """Full rows: [CLS], a contiguous span of the stream, [SEP].

    Each epoch cuts the stream, closed to a ring, at another offset. In order and from the start when not shuffled; then
    the last row may be short and padded.

    Args:
        stream: The tokens of one split.
        special: Ids of the special tokens.
        seq_len: Tokens per row with [CLS] and [SEP].
        seed: Seed of order, cuts and masks.
        shuffle: Off for validation.

    Raises:
        DataError: The stream is shorter than one row.
    """

    def __init__(self, stream: TokenStream, special: SpecialTokens, seq_len: int, *, seed: int, shuffle: bool = True) -> None:
        self._stream, self._special, self._seed, self._shuffle = stream, special, seed, shuffle
        self._span, self.attended_tokens = seq_len - 2, float(seq_len)
        if shuffle and stream.num_tokens < self._span:
            raise DataError(
                f"the training text has {stream.num_tokens} tokens, fewer than one sequence of {seq_len}",
                hint="add text, or lower data.seq_len",
            )
        self.num_sequences = stream.num_tokens // self._span if shuffle else -(-stream.num_tokens // self._span)
        self.efficiency = 1.0 if shuffle else (stream.num_tokens + 2 * self.num_sequences) / max(1, self.num_sequences * seq_len)

    def rows(self, indices: npt.NDArray[np.int64]) -> Rows:
        """Build the sequences with these running indices."""
        keys, places = drawn(indices, self.num_sequences, self._seed)
        ids = np.full((len(indices), self._span + 2), self._special.pad_id, np.int64)
        ids[:, 0] = self._special.cls_id
        if self._shuffle:
            ids[:, 1:-1] = self._ring(places, indices // self.num_sequences)
            ids[:, -1] = self._special.sep_id
            return Rows(input_ids=ids, keys=keys)
        positions = (indices % self.num_sequences)[:, None] * self._span + np.arange(self._span)
        real = positions < self._stream.num_tokens
        ids[:, 1:-1][real] = self._stream.gather(positions[real])
        lengths = real.sum(1)
        ids[np.arange(len(indices)), lengths + 1] = self._special.sep_id
        mask = np.arange(self._span + 2) < lengths[:, None] + 2
        return Rows(input_ids=ids, keys=keys, attention_mask=None if mask.all() else mask)

    def _ring(self, places: npt.NDArray[np.int64], epochs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Cut spans from the stream closed to a ring, [B, span].

        Every epoch has the same number of sequences, and the tokens behind the last whole span are not lost for good: the next epoch
        begins to cut elsewhere.
        """
        total = self._stream.num_tokens
        different, which = np.unique(epochs, return_inverse=True)
        starts = (places * self._span + np.array([self._offset(epoch) for epoch in different.tolist()])[which]) % total
        inside = starts + self._span <= total
        spans = np.empty((len(starts), self._span), np.int64)
        spans[inside] = self._stream.take(starts[inside], self._span)
        spans[~inside] = self._stream.gather((starts[~inside, None] + np.arange(self._span)) % total)
        return spans

    def _offset(self, epoch: int) -> int:
        return int(hashes(key(self._seed, "offset", epoch), np.zeros(1, np.int64))[0] % np.uint64(self._stream.num_tokens)) if epoch else 0


class PairSamples:
    """BERT's pairs: [CLS] A [SEP] B [SEP], where B continues A half of the time and comes from another document otherwise.

    Documents are cut into chunks of seq_len - 3 tokens; a chunk is cut at a random place into A and B.

    Args:
        stream: The tokens of one split.
        special: Ids of the special tokens.
        seq_len: Tokens per row with [CLS] and two [SEP].
        seed: Seed of order, pairs and masks.

    Raises:
        DataError: No document has two tokens.
    """

    def __init__(self, stream: TokenStream, special: SpecialTokens, seq_len: int, *, seed: int) -> None:
        self._stream, self._special, self._seed, self._seq_len = stream, special, seed, seq_len
        self.attended_tokens = float(seq_len)
        documents, starts, lengths = document_pieces(stream.document_ends, seq_len - 3)
        usable = lengths >= 2
        self._documents, self._starts, self._lengths = documents[usable], starts[usable], lengths[usable]
        self.num_sequences = len(self._starts)
        if self.num_sequences == 0:
            raise DataError("no document has the two tokens that a pair needs", hint="use data.layout=spans")
        self.efficiency = float(np.mean(self._lengths + 3)) / seq_len
        """A little less in fact: where the second text is another's and short."""

    def rows(self, indices: npt.NDArray[np.int64]) -> Rows:
        """Build the sequences with these running indices."""
        keys, chunks = drawn(indices, self.num_sequences, self._seed)
        starts, lengths, labels = self._pairs(chunks, keys)

        shape = (len(indices), self._seq_len)
        ids, types = np.full(shape, self._special.pad_id, np.int64), np.zeros(shape, np.int64)
        begins = np.arange(len(indices)) * self._seq_len
        ends = begins + 1 + lengths[:, 0]  # of the first text, where its [SEP] stands
        ids.reshape(-1)[begins] = self._special.cls_id
        ids.reshape(-1)[ends] = ids.reshape(-1)[ends + 1 + lengths[:, 1]] = self._special.sep_id
        places = ranges(np.stack([begins + 1, ends + 1], 1).ravel(), lengths.ravel())
        ids.reshape(-1)[places] = self._stream.gather(ranges(starts.ravel(), lengths.ravel()))
        types.reshape(-1)[ranges(ends + 1, lengths[:, 1] + 1)] = 1
        mask = np.arange(self._seq_len) < (3 + lengths.sum(1))[:, None]
        return Rows(
            input_ids=ids, keys=keys, token_type_ids=types, attention_mask=None if mask.all() else mask, next_sentence_labels=labels
        )

    def _pairs(
        self, chunks: npt.NDArray[np.int64], keys: UInt64s
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Choose first positions and lengths of both texts, [B, 2] each, and whether the second is another's, [B]."""
        draws = hashes(keys[:, None] ^ np.uint64(4 << 32), np.arange(13))
        start, length = self._starts[chunks], self._lengths[chunks]
        cut = 1 + (draws[:, 0] % (length - 1).astype(np.uint64)).astype(np.int64)
        others = (draws[:, 3:] % np.uint64(self.num_sequences)).astype(np.int64)
        foreign = self._documents[others] != self._documents[chunks][:, None]
        other = np.take_along_axis(others, foreign.argmax(1)[:, None], 1)[:, 0]
        random = (draws[:, 1] >> np.uint64(63)).astype(bool) & foreign.any(1)
        # As long as the true continuation, from a random place: neither length nor a fresh start gives it away.
        size = np.minimum(self._lengths[other], length - cut)
        begin = self._starts[other] + (draws[:, 2] % (self._lengths[other] - size + 1).astype(np.uint64)).astype(np.int64)
        second = np.where(random, begin, start + cut)
        return np.stack([start, second], 1), np.stack([cut, np.where(random, size, length - cut)], 1), random.astype(np.int64)


def to_batch(rows: Rows, targets: Masking | NextTokens, *, step: int = 0, fixed_targets: bool = False) -> Batch:
    """Choose the targets of rows, mask them where that is what they are, and make tensors of all.

    Args:
        rows: The rows.
        targets: Chooses targets.
        step: Of the run, where the share of masked targets moves.
        fixed_targets: Pad to a fixed number of targets with `NO_TARGET`. How many tokens of a row are masked depends on its special
            tokens and padding; a number that depends on the shape [B, T] and the share alone keeps shapes static, so that compiled graphs
            are not compiled again and memory stays what it was in the first step. Where the share moves, the number moves with it: padded
            to the largest, a fall from 30 to 15 % would run the head for a third more positions than have targets. Head and loss are then
            compiled once more, for any number.
    """
    input_ids, prefix_lengths, num_tokens = rows.input_ids, None, rows.input_ids.shape[1]
    if isinstance(targets, Masking):
        masked, most = targets(rows.input_ids, rows.keys, step), targets.most_targets(num_tokens, step)
        input_ids, positions, target_ids = masked.input_ids, masked.positions, masked.target_ids
    else:
        shifted = targets(rows.input_ids, rows.keys, attention_mask=rows.attention_mask, segments=rows.segments)
        positions, target_ids, prefix_lengths = shifted.positions, shifted.target_ids, shifted.prefix_lengths
        most = targets.most_targets(num_tokens)
    if fixed_targets:
        missing = len(rows.input_ids) * most - len(positions)
        # Position 0 stands for the missing ones: its logits are computed and left out of the loss and its mean, as any NO_TARGET.
        positions, target_ids = np.pad(positions, (0, missing)), np.pad(target_ids, (0, missing), constant_values=NO_TARGET)

    def tensor(array: npt.NDArray[Any] | None) -> Tensor | None:
        return None if array is None else torch.from_numpy(array)

    return Batch(
        input_ids=torch.from_numpy(input_ids),
        token_type_ids=tensor(rows.token_type_ids),
        attention_mask=tensor(rows.attention_mask),
        positions=torch.from_numpy(positions),
        target_ids=torch.from_numpy(target_ids),
        next_sentence_labels=tensor(rows.next_sentence_labels),
        segments=tensor(rows.segments),
        position_ids=tensor(rows.position_ids),
        boundaries=tensor(rows.boundaries),
        causal=isinstance(targets, NextTokens),
        prefix_lengths=tensor(prefix_lengths),
    )


def validation_batches(
    samples: Samples, targets: Masking | NextTokens, *, batch_size: int, max_sequences: int | None = None
) -> Iterator[Batch]:
    """Yield the validation split in order, under masks that never change: losses of any two evaluations compare target by target."""
    total = samples.num_sequences if max_sequences is None else min(max_sequences, samples.num_sequences)
    for start in range(0, total, batch_size):
        yield to_batch(samples.rows(np.arange(start, min(start + batch_size, total))), targets)
