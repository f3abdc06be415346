"""A study carried out: measured, planned, trained run by run, and fine-tuned; typed again, it goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pldcli import presets
from pldcli.data.prepared import open_prepared
from pldcli.engine.run_directory import RunDirectory
from pldcli.errors import DataError, PldError, UsageError
from pldcli.study.calibration import measure_shapes
from pldcli.study.display import StudyDisplay
from pldcli.study.halving import Outcome, RungResult, climb
from pldcli.study.jobs import Slot
from pldcli.study.plan import Plan, PlannedRun, Shape, changed_keys, make_plan, shapes
from pldcli.study.runs import read_outcome, train_runs
from pldcli.study.spec import Spec
from pldcli.study.timings import QUIET, Timings, read_timings, write_plan
from pldcli.study.tunings import PlannedTuning, TuningOutcome, plan_tunings, read_tuning, tune_runs
from pldcli.system import atomic
from pldcli.system.signals import StopRequest, stop_error, stop_requests
from pldcli.system.workers import available_cores, visible_gpus

__all__ = ["Study", "make_slots", "open_study", "train_study", "tune_study"]

Report = Callable[[str], None]


@dataclass(frozen=True)
class Study:
    """A study whose runs are known."""

    plan: Plan
    timings: Timings
    out: Path
    data: Path
    is_measured_for_good: bool
    """What was measured lies on the disk; otherwise it will be measured anew when the study begins."""

    @property
    def spec(self) -> Spec:
        """Give what the file says."""
        return self.plan.spec

    def place(self, run: PlannedRun) -> Path:
        """Give the directory of a run."""
        return self.out / "runs" / run.name

    def outcome(self, run: PlannedRun) -> Outcome:
        """Read what became of a run."""
        return read_outcome(self.place(run))

    def rungs(self) -> list[RungResult]:
        """List the rungs whose candidates are known."""
        return climb(self.plan, self.outcome)

    def runs(self) -> list[PlannedRun]:
        """List every run that is known to be wanted, in the order in which they begin."""
        return [*self.plan.runs(), *(run for rung in self.rungs() for run in rung.runs)]

    def tunings(self) -> dict[PlannedTuning, TuningOutcome]:
        """List every fine-tuning of a finished run, and what became of it."""
        finished = [run for run in self.runs() if self.outcome(run).state == "finished"]
        return {tuning: read_tuning(tuning, self.out) for tuning in plan_tunings(self.spec, finished)}


def make_slots(*, jobs: int, gpus: Sequence[str]) -> list[Slot]:
    """Decide where runs train: one after the other as a run alone would, or several at once on a part of the cores each.

    Args:
        jobs: Runs at once; with GPUs named, on each of them.
        gpus: As CUDA_VISIBLE_DEVICES names them; none for no choice.

    Raises:
        UsageError: A GPU is not one of those that CUDA_VISIBLE_DEVICES leaves to this process.
    """
    allowed = visible_gpus()
    if allowed is not None and (others := [gpu for gpu in gpus if gpu not in allowed]):
        listed = ",".join(allowed)
        raise UsageError(f"CUDA_VISIBLE_DEVICES does not name {', '.join(others)}", where="--gpus", hint=f"choose from {listed or 'none'}")
    environments: list[dict[str, str]] = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus] or [{}]
    threads = None if jobs == 1 else max(1, available_cores() // (jobs * len(environments)))
    return [Slot(environment, threads) for environment in environments * jobs]


def open_study(spec: Spec, *, out: Path, data: Path, slots: Sequence[Slot], measure: bool, keep: bool, report: Report) -> Study:
    """Find out how long every run is, and that the runs that are there are those of this study.

    Args:
        spec: The study.
        out: Its directory.
        data: The prepared directory.
        slots: Where runs train: steps are measured under the same conditions.
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
    timings = stored
    if timings is None or any(shape.key not in timings.shapes for shape in wanted):
        if not measure:
            raise UsageError("nothing was trained for this file yet", where=str(out), hint="run it without --report-only first")
        timings = _measure(spec, wanted, stored, fingerprint, data, slots[0], report)
    study = Study(make_plan(spec, from_data, timings.times), timings, out, data, keep or timings == stored)
    _refuse_changes(study)
    if keep:
        with RunDirectory(out).lock():
            write_plan(place, timings, _systems(study.plan))
            atomic.write_text(out / "spec.yaml", spec.text)
    return study


