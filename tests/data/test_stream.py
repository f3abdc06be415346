from __future__ import annotations

import numpy as np
import pytest

from pldcli.data.stream import Segment, TokenStream, weighted

LENGTHS = (3, 0, 4, 1, 5)


def segments() -> list[Segment]:
    ends = np.cumsum(LENGTHS)
    return [(np.arange(end - length, end, dtype=np.uint16), np.array([length])) for end, length in zip(ends, LENGTHS, strict=True)]


@pytest.mark.parametrize("start", range(-2, 16))
def test_a_slice_is_that_of_all_segments_end_to_end(start: int) -> None:
    stream, whole = TokenStream(segments(), end_id=0), np.arange(sum(LENGTHS))
    for stop in range(max(0, start), 16):
        assert stream.slice(start, stop).tolist() == whole[max(0, start) : stop].tolist(), stop


class Untouched:
    """A segment whose tokens must not be read."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, key: object) -> None:
        raise AssertionError("read")


def test_a_slice_reads_only_the_segments_that_it_lies_in() -> None:
    around = [(Untouched(), np.array([4]))] * 2
    stream = TokenStream([*around, *segments(), *around], end_id=0)  # type: ignore[list-item]
    assert stream.slice(8, 21).tolist() == list(range(13))
    assert stream.slice(10, 12).tolist() == [2, 3]


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 60), (3.0, 180), (0.5, 30), (1.25, 75), (0.01, 0), (2.9, 174)])
def test_a_weight_is_whole_times_and_the_documents_that_come_closest(weight: float, expected: int) -> None:
    parts = [(np.array([7] * (length - 1) + [3]), np.array([length])) for length in (5, 15, 1, 9)]
    rows = np.array([7, 7, 7, 7, 7, 7, 7, 7, 7, 3] * 3)
    parts.append((rows, np.array([4, 10, 20, 30])))  # its first document has two rows
    stream = TokenStream(weighted([parts], weight, end_id=3), end_id=3)
    assert abs(stream.num_tokens - expected) <= 5
    assert stream.num_tokens == 0 or stream.document_ends[-1] == stream.num_tokens, "no document is cut"
    lengths = np.diff(stream.document_ends, prepend=0)
    assert set(lengths.tolist()) <= {5, 15, 1, 9, 10}


def shard(token: int) -> list[Segment]:
    """One document of ten tokens."""
    return [(np.array([token] * 9 + [3]), np.array([10]))]


@pytest.mark.parametrize(("weight", "expected"), [(0.25, 10), (0.5, 20), (0.75, 30), (2.5, 100)])
def test_what_a_weight_leaves_of_a_shard_counts_in_the_next_one(weight: float, expected: int) -> None:
    stream = TokenStream(weighted(map(shard, (4, 5, 6, 7)), weight, end_id=3), end_id=3)
    assert stream.num_tokens == expected


def test_each_shard_is_repeated_in_its_place() -> None:
    stream = TokenStream(weighted(map(shard, (4, 5)), 2.0, end_id=3), end_id=3)
    assert stream.slice(0, 40)[::10].tolist() == [4, 4, 5, 5]
