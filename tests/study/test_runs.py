from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pldcli.runs.run_directory import RunDirectory
from pldcli.study import jobs as module
from pldcli.study.jobs import Outcome, Slot, State, last_step, run_jobs
from pldcli.study.plan import PlannedRun
from pldcli.study.runs import pretraining_job, read_outcome
from pldcli.system.signals import StopRequest
from tests.comparison.test_read import write_run
from tests.study.conftest import plan_of, spec_of

__all__ = ["spec_of"]


@pytest.fixture
def runs(spec_of: Callable[..., Any]) -> list[PlannedRun]:
    """Six runs: two systems, three seeds."""
    return plan_of(spec_of(seeds=[0, 1, 2])).runs()


Command = Callable[[str], str]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Train with a piece of Python in the place of `pld pretrain`, chosen by a run's name; note what was started."""

    def call(runs: list[PlannedRun], code: Command, *, slots: int = 1, stop: StopRequest | None = None, watch: Any = None) -> Any:
        started: list[dict[str, Any]] = []

        def start(arguments: list[str], *, log: Any, threads: int | None, environment: dict[str, str]) -> Any:
            name = Path(arguments[arguments.index("--out") + 1]).name
            started.append({"name": name, "arguments": list(arguments), "threads": threads, "environment": dict(environment)})
            program = [sys.executable, "-c", f"place = {str(tmp_path / 'runs' / name)!r}\n{code(name)}"]
            return subprocess.Popen(program, stdin=subprocess.PIPE, stdout=log, stderr=log)

        monkeypatch.setattr(module, "start_command", start)
        monkeypatch.setattr(module, "_LOOK_EVERY_SECONDS", 0.01)
        places = [Slot({"CUDA_VISIBLE_DEVICES": str(number)}, 1) for number in range(slots)]
        ends: list[str] = []
        outcomes = run_jobs(
            [pretraining_job(run, out=tmp_path, data=Path("data")) for run in runs],
            slots=places,
            stop=stop or StopRequest(),
            watch=watch or (lambda active: None),
            tell=lambda name, outcome: ends.append(f"{name} {outcome or 'begins'}"),
        )
        return outcomes, started, ends

    return call


def test_each_run_is_the_ordinary_command(runs: list[PlannedRun], train: Any, tmp_path: Path) -> None:
    _, [started], _ = train(runs[:1], lambda name: "")
    words = started["arguments"]
    place = str(tmp_path / "runs" / "preln-seed0")
    assert words[:7] == ["pretrain", "--preset", "bert-tiny-preln", "--data", "data", "--out", place]
    assert words[7:] == list(runs[0].changes) and words[-2:] == ["train.total_steps=40", "train.seed=0"]
    assert (tmp_path / "logs" / "preln-seed0.log").read_text().startswith("$ pld pretrain --preset bert-tiny-preln --data data --out ")


def test_what_diverges_or_fails_does_not_stop_the_others(runs: list[PlannedRun], train: Any, tmp_path: Path) -> None:
    def code(name: str) -> str:
        return {
            "preln-seed0": f"""
import sys; sys.path[:0] = {sys.path!r}
from pathlib import Path
from tests.comparison.test_read import write_run
write_run(Path(place), "pld.theta_bar=1", losses=(4.0, 3.0, 2.0, 1.5))
""",
            "pld-seed0": "print('step 7/40'); print('error: step 8: training diverged: the loss is not finite; lower it'); exit(6)",
            "preln-seed1": "print('error: model.norm: too odd; use another'); exit(2)",
            "pld-seed1": "import os; os.kill(os.getpid(), 9)",
            "preln-seed2": "exit(1)",
            "pld-seed2": "exit(0)",
        }[name]

    outcomes, started, told = train(runs, code)
    assert [one["name"] for one in started] == [run.name for run in runs]
    assert outcomes["preln-seed0"] == Outcome(State.FINISHED, 40, 1.5)
    assert outcomes["pld-seed0"] == Outcome(State.DIVERGED, 8, note="step 8: training diverged: the loss is not finite; lower it")
    assert outcomes["preln-seed1"] == Outcome(State.FAILED, note="error: model.norm: too odd; use another", exit_code=2)
    assert outcomes["pld-seed1"] == Outcome(State.FAILED, note="ended by signal 9, perhaps out of memory", exit_code=-9)
    assert outcomes["preln-seed2"] == Outcome(State.FAILED, note="ended with exit code 1", exit_code=1)
    assert outcomes["pld-seed2"].state == "failed"  # it left no model
    assert told[:4] == ["preln-seed0 begins", "preln-seed0 finished, loss 1.5000", "pld-seed0 begins", "pld-seed0 diverged at step 8"]
    write_run(tmp_path / "other", losses=(4.0,))
    (tmp_path / "runs" / "pld-seed0" / "config.yaml").write_text((tmp_path / "other" / "config.yaml").read_text())
    assert read_outcome(tmp_path / "runs" / "pld-seed0") == outcomes["pld-seed0"]  # remembered


