"""The runs of a study: each is trained by the ordinary command, and its directory says what became of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pldcli.errors import DivergedError
from pldcli.runs.metrics import read_metrics, validation_key
from pldcli.runs.run_directory import RunDirectory, summarise
from pldcli.study.jobs import Job, Outcome, State, last_step
from pldcli.study.plan import PlannedRun
from pldcli.system import atomic
from pldcli.system.json_text import from_json

__all__ = ["pretraining_job", "read_outcome"]

_DIVERGED = "diverged.json"


def pretraining_job(run: PlannedRun, *, out: Path, data: Path) -> Job:
    """Make the job that trains a run.

    Args:
        run: What to train.
        out: The study's directory.
        data: The prepared directory.
    """
    directory = out / "runs" / run.name

    def settle(code: int, line: str) -> Outcome:
        if code == DivergedError.exit_code:
            # A mark, so that it is not begun again.
            named = re.search(r"steps? (\d+)", line)
            mark = {"step": int(named[1]) if named else last_step(directory), "reason": line.removeprefix("error: ")}
            atomic.write_text(directory / _DIVERGED, json.dumps(mark) + "\n")
            return _read_mark(directory)
        return read_outcome(directory) if code == 0 else Outcome(State.FAILED)

    arguments = ("pretrain", "--preset", run.preset, "--data", str(data), "--out", str(directory), *run.changes)
    return Job(name=run.name, arguments=arguments, directory=directory, log=out / "logs" / f"{run.name}.log", settle=settle)


def read_outcome(directory: Path) -> Outcome:
    """Read from a run's directory what became of it."""
    run = RunDirectory(directory)
    if not run.config.is_file():
        return Outcome(State.NOT_STARTED)
    summary = summarise(run)
    if summary.state == "finished":
        rows = [row for row in read_metrics(run.metrics) if validation_key(row)]
        if not rows or rows[-1]["step"] < summary.step:
            return Outcome(State.FAILED, summary.step, note="metrics.jsonl lacks the last validation: remove the run to train it anew")
        loss = rows[-1][validation_key(rows[-1]) or ""]
        if loss is None:
            return Outcome(State.DIVERGED, summary.step, note="the last validation loss is not finite")
        return Outcome(State.FINISHED, summary.step, loss)
    if summary.state == "running":
        return Outcome(State.RUNNING, summary.step)
    # A run without a checkpoint is stopped too: it has begun, and is told to resume.
    return _read_mark(directory) if (directory / _DIVERGED).is_file() else Outcome(State.STOPPED, summary.step)


def _read_mark(directory: Path) -> Outcome:
    mark = from_json((directory / _DIVERGED).read_text(encoding="utf-8"))
    return Outcome(State.DIVERGED, int(mark["step"]), note=str(mark["reason"]))
