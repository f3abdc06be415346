from __future__ import annotations

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pldcli import presets
from pldcli.bench.step_time import StepTime
from pldcli.errors import DataError, OutputError, PldError, PreemptedError, StoppedError, UsageError
from pldcli.runs.run_directory import RunDirectory
from pldcli.study import calibration
from pldcli.study import study as module
from pldcli.study.calibration import ShapeTime
from pldcli.study.directory import Study
from pldcli.study.display import StudyDisplay
from pldcli.study.jobs import Job, Outcome, Slot, State
from pldcli.study.plan import PlannedRun, Shape
from pldcli.study.spec import Spec
from pldcli.study.study import carry_out, open_study
from pldcli.study_report.results import read_results
from pldcli.system.signals import StopRequest
from tests.comparison.test_read import write_run
from tests.study.conftest import spec_of
from tests.study.test_finetuning import write_results

__all__ = ["spec_of"]

Measured = tuple[dict[str, ShapeTime], dict[str, Any]]

PRELN, PLD = {"preset": "bert-tiny-preln"}, {"preset": "bert-tiny-pld"}
SHALLOW = PRELN | {"set": {"model.num_hidden_layers": 2}}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Measure nothing: a block takes 0.1 s of a step, the machine is half as fast each time. List what was asked for."""
    asked: list[list[str]] = []

    def measure(shapes: Sequence[Shape], **_: Any) -> Measured:
        asked.append([shape.label for shape in shapes])
        slow = 2.0 ** (len(asked) - 1)

        def time(shape: Shape) -> ShapeTime:
            dense = slow * 0.1 * shape.config.model.num_hidden_layers
            return ShapeTime(shape.label, StepTime(dense, 0.1 * slow), dense, dense, 15)

        return {shape.key: time(shape) for shape in shapes}, {"hardware": f"machine {len(asked)}", "device": "cpu"}

    monkeypatch.setattr(calibration, "measure_shapes", measure)
    return asked


@pytest.fixture
def opened(tmp_path: Path, prepared: Path, measured: object) -> Callable[..., Study]:
    """Open a study in `out`."""

    def build(spec: Spec, **options: Any) -> Study:
        given = {
            "out": tmp_path / "out",
            "data": prepared,
            "slot": Slot({}, None),
            "measure": True,
            "keep": True,
            "report": lambda line: None,
        }
        return open_study(spec, **(given | options))

    return build


def finish(study: Study, run: PlannedRun, *losses: float) -> Path:
    """Write a run of the study as if it had trained."""
    place = write_run(study.place(run), losses=losses or (4.0, 3.0, 2.0, 1.0), seconds_per_step=50.0)
    (place / "config.yaml").write_text(presets.dump(run.config))
    return place


def test_measured_once_and_written_down(opened: Any, measured: list[list[str]], spec_of: Callable[..., Spec], tmp_path: Path) -> None:
    spec = spec_of({"preln": PRELN, "shallow": SHALLOW | {"equal_time": "preln"}})
    study = opened(spec)
    assert len(measured) == 1 and len(measured[0]) == 2
    assert study.plan.configs["shallow"].train.total_steps == 60 and study.plan.configs["shallow"].model.vocab_size == 512
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert plan["systems"]["shallow"] | {"set": []} == {
        "preset": "bert-tiny-preln", "set": [], "length": "the time of preln", "total_steps": 60,
        "step_seconds": pytest.approx(0.2), "seconds": pytest.approx(12.0),
    }  # fmt: skip
    assert (tmp_path / "out" / "spec.yaml").read_text() == spec.text
    again = opened(spec)
    assert len(measured) == 1 and again.plan.configs == study.plan.configs and again.timings == study.timings


def test_a_machine_that_is_not_quiet_is_warned_of(opened: Any, spec_of: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch) -> None:
    def disturbed(shapes: Sequence[Shape], **_: Any) -> Measured:
        return {shape.key: ShapeTime(shape.label, StepTime(0.3, 0.1), 0.2, 0.3, 15) for shape in shapes}, {}

    monkeypatch.setattr(calibration, "measure_shapes", disturbed)
    told: list[str] = []
    opened(spec_of(), report=told.append)
    assert told[-1].startswith("warning: this machine is not quiet, rounds differ by 50%: times, and steps at equal time, are no more")


def test_looking_leaves_nothing_behind(opened: Any, spec_of: Callable[..., Spec], tmp_path: Path) -> None:
    assert opened(spec_of(), keep=False).is_measured_for_good is False
    assert not (tmp_path / "out").exists()
    opened(spec_of())
    assert opened(spec_of(), keep=False).is_measured_for_good is True


def test_what_is_measured_later_is_brought_to_the_first_speed(opened: Any, measured: list[list[str]], spec_of: Callable[..., Spec]) -> None:
    """The machine is half as fast the second time, as the baseline's steps say."""
    opened(spec_of({"preln": PRELN}))
    study = opened(spec_of({"preln": PRELN, "shallow": SHALLOW | {"equal_time": "preln"}}))
    assert [len(labels) for labels in measured] == [1, 2]
    assert study.plan.configs["shallow"].train.total_steps == 60
    late = next(shape for shape in study.timings.shapes.values() if shape.label.startswith("2 blocks"))
    assert (late.scaled_by, late.time) == (0.5, StepTime(pytest.approx(0.2), pytest.approx(0.1)))
    assert study.timings.machine["hardware"] == "machine 1"


