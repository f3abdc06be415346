from __future__ import annotations

import pytest

from pldcli.comparison.comparison import compare_runs, reach_loss
from pldcli.comparison.intervals import Interval
from pldcli.errors import UsageError
from tests.comparison.test_runs import START, made_up_run

DENSE = "pld.theta_bar=1"


def test_where_a_loss_is_reached_lies_on_a_straight_line() -> None:
    at, is_first = reach_loss(2.75, made_up_run(losses=(4.0, 3.0, 2.0, 1.0), seconds_per_step=3.0))
    assert at is not None and not is_first
    # A quarter of the way from step 20 to step 30.
    assert (at.step, at.tokens, at.train_seconds, at.executed_flops, at.loss) == (23, 5760.0, 67.5, 5.76e6, 2.75)


def test_a_loss_met_exactly_is_reached_there() -> None:
    at, _ = reach_loss(3.0, made_up_run())
    assert at == made_up_run().validation[1]


def test_a_loss_reached_at_the_first_validation_may_have_been_reached_earlier() -> None:
    at, is_first = reach_loss(9.0, made_up_run())
    assert is_first and at == made_up_run().validation[0]


def test_a_loss_that_is_not_reached() -> None:
    assert reach_loss(0.5, made_up_run()) == (None, False)


def test_the_first_crossing_counts_and_gaps_are_not_bridged() -> None:
    at, _ = reach_loss(2.5, made_up_run(losses=(4.0, 2.0, 3.0, 1.0)))
    assert at is not None and at.step == 18
    after_gap, is_first = reach_loss(2.5, made_up_run(losses=(4.0, None, 2.0, 1.0)))
    assert after_gap is not None and (after_gap.step, after_gap.loss, is_first) == (30, 2.0, False)


def test_tokens_and_time_to_the_final_loss_of_the_baseline() -> None:
    baseline = made_up_run("preln", DENSE, losses=(5.0, 4.0, 3.0, 2.5), seconds_per_step=4.0)
    faster = made_up_run("pld", losses=(4.0, 3.0, 2.0, 1.0), seconds_per_step=2.0)
    [contrast] = compare_runs([baseline, faster]).contrasts
    [reach] = contrast.reaches
    assert (reach.run, reach.reference, reach.target) == ("pld", "preln", 2.5)
    assert reach.ratio("tokens") == reach.ratio("executed_flops") == pytest.approx(25 / 40)
    assert reach.ratio("train_seconds") == pytest.approx(50 / 160)
    assert reach.schedule_finished is False
    assert reach.schedule_share == 25 / 40
    assert reach.learning_rate_share == pytest.approx(1 - 25 / 40)


def test_a_crossing_at_the_last_step_is_a_finished_schedule() -> None:
    baseline = made_up_run("preln", DENSE, losses=(5.0, 4.0, 3.0, 1.0))
    [contrast] = compare_runs([baseline, made_up_run("pld")]).contrasts
    assert contrast.reaches[0].schedule_finished is True
    assert contrast.reaches[0].ratio("tokens") == 1.0


def test_what_is_not_reached_has_no_ratio() -> None:
    baseline = made_up_run("preln", DENSE, losses=(3.0, 2.0, 1.0, 0.5))
    [contrast] = compare_runs([baseline, made_up_run("pld")]).contrasts
    [reach] = contrast.reaches
    assert (reach.at, reach.ratio("tokens"), reach.schedule_finished) == (None, None, None)


def test_seeds_are_paired() -> None:
    finals = {"preln": {0: 1.0, 1: 1.2, 2: 1.1}, "pld": {2: 1.2, 0: 1.1, 1: 1.3, 7: 9.0}}
    runs = [
        made_up_run(f"{name}-seed{seed}", f"train.seed={seed}", *([DENSE] if name == "preln" else []), losses=(4.0, 3.0, 2.0, final))
        for name, seeds in finals.items()
        for seed, final in seeds.items()
    ]
    [contrast] = compare_runs(runs).contrasts
    assert contrast.difference is not None
    interval = contrast.difference.interval
    assert (interval.n, set(contrast.difference.seeds)) == (3, {0, 1, 2})
    assert interval.mean == pytest.approx(0.1)
    assert interval.half_width == pytest.approx(0.0, abs=1e-9)  # unpaired, the spread of seeds would widen it
    assert [(reach.run, reach.reference) for reach in contrast.reaches] == [
        ("pld-seed2", "preln-seed2"),
        ("pld-seed0", "preln-seed0"),
        ("pld-seed1", "preln-seed1"),
        ("pld-seed7", "preln-seed0"),
    ]


