"""Train the runs of a study, each by the ordinary command, and read what became of them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from pldcli.engine.metrics import read_metrics
from pldcli.engine.run_directory import RunDirectory, summarise
from pldcli.errors import DivergedError
from pldcli.study.halving import Outcome
from pldcli.study.jobs import STOPPED_CODES, Command, Slot, describe_failure, last_line, run_commands
from pldcli.study.plan import PlannedRun
from pldcli.system import atomic
from pldcli.system.signals import StopRequest

__all__ = ["last_step", "read_outcome", "train_runs"]

_DIVERGED = "diverged.json"
_TAIL_BYTES = 65536


def train_runs(
    runs: Sequence[PlannedRun],
    *,
    out: Path,
    data: Path,
    slots: Sequence[Slot],
    tell: Callable[[PlannedRun, Outcome | None], None],
    watch: Callable[[Sequence[PlannedRun]], None],
    stop: StopRequest,
) -> dict[str, Outcome]:
    """Train runs that are not settled yet, one in each slot at a time, until all have ended or a stop is asked for.

    A run that diverges or fails does not keep the others from training.

    Args:
        runs: In the order in which to begin.
        out: The study's directory.
        data: The prepared directory.
        slots: Where to train.
        tell: Told of each run as it begins (None) and ends.
        watch: Told again and again which runs are at work.
        stop: Looked at all the time; the runs at work are asked to save and end.

    Returns:
        Name to outcome of every run that was begun.
    """
    named = {run.name: run for run in runs}
    return run_commands(
        [_command(run, out, data) for run in runs],
        slots=slots,
        settle=lambda name, code: _settle(named[name], out, code),
        tell=lambda name, outcome: tell(named[name], outcome),
        watch=lambda names: watch([named[name] for name in names]),
        stop=stop,
    )


def read_outcome(place: Path) -> Outcome:
    """Read from a run's directory what became of it."""
    directory = RunDirectory(place)
    if not directory.config.is_file():
        return Outcome("not started")
    summary = summarise(directory)
    if summary.state == "finished":
        last = [row for row in read_metrics(directory.metrics) if "eval/mlm_loss" in row][-1]
        loss = last["eval/mlm_loss"]
        if loss is None:
            return Outcome("diverged", summary.step, note="the last validation loss is not finite")
        return Outcome("finished", summary.step, loss)
    mark = place / _DIVERGED
    if mark.is_file() and summary.state != "running":
        content = json.loads(mark.read_text(encoding="utf-8"))
        return Outcome("diverged", int(content["step"]), note=str(content["reason"]))
    # A run without a checkpoint is stopped too: it has begun, and is told to go on.
    return Outcome("running" if summary.state == "running" else "stopped", summary.step)


def last_step(place: Path) -> int:
    """Read the last step that a run wrote down, from the end of its metrics."""
    path = RunDirectory(place).metrics
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        steps = re.findall(rb'"step": (\d+)', file.read())
    return int(steps[-1]) if steps else 0


def _command(run: PlannedRun, out: Path, data: Path) -> Command:
    place = out / "runs" / run.name
    arguments = ("pretrain", "--preset", run.preset, "--data", str(data), "--out", str(place), *run.changes)
    return Command(run.name, arguments, place, out / "logs" / f"{run.name}.log")


def _settle(run: PlannedRun, out: Path, code: int) -> Outcome:
    """Read how a run's process ended; one that diverged leaves a mark, so that it is not begun again."""
    place = out / "runs" / run.name
    if code == 0 and (outcome := read_outcome(place)).state == "finished":
        return outcome
    line = last_line(out / "logs" / f"{run.name}.log")
    if code == DivergedError.exit_code:
        named = re.search(r"step (\d+)", line)
        step = int(named[1]) if named else last_step(place)
        reason = line.removeprefix("error: ")
        atomic.write_text(place / _DIVERGED, json.dumps({"step": step, "reason": reason}) + "\n")
        return Outcome("diverged", step, note=reason)
    step = last_step(place)
    if code in STOPPED_CODES:
        return Outcome("stopped", step, note=line, exit_code=code)
    return Outcome("failed", step, note=describe_failure(line, code), exit_code=code)
