"""Near duplicates: documents that share most of their runs of words, found by signatures instead of by comparing all with all.

A signature is an R-MinHash of rensa: two agree in about so many places as their documents share of all runs that either has (Jaccard).
Source: Broder 1997, "On the resemblance and containment of documents", for signatures; Leskovec et al., "Mining of Massive Datasets",
section 3.4, for bands.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pldcli.corpus.reader import WORD

__all__ = ["SIGNATURE", "Signatures", "Signer", "near_earlier_ones"]

SIGNATURE = np.dtype("<u2")
"""Of a place of a signature: the low half of what rensa gives, which differs for different runs as good as always."""
_PLACES, _SEED, _RUN_WORDS = 128, 20201, 5
_RECALL = 0.99
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_PAIRS_AT_ONCE = 1 << 16

Signatures = npt.NDArray[np.uint16]


class Signer:
    """Signs documents, one after the other."""

    def __init__(self) -> None:
        self._before: list[str] = []
        self._begin()

    def add(self, text: str, *, last: bool) -> Signatures | None:
        """Read the next piece of a document.

        Args:
            text: The piece.
            last: It ends the document.

        Returns:
            Of a last piece, the signature of the document, [places]; else None.
        """
        words = self._before + (WORD.findall(text.casefold()) or text.split())
        count = len(words) - _RUN_WORDS + 1
        if count > 0:
            self._hash.update([" ".join(words[start : start + _RUN_WORDS]) for start in range(count)])
            self._has_run = True
        self._before = words[-(_RUN_WORDS - 1) :]
        if not last:
            return None
        if not self._has_run:
            self._hash.update([" ".join(self._before)])
        signature: Signatures = np.array(self._hash.digest(), np.uint32).astype(SIGNATURE)
        self._begin()
        return signature

    def _begin(self) -> None:
        from rensa import RMinHash

        self._hash = RMinHash(num_perm=_PLACES, seed=_SEED)
        self._before = []
        self._has_run = False


def near_earlier_ones(signatures: Signatures, threshold: float) -> npt.NDArray[np.bool_]:
    """Find the documents that are near to an earlier one, or to one that is.

    Args:
        signatures: Of documents, in their order, [N, places].
        threshold: Share of places in which two agree from which on they are near.
    """
    roots: npt.NDArray[np.int64] = np.arange(len(signatures))
    rows = _rows_of_a_band(threshold)
    for start in range(0, _PLACES, rows):
        pairs = _pairs_of_a_band(signatures[:, start : start + rows])
        pairs = pairs[roots[pairs[:, 0]] != roots[pairs[:, 1]]]
        for at in range(0, len(pairs), _PAIRS_AT_ONCE):
            some = pairs[at : at + _PAIRS_AT_ONCE]
            agree = (signatures[some[:, 0]] == signatures[some[:, 1]]).mean(1)
            for one, other in some[agree >= threshold].tolist():
                _unite(roots, one, other)
        while not np.array_equal(higher := roots[roots], roots):
            roots = higher
    is_near: npt.NDArray[np.bool_] = roots != np.arange(len(roots))
    return is_near


def _rows_of_a_band(threshold: float) -> int:
    """Choose how many places have to agree for two documents to be compared: as many as miss hardly any pair at the threshold."""
    sizes = [size for size in (32, 16, 8, 4, 2, 1) if 1.0 - (1.0 - threshold**size) ** (_PLACES // size) >= _RECALL]
    return sizes[0] if sizes else 1


def _pairs_of_a_band(band: Signatures) -> npt.NDArray[np.int64]:
    """Pair each document with the one before it, and with the first, among those that agree in a band; [pairs, 2]."""
    keys = np.zeros(len(band), np.uint64)
    for column in range(band.shape[1]):
        keys = (keys + band[:, column] + np.uint64(1)) * _MULTIPLIER
        keys ^= keys >> np.uint64(29)
    order = np.argsort(keys, kind="stable")
    goes_on = np.flatnonzero(keys[order[1:]] == keys[order[:-1]]) + 1
    begins = np.ones(len(order), bool)
    begins[goes_on] = False
    firsts = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    pairs = np.concatenate([np.stack([order[firsts[goes_on]], order[goes_on]], 1), np.stack([order[goes_on - 1], order[goes_on]], 1)])
    found: npt.NDArray[np.int64] = np.unique(pairs, axis=0)
    return found


def _unite(roots: npt.NDArray[np.int64], one: int, other: int) -> None:
    """Let two sets have the lower of their roots."""
    ends: list[int] = []
    for member in (one, other):
        while roots[member] != member:
            roots[member] = roots[roots[member]]
            member = int(roots[member])
        ends.append(member)
    roots[max(ends)] = min(ends)