def test_one_pair_has_no_interval() -> None:
    [contrast] = compare_runs([made_up_run("preln", DENSE, losses=(4.0, 3.0, 2.0, 1.5)), made_up_run("pld")]).contrasts
    assert contrast.difference is not None
    assert (contrast.difference.interval, contrast.difference.seeds) == (Interval(-0.5, None, 1), (0,))


def test_systems_without_a_common_seed_are_not_paired() -> None:
    runs = [made_up_run("a", DENSE), made_up_run("b", "train.seed=1", losses=(4.0, 3.0, 2.0, 1.25))]
    [contrast] = compare_runs(runs).contrasts
    assert contrast.difference is not None
    assert (contrast.difference.interval, contrast.difference.seeds) == (Interval(0.25, None, 0), ())


def test_fine_tuning_scores_are_paired_by_the_seed_of_pre_training() -> None:
    scores = {"preln": {0: (0.5, 0.7), 1: (0.5,)}, "pld": {1: (0.6, 0.8), 0: (0.7,), 7: (0.1,)}}
    runs = [
        made_up_run(f"{name}-{seed}", *([DENSE] if name == "preln" else []), f"train.seed={seed}", finetuned={"glue/rte": values})
        for name, seeds in scores.items()
        for seed, values in seeds.items()
    ]
    [contrast] = compare_runs(runs).contrasts
    interval = contrast.finetuned["glue/rte"]
    assert (interval.mean, interval.n) == (pytest.approx(((0.7 - 0.6) + (0.7 - 0.5)) / 2), 2)
    [unpaired] = compare_runs([runs[0], runs[-1]]).contrasts
    assert unpaired.finetuned == {"glue/rte": Interval(pytest.approx(0.1 - 0.6), None, 0)}
    [missing] = compare_runs([made_up_run("preln", DENSE), runs[-1]]).contrasts
    assert missing.finetuned == {}


def test_a_seed_that_ran_twice_counts_once() -> None:
    runs = [made_up_run("a", DENSE), *(made_up_run(f"b-{n}", losses=(4.0, 3.0, 2.0, loss)) for n, loss in enumerate((1.2, 1.4)))]
    [contrast] = compare_runs(runs).contrasts
    assert contrast.difference is not None
    assert contrast.difference.interval == Interval(pytest.approx(0.3), None, 1)


def test_unfinished_runs_do_not_go_into_an_interval() -> None:
    runs = [made_up_run(f"preln-{seed}", DENSE, f"train.seed={seed}") for seed in (0, 1, 2)]
    runs += [made_up_run("pld-0", losses=(4.0, 3.0, 2.0, 1.1)), made_up_run("pld-1", "train.seed=1", losses=(4.0, 3.0, 2.0, 1.3))]
    runs += [made_up_run("pld-2", "train.seed=2", losses=(4.0, 3.0))]
    [contrast] = compare_runs(runs).contrasts
    assert contrast.difference is not None
    assert (contrast.difference.seeds, contrast.difference.is_complete) == ((0, 1), True)
    assert contrast.difference.interval.mean == pytest.approx(0.2)
    assert [reach.is_unfinished_pair for reach in contrast.reaches] == [False, False, True]
    assert contrast.equal == ("tokens", "time"), "in which the two pairs that went in are alike"


def test_only_the_seeds_in_common_make_systems_equal() -> None:
    runs = [made_up_run(f"preln-{seed}", DENSE, f"train.seed={seed}") for seed in (0, 1)]
    runs += [made_up_run("pld-1", "train.seed=1"), made_up_run("pld-2", "train.seed=2", seconds_per_step=4.0)]
    [contrast] = compare_runs(runs).contrasts
    assert contrast.difference is not None and (contrast.difference.seeds, contrast.equal) == ((1,), ("tokens", "time"))


def test_unfinished_runs_alone_are_compared_and_marked() -> None:
    [contrast] = compare_runs([made_up_run("a", DENSE), made_up_run("b", losses=(4.0, 3.0))]).contrasts
    assert contrast.difference is not None
    assert (contrast.difference.interval.mean, contrast.difference.is_complete) == (2.0, False)


def test_a_diverged_run_has_no_difference() -> None:
    diverged = made_up_run("b", losses=(4.0, 3.0, 2.0, None))
    [contrast] = compare_runs([made_up_run("a", DENSE), diverged]).contrasts
    assert (contrast.difference, contrast.reaches[0].at) == (None, None)
    [contrast] = compare_runs([diverged, made_up_run("a", DENSE)]).contrasts
    assert (contrast.difference, contrast.reaches) == (None, ())


