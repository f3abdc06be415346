from __future__ import annotations

import numpy as np
import pytest

from pldcli.data.masking import Masking
from pldcli.data.order import hashes, key

PAD, UNK, CLS, SEP, MASK = SPECIAL = (0, 1, 2, 3, 4)
VOCAB = 105
"""100 ordinary ids, 5 to 104."""
MASKING = Masking(0.15, MASK, SPECIAL, VOCAB)


def keys(count: int, seed: int = 0) -> np.ndarray:
    return hashes(key(seed), np.arange(count))


def text(rows: int, tokens: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(5, VOCAB, (rows, tokens))


@pytest.mark.parametrize(
    ("maskable", "targets"),
    [(1, 1), (2, 1), (9, 1), (11, 2), (13, 2), (16, 2), (17, 3), (20, 3), (23, 3), (24, 4), (40, 6), (100, 15), (126, 19), (510, 76)],
)
def test_number_of_targets_of_a_row(maskable: int, targets: int) -> None:
    """max(1, round(0.15 x maskable tokens)), whatever stands beside them."""
    ids = np.full((4, maskable + 5), PAD)
    ids[:, 0], ids[:, 1 : maskable + 1], ids[:, maskable + 1] = CLS, text(4, maskable), SEP
    masked = MASKING(ids, keys(4))
    rows = masked.positions // ids.shape[1]
    assert np.bincount(rows, minlength=4).tolist() == [targets] * 4


@pytest.mark.parametrize("probability", [0.4, 0.999])
def test_number_of_targets_with_another_probability(probability: float) -> None:
    masked = Masking(probability, MASK, SPECIAL, VOCAB)(text(3, 10), keys(3))
    assert len(masked.positions) == {0.4: 12, 0.999: 30}[probability]
    assert len(set(masked.positions.tolist())) == len(masked.positions)


def test_specials_are_never_targets_and_never_change() -> None:
    rng = np.random.default_rng(1)
    ids = text(300, 40)
    special = rng.random(ids.shape) < 0.6
    ids[special] = rng.integers(0, 5, int(special.sum()))
    masked = MASKING(ids, keys(300))
    assert np.array_equal(masked.input_ids[special], ids[special])
    assert not special.ravel()[masked.positions].any()
    assert not np.isin(masked.target_ids, SPECIAL).any()


def test_a_row_without_maskable_tokens_has_no_target() -> None:
    ids = np.array([[CLS, SEP, PAD, PAD, PAD], [CLS, 50, 60, 70, SEP], [UNK, UNK, MASK, UNK, SEP]])
    masked = MASKING(ids, keys(3))
    assert len(masked.positions) == 1
    assert 6 <= masked.positions[0] <= 8
    assert np.array_equal(masked.input_ids[[0, 2]], ids[[0, 2]])
    nothing = MASKING(ids[:1], keys(1))
    assert nothing.positions.shape == nothing.target_ids.shape == (0,)


def test_targets_are_what_stood_there() -> None:
    ids = text(50, 30)
    before = ids.copy()
    masked = MASKING(ids, keys(50))
    assert np.array_equal(ids, before), "the input must not change"
    assert np.array_equal(masked.target_ids, before.ravel()[masked.positions])
    untouched = np.ones(ids.size, bool)
    untouched[masked.positions] = False
    assert np.array_equal(masked.input_ids.ravel()[untouched], before.ravel()[untouched])
    assert np.all(np.diff(masked.positions) > 0)


def test_eighty_ten_ten() -> None:
    ids = text(4000, 100)
    masked = MASKING(ids, keys(4000))
    new = masked.input_ids.ravel()[masked.positions]
    total = len(new)
    assert total == 60_000
    shares = [np.mean(new == MASK), np.mean((new != MASK) & (new != masked.target_ids)), np.mean(new == masked.target_ids)]
    for share, expected in zip(shares, (0.8, 0.1 * 0.99, 0.1 + 0.1 * 0.01), strict=True):  # 1 of 100 random ids is the old one
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / total)


