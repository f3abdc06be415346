"""Targets by whole word and by span, and a share of targets that moves."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from pldcli.data.loader import NO_TARGET, Rows, to_batch
from pldcli.data.masking import Masking
from tests.data.test_masking import CLS, MASK, PAD, SEP, SPECIAL, UNK, VOCAB, keys

CONTINUES = np.arange(VOCAB) >= 65
"""60 ids begin a word, 40 continue one."""
WORDS = Masking(0.15, MASK, SPECIAL, VOCAB, "whole-word", CONTINUES)
SPANS = Masking(0.15, MASK, SPECIAL, VOCAB, "span", CONTINUES)
BOTH = pytest.mark.parametrize("masking", [WORDS, SPANS])


def framed(rows: int, tokens: int, *, seed: int = 0, most: int = VOCAB) -> np.ndarray:
    """[CLS], ids below `most`, [SEP]."""
    ids = np.random.default_rng(seed).integers(5, most, (rows, tokens + 2))
    ids[:, 0], ids[:, -1] = CLS, SEP
    return ids


def words_of(row: np.ndarray) -> list[list[int]]:
    """The columns of each word, found one token after another."""
    words: list[list[int]] = []
    behind_special = True
    for column, token in enumerate(row.tolist()):
        if token not in SPECIAL:
            if behind_special or token < 65:
                words.append([])
            words[-1].append(column)
        behind_special = token in SPECIAL
    return words


def targets_of(masking: Masking, ids: np.ndarray, *, step: int = 0) -> list[set[int]]:
    """The columns of the targets of each row."""
    masked = masking(ids, keys(len(ids)), step)
    rows, columns = np.divmod(masked.positions, ids.shape[1])
    return [set(columns[rows == row].tolist()) for row in range(len(ids))]


def runs_of(columns: set[int]) -> list[list[int]]:
    """Neighbouring columns together."""
    runs: list[list[int]] = []
    for column in sorted(columns):
        if not runs or column != runs[-1][-1] + 1:
            runs.append([])
        runs[-1].append(column)
    return runs


# Whole words


@pytest.mark.parametrize("probability", [0.05, 0.15, 0.4, 0.9])
def test_words_are_masked_whole_and_as_many_as_fit(probability: float) -> None:
    """No more than with tokens alone; and no word that was left out would have fitted in."""
    ids = framed(300, 60)
    ids[::3, 40] = UNK
    masking = replace(WORDS, probability=probability)
    for row, chosen in zip(ids, targets_of(masking, ids), strict=True):
        words = words_of(row)
        whole = [word for word in words if chosen & set(word)]
        assert set().union(*map(set, whole)) == chosen
        room = max(1, round(probability * sum(map(len, words)))) - len(chosen)
        assert room >= 0
        assert all(len(word) > room for word in words if word not in whole)


def test_hardly_any_of_the_share_is_lost_to_words_that_do_not_fit() -> None:
    counts = [len(chosen) for chosen in targets_of(WORDS, framed(500, 100))]
    assert max(counts) == 15
    assert np.mean(counts) > 14.9


def test_a_word_is_as_likely_wherever_it_stands() -> None:
    counts = Counter(column for chosen in targets_of(WORDS, framed(4000, 40, most=65)) for column in chosen)
    assert sorted(counts) == list(range(1, 41))
    assert max(abs(count - 600) for count in counts.values()) < 5 * np.sqrt(600 * 0.85)


def test_a_row_of_one_long_word_has_no_target() -> None:
    """As in BERT's own code: it is never masked in part."""
    ids = np.array([[CLS, 10, *[70] * 20, SEP]])
    assert targets_of(WORDS, ids) == [set()]
    assert targets_of(replace(WORDS, probability=0.99), ids) == [set(range(1, 22))]


def test_the_tokens_of_a_word_are_replaced_each_on_its_own() -> None:
    """80/10/10 by token, as in BERT's own code."""
    ids = np.full((3000, 62), 10)
    ids[:, 2:61:2] = 70
    ids[:, 0], ids[:, -1] = CLS, SEP
    masked = WORDS(ids, keys(3000))
    new = masked.input_ids.ravel()[masked.positions].reshape(-1, 2)
    hidden = (new == MASK).mean(0)
    assert abs(hidden - 0.8).max() < 0.02
    assert abs((new == MASK).all(1).mean() - 0.64) < 0.02


