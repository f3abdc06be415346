from __future__ import annotations

from collections.abc import Callable

import pytest

from pldcli.bench.step_time import StepTime
from pldcli.errors import UsageError
from pldcli.study.plan import changed_keys, make_plan, shapes
from pldcli.study.spec import Spec
from tests.study.conftest import FROM_DATA, plan_of

PRELN, PLD = {"preset": "bert-tiny-preln"}, {"preset": "bert-tiny-pld"}
HALF = {"pld.schedule": "constant", "pld.depth_rule": "uniform", "pld.theta_bar": 0.5}
"""Half of the three blocks on average: of a step of 1 s with 0.2 s per block, 0.3 s are saved."""


def steps_of(spec: Spec) -> dict[str, int]:
    return {name: config.train.total_steps for name, config in plan_of(spec).configs.items()}


def test_equal_time_is_more_steps_where_a_step_is_shorter(spec_of: Callable[..., Spec]) -> None:
    systems = {
        "preln": PRELN,
        "half": PLD | {"set": HALF, "equal_time": "preln"},
        "quarter": PLD | {"set": HALF, "equal_time": "preln", "fraction": 0.25},
        "same": PLD | {"set": HALF, "equal_time": "half"},
        "tokens": PLD | {"set": HALF},
    }
    # 40 s are 57.1 steps of 0.7 s; a quarter of 40 s are 14.3.
    assert steps_of(spec_of(systems)) == {"preln": 40, "half": 57, "quarter": 14, "same": 57, "tokens": 40}


def test_a_reference_may_stand_further_down_and_be_short(spec_of: Callable[..., Spec]) -> None:
    systems = {"half": PLD | {"set": HALF, "equal_time": "preln"}, "preln": PRELN | {"fraction": 0.5}}
    assert steps_of(spec_of(systems)) == {"half": 29, "preln": 20}  # 20 s are 28.6 steps


def test_the_mean_over_the_schedule_counts(spec_of: Callable[..., Spec]) -> None:
    """Growing from half to full depth over the first half: on average a quarter of a half is missing, 0.075 s of a step."""
    growing = {"pld.schedule": "growing", "pld.recovery_fraction": 0.5} | {key: HALF[key] for key in ("pld.depth_rule", "pld.theta_bar")}
    [steps] = [steps_of(spec_of({"preln": PRELN | {"steps": 400}, "g": PLD | {"set": growing, "equal_time": "preln"}}))["g"]]
    assert steps == pytest.approx(400 / (1 - 0.6 * 0.5 * 0.25), abs=2)


def test_given_steps_budgets_and_fractions(spec_of: Callable[..., Spec]) -> None:
    systems = {
        "preln": PRELN,
        "steps": PLD | {"steps": 5600},
        "half": PLD | {"fraction": 0.5, "set": {"train.total_steps": 31}},
        "budget": PRELN | {"budget": "1m"},
        "part": PLD | {"set": HALF, "budget": "1m", "fraction": 0.5},
    }
    # 30 s are 42.9 steps of 0.7 s, and a budget is not exceeded.
    assert steps_of(spec_of(systems)) == {"preln": 40, "steps": 5600, "half": 16, "budget": 60, "part": 42}


def test_a_warm_up_in_steps_stays_however_short_the_run(spec_of: Callable[..., Spec]) -> None:
    warm_up = {"set": {"optim.warmup_steps": 7}}
    systems = {
        "whole": PRELN | warm_up,
        "part": PRELN | warm_up | {"fraction": 0.5},
        "share": PRELN | {"fraction": 0.5, "set": {"optim.warmup_fraction": 0.1}},
    }
    configs = plan_of(spec_of(systems)).configs
    assert [(config.warmup_steps, config.train.total_steps) for config in configs.values()] == [(7, 40), (7, 20), (4, 20)]


def test_a_shorter_trial_warms_up_as_long_as_the_whole_run(spec_of: Callable[..., Spec]) -> None:
    tenth = {"optim.warmup_fraction": 0.1}
    systems = {
        "preln": PRELN | {"set": tenth},
        "half": PLD | {"set": HALF | tenth, "equal_time": "preln", "fraction": 0.5},
        "short": PRELN | {"set": tenth, "fraction": 0.1},
    }
    plan = plan_of(spec_of(systems, halving={"candidates": ["half", "short"], "rungs": [{"fraction": 0.5}, {"fraction": 1, "keep": 1}]}))
    found = {name: (config.warmup_steps, config.train.total_steps) for name, config in plan.configs.items()}
    assert found == {"preln": (4, 40), "half": (6, 29), "short": (2, 4)}, "57 steps are the whole of half; at most half of a run"
    rung = plan.rung(0, ("half",))[0]
    assert (rung.config.warmup_steps, rung.config.train.total_steps) == (6, 14)
    assert rung.changes[-3:] == ("optim.warmup_steps=6", "train.total_steps=14", "train.seed=0")
    assert plan.runs()[0].changes[-2:] == ("train.total_steps=40", "train.seed=0")
    assert not any(change.startswith("optim.warmup_steps") for change in plan.runs()[0].changes)


def test_a_warm_up_longer_than_a_run_of_the_study_names_the_system(spec_of: Callable[..., Spec]) -> None:
    what = r"systems\.b: optim\.warmup_steps: 7 steps of warm-up do not fit a run of 4; shorten the warm-up or raise train\.total_steps"
    with pytest.raises(UsageError, match=what):
        plan_of(spec_of({"a": PRELN, "b": PRELN | {"set": {"optim.warmup_steps": 7}, "fraction": 0.1}}))


