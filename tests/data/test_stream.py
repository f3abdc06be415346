from __future__ import annotations

import numpy as np
import pytest

from pldcli.data.stream import Segment, TokenStream

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
