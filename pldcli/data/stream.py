"""A flat token stream: documents end to end, each followed by its separator."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from pldcli.errors import DataError

__all__ = ["PREPARE_AGAIN", "Int64s", "Segment", "TokenStream", "check_ends", "document_pieces", "ranges", "weighted"]

PREPARE_AGAIN = "make it again with `pld prepare-data`"

Int64s = npt.NDArray[np.int64]

Segment = tuple[npt.NDArray[Any], Int64s]
"""Token ids of whole rows, and the positions just behind each row."""


class TokenStream:
    """Tokens of consecutive segments, which may be memory maps: only what is asked for is read.

    Args:
        segments: The segments in order.
        end_id: The separator behind each document. A row that does not end with it is continued in the next row.
        notes: What the user should read about the text.
    """

    def __init__(self, segments: Iterable[Segment], *, end_id: int, notes: tuple[str, ...] = ()) -> None:
        self.notes, self._end_id = notes, end_id
        self.segments = list(segments)
        self._starts = np.cumsum([0, *(len(values) for values, _ in self.segments)], dtype=np.int64)
        self.num_tokens = int(self._starts[-1])

    @cached_property
    def document_ends(self) -> Int64s:
        """Positions just behind each document's separator, ascending."""
        ends = [np.empty(0, np.int64)]
        for start, (values, row_ends) in zip(self._starts, self.segments, strict=False):
            ends.append(start + _ends_of_documents(values, row_ends, self._end_id))
        return np.concatenate(ends)

    def take(self, starts: npt.NDArray[np.integer[Any]], length: int) -> Int64s:
        """Gather spans.

        Args:
            starts: Their first positions, [B].
            length: Tokens of each.

        Returns:
            Token ids, [B, length].

        Raises:
            IndexError: A span reaches over an end of the stream.
        """
        if len(starts) and not 0 <= int(np.min(starts)) <= int(np.max(starts)) <= self.num_tokens - length:
            raise IndexError(f"spans of {length} tokens reach out of a stream of {self.num_tokens}")
        spans = np.empty((len(starts), length), np.int64)
        segments = np.searchsorted(self._starts, starts, side="right") - 1
        inside = starts + length <= self._starts[segments + 1]
        # A window is copied several times as fast as its tokens one by one, and next to no span crosses the border of a segment.
        for segment in np.unique(segments[inside]):
            rows = np.flatnonzero(inside & (segments == segment))
            windows = np.lib.stride_tricks.sliding_window_view(self.segments[segment][0], length)
            spans[rows] = windows[starts[rows] - self._starts[segment]]
        spans[~inside] = self.gather(starts[~inside, None] + np.arange(length))
        return spans

    def gather(self, positions: Int64s) -> Int64s:
        """Copy the tokens at these positions; the result has their shape."""
        tokens, flat = np.empty(positions.size, np.int64), positions.ravel()
        segments = np.searchsorted(self._starts, flat, side="right") - 1
        by_segment = np.argsort(segments, kind="stable")  # once, not a look at all positions for each of thousands of segments
        for chosen in np.split(by_segment, np.flatnonzero(np.diff(segments[by_segment])) + 1) if len(tokens) else ():
            segment = segments[chosen[0]]
            tokens[chosen] = self.segments[segment][0][flat[chosen] - self._starts[segment]]
        return tokens.reshape(positions.shape)

    def slice(self, start: int, stop: int) -> Int64s:
        """Copy the tokens from `start` to `stop`, clipped to the stream."""
        parts = [np.empty(0, np.int64)]
        # Only the segments that it lies in: a large corpus has many thousands.
        first = max(0, int(np.searchsorted(self._starts, start, side="right")) - 1)
        behind = int(np.searchsorted(self._starts[:-1], stop, side="left"))
        for base, (values, _) in zip(self._starts[first:behind].tolist(), self.segments[first:behind], strict=True):
            parts.append(values[max(0, start - base) : stop - base].astype(np.int64))
        return np.concatenate(parts)

    def documents(self) -> Iterator[Int64s]:
        """Yield the tokens of each document without its separator."""
        start = 0
        for end in self.document_ends.tolist():
            yield self.slice(start, end - 1)
            start = end


def weighted(shards: Iterable[Iterable[Segment]], weight: float, *, end_id: int) -> Iterator[Segment]:
    """Repeat shards as often as their weight says; of what is no whole time, the first documents, as many tokens as come closest.

    What is too much or too little of a segment is made up for by the next ones. Of two that are equally close it is the more.

    Args:
        shards: The segments of each.
        weight: Above 0.
        end_id: The separator behind each document.
    """
    passed = taken = 0
    for segments in shards:
        parts = list(segments)
        yield from parts * int(weight)
        for values, ends in parts if weight % 1 else ():
            passed += len(values)
            edges = np.concatenate([[0], _ends_of_documents(values, ends, end_id)])[::-1]
            count = int(edges[np.abs(taken + edges - passed * (weight % 1)).argmin()])
            taken += count
            if count:
                yield values[:count], ends[ends <= count]


def check_ends(values: npt.NDArray[Any], row_ends: Int64s, *, where: str = "") -> None:
    """Check that the rows of a segment follow each other.

    Args:
        values: Its tokens.
        row_ends: The positions just behind its rows.
        where: The shard, for the error.

    Raises:
        DataError: They do not.
    """
    if len(row_ends) and (row_ends[0] < 0 or row_ends[-1] > len(values) or bool((row_ends[1:] < row_ends[:-1]).any())):
        hint = PREPARE_AGAIN if where else f"find the damaged shard with `pld data verify`, and {PREPARE_AGAIN}"
        raise DataError("is damaged: its documents do not follow each other", where=where or "prepared data", hint=hint)


def _ends_of_documents(values: npt.NDArray[Any], row_ends: Int64s, end_id: int) -> Int64s:
    """Select the rows of a segment that end a document."""
    check_ends(values, row_ends)
    marked = row_ends[row_ends > 0]
    ends: Int64s = marked[values[marked - 1] == end_id]
    return ends


def ranges(starts: Int64s, lengths: Int64s) -> Int64s:
    """Concatenate range(start, start + length) for each pair."""
    before = np.cumsum(lengths) - lengths
    every: Int64s = np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
    return every


def document_pieces(document_ends: Int64s, span: int) -> tuple[Int64s, Int64s, Int64s]:
    """Cut documents into pieces of `span` tokens and a shorter rest; separators belong to none.

    Returns:
        Of each piece the number of its document, its first position and its length.
    """
    starts = np.concatenate([[0], document_ends[:-1]]).astype(np.int64)[: len(document_ends)]
    texts = document_ends - starts - 1
    counts = -(-texts // span)
    documents = np.repeat(np.arange(len(texts)), counts)
    begins = ranges(np.zeros_like(counts), counts) * span
    return documents, starts[documents] + begins, np.minimum(texts[documents] - begins, span)
