from __future__ import annotations

import random

import pytest
from scipy import stats

from pldcli.comparison.intervals import Interval, mean_interval, t_quantile


@pytest.mark.parametrize(
    ("degrees", "quantile"), [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (5, 2.57058), (9, 2.26216), (30, 2.04227)]
)
def test_quantiles_of_the_printed_table(degrees: int, quantile: float) -> None:
    assert t_quantile(0.95, degrees) == pytest.approx(quantile, abs=1e-4)


def test_quantiles_are_those_of_scipy() -> None:
    for degrees in (*range(1, 12), 60, 201):
        for confidence in (0.5, 0.9, 0.99, 0.999):
            assert t_quantile(confidence, degrees) == pytest.approx(stats.t.ppf(0.5 + confidence / 2, degrees), rel=1e-9)


def test_the_interval_is_that_of_a_paired_t_test() -> None:
    rng = random.Random(3)
    ours, theirs = ([rng.gauss(5, 1) for _ in range(6)] for _ in range(2))
    interval = mean_interval([a - b for a, b in zip(ours, theirs, strict=True)])
    low, high = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (interval.low, interval.high) == (pytest.approx(low), pytest.approx(high))
    assert interval.n == 6


def test_literal_values() -> None:
    interval = mean_interval([0.1, 0.3])
    assert interval.mean == pytest.approx(0.2)
    assert interval.half_width == pytest.approx(12.7062 * 0.1, rel=1e-5)
    assert interval.holds_zero is True
    assert mean_interval([0.1, 0.11, 0.12]).holds_zero is False


def test_one_difference_has_no_interval() -> None:
    single = mean_interval([0.4])
    assert single == Interval(0.4, None, 1)
    assert (single.low, single.high, single.holds_zero) == (None, None, None)


def test_equal_differences_leave_no_doubt() -> None:
    assert mean_interval([0.25, 0.25, 0.25]) == Interval(0.25, 0.0, 3)
