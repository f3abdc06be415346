"""Randomness as a function of position: hashes and permutations that need no state.

Everything random in the data is a pure function of (seed, epoch, sample index), so a run's position is one integer. The
arithmetic is ours, on 64-bit integers, and so does not change with a library's version.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = ["UInt64s", "hashes", "key", "permute", "permute_near"]

UInt64s = npt.NDArray[np.uint64]

_GOLDEN = 0x9E3779B97F4A7C15
_ROUNDS = 6
_BLOCK = 8192


def key(*parts: int | str) -> np.uint64:
    """Fold numbers and words of at most 8 letters into one 64-bit key."""
    assert all(isinstance(part, int) or len(part) <= 8 for part in parts)
    state = np.zeros(1, np.uint64)
    for part in parts:
        number = int.from_bytes(part.encode().ljust(8, b"\0")[:8], "little") if isinstance(part, str) else part
        state = _mix(state + np.uint64(_GOLDEN) ^ np.uint64(number % 2**64))
    return np.uint64(state[0])


def hashes(row_keys: UInt64s | np.uint64, positions: npt.NDArray[np.integer]) -> UInt64s:
    """Hash positions under keys; the two broadcast against each other.

    Source: SplitMix64 (Steele, Lea & Flood, OOPSLA 2014).
    """
    return _mix(np.asarray(row_keys, np.uint64) + (positions.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN))


def permute(positions: npt.NDArray[np.integer], size: int, permutation_key: np.uint64) -> npt.NDArray[np.int64]:
    """Map positions to their places in a pseudo-random permutation of range(size), without building it.

    A Feistel network on the smallest even number of bits that holds `size`, walked until it lands inside.
    """
    half_bits = max(1, (max(size - 1, 1).bit_length() + 1) // 2)
    half, low = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    round_keys = hashes(permutation_key, np.arange(_ROUNDS))
    places = positions.astype(np.uint64)
    outside = np.ones(places.shape, bool)
    while outside.any():
        left, right = places[outside] >> half, places[outside] & low
        for round_key in round_keys:
            left, right = right, left ^ (_mix(right + round_key) & low)
        places[outside] = left << half | right
        outside = places >= np.uint64(size)
    return places.astype(np.int64)


def permute_near(positions: npt.NDArray[np.integer], size: int, permutation_key: np.uint64) -> npt.NDArray[np.int64]:
    """Do the same for positions that lie close together, a few at a time: a block of the permutation is kept for the next call."""
    places = np.empty(positions.shape, np.int64)
    blocks, within = np.divmod(positions, _BLOCK)
    for block in np.unique(blocks).tolist():
        chosen = blocks == block
        places[chosen] = _block(size, int(permutation_key), block)[within[chosen]]
    return places


@lru_cache(maxsize=16)
def _block(size: int, permutation_key: int, block: int) -> npt.NDArray[np.int64]:
    return permute(np.arange(block * _BLOCK, min((block + 1) * _BLOCK, size)), size, np.uint64(permutation_key))


def _mix(state: UInt64s) -> UInt64s:
    """Mix an array of at least one axis: numpy lets those wrap around in silence, and warns at scalars."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
