"""Lines that stand in many documents: menus, licences, headings. They are counted, not removed."""

from __future__ import annotations

import heapq
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

__all__ = ["RepeatedLines", "most_repeated"]

_LONGEST_LINE = 200
"""Of a longer line so many characters count."""
_MOST_HELD = 1 << 16
_MOST_KEPT = 1024
_MOST_REPORTED = 20
_FEW = 8
_FEWEST_DOCUMENTS, _LEAST_SHARE = 3, 1e-3


class RepeatedLines:
    """Counts in how many documents each line stands, in bounded memory.

    Where there are too many lines, those stay that were counted most, and of equal ones those with the lowest hashes, so that the parts
    of a corpus keep the same ones. Counts are exact until something was dropped, and too low after that, never too high.
    """

    def __init__(self) -> None:
        self._counts = Counter[str]()
        self._of_document: set[str] = set()

    def add(self, lines: Iterable[str], *, last: bool) -> None:
        """Read the next lines of a document; `last` ends it."""
        self._of_document.update(line[:_LONGEST_LINE] for line in map(str.strip, lines) if line)
        if len(self._of_document) > 4 * _MOST_HELD:
            # Those that would stay below, and no others: were more held, the counts would be the same.
            hashes_L = np.array([zlib.crc32(line.encode()) for line in self._of_document], np.uint32)
            highest = np.partition(hashes_L, _MOST_HELD)[_MOST_HELD]
            is_low_L = (hashes_L <= highest).tolist()
            self._of_document = {line for line, low in zip(self._of_document, is_low_L, strict=True) if low or line in self._counts}
        if last:
            self._counts.update(self._of_document)
            self._of_document = set()
            if len(self._counts) > _MOST_HELD:
                self._counts = Counter(_first(self._counts, _MOST_HELD // 2))

    @property
    def most(self) -> dict[str, int]:
        """Return the documents of the lines to remember, in an order that depends on nothing but them."""
        return _first(self._counts, _MOST_KEPT)


def most_repeated(parts: Iterable[Mapping[str, int]], num_documents: int) -> list[dict[str, str | int]]:
    """Put the counts of parts of a corpus together.

    Args:
        parts: What `RepeatedLines.most` was, of each.
        num_documents: Of the corpus.

    Returns:
        Lines that stand in at least three documents and one of a thousand, and in how many at least; those in most documents first.
    """
    counts = Counter[str]()
    for part in parts:
        counts.update(part)
        if len(counts) > _MOST_HELD:
            counts = Counter(_first(counts, _MOST_HELD // 2))
    fewest = max(_FEWEST_DOCUMENTS, _LEAST_SHARE * num_documents)
    return [{"line": line, "documents": count} for line, count in _first(counts, _MOST_REPORTED).items() if count >= fewest]


def _first(counts: Mapping[str, int], number: int) -> dict[str, int]:
    def place(entry: tuple[str, int]) -> tuple[int, int, str]:
        line, count = entry
        return -count, zlib.crc32(line.encode()), line

    if _FEW * number < len(counts):
        return dict(heapq.nsmallest(number, counts.items(), key=place))  # as sorting would give, and faster
    return dict(sorted(counts.items(), key=place)[:number])
