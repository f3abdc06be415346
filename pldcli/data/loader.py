"""Cut training sequences from the token stream, mask them, and serve the batches of each step.

A sample is a function of (seed, epoch, index); a step's batches are a function of (step, rank, number of ranks), and the
union over ranks does not depend on their number.

Shapes: B batch, T tokens, M masked positions of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pldcli.data.masking import Masked, Masking
from pldcli.data.order import UInt64s, hashes, key, permute_near
from pldcli.data.shards import TokenStream
from pldcli.data.tokenizer import SpecialTokens
from pldcli.errors import DataError

__all__ = [
    "NO_TARGET",
    "Batch",
    "Inputs",
    "PairSamples",
    "Rows",
    "Samples",
    "SpanSamples",
    "StepBatches",
    "Stream",
    "built_ahead",
    "count_tokens",
    "moved_to",
    "pinned",
    "ranges",
    "to_batch",
    "validation_batches",
]

NO_TARGET = -100
"""In `target_ids`: what torch's cross-entropy leaves out."""

BatchT = TypeVar("BatchT")
StepT = TypeVar("StepT")


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


@dataclass(frozen=True)
class Batch:
    """What one forward pass reads, as tensors."""

    input_ids: Tensor
    """[B, T], after masking."""
    token_type_ids: Tensor | None
    """[B, T]; None when every token has type 0."""
    attention_mask: Tensor | None
    """[B, T], True at real tokens; None when there is no padding."""
    positions: Tensor
    """[M], targets as indices into the flattened [B x T]."""
    target_ids: Tensor
    """[M], what stood there; NO_TARGET where the batch was filled up to a fixed number."""
    next_sentence_labels: Tensor | None
    """[B], 0 where the second segment continues the first."""
    segments: Tensor | None = None
    """[B, T], which document of its row a token belongs to, 0 for padding; None where a row is one text."""
    position_ids: Tensor | None = None
    """[B, T], places within the documents; None for places within the row."""
    boundaries: Tensor | None = None
    """[N + 1] int32, where each document, and padding, begins in the flattened [B x T], and its end, repeated to a fixed number."""

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
    return _each(batch, lambda tensor: tensor.to(device, non_blocking=True))


def pinned(groups: list[list[BatchT]]) -> list[list[BatchT]]:
    """Move the batches of a step into memory that a CUDA device reads by itself."""
    return [[_each(batch, Tensor.pin_memory) for batch in micro_batches] for micro_batches in groups]


def _each(batch: BatchT, change: Callable[[Tensor], Tensor]) -> BatchT:
    tensors: dict[str, Any] = vars(batch)
    return type(batch)(**{name: None if tensor is None else change(tensor) for name, tensor in tensors.items()})


def built_ahead(build: Callable[[int], StepT], first: int, stop: int, *, ahead: int = 2) -> Iterator[StepT]:
    """Yield what `build` makes of steps first..stop-1, built ahead in a thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as builder:
        pending = [builder.submit(build, step) for step in range(first, min(first + ahead, stop))]
        for step in range(first, stop):
            batches = pending.pop(0).result()
            if step + ahead < stop:
                pending.append(builder.submit(build, step + ahead))
            yield batches


@dataclass(frozen=True)
class Rows:
    """Sequences before masking, as arrays."""

    input_ids: npt.NDArray[np.int64]
    token_type_ids: npt.NDArray[np.int64] | None
    attention_mask: npt.NDArray[np.bool_] | None
    next_sentence_labels: npt.NDArray[np.int64] | None
    keys: UInt64s
    """[B], one key per sample for everything drawn later."""
    segments: npt.NDArray[np.int64] | None = None
    position_ids: npt.NDArray[np.int64] | None = None
    boundaries: npt.NDArray[np.int32] | None = None


class Stream(Protocol):
    """Tokens of documents end to end, a mark behind each."""

    num_tokens: int

    def slice(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Copy the tokens from `start` to `stop`, clipped to the stream."""
        ...

    def take(self, starts: npt.NDArray[np.integer[Any]], length: int) -> npt.NDArray[np.int64]:
        """Gather spans of `length` tokens, [B, length]."""
        ...