# Spans


def spans_drawn(budget: int, count: int) -> Counter[int]:
    """Lengths of spans of words of one token: drawn one after another until the budget is spent, the last one cut short."""
    rng, lengths = np.random.default_rng(5), Counter[int]()
    for _ in range(count):
        left = budget
        while left:
            length = int(rng.geometric(0.2))
            if length <= 10:
                lengths[min(length, left)] += 1
                left -= min(length, left)
    return lengths


@pytest.mark.parametrize("probability", [0.15, 0.3])
def test_lengths_of_spans_are_geometric_and_cut_off_at_ten_words(probability: float) -> None:
    ids = framed(1500, 400, most=65)
    found = Counter[int]()
    for chosen in targets_of(replace(SPANS, probability=probability), ids):
        found.update(len(run) for run in runs_of(chosen) if run[0] > 1 and run[-1] < 400)
    expected = spans_drawn(round(probability * 400), 4000)
    assert set(found) == set(range(1, 11)), "spans neither overlap nor touch, so that none is longer"
    for length in range(1, 11):
        assert abs(found[length] / found.total() - expected[length] / expected.total()) < 0.008, length
    means = [sum(length * count for length, count in counts.items()) / counts.total() for counts in (found, expected)]
    assert abs(means[0] - means[1]) < 0.05
    assert 3.6 < means[0] < 3.8  # 3.80 without the last span of each row


@pytest.mark.parametrize("probability", [0.02, 0.15, 0.4, 0.7, 0.95, 0.999])
def test_spans_take_exactly_their_share(probability: float) -> None:
    ids = framed(200, 90)
    ids[::2, 50] = SEP
    masking = replace(SPANS, probability=probability)
    for row, chosen in zip(ids, targets_of(masking, ids), strict=True):
        available = int((~np.isin(row, SPECIAL)).sum())
        assert len(chosen) == max(1, round(probability * available))
        assert not set(np.flatnonzero(np.isin(row, SPECIAL)).tolist()) & chosen


def test_spans_are_of_whole_words_but_for_the_last() -> None:
    lengths = []
    for row, chosen in zip(ids := framed(500, 200), targets_of(SPANS, ids), strict=True):
        words = words_of(row)
        begins, ends = {word[0] for word in words}, {word[-1] for word in words}
        runs = runs_of(chosen)
        assert {run[0] for run in runs} <= begins
        assert sum(run[-1] not in ends for run in runs) <= 1
        lengths += [sum(word[0] in chosen for word in words if run[0] <= word[0] <= run[-1]) for run in runs]
    assert max(lengths) == 10
    assert 3.3 < np.mean(lengths) < 3.8


def test_a_token_is_as_likely_in_a_span_wherever_it_stands() -> None:
    """Almost: of the last span of a row its first tokens stay, and those at the beginning of the row are such more often."""
    counts = Counter(column for chosen in targets_of(SPANS, framed(4000, 300, most=65)) for column in chosen)
    shares = np.array([counts[column] for column in range(1, 301)]) / 4000
    assert abs(shares - 0.15).max() < 0.03
    assert abs(shares[10:] - 0.15).max() < 5 * np.sqrt(0.15 * 0.85 / 4000)


def test_a_span_is_replaced_as_a_whole() -> None:
    """80/10/10 by span, as SpanBERT does it."""
    ids = framed(4000, 60, most=65)
    masked = SPANS(ids, keys(4000))
    fates = Counter[str]()
    for row, chosen in enumerate(targets_of(SPANS, ids)):
        for run in runs_of(chosen):
            new, old = masked.input_ids[row, run], ids[row, run]
            if (new == MASK).any():
                assert (new == MASK).all()
            fates["mask" if new[0] == MASK else "kept" if (new == old).all() else "random"] += 1
    total = fates.total()
    for fate, share in {"mask": 0.8, "random": 0.1, "kept": 0.1}.items():
        assert abs(fates[fate] / total - share) < 4 * np.sqrt(share * (1 - share) / total) + 0.001
    random = (masked.input_ids != ids) & (masked.input_ids != MASK)
    assert not np.isin(masked.input_ids[random], SPECIAL).any()
    assert len(np.unique(masked.input_ids[random])) == 100


# Both


