from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pldcli.comparison.runs import Run
from pldcli.study.calibration import Timings
from pldcli.study.directory import Study
from pldcli.study.finetuning import PlannedFinetuning
from pldcli.study.halving import climb
from pldcli.study.jobs import Outcome, State
from pldcli.study.plan import PlannedRun
from pldcli.study.spec import Spec
from pldcli.study_report.results import Results, verdict
from tests.comparison.test_runs import made_up_run
from tests.study.conftest import plan_of

PRELN, PLD = {"preset": "bert-tiny-preln"}, {"preset": "bert-tiny-pld"}


def results_of(spec: Spec, losses: Mapping[str, float], **others: Outcome) -> Results:
    """Finish these runs with these losses; others as told, by name with _ for -."""
    plan = plan_of(spec)

    def outcome(run: PlannedRun) -> Outcome:
        if run.name in losses:
            return Outcome(State.FINISHED, run.config.train.total_steps, losses[run.name])
        return others.get(run.name.replace("-", "_"), Outcome(State.NOT_STARTED))

    def trained(run: PlannedRun) -> Run:
        steps = run.config.train.total_steps
        spent = {"progress/tokens": 256 * steps, "progress/executed_flops": 256e3 * steps, "progress/train_seconds": run.seconds}
        row = {"step": steps, "eval/mlm_loss": losses[run.name], **spent}
        return replace(made_up_run(run.name), config=run.config, rows=(row,))

    rungs = climb(plan, outcome)
    runs = (*plan.runs(), *(run for rung in rungs for run in rung.runs))
    done = {run.name: trained(run) for run in runs if run.name in losses}
    return Results(
        study=Study(plan=plan, timings=Timings("d", {}), out=Path("out"), data=Path("data")),
        runs=runs,
        outcomes={run.name: outcome(run) for run in runs},
        trained=done,
        diverged={},
        rungs=tuple(rungs),
        scorings={},
    )


def test_seeds_are_paired_and_the_verdict_names_what_is_equal(spec_of: Callable[..., Spec]) -> None:
    systems = {"preln": PRELN, "pld": PLD, "time": PLD | {"equal_time": "preln"}, "short": PLD | {"fraction": 0.5}}
    losses = {"preln": (3.0, 3.2), "pld": (3.1, 3.301), "time": (2.8, 3.3), "short": (3.5, 3.7)}
    results = results_of(
        spec_of(systems, seeds=[0, 1]), {f"{name}-seed{seed}": loss for name, pair in losses.items() for seed, loss in enumerate(pair)}
    )
    found = {name: results.contrast(name) for name in results.groups}
    assert found["preln"] is None and results.baseline_of("preln") is None and results.baseline_of("pld") == "preln"
    assert found["pld"] is not None and found["pld"].difference is not None
    assert (found["pld"].difference.interval.mean, found["pld"].difference.interval.n) == (pytest.approx(0.1005), 2)
    assert {name: verdict(one) for name, one in found.items() if one} == {
        "pld": "worse at equal tokens",
        "time": "no difference seen at equal time",
        "short": "no verdict: neither equal tokens nor equal time",
    }
    assert results.is_complete and results.count(State.FINISHED) == 8


def test_a_study_is_complete_when_its_fine_tunings_are(spec_of: Callable[..., Spec]) -> None:
    results = results_of(spec_of(), {"preln-seed0": 3.0, "pld-seed0": 2.0})
    planned = PlannedFinetuning(results.runs[0], "glue/rte", None, ())
    assert results.is_complete
    assert replace(results, scorings={planned: Outcome(State.FINISHED)}).is_complete
    assert not replace(results, scorings={planned: Outcome(State.FAILED, note="no luck")}).is_complete


def test_one_pair_may_be_chance(spec_of: Callable[..., Spec]) -> None:
    results = results_of(spec_of(), {"preln-seed0": 3.0, "pld-seed0": 2.0})
    contrast = results.contrast("pld")
    assert contrast is not None and verdict(contrast) == "lower at equal tokens, perhaps by chance: 1 pair"