def test_runs_share_the_slots(runs: list[PlannedRun], train: Any) -> None:
    most: list[int] = []
    _, started, _ = train(runs, lambda name: "import time; time.sleep(0.2)", slots=2, watch=lambda active: most.append(len(active)))
    assert max(most) == 2 and len(started) == 6
    assert {one["environment"]["CUDA_VISIBLE_DEVICES"] for one in started} == {"0", "1"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_stop_is_passed_on_and_waited_for(runs: list[PlannedRun], train: Any, tmp_path: Path, number: int, code: int) -> None:
    program = f"""
import signal, sys, time, pathlib
def save(*_): time.sleep(0.2); print("error: stopped, saved at step 3"); sys.stdout.flush(); sys.exit({code})
signal.signal({int(number)}, save)
pathlib.Path(place).mkdir(parents=True)
pathlib.Path(place, "ready").touch()
time.sleep(60)
"""
    stop = StopRequest()

    def watch(active: list[str]) -> None:
        if active and all((tmp_path / "runs" / name / "ready").exists() for name in active):
            stop.signal_number = number

    outcomes, started, _ = train(runs, lambda name: program, slots=2, stop=stop, watch=watch)
    assert len(started) == 2 and {outcome.state for outcome in outcomes.values()} == {"stopped"}


def test_a_run_that_is_stopped_before_it_can_save_has_not_failed(runs: list[PlannedRun], train: Any) -> None:
    stop = StopRequest()

    def watch(active: list[str]) -> None:
        stop.signal_number = signal.SIGTERM

    outcomes, _, _ = train(runs, lambda name: "import time; time.sleep(60)", slots=2, stop=stop, watch=watch)
    assert len(outcomes) == 2 and {outcome.state for outcome in outcomes.values()} == {"stopped"}


def test_outcomes_on_the_disk(tmp_path: Path) -> None:
    assert read_outcome(tmp_path / "nothing") == Outcome(State.NOT_STARTED)
    assert read_outcome(write_run(tmp_path / "a", losses=(4.0, 3.0, 2.0, 1.0))) == Outcome(State.FINISHED, 40, 1.0)
    assert read_outcome(write_run(tmp_path / "b", losses=(4.0, 3.0), until=20, finished=False)) == Outcome(State.STOPPED, 20)
    assert read_outcome(write_run(tmp_path / "c", losses=(4.0, 3.0, 2.0, None))).state == "diverged"
    diverged = write_run(tmp_path / "d", losses=(4.0, 3.0), until=20, finished=False)
    (diverged / "diverged.json").write_text(json.dumps({"step": 23, "reason": "the loss"}))
    assert read_outcome(diverged) == Outcome(State.DIVERGED, 23, note="the loss")
    with RunDirectory(diverged).lock():
        assert read_outcome(diverged).state == "running"


def test_the_last_step_is_read_from_the_end(tmp_path: Path) -> None:
    assert last_step(tmp_path) == 0
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps({"step": step, "x": "y" * 90}) + "\n" for step in range(2000))
    assert last_step(tmp_path) == 1999
