from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pldcli.study.spec import Spec
from pldcli.study.tunings import TuningOutcome, plan_tunings
from tests.study.conftest import plan_of

PRELN, PLD = {"preset": "bert-tiny-preln"}, {"preset": "bert-tiny-pld"}


def test_every_run_on_every_task(spec_of: Callable[..., Spec], tmp_path: Path) -> None:
    own = tmp_path / "reviews.csv"
    own.touch()
    finetune = {"tasks": ["glue/RTE", str(own)], "data_dir": "glue", "systems": ["preln"], "seeds": [0, 1]}
    spec = spec_of(seeds=[0, 1], finetune=finetune)
    tunings = plan_tunings(spec, plan_of(spec).runs())
    assert [tuning.name for tuning in tunings] == ["preln-seed0/rte", "preln-seed0/reviews", "preln-seed1/rte", "preln-seed1/reviews"]
    # Files of one's own do not lie in the directory of the tasks with names.
    assert [(tuning.task, tuning.data_dir) for tuning in tunings[:2]] == [("glue/RTE", "glue"), (str(own), None)]
    assert {tuning.settings for tuning in tunings} == {("seed=0,1",)}


def test_of_a_halving_the_last_rung_alone(spec_of: Callable[..., Spec]) -> None:
    halving = {"candidates": ["a", "b"], "rungs": [{"fraction": 0.5}, {"fraction": 1, "keep": 1, "seeds": [0, 1]}]}
    spec = spec_of({"preln": PRELN, "a": PLD, "b": PLD}, halving=halving, finetune={"tasks": ["glue/rte"]})
    plan = plan_of(spec)
    runs = [*plan.runs(), *plan.rung(0, ("a", "b")), *plan.rung(1, ("b",))]
    assert [tuning.run.name for tuning in plan_tunings(spec, runs)] == ["preln-seed0", "b-rung2-seed0", "b-rung2-seed1"]


def test_without_tasks_there_is_nothing_to_do(spec_of: Callable[..., Spec]) -> None:
    spec = spec_of()
    assert plan_tunings(spec, plan_of(spec).runs()) == []


@pytest.mark.parametrize(
    ("outcome", "text", "settled"),
    [
        (TuningOutcome("finished", 0.5512), "score 55.12", True),
        (TuningOutcome("finished"), "diverged", True),
        (TuningOutcome("failed", note="error: no such file", exit_code=3), "failed: error: no such file", False),
        (TuningOutcome("not started"), "not started", False),
    ],
)
def test_outcomes_in_words(outcome: TuningOutcome, text: str, settled: bool) -> None:
    assert (str(outcome), outcome.is_settled) == (text, settled)
