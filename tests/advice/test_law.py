import math
import random
from dataclasses import replace

import pytest

from pldcli.advice.law import Law, Point, fit, fresh_tokens, leave_one_out
from tests.benchmark_scripts import BENCHMARKS, load

TRUE = Law(floor=0.2, a=0.06, alpha=0.35, b=0.4, beta=0.5)
SHAPES = (3e5, 6e5, 1.3e6, 5e6)
LENGTHS = (1e6, 3e6, 8e6, 16e6)


def with_loss(point: Point, factor: float = 1.0) -> Point:
    return replace(point, loss=TRUE.loss(point) * factor)


def points(noise: float = 0.0) -> list[Point]:
    random.seed(1)
    return [with_loss(Point(parameters, 8192, tokens), 1 + random.gauss(0, noise)) for parameters in SHAPES for tokens in LENGTHS]


def test_a_law_by_hand() -> None:
    law = Law(1.0, 2.0, 0.5, 3.0, 1.0, 0.5, 2.0)
    assert law.loss(Point(4e6, 40_000, 2e6)) == pytest.approx(1.0 + 2.0 / 2.0 + 3.0 / (2.0 / 2.0))
    assert law.loss(Point(4e6, 40_000, 2e6, softmax_share=0.5)) == pytest.approx(1.0 + 2.0 / 2.0 + 3.0 / (2.0 / 4.0 / 2.0))


def test_the_law_that_made_the_points_is_found() -> None:
    found = fit(points())
    for parameters, tokens in ((4.5e5, 2e6), (2e6, 12e6), (8e6, 25e6)):  # none of the points, the last one outside
        assert found.loss(Point(parameters, 8192, tokens)) == pytest.approx(TRUE.loss(Point(parameters, 8192, tokens)), rel=3e-3)
    assert leave_one_out(points()) < 2e-3


def test_what_the_vocabulary_costs_is_found() -> None:
    true = replace(TRUE, gamma=0.6)
    two = [
        replace(point, vocab_size=entries, loss=true.loss(replace(point, vocab_size=entries)))
        for point in points()
        for entries in (8192, 32_768)
    ]
    found = fit(two)
    unseen = Point(2e6, 16_384, 6e6)
    assert found.gamma == pytest.approx(0.6) and found.loss(unseen) == pytest.approx(true.loss(unseen), rel=3e-3)
    assert found.loss(unseen) > found.loss(replace(unseen, vocab_size=8192))


def test_what_a_sampled_softmax_costs_is_found() -> None:
    true = replace(TRUE, gamma=0.3, delta=0.2)
    some = [
        replace(point, vocab_size=entries, softmax_share=share, loss=true.loss(replace(point, vocab_size=entries, softmax_share=share)))
        for point in points()[::2]
        for entries in (8192, 16_384)
        for share in (1.0, 2048 / entries)
    ]
    found = fit(some)
    unseen = Point(2e6, 16_384, 6e6, softmax_share=0.25)
    assert (found.gamma, found.delta) == pytest.approx((0.3, 0.2)) and found.loss(unseen) == pytest.approx(true.loss(unseen), rel=3e-3)
    assert found.loss(unseen) > found.loss(replace(unseen, softmax_share=1.0))


def test_noise_shows_in_what_is_left_out() -> None:
    assert 0.005 < leave_one_out(points(0.01)) < 0.03
    found = fit(points(0.01))
    unseen = Point(2e6, 8192, 12e6)
    assert found.loss(unseen) == pytest.approx(TRUE.loss(unseen), rel=0.02)


def test_no_term_is_negative() -> None:
    """Larger models that are no better, and losses that rise: the law never says that more of anything does harm."""
    odd = [Point(parameters, 8192, tokens, 0.5 + 0.1 * parameters / 5e6) for parameters in SHAPES for tokens in LENGTHS]
    found = fit(odd)
    assert min(found.floor, found.a, found.b) >= 0
    assert found.loss(Point(5e6, 8192, 16e6)) <= found.loss(Point(3e5, 8192, 1e6))


def test_one_size_of_model_is_enough_for_its_own_losses() -> None:
    one = [with_loss(Point(3e5, 8192, tokens)) for tokens in (1e6, 2e6, 4e6, 8e6, 16e6, 32e6, 64e6, 128e6)]
    found = fit(one)
    unseen = Point(3e5, 8192, 11e6)
    assert found.loss(unseen) == pytest.approx(TRUE.loss(unseen), rel=2e-3)


def test_too_few_runs() -> None:
    with pytest.raises(ValueError, match="5 runs are too few, 6 are needed"):
        fit(points()[:5])
    two = [replace(point, vocab_size=8192 + number, softmax_share=1 / (1 + number)) for number, point in enumerate(points()[:7])]
    with pytest.raises(ValueError, match="7 runs are too few, 8 are needed"):
        fit(two)


def test_repeated_text_is_worth_less_and_less() -> None:
    assert fresh_tokens(5e6, 10e6) == 5e6 and fresh_tokens(10e6, 10e6) == 10e6
    assert fresh_tokens(40e6, 10e6) == pytest.approx(10e6 * (1 + 15.4 * (1 - math.exp(-3 / 15.4))))
    worth = [fresh_tokens(times * 1e6, 1e6) for times in (1, 2, 4, 16, 64, 1000)]
    assert worth == sorted(worth) and worth[1] == pytest.approx(2e6, rel=0.04) and worth[-1] < 16.5e6


def test_comparisons_are_taken_from_a_study() -> None:
    """Of shipped systems as they are, beside the dense run of as many blocks, of equal seed and time."""
    law = load("law")
    found = law.compared_in_study(BENCHMARKS / "results" / "study-depth-narrow")
    assert {one.system: one.difference for one in found} == {"expansion": -0.159, "pld": 0.0043, "exits": 0.1074}
    assert {(one.num_hidden_layers, one.tokens) for one in found} == {(8, 6_144_000)}