def test_no_step_fits(spec_of: Callable[..., Spec]) -> None:
    with pytest.raises(UsageError, match=r"systems\.b: not one step of 5\.0 s fits into 3\.0 s; allow more time"):
        plan_of(spec_of({"b": PRELN | {"budget": "3s"}}), dense=5.0)


def test_runs_are_named_and_begin_seed_by_seed(spec_of: Callable[..., Spec]) -> None:
    plan = plan_of(spec_of({"preln": PRELN, "pld": PLD | {"seeds": [4], "set": ["model.dropout=0.1"]}}, seeds=[4, 9]))
    runs = plan.runs()
    assert [run.name for run in runs] == ["preln-seed4", "pld-seed4", "preln-seed9"]
    assert (runs[1].group, runs[1].system, runs[1].seed, runs[1].rung) == ("pld", "pld", 4, 0)
    assert runs[1].changes[-3:] == ("model.dropout=0.1", "train.total_steps=40", "train.seed=4")
    assert (runs[1].config.train.seed, runs[1].config.model.dropout, runs[1].config.model.vocab_size) == (4, 0.1, 64)
    assert (runs[0].seconds, runs[0].tokens) == (pytest.approx(40.0), 40 * 8 * 32)
    assert runs[0].config.train == plan.runs()[0].config.train and runs[0].config.pld.theta_bar == 1.0


def test_rungs_are_parts_of_the_whole_length(spec_of: Callable[..., Spec]) -> None:
    rungs = [{"fraction": 0.125}, {"fraction": 1, "keep": 1, "seeds": [0, 1]}]
    systems = {"preln": PRELN, "half": PLD | {"set": HALF, "equal_time": "preln"}, "pld": PLD | {"fraction": 0.5}}
    plan = plan_of(spec_of(systems, halving={"candidates": ["half", "pld"], "rungs": rungs}))
    assert [run.name for run in plan.runs()] == ["preln-seed0"]
    first = plan.rung(0, ("half", "pld"))
    assert [(run.name, run.config.train.total_steps, run.rung) for run in first] == [
        ("half-rung1-seed0", 7, 1),  # 5 s of 0.7 s a step
        ("pld-rung1-seed0", 2, 1),  # an eighth of a half of 40
    ]
    assert [(run.name, run.group, run.config.train.total_steps) for run in plan.rung(1, ("half",))] == [
        ("half-rung2-seed0", "half-rung2", 57),
        ("half-rung2-seed1", "half-rung2", 57),
    ]


def test_two_runs_of_one_name_are_refused(spec_of: Callable[..., Spec]) -> None:
    halving = {"candidates": ["a", "b"], "rungs": [{"fraction": 1}]}
    with pytest.raises(UsageError, match="two runs would be called a-rung1-seed0"):
        plan_of(spec_of({"preln": PRELN, "a": PLD, "b": PLD, "a-rung1": PLD}, halving=halving))


def test_systems_that_take_as_long_are_measured_once(spec_of: Callable[..., Spec]) -> None:
    systems = {
        "preln": PRELN,
        "pld": PLD | {"grid": {"optim.learning_rate": ["1e-3", "1e-2"], "pld.theta_bar": [0.5, 0.7]}},
        "growing": {"preset": "bert-tiny-growing"},
        "begun": PRELN | {"set": {"model.attention_init": "normal"}},
        "postln": {"preset": "bert-tiny-postln"},
        "shallow": PRELN | {"set": {"model.num_hidden_layers": 2}},
        "wide": PRELN | {"set": {"train.global_batch_size": 16}},
    }
    found = shapes(spec_of(systems), FROM_DATA)
    assert [len(shape.systems) for shape in found] == [7, 1, 1, 1]
    measured = found[0].config
    assert (measured.pld_schedule.keep_probs(0), measured.pld.draw) == ((0.5,) * 3, "fixed-depth")
    assert found[0].label == "3 blocks of 32, Pre-LN, 8 x 32 tokens, fp32"


def test_each_shape_has_its_own_time(spec_of: Callable[..., Spec]) -> None:
    spec = spec_of({"preln": PRELN, "shallow": PRELN | {"set": {"model.num_hidden_layers": 2}, "equal_time": "preln"}})
    deep, shallow = shapes(spec, FROM_DATA)
    plan = make_plan(spec, FROM_DATA, {deep.key: StepTime(0.9, 0.2), shallow.key: StepTime(0.6, 0.2)})
    assert plan.configs["shallow"].train.total_steps == 60


def test_what_may_change_in_a_run_that_is_there(spec_of: Callable[..., Spec]) -> None:
    def config(**changes: str) -> object:
        return plan_of(spec_of({"a": PLD | {"set": changes}})).runs()[0].config

    stored = config()
    assert changed_keys(config(**{"eval.every_steps": 4, "checkpoint.keep": 9, "train.micro_batch_size": 4}), stored) == []
    changes = {"optim.learning_rate": "2e-3", "runtime.precision": "bf16", "eval.max_sequences": 9}
    assert sorted(changed_keys(config(**changes), stored)) == sorted(changes)


@pytest.mark.parametrize(
    ("key", "value"), [("train.batch_ramp", 0.2), ("data.length_stages", [{"until": 0.5, "seq_len": 8}])], ids=["ramp", "stages"]
)
def test_steps_that_are_not_alike_are_refused(spec_of: Callable[..., Spec], key: str, value: object) -> None:
    """A study times one step of each shape."""
    with pytest.raises(UsageError) as caught:
        shapes(spec_of({"preln": PRELN, "long": PLD | {"set": [f"{key}={value}"]}}), FROM_DATA)
    assert str(caught.value) == f"systems.long: {key} makes steps unequal, and a study times one for all; leave {key} out"