def train_study(study: Study, *, slots: Sequence[Slot], display: StudyDisplay) -> dict[str, Outcome]:
    """Train every run that is left.

    Args:
        study: The study, measured for good.
        slots: Where runs train.
        display: Shows how far it is.

    Returns:
        Name to outcome of every run that is known to be wanted; some may have failed.

    Raises:
        StoppedError, PreemptedError: A signal arrived; the runs at work have saved their state.
    """
    ended: dict[str, Outcome] = {}
    with RunDirectory(study.out).lock(), stop_requests() as stop, display:
        while True:
            runs = study.runs()
            outcomes = {run.name: study.outcome(run) for run in runs}
            left = [run for run in runs if run.name not in ended and not outcomes[run.name].is_settled]
            if not left:
                return outcomes | {name: outcome for name, outcome in ended.items() if name in outcomes}
            display.begin(runs, outcomes)
            ended |= train_runs(left, out=study.out, data=study.data, slots=slots, tell=display.tell, watch=display.watch, stop=stop)
            if stop.signal_number:
                runs = study.runs()
                raise _stopped(study, stop, f"{sum(study.outcome(run).is_settled for run in runs)} of {len(runs)} runs done")


def tune_study(study: Study, *, slots: Sequence[Slot], display: StudyDisplay) -> dict[str, TuningOutcome]:
    """Fine-tune the finished runs on every task of the file, as far as that is not done.

    Args:
        study: The study, trained.
        slots: Where fine-tunings run.
        display: Shows how far they are.

    Returns:
        Name to outcome of every fine-tuning that was begun; some may have failed.

    Raises:
        StoppedError, PreemptedError: A signal arrived; what was at work has saved its state.
    """
    tunings = study.tunings()
    left = [tuning for tuning, outcome in tunings.items() if not outcome.is_settled]
    if not left:
        return {}
    with RunDirectory(study.out).lock(), stop_requests() as stop, display:
        display.begin_tunings(len(tunings), len(left))
        ended = tune_runs(left, out=study.out, slots=slots, tell=display.tell_tuning, stop=stop)
        if stop.signal_number:
            done = sum(outcome.is_settled for outcome in study.tunings().values())
            raise _stopped(study, stop, f"{done} of {len(tunings)} fine-tunings done")
    return ended


def _measure(
    spec: Spec, wanted: Sequence[Shape], stored: Timings | None, fingerprint: str, data: Path, slot: Slot, report: Report
) -> Timings:
    """Measure what is not measured yet; beside it, if anything was measured before, the baseline's shape, to bring both to one speed."""
    known = stored.shapes if stored else {}
    missing = [shape for shape in wanted if shape.key not in known]
    anchor = next((shape for shape in wanted if spec.baseline in shape.systems and shape.key in known), None)
    asked = [*missing, *([anchor] if anchor else [])]
    report(f"measuring the steps of {len(asked)} shape(s) of model, alone and in turn")
    measured = measure_shapes(asked, data=data, threads=slot.threads, environment=slot.environment, report=report)
    worst = max(shape.spread for shape in measured.shapes.values())
    if worst > QUIET:
        report(
            f"warning: this machine is not quiet, rounds differ by {worst:.0%}: times, and steps at equal time, are no more certain "
            "than that; stop, and begin when nothing else runs, or write `steps` into the file"
        )
    factor = known[anchor.key].time.dense_seconds / measured.shapes[anchor.key].time.dense_seconds if anchor else 1.0
    fresh = {shape.key: measured.shapes[shape.key].scaled(factor) for shape in missing}
    if stored is None:
        return Timings(fingerprint, measured.machine, fresh)
    return replace(stored, shapes={**known, **fresh})


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
    """Write down for readers how long every system is, and why."""
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
    return stop_error(stop.signal_number, f"{done}, the others saved", where=str(study.out), hint="run the same command again to go on")