def test_a_file_that_changes_runs_that_are_there_is_refused(opened: Any, spec_of: Callable[..., Spec]) -> None:
    study = opened(spec_of({"preln": PRELN, "pld": PLD}))
    finish(study, study.runs()[1])
    opened(spec_of({"preln": PRELN, "pld": PLD, "more": PLD}, seeds=[0, 1]))  # more is fine
    opened(spec_of({"preln": PRELN | {"set": ["model.dropout=0.5"]}, "pld": PLD}))  # nothing of it has trained
    with pytest.raises(UsageError, match=r"no longer fits 1 run\(s\) that are there: pld-seed0 \(pld\.theta_bar\); undo the change"):
        opened(spec_of({"preln": PRELN, "pld": PLD | {"set": ["pld.theta_bar=0.9"]}}))


def test_other_data_is_refused(opened: Any, spec_of: Callable[..., Spec], prepared: Path, tmp_path: Path) -> None:
    opened(spec_of())
    plan = tmp_path / "out" / "plan.json"
    plan.write_text(json.dumps(json.loads(plan.read_text()) | {"data_fingerprint": "another"}))
    with pytest.raises(DataError, match=r"is not the data that the study in .* began with"):
        opened(spec_of())


def test_a_report_needs_a_study(opened: Any, spec_of: Callable[..., Spec]) -> None:
    with pytest.raises(UsageError, match="nothing was trained for this file yet; run it without --report-only first"):
        opened(spec_of(), measure=False, keep=False)


@pytest.mark.parametrize(
    ("number", "kind", "word"), [(signal.SIGINT, StoppedError, "interrupted"), (signal.SIGTERM, PreemptedError, "terminated")]
)
def test_a_stop_says_how_to_go_on(
    opened: Any, spec_of: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch, number: int, kind: type[PldError], word: str
) -> None:
    study = opened(spec_of())
    finish(study, study.runs()[0])

    def stopped(jobs: Sequence[Job], *, stop: StopRequest, **_: Any) -> dict[str, Outcome]:
        stop.signal_number = number
        return {}

    monkeypatch.setattr(module, "run_jobs", stopped)
    with pytest.raises(kind, match=f"out: {word}, 1 of 2 runs done, the others saved; run the same command again to resume"):
        carried_out(study)


def test_one_study_at_a_time(opened: Any, spec_of: Callable[..., Spec], tmp_path: Path) -> None:
    with RunDirectory(tmp_path / "out").lock(), pytest.raises(OutputError, match="another process is training here"):
        opened(spec_of())


def carried_out(study: Study) -> dict[str, Outcome]:
    return carry_out(study, slots=[Slot({}, None)], display=StudyDisplay(study.out, at_once=1, console=Console(quiet=True)))


