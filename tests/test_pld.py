from __future__ import annotations

import math
from collections import Counter

import pytest

from pldcli.pld import Dropping

PAPER = Dropping(num_blocks=12, total_steps=200_000)


def constant(**changes: object) -> Dropping:
    return Dropping(**{"num_blocks": 12, "total_steps": 10_000, "time": "constant", **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("step", "theta"),
    [(0, 1.0), (1, 0.99975006), (1386, 0.75003680), (2000, 0.68393972), (9211, 0.50499835), (20_000, 0.50002270), (199_999, 0.5)],
)
def test_exponential_values(step: int, theta: float) -> None:
    assert PAPER.theta(step) == pytest.approx(theta, abs=5e-8)


def test_theta_starts_at_exactly_one_for_every_lowest_ratio() -> None:
    for theta_bar in [k / 997 for k in range(1, 998)]:
        assert Dropping(12, 1000, theta_bar=theta_bar).theta(0) == 1.0


def test_gamma_as_a_number_is_per_step() -> None:
    released = Dropping(12, 200_000, gamma=0.001)
    assert released.theta(1000) == pytest.approx(0.68393972, abs=1e-8)
    assert released.theta(2000) == pytest.approx(0.56766764, abs=1e-8)
    assert Dropping(12, 100_000, gamma="auto").theta(1000) == pytest.approx(0.68393972, abs=1e-8)
    assert Dropping(12, 100, gamma=0.0).theta(99) == 1.0


def test_half_and_99_percent_on() -> None:
    assert PAPER.first_step_dropping(0.5) == 1387
    assert PAPER.first_step_dropping(0.99) == 9211
    assert Dropping(12, 1000, time="linear").first_step_dropping(0.5) == 500
    assert Dropping(12, 1000, time="constant").first_step_dropping(0.99) == 0
    for nothing in (Dropping(12, 1000, theta_bar=1.0), Dropping(12, 1000, time="growing"), Dropping(12, 1000, gamma=0.0), Dropping(12, 1)):
        assert nothing.first_step_dropping(0.5) is None


def test_linear_is_half_on_halfway_in_spite_of_rounding() -> None:
    for theta_bar in [k / 100 for k in range(1, 100)]:
        for steps in (10, 30, 70, 1000, 4400):
            assert Dropping(12, steps, time="linear", theta_bar=theta_bar).first_step_dropping(0.5) == steps // 2


def test_linear_and_constant_values() -> None:
    linear = Dropping(12, 1000, time="linear", theta_bar=0.6)
    assert [linear.theta(step) for step in (0, 250, 500)] == pytest.approx([1.0, 0.9, 0.8], abs=1e-12)
    assert [constant(theta_bar=0.7).theta(step) for step in (0, 9999)] == [0.7, 0.7]


def test_growing_rises_from_theta_bar_and_recovers_to_exactly_one() -> None:
    growing = Dropping(12, 100, time="growing", theta_bar=0.4, recovery_fraction=0.2)
    assert [growing.theta(step) for step in (0, 20, 40, 60, 79)] == pytest.approx([0.4, 0.55, 0.7, 0.85, 0.9925], abs=1e-12)
    assert {growing.theta(step) for step in range(80, 100)} == {1.0}
    assert set(growing.keep_probs(80)) == {1.0}


@pytest.mark.parametrize(
    ("steps", "fraction", "first_full"), [(70, 0.1, 63), (10, 0.1, 9), (4400, 0.1, 3960), (7, 0.1, 6), (3, 0.9, 0), (1, 0.5, 0)]
)
def test_recovery_takes_the_stated_part_of_the_run(steps: int, fraction: float, first_full: int) -> None:
    growing = Dropping(4, steps, time="growing", recovery_fraction=fraction)
    assert next(step for step in range(steps) if growing.theta(step) == 1.0) == first_full


def test_every_schedule_may_end_at_full_depth() -> None:
    falling = Dropping(4, 100, time="linear", theta_bar=0.5, recovery_fraction=0.2)
    assert [falling.theta(step) for step in (0, 40, 79)] == pytest.approx([1.0, 0.75, 0.50625], abs=1e-12)
    for schedule in (falling, *(Dropping(4, 100, time=time, recovery_fraction=0.2) for time in ("exponential", "constant"))):  # type: ignore[arg-type]
        assert schedule.theta(79) < 0.51
        assert {schedule.theta(step) for step in range(80, 100)} == {1.0}
        assert schedule.plan(80, 0, seed=0).residual_scales == (1.0,) * 4
    # The paper's speed is tied to the whole run.
    assert Dropping(4, 100, recovery_fraction=0.2).gamma_per_step == 1.0


def test_blocks_at_the_ends_may_always_run() -> None:
    assert constant(num_blocks=4, keep_first=1).keep_probs(7) == (1.0, 0.75, 0.625, 0.5)
    ends = constant(num_blocks=4, keep_first=1, keep_last=2)
    assert ends.keep_probs(7) == (1.0, 0.75, 1.0, 1.0)
    assert ends.mean_kept_fraction == 3.75 / 4
    for step in range(50):
        plan = ends.plan(step, 0, seed=1)
        assert plan.gates[0] and plan.gates[2] and plan.gates[3]
        assert plan.residual_scales == pytest.approx((1.0, 4 / 3, 1.0, 1.0), abs=1e-15)
    assert {ends.plan(step, 0, seed=1).gates[1] for step in range(50)} == {True, False}
    every = constant(num_blocks=4, keep_first=2, keep_last=2)
    assert every.mean_kept_fraction == 1.0


def test_depth_rules() -> None:
    paper, released, flat = (constant(num_blocks=4, depth_rule=rule).keep_probs(7) for rule in ("paper", "algorithm1", "uniform"))
    assert paper == (0.875, 0.75, 0.625, 0.5)
    assert released == (1.0, 0.875, 0.75, 0.625)
    assert flat == (0.5, 0.5, 0.5, 0.5)


def test_mean_kept_blocks_at_full_drop() -> None:
    assert constant().expected_kept_blocks(0) == pytest.approx(8.75, abs=1e-12)
    assert constant(depth_rule="algorithm1").expected_kept_blocks(0) == pytest.approx(9.25, abs=1e-12)
    assert constant(depth_rule="uniform").expected_kept_blocks(0) == pytest.approx(6.0, abs=1e-12)
    assert PAPER.expected_kept_blocks(0) == 12.0


def test_probabilities_stay_usable_for_tiny_ratios() -> None:
    for rule in ("paper", "algorithm1", "uniform"):
        tiny = constant(theta_bar=1e-17, depth_rule=rule)
        assert all(0.0 < p <= 1.0 for p in tiny.keep_probs(0))
        assert all(map(math.isfinite, tiny.plan(0, 0, seed=0).residual_scales))
    assert constant(theta_bar=1e-17).keep_probs(0)[-1] == 1e-17


@pytest.mark.parametrize("time", ["exponential", "constant", "linear", "growing"])
@pytest.mark.parametrize("theta_bar", [0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 70, 1000])
def test_means_are_those_of_the_steps(time: str, theta_bar: float, steps: int) -> None:
    schedule = Dropping(6, steps, time=time, theta_bar=theta_bar, recovery_fraction=0.3, keep_last=1)  # type: ignore[arg-type]
    for until in {1, (steps + 1) // 2, steps}:
        kept = [schedule.expected_kept_blocks(step) for step in range(until)]
        assert schedule.mean_kept_fraction_until(until) == pytest.approx(sum(kept) / until / 6, abs=1e-12)
    assert schedule.mean_kept_fraction == schedule.mean_kept_fraction_until(steps)


def test_the_mean_of_a_run_of_any_length_is_quick() -> None:
    assert Dropping(12, 10**15).mean_kept_fraction * 12 == pytest.approx(8.7825, abs=1e-9)


def test_theta_bar_one_drops_nothing_and_scales_by_exactly_one() -> None:
    for time in ("exponential", "constant", "linear", "growing"):
        off = Dropping(12, 50, time=time, theta_bar=1.0)  # type: ignore[arg-type]
        for step in range(50):
            for draw in ("bernoulli", "fixed-depth"):
                plan = Dropping(12, 50, time=time, theta_bar=1.0, draw=draw).plan(step, 0, seed=step)  # type: ignore[arg-type]
                assert plan.gates == (True,) * 12
                assert plan.residual_scales == (1.0,) * 12
        assert off.mean_kept_fraction == 1.0
        assert not off.scales


def test_a_plan_carries_the_scales_of_its_own_probabilities() -> None:
    plan = constant(num_blocks=4).plan(3, 0, seed=0)
    assert plan.keep_probs == (0.875, 0.75, 0.625, 0.5)
    assert plan.residual_scales == pytest.approx((8 / 7, 4 / 3, 1.6, 2.0), abs=1e-15)
    assert plan.kept_blocks == plan.gates.count(True)
    assert constant(num_blocks=4, residual="none").plan(3, 0, seed=0).residual_scales == (1.0, 1.0, 1.0, 1.0)
    assert constant(num_blocks=4).scales
    assert not constant(num_blocks=4, residual="none").scales


def test_scaling_does_not_change_the_gates() -> None:
    assert constant(residual="none").plan(9, 1, seed=2).gates == constant().plan(9, 1, seed=2).gates


@pytest.mark.parametrize("draw", ["bernoulli", "fixed-depth"])
def test_plans_are_pure_and_differ_by_step_group_and_seed(draw: str) -> None:
    schedule, again = constant(draw=draw), constant(draw=draw)
    places = [(step, group, seed) for step in range(40) for group in range(2) for seed in range(2)]
    first = {place: schedule.plan(place[0], place[1], seed=place[2]).gates for place in places}
    second = {place: again.plan(place[0], place[1], seed=place[2]).gates for place in reversed(places)}
    assert first == second
    for axis in range(3):
        moved = [tuple(value + (i == axis) for i, value in enumerate(place)) for place in places]
        assert sum(first[place] != first.get(other) for place, other in zip(places, moved, strict=True)) > 0.8 * len(places)


GOLDEN_GATES = ["111110011001", "111001001100", "101011111101", "111110111001"]


def test_draws_stay_as_published() -> None:
    """Changing these changes every run: a numerics change."""
    plans = [constant(draw=draw).plan(step, 0, seed=0) for draw in ("bernoulli", "fixed-depth") for step in (0, 1)]
    assert ["".join(str(int(gate)) for gate in plan.gates) for plan in plans] == GOLDEN_GATES


@pytest.mark.parametrize("draw", ["bernoulli", "fixed-depth"])
@pytest.mark.parametrize("rule", ["paper", "algorithm1", "uniform"])
@pytest.mark.parametrize("theta_bar", [0.5, 0.9])
def test_every_block_is_kept_as_often_as_its_probability_says(draw: str, rule: str, theta_bar: float) -> None:
    schedule, draws = constant(draw=draw, depth_rule=rule, theta_bar=theta_bar), 4000
    counts = [0] * 12
    for step in range(draws):
        for block, gate in enumerate(schedule.plan(step, 0, seed=5).gates):
            counts[block] += gate
    for count, p in zip(counts, schedule.keep_probs(0), strict=True):
        assert abs(count / draws - p) <= 4 * math.sqrt(p * (1 - p) / draws)


@pytest.mark.parametrize(
    ("rule", "theta_bar", "numbers"),
    [("paper", 0.5, {8, 9}), ("algorithm1", 0.5, {9, 10}), ("uniform", 0.5, {6}), ("uniform", 0.75, {9}), ("paper", 0.9, {11, 12})],
)
def test_fixed_depth_keeps_the_floor_or_ceiling(rule: str, theta_bar: float, numbers: set[int]) -> None:
    schedule = constant(draw="fixed-depth", depth_rule=rule, theta_bar=theta_bar)
    counts = Counter(schedule.plan(step, 0, seed=1).kept_blocks for step in range(2000))
    assert set(counts) == numbers


def test_fixed_depth_mixes_floor_and_ceiling_to_the_mean() -> None:
    counts = Counter(constant(draw="fixed-depth").plan(step, 0, seed=1).kept_blocks for step in range(4000))
    assert counts[9] / 4000 == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 4000))


