from __future__ import annotations

import math

import pytest

from pldcli.study.spec import Check
from pldcli.study_report.checks import judge

CHECK = Check(better="preln", than="shallow", by_seed_deviations=3.0)
PRELN = {0: 3.00, 1: 3.02, 2: 3.01}
"""Standard deviation 0.01."""


def test_a_difference_above_the_noise_passes() -> None:
    found = judge(CHECK, PRELN, {0: 3.05, 1: 3.07, 2: 3.06})
    assert (found.num_seeds, found.difference, found.deviation) == (3, pytest.approx(0.05), pytest.approx(0.01))
    assert found.ratio == pytest.approx(5.0) and found.passed is True


def test_the_noisiest_of_the_three_counts() -> None:
    unpaired = judge(CHECK, PRELN, {0: 3.07, 1: 3.06, 2: 3.02})  # 0.01 and 0.026 each; the differences 0.03
    assert unpaired.deviation == pytest.approx(0.03)
    assert unpaired.passed is False
    noisy = judge(CHECK, {0: 1.0, 1: 2.0}, {0: 1.5, 1: 2.5})  # the same difference twice, between seeds that are far apart
    assert noisy.deviation == pytest.approx(math.sqrt(0.5)) and noisy.passed is False


def test_the_wrong_way_round_does_not_pass() -> None:
    assert judge(CHECK, {0: 3.05, 1: 3.07}, {0: 3.00, 1: 3.02}).passed is False


def test_exactly_the_limit_is_not_more() -> None:
    assert judge(Check(better="a", than="b", by_seed_deviations=2.0), {0: 0.0, 1: 0.0}, {0: 1.0, 1: 1.0}).passed is True  # no noise at all
    assert judge(Check(better="a", than="b", by_seed_deviations=2.0), {0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}).passed is False


@pytest.mark.parametrize(("than", "seeds", "difference"), [({}, 0, None), ({7: 3.0}, 0, None), ({1: 3.12}, 1, pytest.approx(0.1))])
def test_too_few_seeds_decide_nothing(than: dict[int, float], seeds: int, difference: object) -> None:
    found = judge(CHECK, PRELN, than)
    assert (found.num_seeds, found.difference, found.ratio, found.passed) == (seeds, difference, None, None)
