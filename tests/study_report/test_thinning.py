from __future__ import annotations

import pytest

from pldcli.bench.step_time import StepTime
from pldcli.study_report.thinning import calibrated
from tests.comparison.test_runs import START, made_up_run


def test_all_validations_and_about_so_many_other_rows_stay() -> None:
    rows = calibrated(made_up_run(), StepTime(2.0, 0.5), most=3).rows
    assert [row["step"] for row in rows if "eval/mlm_loss" in row] == [10, 20, 30, 40]
    assert [row["step"] for row in rows if "train/loss" in row] == [10, 25, 40]  # every third, the last one among them


def test_what_a_comparison_reads_is_exact_and_the_rest_has_six_digits() -> None:
    row = calibrated(made_up_run("a", "optim.learning_rate=0.0001234567", losses=(10 / 3,)), StepTime(2.0, 0.5)).rows[0]
    assert (row["optim/learning_rate"], row["train/loss"]) == (0.000108025, 10 / 3 + 1)


def test_seconds_are_steps_times_step_time() -> None:
    run = calibrated(made_up_run("a", "pld.theta_bar=1", seconds_per_step=7.0), StepTime(2.0, 0.5))
    assert [point.train_seconds for point in run.validation] == [20.0, 40.0, 60.0, 80.0]
    assert run.seconds_per_step == 2.0
    dropping = ("pld.theta_bar=0.5", "pld.schedule=constant", "pld.depth_rule=uniform")
    assert calibrated(made_up_run("a", *dropping), StepTime(2.0, 0.5)).final.train_seconds == pytest.approx(40 * 1.25)


def test_the_clock_of_the_run_itself_is_kept_beside_and_when_it_began_is_gone() -> None:
    starts = [{**START, "hardware": "first"}, {**START, "hardware": "second"}]
    run = calibrated(made_up_run(starts=starts, seconds_per_step=7.0), StepTime(2.0, 0.5))
    assert (run.start["hardware"], "started" in run.start, len(run.starts)) == ("second", False, 1)
    assert run.rows[-1]["progress/measured_seconds"] == 280.0


def test_training_losses_are_averaged_with_their_neighbours() -> None:
    run = made_up_run(losses=(4.0, 3.0, 2.0, 1.0))  # logged every 5 steps: 5, 5, 4, 4, 3, 3, 2, 2
    thin = calibrated(run, StepTime(2.0, 0.5), most=3)
    assert [(point.step, point.loss) for point in thin.training] == [(10, 5.0), (25, pytest.approx(11 / 3)), (40, pytest.approx(7 / 3))]
    assert [point.tokens for point in thin.training] == [2560, 6400, 10240]
    gap = calibrated(made_up_run(losses=(4.0, None, 2.0, 1.0)), StepTime(2.0, 0.5), most=4)
    assert [point.loss for point in gap.training] == [5.0, None, 3.0, 2.0]
