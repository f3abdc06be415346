from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from pldcli.study.halving import climb, rank
from pldcli.study.jobs import Outcome, State
from pldcli.study.plan import Plan, PlannedRun
from pldcli.study.spec import Spec
from tests.study.conftest import plan_of


def finished(loss: float) -> Outcome:
    return Outcome(State.FINISHED, 40, loss)


DIVERGED, WAITING = Outcome(State.DIVERGED, 3), Outcome(State.NOT_STARTED)


@pytest.fixture
def plan(spec_of: Callable[..., Spec]) -> Plan:
    """Four candidates; two go on for longer, one to the end with two seeds."""
    systems = {name: {"preset": "bert-tiny-pld"} for name in ("base", "a", "b", "c", "d")}
    rungs = [{"fraction": 0.25}, {"fraction": 0.5, "keep": 2}, {"fraction": 1, "keep": 1, "seeds": [0, 1]}]
    return plan_of(spec_of(systems, halving={"candidates": ["a", "b", "c", "d"], "rungs": rungs}))


def outcomes(**losses: float | Outcome) -> Callable[[PlannedRun], Outcome]:
    """Give a loss to each run by `SYSTEM_RUNG` or `SYSTEM_RUNG_SEED`; the others have not begun."""
    known = {key: loss if isinstance(loss, Outcome) else finished(loss) for key, loss in losses.items()}
    return lambda run: known.get(f"{run.system}_{run.rung}_{run.seed}", known.get(f"{run.system}_{run.rung}", WAITING))


def test_at_first_all_take_part(plan: Plan) -> None:
    [rung] = climb(plan, outcomes(a_1=3.0))
    assert (rung.number, [run.name for run in rung.runs], rung.standing) == (1, [f"{name}-rung1-seed0" for name in "abcd"], ())


def test_the_best_go_on(plan: Plan) -> None:
    first, second = climb(plan, outcomes(a_1=3.0, b_1=1.0, c_1=4.0, d_1=2.0))
    assert first.standing == (("b", 1.0), ("d", 2.0), ("a", 3.0), ("c", 4.0))
    assert [(run.name, run.config.train.total_steps) for run in second.runs] == [("b-rung2-seed0", 20), ("d-rung2-seed0", 20)]


def test_the_last_rung_counts_the_mean_over_its_seeds(plan: Plan) -> None:
    *_, last = climb(plan, outcomes(a_1=3.0, b_1=1.0, c_1=4.0, d_1=2.0, b_2=0.9, d_2=0.8, d_3_0=0.5, d_3_1=0.75))
    assert [run.name for run in last.runs] == ["d-rung3-seed0", "d-rung3-seed1"]
    assert last.standing == (("d", 0.625),)


def test_what_diverged_does_not_go_on(plan: Plan) -> None:
    first, second = climb(plan, outcomes(a_1=DIVERGED, b_1=DIVERGED, c_1=4.0, d_1=DIVERGED))
    assert first.standing[0] == ("c", 4.0) and all(math.isinf(loss) for _, loss in first.standing[1:])
    assert [run.system for run in second.runs] == ["c"]


def test_nobody_is_left(plan: Plan) -> None:
    [only] = climb(plan, outcomes(**{f"{name}_1": DIVERGED for name in "abcd"}))
    assert len(only.standing) == 4


def test_a_run_that_failed_keeps_its_rung_open(plan: Plan) -> None:
    [only] = climb(plan, outcomes(a_1=3.0, b_1=1.0, c_1=4.0, d_1=Outcome(State.FAILED, 2)))
    assert only.standing == ()


def test_without_a_halving_there_is_no_rung(spec_of: Callable[..., Spec]) -> None:
    assert climb(plan_of(spec_of()), outcomes()) == []


def test_a_candidate_that_diverged_with_one_seed_comes_last() -> None:
    assert rank({"a": [finished(1.0), DIVERGED], "b": [finished(3.0), finished(5.0)]}) == [("b", 4.0), ("a", math.inf)]