def test_random_replacements_are_uniform_over_the_ordinary_ids() -> None:
    special = (0, 7, 50, 104, 3)
    ids = np.full((4000, 100), 20)
    new = Masking(0.15, 7, special, VOCAB)(ids, keys(4000)).input_ids
    counts = np.bincount(new[(new != 20) & (new != 7)], minlength=VOCAB)
    assert counts[list(special)].tolist() == [0] * 5
    ordinary = np.setdiff1d(np.arange(VOCAB), [*special, 20])
    mean = counts[ordinary].mean()
    assert 40 < mean < 80
    assert float(((counts[ordinary] - mean) ** 2 / mean).sum()) < 99 + 4 * np.sqrt(2 * 99)


def test_every_position_is_as_likely() -> None:
    masked = MASKING(text(4000, 40), keys(4000))
    counts = np.bincount(masked.positions % 40, minlength=40)
    assert abs(counts - 600).max() < 5 * np.sqrt(600 * 0.85)


def test_equal_keys_and_ids_give_equal_masks() -> None:
    row = text(1, 60)
    masked = MASKING(np.repeat(row, 3, axis=0), np.array([11, 12, 11], np.uint64))
    first, other, again = masked.input_ids
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_batch_around_a_row_does_not_matter() -> None:
    ids, row_keys = text(20, 30), keys(20)
    whole = MASKING(ids, row_keys)
    order = np.random.default_rng(3).permutation(20)
    assert np.array_equal(MASKING(ids[order], row_keys[order]).input_ids, whole.input_ids[order])
    parts = [MASKING(ids[start : start + 7], row_keys[start : start + 7]) for start in (0, 7, 14)]
    assert np.array_equal(np.concatenate([part.input_ids for part in parts]), whole.input_ids)
    assert np.array_equal(np.concatenate([part.target_ids for part in parts]), whole.target_ids)
    positions = np.concatenate([part.positions + start * 30 for part, start in zip(parts, (0, 7, 14), strict=True)])
    assert np.array_equal(positions, whole.positions)


def test_padding_behind_a_row_does_not_matter() -> None:
    ids = text(5, 30)
    padded = np.concatenate([ids, np.full((5, 10), PAD)], axis=1)
    assert np.array_equal(MASKING(padded, keys(5)).input_ids[:, :30], MASKING(ids, keys(5)).input_ids)


def test_values() -> None:
    """Literal: another numpy, or another version of this program, must not move a run's masks."""
    masked = Masking(0.15, 4, SPECIAL, 50)(np.arange(5, 25)[None], np.array([key(1)], np.uint64))
    assert masked.positions.tolist() == [4, 12, 13]
    assert masked.target_ids.tolist() == [9, 17, 18]
    assert masked.input_ids[0, [4, 12, 13]].tolist() == [4, 4, 4]
    many = MASKING(np.full((3, 60), 5), np.array([1, 2, 3], np.uint64))
    assert many.positions.tolist() == [
        *[0, 13, 16, 17, 19, 25, 41, 49, 58],
        *[69, 75, 78, 81, 85, 92, 93, 102, 119],
        *[122, 124, 128, 131, 134, 157, 158, 161, 162],
    ]
    new = many.input_ids.ravel()[many.positions]
    assert many.positions[new == 5].tolist() == [0, 41, 69, 124, 157]
    assert [(int(p), int(i)) for p, i in zip(many.positions, new, strict=True) if i not in (MASK, 5)] == [(85, 32)]


def test_rows_with_nothing_to_mask_have_no_targets() -> None:
    """Alone, and beside a row that has some: the first and the last hold special tokens only."""
    ids = text(3, 30)
    ids[[0, 2]] = SPECIAL[0]
    masked = MASKING(ids, keys(3))
    assert np.array_equal(masked.input_ids[[0, 2]], ids[[0, 2]])
    assert set((masked.positions // 30).tolist()) == {1}
    nothing = MASKING(ids[[0, 2]], keys(2))
    assert len(nothing.positions) == len(nothing.target_ids) == 0 and np.array_equal(nothing.input_ids, ids[[0, 2]])
