from __future__ import annotations

import os

import pytest

from pldcli.errors import UsageError
from pldcli.study.jobs import Outcome, Slot, State, make_slots


@pytest.mark.parametrize(
    ("outcome", "text", "settled"),
    [
        (Outcome(State.FINISHED, 40, 1.5), "finished, loss 1.5000", True),
        (Outcome(State.DIVERGED, 1200, note="the loss is not finite"), "diverged at step 1,200", True),
        (Outcome(State.STOPPED, 7), "stopped at step 7", False),
        (Outcome(State.FINISHED, score=0.5512), "score 55.12", True),
        (Outcome(State.FINISHED), "diverged", True),  # a fine-tuning, with every seed
        (Outcome(State.FAILED, note="error: no such file", exit_code=3), "failed", False),
        (Outcome(State.NOT_STARTED), "not started", False),
    ],
)
def test_outcomes_in_words(outcome: Outcome, text: str, settled: bool) -> None:
    assert (str(outcome), outcome.is_settled) == (text, settled)


def test_where_runs_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cores = len(os.sched_getaffinity(0))
    assert make_slots(jobs=1, gpus=[]) == [Slot({}, None)]
    assert make_slots(jobs=2, gpus=[]) == [Slot({}, max(1, cores // 2))] * 2
    assert make_slots(jobs=99, gpus=[])[0].threads == 1
    assert make_slots(jobs=1, gpus=["0", "3"]) == [Slot({"CUDA_VISIBLE_DEVICES": "0"}, None), Slot({"CUDA_VISIBLE_DEVICES": "3"}, None)]
    first, second = ({"CUDA_VISIBLE_DEVICES": gpu} for gpu in "03")
    assert make_slots(jobs=2, gpus=["0", "3"]) == [Slot(gpu, max(1, cores // 4)) for gpu in (first, second, first, second)]


def test_gpus_that_are_not_left_to_the_program_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-1a")
    assert [slot.environment for slot in make_slots(jobs=1, gpus=["GPU-1a", "4"])] == [
        {"CUDA_VISIBLE_DEVICES": "GPU-1a"},
        {"CUDA_VISIBLE_DEVICES": "4"},
    ]
    with pytest.raises(UsageError, match=r"--gpus: CUDA_VISIBLE_DEVICES does not name 0, 1; choose from 4,GPU-1a"):
        make_slots(jobs=1, gpus=["0", "4", "1"])
