from __future__ import annotations

import pytest

from pldcli.bench.step_time import StepTime
from pldcli.study.thinning import calibrated, thin_rows
from tests.comparison.test_runs import START, made_up_run


def test_all_validations_and_a_hundred_other_rows_stay() -> None:
    rows = [{"step": step, "train/loss": 1.0 / 3.0, "progress/tokens": 1234567890} for step in range(1, 1001)]
    rows += [{"step": step, "eval/mlm_loss": 2.0} for step in range(10, 1001, 10)]
    rows.sort(key=lambda row: row["step"])
    thin = thin_rows(rows)
    assert [row["step"] for row in thin if "eval/mlm_loss" in row] == list(range(10, 1001, 10))
    assert [row["step"] for row in thin if "train/loss" in row] == list(range(10, 1001, 10))
    assert thin[0] == {"step": 10, "train/loss": 0.333333, "progress/tokens": 1234567890}
    assert len(thin_rows(rows, most=70)) == 100 + 67  # every 15th, the last one among them
    assert thin_rows(rows, most=70)[-2]["step"] == thin_rows(rows, most=70)[-1]["step"] == 1000


def test_few_rows_stay_as_they_are() -> None:
    rows = [{"step": 1, "train/loss": None}, {"step": 2, "train/loss": 0.5}]
    assert thin_rows(rows) == rows and thin_rows([]) == []


def test_seconds_are_steps_times_step_time() -> None:
    run = calibrated(made_up_run("a", "pld.theta_bar=1", seconds_per_step=7.0), StepTime(2.0, 0.5))
    assert [point.train_seconds for point in run.validation] == [20.0, 40.0, 60.0, 80.0]
    assert run.seconds_per_step == 2.0
    dropping = ("pld.theta_bar=0.5", "pld.schedule=constant", "pld.depth_rule=uniform")
    assert calibrated(made_up_run("a", *dropping), StepTime(2.0, 0.5)).final.train_seconds == pytest.approx(40 * 1.25)


def test_the_clock_of_the_run_itself_is_gone() -> None:
    starts = [{**START, "hardware": "first"}, {**START, "hardware": "second"}]
    run = calibrated(made_up_run(starts=starts, wall_seconds=50.0), StepTime(2.0, 0.5))
    assert (run.start["hardware"], "started" in run.start, len(run.starts), run.wall_seconds) == ("second", False, 1, 0.0)


def test_training_losses_are_averaged_with_their_neighbours() -> None:
    run = made_up_run(losses=(4.0, 3.0, 2.0, 1.0))  # logged every 5 steps: 5, 5, 4, 4, 3, 3, 2, 2
    thin = calibrated(run, StepTime(2.0, 0.5), most=3)
    assert [(point.step, point.loss) for point in thin.training] == [(10, 5.0), (25, pytest.approx(11 / 3)), (40, pytest.approx(7 / 3))]
    assert [point.tokens for point in thin.training] == [2560, 6400, 10240]
    gap = calibrated(made_up_run(losses=(4.0, None, 2.0, 1.0)), StepTime(2.0, 0.5), most=4)
    assert [point.loss for point in gap.training] == [5.0, None, 3.0, 2.0]