def train(
    study: Study, monkeypatch: pytest.MonkeyPatch, losses: Callable[[str], float | None]
) -> tuple[list[list[str]], dict[str, Outcome]]:
    """Train without training: a run ends with the loss given to its name, or fails. List what was begun together."""
    begun: list[list[str]] = []

    def run_jobs(jobs: Sequence[Job], **_: Any) -> dict[str, Outcome]:
        begun.append([job.name for job in jobs])
        runs, ended = {run.name: run for run in study.runs()}, {}
        for name in begun[-1]:
            loss = losses(name)
            if loss is not None:
                finish(study, runs[name], *[loss] * (runs[name].config.train.total_steps // 10))
            ended[name] = study.outcome(runs[name]) if loss is not None else Outcome(State.FAILED, 3, note="out of luck", exit_code=5)
        return ended

    monkeypatch.setattr(module, "run_jobs", run_jobs)
    return begun, carried_out(study)


def test_what_is_finished_is_not_begun_again(opened: Any, spec_of: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch) -> None:
    study = opened(spec_of(seeds=[0, 1]))
    finish(study, study.runs()[0])
    begun, outcomes = train(study, monkeypatch, lambda name: None if name == "pld-seed0" else 2.0)
    assert begun == [["pld-seed0", "preln-seed1", "pld-seed1"]]
    assert {name: outcome.state for name, outcome in outcomes.items()} == {
        "pld-seed0": "failed", "preln-seed1": "finished", "pld-seed1": "finished"
    }  # fmt: skip
    begun, outcomes = train(study, monkeypatch, lambda name: 2.0)
    assert begun == [["pld-seed0"]] and all(outcome.state == "finished" for outcome in outcomes.values())


def test_rungs_follow_one_another(opened: Any, spec_of: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch) -> None:
    halving = {"candidates": ["a", "b", "c"], "rungs": [{"fraction": 0.5}, {"fraction": 1, "keep": 1, "seeds": [0, 1]}]}
    study = opened(spec_of({"preln": PRELN, "a": PLD, "b": PLD, "c": PLD}, halving=halving))
    begun, _ = train(study, monkeypatch, lambda name: {"a": 3.0, "b": 2.0, "c": 2.5}.get(name[0], 1.0))
    assert begun == [["preln-seed0", "a-rung1-seed0", "b-rung1-seed0", "c-rung1-seed0"], ["b-rung2-seed0", "b-rung2-seed1"]]


def test_seconds_in_the_results_are_measured_alone(opened: Any, spec_of: Callable[..., Spec]) -> None:
    study = opened(spec_of())
    for run in study.runs():
        finish(study, run, 4.0, 3.0, 2.0, 1.0 if run.system == "pld" else 1.5)
    results = read_results(study, {})
    assert results.trained["preln-seed0"].final.train_seconds == pytest.approx(40 * 0.3)  # its own clock says 2,000 s
    contrast = results.contrast("pld")
    assert contrast is not None and contrast.difference is not None and contrast.difference.interval.mean == pytest.approx(-0.5)
    kept = [row for row in results.trained["pld-seed0"].rows if "eval/mlm_loss" in row]
    assert [row["eval/mlm_loss"] for row in kept] == [4.0, 3.0, 2.0, 1.0]
    assert kept[-1]["progress/measured_seconds"] == 2000.0 != kept[-1]["progress/train_seconds"]


def test_finished_runs_are_fine_tuned_as_far_as_that_is_left(
    opened: Any, spec_of: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    study = opened(spec_of(finetune={"tasks": ["glue/rte", "glue/mrpc"]}))
    begun: list[list[str]] = []

    def run_jobs(jobs: Sequence[Job], **_: Any) -> dict[str, Outcome]:
        begun.append([job.name for job in jobs])
        if begun[-1] == ["pld-seed0/rte", "pld-seed0/mrpc"]:
            write_results(tmp_path / "out/finetuned/pld-seed0/rte", 0.5, cells=("seed=0",))
        return {name: Outcome(State.FAILED, note="no luck", exit_code=3) for name in begun[-1] if not name.endswith("/rte")}

    monkeypatch.setattr(module, "run_jobs", run_jobs)
    carried_out(study)
    assert begun == [["preln-seed0", "pld-seed0"]]  # nothing has finished yet
    finish(study, study.runs()[1])
    ended = carried_out(study)
    assert begun[1:] == [["preln-seed0"], ["pld-seed0/rte", "pld-seed0/mrpc"]]
    states = {planned.name: outcome.state for planned, outcome in read_results(study, ended).scorings.items()}
    assert states == {"pld-seed0/rte": "finished", "pld-seed0/mrpc": "failed"}
    assert {planned.name: str(outcome) for planned, outcome in study.scorings().items()} == {
        "pld-seed0/rte": "score 50.00", "pld-seed0/mrpc": "not started"
    }  # fmt: skip
    carried_out(study)
    assert begun[3:] == [["preln-seed0"], ["pld-seed0/mrpc"]]


def test_a_stop_while_fine_tuning(opened: Any, spec_of: Callable[..., Spec], monkeypatch: pytest.MonkeyPatch) -> None:
    study = opened(spec_of(finetune={"tasks": ["glue/rte"]}))
    for run in study.runs():
        finish(study, run)

    def run_jobs(jobs: Sequence[Job], *, stop: StopRequest, **_: Any) -> dict[str, Outcome]:
        write_results(jobs[0].directory, 0.5, cells=("seed=0",))
        stop.signal_number = signal.SIGTERM
        return {}

    monkeypatch.setattr(module, "run_jobs", run_jobs)
    with pytest.raises(PreemptedError, match="out: terminated, 1 of 2 scores done, the others saved; run the same command again"):
        carried_out(study)
