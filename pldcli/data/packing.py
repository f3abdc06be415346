"""Whole documents side by side in a row: which go together, and the rows that come of it.

Shapes: B batch, T tokens, N documents.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pldcli.data.loader import Rows, drawn
from pldcli.data.order import key, permute
from pldcli.data.stream import Int64s, TokenStream, document_pieces, ranges
from pldcli.errors import DataError
from pldcli.tokenization.tokenizer import SpecialTokens

__all__ = ["PackedSamples", "pack"]


class PackedSamples:
    """Rows of [CLS] document [SEP], as many whole documents as fit; they do not see each other.

    A document that is longer than a row is cut into pieces that fill one each, and a rest. Which pieces share a row is decided once for
    the run; each epoch has the rows in another order, with other masks.

    Args:
        stream: The tokens of one split.
        special: Ids of the special tokens.
        seq_len: Tokens per row.
        seed: Seed of order, packing and masks.

    Raises:
        DataError: No document has a token.
    """

    def __init__(self, stream: TokenStream, special: SpecialTokens, seq_len: int, *, seed: int) -> None:
        self._stream, self._special, self._seed, self._seq_len = stream, special, seed, seq_len
        _, starts, lengths = document_pieces(stream.document_ends, seq_len - 2)
        if not len(starts):
            raise DataError("no document has a token", hint="add text")
        shuffled = permute(np.arange(len(starts)), len(starts), key(seed, "packing"))
        rows = pack(lengths[shuffled] + 2, seq_len)
        order = np.argsort(rows, kind="stable")
        self._starts, self._lengths = starts[shuffled][order], lengths[shuffled][order]
        counts = np.bincount(rows)
        self._first_piece = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.num_sequences = len(counts)
        self.most_documents = int(counts.max())
        """In a row."""
        sizes = self._lengths + 2
        self.efficiency = float(sizes.sum() / (self.num_sequences * seq_len))
        self.attended_tokens = float((sizes**2).sum() / sizes.sum())

    def rows(self, indices: Int64s) -> Rows:
        """Build the sequences with these running indices."""
        keys, places = drawn(indices, self.num_sequences, self._seed)
        first = self._first_piece[places]
        counts = self._first_piece[places + 1] - first
        pieces = ranges(first, counts)
        lengths = self._lengths[pieces]
        row_of_piece = np.repeat(np.arange(len(indices)), counts)
        before = np.cumsum(lengths + 2) - (lengths + 2)  # tokens of the pieces before, over all rows
        begins = row_of_piece * self._seq_len + before - np.repeat(before[np.cumsum(counts) - counts], counts)

        shape = (len(indices), self._seq_len)
        ids, segments, positions = np.full(shape, self._special.pad_id, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        filled = ranges(begins, lengths + 2)
        ids.reshape(-1)[begins] = self._special.cls_id
        ids.reshape(-1)[begins + 1 + lengths] = self._special.sep_id
        ids.reshape(-1)[ranges(begins + 1, lengths)] = self._stream.gather(ranges(self._starts[pieces], lengths))
        segments.reshape(-1)[filled] = np.repeat(ranges(np.ones_like(counts), counts), lengths + 2)
        positions.reshape(-1)[filled] = ranges(np.zeros_like(lengths), lengths + 2)
        return Rows(
            input_ids=ids,
            keys=keys,
            attention_mask=segments > 0,
            segments=segments,
            position_ids=positions,
            boundaries=self._boundaries(segments),
        )

    def _boundaries(self, segments: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """List where the documents begin in the flattened rows, and the padding behind them; in a fixed number, the last one repeated."""
        changes = np.ones(segments.shape, bool)
        changes[:, 1:] = segments[:, 1:] != segments[:, :-1]
        found = np.flatnonzero(changes)
        boundaries = np.full(len(segments) * (self.most_documents + 1) + 1, segments.size, np.int32)
        boundaries[: len(found)] = found
        return boundaries


def pack(sizes: Int64s, capacity: int) -> Int64s:
    """Put pieces into as few rows as best-fit decreasing does: the largest first, each where the least room is left over.

    Pieces of one size are handled at once, so that the time depends on the capacity more than on their number.

    Args:
        sizes: Of the pieces, at least 1 and at most the capacity.
        capacity: Of a row.

    Returns:
        The row of each piece, 0..rows-1.
    """
    rows = np.empty(len(sizes), np.int64)
    by_size = np.argsort(-sizes, kind="stable")
    counts = np.bincount(sizes, minlength=capacity + 1)
    room: list[list[Int64s]] = [[] for _ in range(capacity + 1)]  # rows by the room that is left in them
    num_rows = at = 0
    for size in range(capacity, 0, -1):
        waiting = by_size[at : at + counts[size]]
        at += counts[size]
        while len(waiting):
            left = next((left for left in range(size, capacity + 1) if room[left]), capacity)
            each = left // size
            if room[left]:
                chosen = _take(room[left], -(-len(waiting) // each))
            else:
                chosen = num_rows + np.arange(-(-len(waiting) // each))
                num_rows += len(chosen)
            now, waiting = waiting[: len(chosen) * each], waiting[len(chosen) * each :]
            rows[now] = chosen[np.arange(len(now)) // each]
            full, rest = divmod(len(now), each)
            if full:
                room[left - each * size].append(chosen[:full])
            if rest:
                room[left - rest * size].append(chosen[full:])
    return rows


def _take(rows: list[Int64s], most: int) -> Int64s:
    """Take some of the last group of rows out of a list of groups."""
    group = rows.pop()
    if len(group) > most:
        rows.append(group[most:])
    return group[:most]
