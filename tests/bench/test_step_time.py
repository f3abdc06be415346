from __future__ import annotations

import pytest

from pldcli.bench.step_time import StepTime, parse_seconds
from pldcli.errors import UsageError
from pldcli.pld import Dropping

TIME = StepTime(dense_seconds=1.0, block_seconds=0.125)


def schedule(**changes: object) -> Dropping:
    """Four blocks, half of them dropped from the first step to the last unless told otherwise."""
    settings = {"num_blocks": 4, "total_steps": 100, "time": "constant", "theta_bar": 0.5, "depth_rule": "uniform"} | changes
    return Dropping(**settings)  # type: ignore[arg-type]


def test_a_dropped_block_takes_its_time_away() -> None:
    assert TIME.mean_seconds(schedule()) == pytest.approx(0.75)  # two blocks of an eighth of a second
    assert TIME.seconds_until(schedule(), 40) == pytest.approx(30.0)
    assert TIME.seconds_until(schedule(theta_bar=1.0), 40) == pytest.approx(40.0)


def test_time_follows_the_schedule() -> None:
    """Growing depth is slow at the end: its first half takes less than half of the time."""
    growing = schedule(time="growing", recovery_fraction=0.5)
    assert TIME.seconds_until(growing, 50) < 0.5 * TIME.seconds_until(growing, 100)
    assert TIME.seconds_until(growing, 100) - TIME.seconds_until(growing, 50) == pytest.approx(50.0)


def test_so_many_steps_take_so_long() -> None:
    assert TIME.steps_within(30.0, schedule()) == pytest.approx(40.0)
    dropping = schedule(time="exponential", gamma=0.001)  # a fixed gamma: a longer run drops more on average
    steps = round(TIME.steps_within(900.0, dropping))
    assert steps > 900 / TIME.mean_seconds(dropping) * 1.05  # what the first guess would say
    longer = schedule(time="exponential", gamma=0.001, total_steps=steps)
    assert TIME.seconds_until(longer, steps) == pytest.approx(900.0, abs=1.0)


def test_the_place_of_a_wrong_time_is_named() -> None:
    assert parse_seconds("1h30m", "here") == 5400
    with pytest.raises(UsageError, match=r"systems\.day\.budget: 'soon' is not a time; write 24h"):
        parse_seconds("soon", "systems.day.budget")
