"""What becomes of each document: training, validation, or left out. Decided when all have been read, whoever read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["BOTH", "DUPLICATE", "LEFT_OUT", "TRAIN", "VALIDATION", "Fates", "decide", "validation_limit", "validation_tail"]

TRAIN, VALIDATION, BOTH = 0, 1, 2
"""Of a document for BOTH the end is for validation."""
LEFT_OUT = 8
"""From here on a fate is a cause: LEFT_OUT + its number."""
DUPLICATE = "document that occurred before"
NEAR_DUPLICATE = "document that nearly occurred before"
VALIDATION_PARTS = 301
"""One document of so many is for validation: 300 to 1."""

Codes = npt.NDArray[np.uint16]
UInt64s = npt.NDArray[np.uint64]
Near = Callable[[npt.NDArray[np.int64]], npt.NDArray[np.bool_]]
"""Says which of these documents, by their numbers, are near to an earlier one of them."""


@dataclass(frozen=True)
class Fates:
    """Of every document, in the order of the corpus."""

    of_documents: Codes
    causes: tuple[str, ...]
    """Why documents are left out, by number."""

    @property
    def left_out(self) -> Counter[str]:
        """Count what is left out, by cause."""
        numbers, counts = np.unique(self.of_documents[self.of_documents >= LEFT_OUT], return_counts=True)
        return Counter({self.causes[number - LEFT_OUT]: count for number, count in zip(numbers.tolist(), counts.tolist(), strict=True)})


def decide(
    hashes: UInt64s, unwanted: Codes, causes: Sequence[str], roles: Codes | None, *, keep_duplicates: bool, near: Near | None = None
) -> Fates:
    """Decide the fate of every document.

    Args:
        hashes: Of their texts, in the order of the corpus.
        unwanted: 0 for a document that nothing speaks against, else the number of the cause, counted from 1.
        causes: What speaks against documents.
        roles: TRAIN or VALIDATION, where validation has text of its own; without it the documents with the lowest hashes are chosen.
        keep_duplicates: Keep a document whose text occurred before.
        near: Finds near duplicates; None keeps them.
    """
    named = (*causes, DUPLICATE, *([] if near is None else [NEAR_DUPLICATE]))
    fates = np.zeros(len(hashes), np.uint16) if roles is None else roles.copy()
    fates[unwanted > 0] = (unwanted[unwanted > 0] - 1) + LEFT_OUT
    for role in np.unique(fates[fates < LEFT_OUT]):
        if not keep_duplicates:
            places = np.flatnonzero(fates == role)
            _, first = np.unique(hashes[places], return_index=True)
            later = np.ones(len(places), bool)
            later[first] = False
            fates[places[later]] = LEFT_OUT + len(causes)
        if near is not None:
            places = np.flatnonzero(fates == role)
            fates[places[near(places)]] = LEFT_OUT + len(causes) + 1
    kept = np.flatnonzero(fates < LEFT_OUT)
    if roles is None and len(kept):
        limit = validation_limit(hashes[kept])
        if limit is None:
            fates[kept[-1]] = BOTH
        else:
            fates[kept[hashes[kept] < limit]] = VALIDATION
    return Fates(fates, named)


def validation_limit(hashes: UInt64s) -> int | None:
    """Return the hash below which documents are for validation.

    Args:
        hashes: The 64-bit hashes of all documents' texts.

    Returns:
        The limit; None when all documents have the same text, so that a part of one has to do.
    """
    lowest, highest, limit = int(hashes.min()), int(hashes.max()), 2**64 // VALIDATION_PARTS
    if lowest == highest:
        return None
    return limit if lowest < limit <= highest else lowest + 1


def validation_tail(num_tokens: int) -> int:
    """Return how many tokens at the end of a single document are for validation."""
    return max(1, num_tokens // VALIDATION_PARTS, min(128, num_tokens // 10))