def test_systems_of_one_configuration_stay_apart(spec_of: Callable[..., Spec]) -> None:
    """Unlike `pld compare`, which would take them for one system."""
    results = results_of(spec_of({"preln": PRELN, "again": PRELN}), {"preln-seed0": 3.0, "again-seed0": 3.0})
    assert list(results.systems) == ["preln", "again"] and results.contrast("again") is not None


def test_each_baseline_has_its_own_comparison(spec_of: Callable[..., Spec]) -> None:
    quarter = {"fraction": 0.25, "baseline": "control"}
    systems = {"preln": PRELN, "pld": PLD, "control": PRELN | quarter, "rand": PLD | quarter, "late": PLD}
    losses = {f"{name}-seed0": 3.0 for name in ("preln", "pld", "control", "rand")}
    results = results_of(spec_of(systems), losses)
    names = {baseline: [system.name for system in found.systems] for baseline, found in results.comparisons.items()}
    assert names == {"preln": ["preln", "pld"], "control": ["control", "rand"]}
    assert results.contrast("late") is None and not results.is_complete


def test_without_the_baseline_nothing_is_held_against_it(spec_of: Callable[..., Spec]) -> None:
    results = results_of(spec_of(), {"pld-seed0": 3.0}, preln_seed0=Outcome(State.DIVERGED, 4))
    assert results.comparisons == {} and list(results.groups) == ["preln", "pld"] and results.is_complete


def test_checks_are_judged_by_what_finished(spec_of: Callable[..., Spec]) -> None:
    check: dict[str, Any] = {"better": "preln", "than": "pld", "by_seed_deviations": 3}
    spec = spec_of(seeds=[0, 1], checks=[check])
    losses = {"preln-seed0": 3.0, "preln-seed1": 3.01, "pld-seed0": 3.5, "pld-seed1": 3.51}
    [done] = results_of(spec, losses).checks
    assert done.passed is True and done.num_seeds == 2
    del losses["pld-seed1"]
    [open_] = results_of(spec, losses).checks
    assert open_.passed is None and open_.num_seeds == 1


def test_the_last_rung_is_held_against_the_baseline(spec_of: Callable[..., Spec]) -> None:
    systems = {"preln": PRELN, "a": PLD, "b": PLD}
    spec = spec_of(systems, halving={"candidates": ["a", "b"], "rungs": [{"fraction": 0.5}, {"fraction": 1, "keep": 1}]})
    first = {"preln-seed0": 3.0, "a-rung1-seed0": 4.0, "b-rung1-seed0": 5.0}
    half = results_of(spec, first)
    assert list(half.groups) == ["preln", "a-rung1", "b-rung1", "a-rung2"] and not half.is_complete
    assert half.comparisons == {}
    whole = results_of(spec, first | {"a-rung2-seed0": 2.0})
    contrast = whole.contrast("a-rung2")
    assert contrast is not None and verdict(contrast).startswith("lower at equal tokens")
    assert whole.is_complete and whole.contrast("a-rung1") is None


def test_a_system_of_which_a_run_diverged_gets_no_verdict(spec_of: Callable[..., Spec]) -> None:
    check: dict[str, Any] = {"better": "pld", "than": "preln", "by_seed_deviations": 3}
    spec = spec_of(seeds=[0, 1, 2], checks=[check])
    losses = {f"preln-seed{seed}": 3.0 + 0.01 * seed for seed in range(3)} | {f"pld-seed{seed}": 2.0 + 0.011 * seed for seed in range(2)}
    results = results_of(spec, losses, pld_seed2=Outcome(State.DIVERGED, 4))
    contrast = results.contrast("pld")
    assert contrast is not None and results.num_diverged("pld", "preln") == 1
    assert verdict(contrast) == "better at equal tokens"
    assert verdict(contrast, num_diverged=results.num_diverged("pld", "preln")) == "no verdict: 1 run diverged"
    [result] = results.checks
    assert (result.num_seeds, result.passed) == (2, False)