def test_fixed_depth_draws_every_pair_of_blocks() -> None:
    """A fixed order would make neighbours exclude one another; a random one lets every pair be dropped together."""
    schedule = constant(draw="fixed-depth", num_blocks=6, depth_rule="uniform")
    pairs = {
        (i, j)
        for step in range(600)
        for gates in [schedule.plan(step, 0, seed=3).gates]
        for i in range(6)
        for j in range(i)
        if not gates[i] and not gates[j]
    }
    assert len(pairs) == 15


def test_bernoulli_blocks_are_independent() -> None:
    schedule, draws = constant(num_blocks=2, depth_rule="uniform"), 4000
    both = sum(all(schedule.plan(step, 0, seed=0).gates) for step in range(draws))
    assert both / draws == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / draws))


@pytest.mark.parametrize(("draws_per_step", "idle"), [(1, 3.25), (2, 1.13), (4, 0.18)])
def test_blocks_that_no_group_runs(draws_per_step: int, idle: float) -> None:
    schedule, steps = constant(), 3000
    counts = []
    for step in range(steps):
        groups = [schedule.plan(step, group, seed=11).gates for group in range(draws_per_step)]
        counts.append(sum(not any(gates) for gates in zip(*groups, strict=True)))
    mean = sum(counts) / steps
    sigma = math.sqrt(sum((count - mean) ** 2 for count in counts) / steps / steps)
    assert mean == pytest.approx(idle, abs=4 * sigma + 0.005)
