from __future__ import annotations

import itertools

import numpy as np
import pytest

from pldcli.data.order import hashes, key, permute, permute_near

SPLITMIX64_OF_1234567 = [
    6457827717110365317,
    3203168211198807973,
    9817491932198370423,
    4593380528125082431,
    16408922859458223821,
]
"""The published test vector of the reference generator (Vigna's splitmix64.c)."""


def test_hashes_are_splitmix64() -> None:
    assert hashes(np.uint64(1234567), np.arange(5)).tolist() == SPLITMIX64_OF_1234567


def test_hashes_broadcast_and_do_not_depend_on_the_company() -> None:
    keys, positions = np.array([1234567, 1], np.uint64), np.arange(5)
    table = hashes(keys[:, None], positions)
    assert table.shape == (2, 5)
    assert table.dtype == np.uint64
    assert table[0].tolist() == SPLITMIX64_OF_1234567
    assert hashes(keys, positions[:2]).tolist() == [table[0, 0], table[1, 1]]
    assert int(hashes(keys[1], np.array([3]))[0]) == int(table[1, 3])


def test_wrapping_around_is_silent() -> None:
    assert hashes(np.uint64(2**64 - 1), np.array([2**62, 2**63 - 1])).shape == (2,)
    key(2**64 - 1, 2**70, -1)
    permute(np.arange(5), 5, np.uint64(2**64 - 1))


def test_key_values() -> None:
    """Literal: a run that was started under one version goes on under the next."""
    assert int(key(7, "order", 3)) == 10075450717845063201
    assert int(key(0)) == 16294208416658607535
    assert int(key(-1)) == 15999695513772384452


def test_key_feels_every_part_and_their_order() -> None:
    parts = [(), (0,), (0, 0), (1,), (0, 1), (1, 0), ("order",), ("offset",), (0, "order"), ("order", 0), (0, "order", 1), (1, "order", 0)]
    parts += [(seed, tag, epoch) for seed in range(2, 20) for tag in ("order", "offset", "sample") for epoch in range(20)]
    assert len({int(key(*each)) for each in parts}) == len(parts)


def test_hashes_are_uniform() -> None:
    for row_key in (0, 1, 2**63):
        values = hashes(np.uint64(row_key), np.arange(64_000))
        for shift in (0, 17, 58):  # low, middle and high bits
            counts = np.bincount(((values >> np.uint64(shift)) & np.uint64(63)).astype(int), minlength=64)
            chi_square = float(((counts - 1000) ** 2 / 1000).sum())
            assert 25 < chi_square < 125, (row_key, shift)  # 63 degrees of freedom: 63 +- 11


def test_neighbours_are_not_correlated() -> None:
    """Neither neighbouring positions, nor neighbouring keys at one position, nor the two tags that masking sets apart."""
    unit = 2.0**-64
    by_position = hashes(key(1), np.arange(20_000)) * unit
    by_key = np.concatenate([hashes(key(seed), np.array([7])) for seed in range(20_000)]) * unit
    tagged = hashes(key(1) ^ np.uint64(1 << 32), np.arange(20_000)) * unit
    for first, second in ((by_position[:-1], by_position[1:]), (by_key[:-1], by_key[1:]), (by_position, tagged), (by_position, by_key)):
        assert abs(float(np.corrcoef(first, second)[0, 1])) < 4 / np.sqrt(20_000)


def test_one_bit_of_the_key_turns_half_of_the_hash() -> None:
    base = hashes(np.uint64(12345), np.arange(200))
    for bit in range(64):
        flipped = hashes(np.uint64(12345 ^ (1 << bit)), np.arange(200)) ^ base
        assert 30 < np.unpackbits(flipped.view(np.uint8)).sum() / 200 < 34, bit


@pytest.mark.parametrize("permutation_key", [key(0), key(3, "order", 1)])
def test_permute_is_a_bijection_for_small_sizes(permutation_key: np.uint64) -> None:
    for size in range(1, 301):
        assert sorted(permute(np.arange(size), size, permutation_key).tolist()) == list(range(size)), size


@pytest.mark.parametrize("size", [1023, 1024, 1025, 4096, 4097, 65_537, 99_991])
def test_permute_is_a_bijection_for_large_sizes(size: int) -> None:
    places = permute(np.arange(size), size, key(size))
    assert places.dtype == np.int64
    assert np.array_equal(np.sort(places), np.arange(size))


def test_permute_values() -> None:
    assert permute(np.arange(13), 13, key(0)).tolist() == [8, 6, 5, 10, 7, 11, 3, 0, 2, 9, 1, 4, 12]
    assert permute(np.arange(8), 8, key(1, "order", 0)).tolist() == [0, 3, 2, 5, 1, 7, 6, 4]
    assert permute(np.array([0, 1, 999_999]), 1_000_000, key(5)).tolist() == [370910, 756738, 843552]


def test_permute_place_by_place_equals_permute_at_once() -> None:
    at_once = permute(np.arange(1000), 1000, key(9))
    assert [int(permute(np.array([place]), 1000, key(9))[0]) for place in range(0, 1000, 37)] == at_once[::37].tolist()
    shuffled = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(permute(shuffled, 1000, key(9)), at_once[shuffled])


def test_permute_differs_by_key_and_leaves_no_pattern() -> None:
    size = 5000
    places = [permute(np.arange(size), size, key(0, "order", epoch)) for epoch in range(6)]
    for place in places:
        assert np.sum(place == np.arange(size)) < 8  # fixed points: one on average
        assert abs(np.corrcoef(place, np.arange(size))[0, 1]) < 4 / np.sqrt(size)
        assert abs(np.corrcoef(place[:-1], place[1:])[0, 1]) < 4 / np.sqrt(size)
        assert np.sum(np.diff(place) == 1) < 8
    for first, second in itertools.pairwise(places):
        assert np.sum(first == second) < 8
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / np.sqrt(size)


def test_every_place_is_as_likely_for_every_position() -> None:
    counts = np.zeros((6, 6))
    for seed in range(3000):
        counts[np.arange(6), permute(np.arange(6), 6, key(seed))] += 1
    assert abs(counts - 500).max() < 5 * np.sqrt(500 * 5 / 6)


@pytest.mark.parametrize("size", [1, 5, 8191, 8192, 8193, 20000])
def test_near_positions_are_permuted_as_far_ones(size: int) -> None:
    """Across the borders of the blocks that are kept, in any order."""
    everywhere = permute(np.arange(size), size, key(3, "order"))
    scattered = np.random.default_rng(0).integers(0, size, 300)
    for positions in (np.arange(size), scattered, np.array([size - 1, 0]), np.array([], np.int64)):
        assert np.array_equal(permute_near(positions, size, key(3, "order")), everywhere[positions])
    if size > 5:
        assert not np.array_equal(permute_near(np.arange(size), size, key(4, "order")), everywhere)
