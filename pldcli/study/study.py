"""A study from its file to its results: calibrate, plan, train, fine-tune; the same command again resumes it.

`open_study` measures what a step of each shape takes (`calibration`) and gives every system its number of steps (`plan`: equal time is
computed there); `carry_out` trains the runs and fine-tunes them (`jobs`, `runs`, `finetuning`), rung by rung where candidates are halved
(`halving`). What came of it, `study_report` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from pldcli import presets
from pldcli.data.prepared import open_prepared
from pldcli.errors import DataError, PldError, UsageError
from pldcli.runs.run_directory import RunDirectory
from pldcli.study.calibration import calibrate, read_timings, write_plan
from pldcli.study.directory import Study
from pldcli.study.display import StudyDisplay
from pldcli.study.jobs import Outcome, Slot, run_jobs
from pldcli.study.plan import Plan, changed_keys, make_plan, shapes
from pldcli.study.runs import pretraining_job
from pldcli.study.spec import Spec
from pldcli.system import atomic
from pldcli.system.signals import StopRequest, stop_error, stop_requests

__all__ = ["carry_out", "open_study"]


def open_study(spec: Spec, *, out: Path, data: Path, slot: Slot, measure: bool, keep: bool, report: Callable[[str], None]) -> Study:
    """Find out how long every run is, and that the runs that are there are those of this study.

    Args:
        spec: The study.
        out: Its directory.
        data: The prepared directory.
        slot: Where a run trains: steps are measured under the same conditions.
        measure: Measure the steps of what is not measured yet.
        keep: Write down what was measured.
        report: Told what is going on.

    Raises:
        UsageError: The file changed in a way that alters runs that are there, or nothing was measured and nothing shall be.
        DataError: The prepared data is not that of the runs.
    """
    prepared = open_prepared(data, verify=False)
    from_data, fingerprint = {"model.vocab_size": prepared.vocab_size}, prepared.data_fingerprint
    place = out / "plan.json"
    stored = read_timings(place)
    if stored is not None and stored.data_fingerprint != fingerprint:
        raise DataError(f"is not the data that the study in {out} began with", where=str(data), hint="choose another --out")
    wanted = shapes(spec, from_data)
    if not measure and (stored is None or any(shape.key not in stored.shapes for shape in wanted)):
        raise UsageError("nothing was trained for this file yet", where=str(out), hint="run it without --report-only first")
    with RunDirectory(out).lock() if keep else nullcontext():  # two that measure at once slow each other
        timings = calibrate(wanted, stored, baseline=spec.baseline, fingerprint=fingerprint, data=data, slot=slot, report=report)
        plan = make_plan(spec, from_data, timings.times)
        study = Study(plan=plan, timings=timings, out=out, data=data, is_measured_for_good=keep or timings == stored)
        _refuse_changes(study)
        if keep:
            write_plan(place, timings, _systems(plan))
            atomic.write_text(out / "spec.yaml", spec.text)
    return study


def carry_out(study: Study, *, slots: Sequence[Slot], display: StudyDisplay) -> dict[str, Outcome]:
    """Train every run that is left, then score the finished ones on every task and all minimal pairs of the file, as far as that is not
    done.

    Args:
        study: The study, measured for good.
        slots: Where jobs run.
        display: Shows how far they are.

    Returns:
        Name to outcome of every job that was begun; some may have failed.

    Raises:
        StoppedError, PreemptedError: A signal arrived; the jobs at work have saved their state.
    """
    with RunDirectory(study.out).lock(), stop_requests() as stop, display:
        return _train(study, slots, display, stop) | _score(study, slots, display, stop)


def _train(study: Study, slots: Sequence[Slot], display: StudyDisplay, stop: StopRequest) -> dict[str, Outcome]:
    ended: dict[str, Outcome] = {}
    while True:  # a rung of the halving is known only when the one before it has ended
        runs = study.runs()
        outcomes = {run.name: study.outcome(run) for run in runs}
        left = [run for run in runs if run.name not in ended and not outcomes[run.name].is_settled]
        if not left:
            return ended
        display.begin_runs(runs, outcomes)
        jobs = [pretraining_job(run, out=study.out, data=study.data) for run in left]
        ended |= run_jobs(jobs, slots=slots, stop=stop, tell=display.tell, watch=display.watch)
        if stop.signal_number:
            runs = study.runs()
            raise _stopped(study, stop, f"{sum(study.outcome(run).is_settled for run in runs)} of {len(runs)} runs done")


def _score(study: Study, slots: Sequence[Slot], display: StudyDisplay, stop: StopRequest) -> dict[str, Outcome]:
    scorings = study.scorings()
    left = [planned for planned, outcome in scorings.items() if not outcome.is_settled]
    if not left:
        return {}
    display.begin_scorings({planned.name: outcome for planned, outcome in scorings.items()})
    jobs = [planned.job(study.out) for planned in left]
    ended = run_jobs(jobs, slots=slots, stop=stop, tell=display.tell)
    if stop.signal_number:
        done = sum(outcome.is_settled for outcome in study.scorings().values())
        raise _stopped(study, stop, f"{done} of {len(scorings)} scores done")
    return ended


def _refuse_changes(study: Study) -> None:
    """Refuse a file that says of runs that are there something else than they are."""
    changes = []
    for run in study.runs():
        stored = RunDirectory(study.place(run)).config
        if stored.is_file() and (keys := changed_keys(run.config, presets.load(stored))):
            changes.append(f"{run.name} ({', '.join(keys)})")
    if changes:
        raise UsageError(
            f"the study no longer fits {len(changes)} run(s) that are there: {', '.join(changes)}",
            where=str(study.out),
            hint="undo the change, name the new systems anew, choose another --out, or remove these runs",
        )


def _systems(plan: Plan) -> dict[str, dict[str, Any]]:
    """Describe for readers how long every system is, and why."""
    return {
        name: {
            "preset": system.preset,
            "set": list(system.overrides),
            "length": str(system.length),
            "total_steps": plan.configs[name].train.total_steps,
            "step_seconds": plan.times[name].mean_seconds(plan.configs[name].pld_schedule),
            "seconds": plan.seconds(name),
        }
        for name, system in plan.spec.systems.items()
    }


def _stopped(study: Study, stop: StopRequest, done: str) -> PldError:
    return stop_error(stop.signal_number, f"{done}, the others saved", where=str(study.out), hint="run the same command again to resume")