class Samples(Protocol):
    """Sequences addressed by a running index over epochs."""

    @property
    def num_sequences(self) -> int:
        """Count the sequences of one epoch."""
        ...

    @property
    def efficiency(self) -> float:
        """Compute the share of an epoch's rows that is not padding."""
        ...

    @property
    def attended_tokens(self) -> float:
        """Compute how many tokens a token attends to, on average over an epoch: its row's, padding included, or its document's."""
        ...

    def rows(self, indices: npt.NDArray[np.int64]) -> Rows:
        """Build the sequences with these running indices."""
        ...


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

    def __init__(self, stream: Stream, special: SpecialTokens, seq_len: int, *, seed: int, shuffle: bool = True) -> None:
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
        epochs, within = np.divmod(indices, self.num_sequences)
        ids = np.full((len(indices), self._span + 2), self._special.pad_id, np.int64)
        ids[:, 0] = self._special.cls_id
        keys = np.empty(len(indices), np.uint64)
        mask = None
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            keys[chosen] = hashes(key(self._seed, "sample", int(epoch)), within[chosen])
            if self._shuffle:
                ids[chosen, 1:-1] = self._ring(within[chosen], int(epoch))
                ids[chosen, -1] = self._special.sep_id
            else:
                mask = self._in_order(ids, np.flatnonzero(chosen), within[chosen])
        return Rows(ids, None, mask, None, keys)

    def _ring(self, within: npt.NDArray[np.int64], epoch: int) -> npt.NDArray[np.int64]:
        """Cut shuffled spans from the stream closed to a ring."""
        total = self._stream.num_tokens
        offset = int(hashes(key(self._seed, "offset", epoch), np.zeros(1, np.int64))[0] % np.uint64(total)) if epoch else 0
        starts = (permute_near(within, self.num_sequences, key(self._seed, "order", epoch)) * self._span + offset) % total
        inside = starts + self._span <= total
        spans = np.empty((len(starts), self._span), np.int64)
        spans[inside] = self._stream.take(starts[inside], self._span)
        for row in np.flatnonzero(~inside):
            start = int(starts[row])
            head = self._stream.slice(start, total)
            spans[row] = np.concatenate([head, self._stream.slice(0, self._span - len(head))])
        return spans

    def _in_order(
        self, ids: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], within: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_] | None:
        """Fill rows from the start of the stream; return a mask when the last one is short."""
        mask = np.ones(ids.shape, bool)
        for row, place in zip(rows, within, strict=True):
            span = self._stream.slice(int(place) * self._span, min(int(place + 1) * self._span, self._stream.num_tokens))
            ids[row, 1 : len(span) + 1] = span
            ids[row, len(span) + 1] = self._special.sep_id
            mask[row, len(span) + 2 :] = False
        return None if mask.all() else mask


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
        ends = np.asarray(stream.document_ends, np.int64)
        starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
        texts = ends - starts - 1  # without the mark at the document's end
        span = seq_len - 3
        chunks = -(-texts // span)
        self._documents = np.repeat(np.arange(len(ends)), chunks)
        first = np.repeat(np.cumsum(chunks) - chunks, chunks)
        begin = (np.arange(len(self._documents)) - first) * span
        self._starts = starts[self._documents] + begin
        self._lengths = np.minimum(texts[self._documents] - begin, span)
        usable = self._lengths >= 2
        self._documents, self._starts, self._lengths = (array[usable] for array in (self._documents, self._starts, self._lengths))
        self.num_sequences = len(self._starts)
        if self.num_sequences == 0:
            raise DataError("no document has the two tokens that a pair needs", hint="use data.layout=spans")
        self.efficiency = float(np.mean(self._lengths + 3)) / seq_len
        """A little less in fact: where the second text is another's and short."""

    def rows(self, indices: npt.NDArray[np.int64]) -> Rows:
        """Build the sequences with these running indices."""
        epochs, within = np.divmod(indices, self.num_sequences)
        keys, chunks = np.empty(len(indices), np.uint64), np.empty_like(within)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            keys[chosen] = hashes(key(self._seed, "sample", epoch), within[chosen])
            chunks[chosen] = permute_near(within[chosen], self.num_sequences, key(self._seed, "order", epoch))
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
        return Rows(ids, types, None if mask.all() else mask, labels, keys)

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


def ranges(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Concatenate range(start, start + length) for each pair."""
    before = np.cumsum(lengths) - lengths
    every: npt.NDArray[np.int64] = np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
    return every


def to_batch(rows: Rows, masking: Masking, *, fixed_targets: bool = False) -> Batch:
    """Mask rows and make tensors of them.

    Args:
        rows: The rows.
        masking: Chooses targets.
        fixed_targets: Fill up with targets that teach nothing, so that their number depends on the shape of the rows alone: then
            nothing that follows changes its shape.
    """
    masked = masking(rows.input_ids, rows.keys)
    if fixed_targets:
        masked = _filled(masked, len(rows.input_ids) * masking.most_targets(rows.input_ids.shape[1]))
    optional: tuple[npt.NDArray[Any] | None, ...] = (rows.token_type_ids, rows.attention_mask, rows.next_sentence_labels)
    types, mask, labels = (None if array is None else torch.from_numpy(array) for array in optional)
    packing: tuple[npt.NDArray[Any] | None, ...] = (rows.segments, rows.position_ids, rows.boundaries)
    ids, positions, targets = (torch.from_numpy(array) for array in (masked.input_ids, masked.positions, masked.target_ids))
    documents = (None if array is None else torch.from_numpy(array) for array in packing)
    return Batch(ids, types, mask, positions, targets, labels, *documents)


def _filled(masked: Masked, num_targets: int) -> Masked:
    missing = num_targets - len(masked.positions)
    assert missing >= 0
    targets = np.pad(masked.target_ids, (0, missing), constant_values=NO_TARGET)
    return Masked(masked.input_ids, np.pad(masked.positions, (0, missing)), targets)


@dataclass(frozen=True)
class StepBatches:
    """The batches of one process, step by step: gate groups of micro-batches."""

    samples: Samples
    masking: Masking
    global_batch_size: int
    num_groups: int
    micro_steps: int
    """Forward passes per gate group on one process."""
    micro_batch_size: int
    rank: int = 0
    world_size: int = 1
    pin_memory: bool = False
    """Hand batches over in memory that a CUDA device reads by itself."""

    def step(self, step: int) -> list[list[Batch]]:
        """Build the batches of a step: per gate group, per micro-step."""
        group_size = self.global_batch_size // self.num_groups
        share = group_size // self.world_size
        groups = []
        for group in range(self.num_groups):
            first = step * self.global_batch_size + group * group_size + self.rank * share
            starts = range(first, first + share, self.micro_batch_size)
            groups.append([self._batch(start, self.micro_batch_size) for start in starts])
        return pinned(groups) if self.pin_memory else groups

    def num_sequences(self, step: int) -> int:
        """Count the rows of a step, over all processes."""
        return self.global_batch_size

    def from_step(self, first: int, stop: int) -> Iterator[list[list[Batch]]]:
        """Yield the batches of steps first..stop-1, built ahead in a thread."""
        return built_ahead(self.step, first, stop)

    def _batch(self, start: int, size: int) -> Batch:
        return to_batch(self.samples.rows(np.arange(start, start + size)), self.masking, fixed_targets=True)


def validation_batches(samples: Samples, masking: Masking, *, batch_size: int, max_sequences: int | None = None) -> Iterator[Batch]:
    """Yield the validation split in order, under masks that never change."""
    total = samples.num_sequences if max_sequences is None else min(max_sequences, samples.num_sequences)
    for start in range(0, total, batch_size):
        yield to_batch(samples.rows(np.arange(start, min(start + batch_size, total))), masking)