@BOTH
def test_the_batch_around_a_row_does_not_matter(masking: Masking) -> None:
    """Nor does padding: of rows with other numbers of words, and behind a row."""
    ids, row_keys = framed(40, 70), keys(40)
    ids[::4, 30:71] = 70  # few words
    whole = masking(ids, row_keys)
    order = np.random.default_rng(3).permutation(40)
    assert np.array_equal(masking(ids[order], row_keys[order]).input_ids, whole.input_ids[order])
    alone = [masking(ids[row : row + 1], row_keys[row : row + 1]) for row in range(40)]
    assert np.array_equal(np.concatenate([one.input_ids for one in alone]), whole.input_ids)
    assert np.array_equal(np.concatenate([one.positions + 72 * row for row, one in enumerate(alone)]), whole.positions)
    padded = np.concatenate([ids, np.full((40, 9), PAD)], axis=1)
    assert np.array_equal(masking(padded, row_keys).input_ids[:, :72], whole.input_ids)


@BOTH
def test_other_keys_give_other_masks_and_what_is_no_target_stays(masking: Masking) -> None:
    ids = framed(2, 200).repeat(20, axis=0)
    masked = masking(ids, keys(40))
    assert len({tuple(row) for row in masked.input_ids.tolist()}) == 40
    untouched = np.ones(ids.size, bool)
    untouched[masked.positions] = False
    assert np.array_equal(masked.input_ids.ravel()[untouched], ids.ravel()[untouched])
    assert np.array_equal(masked.target_ids, ids.ravel()[masked.positions])


@BOTH
def test_rows_with_nothing_to_mask_have_no_targets(masking: Masking) -> None:
    ids = framed(3, 30)
    ids[[0, 2]] = UNK
    assert [bool(chosen) for chosen in targets_of(masking, ids)] == [False, True, False]
    assert len(masking(ids[[0, 2]], keys(2)).positions) == 0


def test_values() -> None:
    """Literal: another numpy, or another version of this program, must not move a run's masks."""
    ids = np.concatenate([[[CLS]], np.arange(5, 105)[None], [[SEP]]], axis=1)
    ids[0, 61:] = np.where(np.arange(41) % 3, ids[0, 61:], 7)
    ids[0, -1] = SEP
    assert WORDS(ids, keys(1)).positions.tolist() == [8, 9, 10, 11, 41, 45, 46, 48, 56, 70, 71, 72, 91, 92, 93]
    assert SPANS(ids, keys(1)).positions.tolist() == [12, 21, 22, 23, 24, 25, 26, 27, 28, 58, 59, 60, 73, 74, 75]


# A share that moves


@pytest.mark.parametrize(("step", "share", "targets"), [(0, 0.3, 30), (2, 0.27, 27), (4, 0.24, 24), (5, 0.225, 22), (10, 0.15, 15)])
@pytest.mark.parametrize("unit", ["token", "span"])
def test_the_share_moves_linearly_to_its_end_at_the_last_step(step: int, share: float, targets: int, unit: str) -> None:
    masking = replace(SPANS, unit=unit, probability=0.3, final_probability=0.15, total_steps=11)
    assert masking.share(step) == pytest.approx(share)
    assert masking.most_targets(102, step) == targets
    assert [len(chosen) for chosen in targets_of(masking, framed(3, 100), step=step)] == [targets] * 3


def test_the_share_may_rise_and_a_single_step_has_the_first() -> None:
    rising = replace(SPANS, probability=0.15, final_probability=0.3, total_steps=3)
    assert [rising.share(step) for step in (0, 1, 2, 9)] == [0.15, pytest.approx(0.225), 0.3, 0.3]
    assert replace(rising, total_steps=1).share(0) == 0.15


@pytest.mark.parametrize("masking", [WORDS, SPANS, replace(SPANS, unit="token")])
def test_targets_are_padded_to_the_number_of_their_step(masking: Masking) -> None:
    moving = replace(masking, probability=0.3, final_probability=0.15, total_steps=11)
    ids = framed(4, 100)
    ids[1:, 60] = SEP
    for step, most in ((0, 30), (10, 15)):
        batch = to_batch(Rows(input_ids=ids, keys=keys(4)), moving, step=step, fixed_targets=True)
        assert batch.target_ids.shape == batch.positions.shape == (4 * most,)
        real = int((batch.target_ids != NO_TARGET).sum())
        assert 4 * most * 0.9 < real <= 4 * most
        assert bool((batch.target_ids[:real] != NO_TARGET).all())
