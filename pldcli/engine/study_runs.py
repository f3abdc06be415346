"""Train the runs of a study: each the ordinary command in a process of its own, some at once."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pldcli import atomic
from pldcli.engine.metrics import read_metrics
from pldcli.engine.run_directory import RunDirectory, summarise
from pldcli.engine.signals import StopRequest
from pldcli.errors import DivergedError, PreemptedError, StoppedError
from pldcli.study.outcome import Outcome
from pldcli.study.plan import PlannedRun
from pldcli.workers import close_pipe, start_command

__all__ = ["Slot", "last_step", "read_outcome", "train_runs"]

_LOOK_EVERY_SECONDS = 0.2
_UNLOCKED_WITHIN_SECONDS = 60.0
"""A run whose study was killed saves itself and lets go of its directory."""

_DIVERGED = "diverged.json"
_TAIL_BYTES = 65536


@dataclass(frozen=True)
class Slot:
    """Where one run at a time can train."""

    environment: Mapping[str, str]
    threads: int | None


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
    waiting, free = list(runs), list(slots)
    active: list[tuple[PlannedRun, Slot, subprocess.Popen[bytes]]] = []
    outcomes: dict[str, Outcome] = {}
    passed_on = False
    try:
        while active or (waiting and not stop.signal_number):
            while waiting and free and not stop.signal_number:
                run, slot = waiting.pop(0), free.pop(0)
                active.append((run, slot, _start(run, out, data, slot, stop)))
                tell(run, None)
            if stop.signal_number and not passed_on:
                passed_on = True
                for _, _, process in active:
                    process.send_signal(stop.signal_number)
            time.sleep(_LOOK_EVERY_SECONDS)
            watch([run for run, _, _ in active])
            for ended in [one for one in active if one[2].poll() is not None]:
                active.remove(ended)
                run, slot, process = ended
                close_pipe(process.stdin)
                free.append(slot)
                outcomes[run.name] = _settle(run, out, process.returncode)
                tell(run, outcomes[run.name])
    finally:
        for _, _, process in active:
            process.kill()
            process.wait()
            close_pipe(process.stdin)
    return outcomes


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


def _start(run: PlannedRun, out: Path, data: Path, slot: Slot, stop: StopRequest) -> subprocess.Popen[bytes]:
    place = out / "runs" / run.name
    until = time.monotonic() + _UNLOCKED_WITHIN_SECONDS
    while RunDirectory(place).is_locked and time.monotonic() < until and not stop.signal_number:
        time.sleep(_LOOK_EVERY_SECONDS)
    arguments = ["pretrain", "--preset", run.preset, "--data", str(data), "--out", str(place), *run.changes]
    log = out / "logs" / f"{run.name}.log"
    with atomic.output_errors(log):
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            file.write(f"$ {shlex.join(['pld', *arguments])}\n".encode())  # logs of several starts follow each other
            file.flush()
            return start_command(arguments, log=file, threads=slot.threads, environment=slot.environment)


def _settle(run: PlannedRun, out: Path, code: int) -> Outcome:
    """Read how a run's process ended; one that diverged leaves a mark, so that it is not begun again."""
    place = out / "runs" / run.name
    if code == 0 and (outcome := read_outcome(place)).state == "finished":
        return outcome
    line = _last_line(out / "logs" / f"{run.name}.log")
    if code == DivergedError.exit_code:
        named = re.search(r"step (\d+)", line)
        step = int(named[1]) if named else last_step(place)
        reason = line.removeprefix("error: ")
        atomic.write_text(place / _DIVERGED, json.dumps({"step": step, "reason": reason}) + "\n")
        return Outcome("diverged", step, note=reason)
    step = max((row["step"] for row in read_metrics(RunDirectory(place).metrics)), default=0)
    if code in (StoppedError.exit_code, PreemptedError.exit_code):
        return Outcome("stopped", step, note=line, exit_code=code)
    if code < 0:
        return Outcome("failed", step, note=f"ended by signal {-code}" + (", perhaps out of memory" if code == -9 else ""), exit_code=code)
    return Outcome("failed", step, note=f"ended with exit code {code}" if line.startswith("$ ") else line, exit_code=code)


def _last_line(log: Path) -> str:
    """Read the last line of a log; where an error is among the last ones, that."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines[-3:] if line.startswith("error: ")]
    return (errors or lines or [""])[-1]