def test_losses_on_other_text_are_not_compared() -> None:
    other = made_up_run("b", starts=[{**START, "data_fingerprint": "e" * 64}])
    [contrast] = compare_runs([made_up_run("a", DENSE), other]).contrasts
    assert (contrast.difference, contrast.reaches) == (None, ())
    assert contrast.saving.step_time == 0.0  # speed does compare


def test_predicted_and_measured_savings() -> None:
    dense = made_up_run("a", DENSE, seconds_per_step=4.0)
    [contrast] = compare_runs([dense, made_up_run("b", "pld.schedule=constant", "pld.theta_bar=0.5", seconds_per_step=3.0)]).contrasts
    flops = dense.config.flops
    assert contrast.saving.predicted_flops == pytest.approx(flops.total_saved(2 / 3))
    assert contrast.saving.executed_flops == 0.0  # both executed 1000 per token here
    assert (contrast.saving.step_time, contrast.saving.run_time) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("steps", "seconds", "equal"),
    [(40, 4.0, ("tokens", "time")), (40, 3.0, ("tokens",)), (30, 4.0 * 40 / 30, ("time",)), (30, 4.0, ())],
)
def test_in_what_runs_are_equal(steps: int, seconds: float, equal: tuple[str, ...]) -> None:
    other = made_up_run("b", f"train.total_steps={steps}", losses=(4.0, 3.0, 2.0, 1.0)[: steps // 10], seconds_per_step=seconds)
    [contrast] = compare_runs([made_up_run("a", DENSE, seconds_per_step=4.0), other]).contrasts
    assert contrast.equal == equal


def test_the_baseline_is_the_first_or_the_one_that_is_named() -> None:
    runs = [made_up_run("b-0"), made_up_run("b-1", "train.seed=1"), made_up_run("a", DENSE)]
    assert compare_runs(runs).baseline.name == "b"
    for name in ("a", "runs/a", "./runs/a/"):
        comparison = compare_runs(runs, baseline=name)
        assert comparison.baseline.name == "a"
        assert [contrast.system.name for contrast in comparison.contrasts] == ["b"]
    assert compare_runs(runs, baseline="b").baseline.name == compare_runs(runs, baseline="b-1").baseline.name == "b"
    with pytest.raises(UsageError, match=r"--baseline: no run called c .* choose one of b-0, b-1, a"):
        compare_runs(runs, baseline="c")


def test_one_run_is_not_enough() -> None:
    with pytest.raises(UsageError, match="a comparison needs two runs, there is only runs/a"):
        compare_runs([made_up_run("a")])


def test_the_control_is_named() -> None:
    runs = [made_up_run("post", DENSE, "model.norm=post"), made_up_run("pre", DENSE), made_up_run("pld")]
    assert [contrast.controls for contrast in compare_runs(runs).contrasts] == [(), ("pre",)]
    assert [contrast.controls for contrast in compare_runs(runs[::2]).contrasts] == [()]


def test_seconds_of_unlike_machines_are_not_compared() -> None:
    baseline = made_up_run("preln", DENSE, losses=(5.0, 4.0, 3.0, 2.5), seconds_per_step=50.0)
    other = made_up_run("pld", starts=[{**START, "hardware": "a GPU", "device": "cuda"}])
    [contrast] = compare_runs([baseline, other]).contrasts
    [reach] = contrast.reaches
    assert (reach.ratio("train_seconds"), contrast.saving.step_time, contrast.saving.run_time) == (None, None, None)
    assert reach.ratio("tokens") == pytest.approx(25 / 40) and contrast.equal == ("tokens",)


def test_a_baseline_whose_loss_rises_again_had_it_earlier() -> None:
    baseline = made_up_run("preln", DENSE, losses=(4.0, 2.0, 1.5, 3.0))
    [contrast] = compare_runs([baseline, made_up_run("pld", losses=(4.0, 3.0, 2.0, 1.0))]).contrasts
    [reach] = contrast.reaches
    assert reach.at is not None and (reach.at.step, reach.reference_at.step) == (20, 15)
    assert reach.ratio("tokens") == pytest.approx(20 / 15)


@pytest.mark.parametrize("change", ["model.dropout=0.3", "train.global_batch_size=16", "model.num_attention_heads=4", "data.seq_len=16"])
def test_a_control_is_alike_in_everything_but_dropping(change: str) -> None:
    [contrast] = compare_runs([made_up_run("preln", DENSE), made_up_run("pld")]).contrasts
    assert contrast.controls == ("preln",)
    [contrast] = compare_runs([made_up_run("preln", DENSE, change), made_up_run("pld")]).contrasts
    assert contrast.controls == ()
