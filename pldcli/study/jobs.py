"""The jobs of a study: commands of this program, each in a process of its own, some at once."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from pathlib import Path

from pldcli.errors import PreemptedError, StoppedError, UsageError
from pldcli.runs.run_directory import RunDirectory
from pldcli.system import atomic
from pldcli.system.signals import StopRequest
from pldcli.system.workers import close_pipe, share_of_cores, start_command, visible_gpus

__all__ = ["Job", "Outcome", "Slot", "State", "last_step", "make_slots", "run_jobs"]

_STOPPED_CODES = (StoppedError.exit_code, PreemptedError.exit_code, -signal.SIGINT, -signal.SIGTERM)
"""How commands end that were asked to: having saved themselves, or before they had anything to save."""

_LOOK_EVERY_SECONDS = 0.2
_UNLOCKED_WITHIN_SECONDS = 60.0
"""A command whose study was killed saves itself and lets go of its directory."""

_TAIL_BYTES = 65536


class State(StrEnum):
    """What became of a job."""

    FINISHED = "finished"
    DIVERGED = "diverged"
    FAILED = "failed"
    STOPPED = "stopped"
    RUNNING = "running"
    NOT_STARTED = "not started"


@dataclass(frozen=True)
class Outcome:
    """How far a job came: a run that trains, a fine-tuning, or minimal pairs."""

    state: State
    step: int = 0
    """Of a run."""
    loss: float | None = None
    """Final validation loss of a finished run."""
    _: KW_ONLY
    score: float | None = None
    """In [0, 1]. Of a finished fine-tuning the mean over seeds, of the best setting, None where all diverged; of minimal pairs the mean
    over files."""
    note: str = ""
    """Why it diverged or failed."""
    exit_code: int = 0
    """Of its process, where it failed."""

    @property
    def is_settled(self) -> bool:
        """Return whether there is nothing left to do for it."""
        return self.state in (State.FINISHED, State.DIVERGED)

    def __str__(self) -> str:
        """Return it in a few words."""
        if self.state == State.FINISHED:
            if self.score is not None:
                return f"score {100 * self.score:.2f}"
            return "diverged" if self.loss is None else f"finished, loss {self.loss:.4f}"
        return f"{self.state} at step {self.step:,}" if self.step else str(self.state)


@dataclass(frozen=True)
class Slot:
    """Where one job at a time can run."""

    environment: Mapping[str, str]
    threads: int | None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command line of this program, and how to read what became of it."""

    name: str
    """What the study calls it."""
    arguments: tuple[str, ...]
    """What follows `pld`."""
    directory: Path
    """That it locks."""
    log: Path
    settle: Callable[[int, str], Outcome]
    """From its exit code and the last line of its log to its outcome; only one that is settled counts."""


def make_slots(*, jobs: int, gpus: Sequence[str]) -> list[Slot]:
    """Choose where jobs run: one after the other as a run alone would, or several at once on a part of the cores each.

    Args:
        jobs: Jobs at once; with GPUs named, on each of them.
        gpus: As CUDA_VISIBLE_DEVICES names them; none for no choice.

    Raises:
        UsageError: A GPU is not one of those that CUDA_VISIBLE_DEVICES leaves to this process.
    """
    allowed = visible_gpus()
    if allowed is not None and (others := [gpu for gpu in gpus if gpu not in allowed]):
        listed = ",".join(allowed)
        raise UsageError(f"CUDA_VISIBLE_DEVICES does not name {', '.join(others)}", where="--gpus", hint=f"choose from {listed or 'none'}")
    environments: list[dict[str, str]] = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus] or [{}]
    threads = None if jobs == 1 else share_of_cores(jobs * len(environments))
    return [Slot(environment, threads) for environment in environments * jobs]


def run_jobs(
    jobs: Sequence[Job],
    *,
    slots: Sequence[Slot],
    stop: StopRequest,
    tell: Callable[[str, Outcome | None], None],
    watch: Callable[[Sequence[str]], None] = lambda names: None,
) -> dict[str, Outcome]:
    """Carry out jobs, one in each slot at a time, until all have ended or a stop is asked for.

    A job that diverges or fails does not keep the others from running.

    Args:
        jobs: In the order in which to begin.
        slots: Where they run.
        stop: Looked at all the time; what is at work is asked to save and end.
        tell: Told the name of each as it begins (None) and ends.
        watch: Told again and again the names of those at work.

    Returns:
        Name to outcome of every one that was begun.
    """
    outcomes: dict[str, Outcome] = {}
    waiting, free = list(jobs), list(slots)
    active: list[tuple[Job, Slot, subprocess.Popen[bytes]]] = []
    passed_on = False
    try:
        while active or (waiting and not stop.signal_number):
            while waiting and free and not stop.signal_number:
                job, slot = waiting.pop(0), free.pop(0)
                active.append((job, slot, _start(job, slot, stop)))
                tell(job.name, None)
            if stop.signal_number and not passed_on:
                passed_on = True
                for _, _, process in active:
                    process.send_signal(stop.signal_number)
            time.sleep(_LOOK_EVERY_SECONDS)
            watch([job.name for job, _, _ in active])
            for ended in [one for one in active if one[2].poll() is not None]:
                active.remove(ended)
                job, slot, process = ended
                close_pipe(process.stdin)
                free.append(slot)
                outcomes[job.name] = _read_end(job, process.returncode)
                tell(job.name, outcomes[job.name])
    finally:
        for _, _, process in active:
            process.kill()
            process.wait()
            close_pipe(process.stdin)
    return outcomes


def last_step(directory: Path) -> int:
    """Read the last step that a run wrote down, from the end of its metrics."""
    path = RunDirectory(directory).metrics
    steps = re.findall(r'"step": (\d+)', _tail(path)) if path.is_file() else []
    return int(steps[-1]) if steps else 0


def _start(job: Job, slot: Slot, stop: StopRequest) -> subprocess.Popen[bytes]:
    until = time.monotonic() + _UNLOCKED_WITHIN_SECONDS
    while RunDirectory(job.directory).is_locked and time.monotonic() < until and not stop.signal_number:
        time.sleep(_LOOK_EVERY_SECONDS)
    with atomic.output_errors(job.log):
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("ab") as file:
            file.write(f"$ {shlex.join(['pld', *job.arguments])}\n".encode())  # logs of several starts follow each other
            file.flush()
            return start_command(job.arguments, log=file, threads=slot.threads, environment=slot.environment)


def _read_end(job: Job, code: int) -> Outcome:
    line = _last_line(job.log)
    outcome = job.settle(code, line)
    if outcome.is_settled:
        return outcome
    step = last_step(job.directory)
    if code in _STOPPED_CODES:
        return Outcome(State.STOPPED, step, note=line, exit_code=code)
    return Outcome(State.FAILED, step, note=_describe_failure(line, code), exit_code=code)


def _last_line(log: Path) -> str:
    """Read the last line of a log; where an error is among the last ones, that."""
    lines = [line.strip() for line in _tail(log).splitlines() if line.strip()]
    errors = [line for line in lines[-3:] if line.startswith("error: ")]
    return (errors or lines or [""])[-1]


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode(errors="replace")


def _describe_failure(line: str, code: int) -> str:
    """Return why a command failed: what it wrote last, or how it ended."""
    if code < 0:
        return f"ended by signal {-code}" + (", perhaps out of memory" if code == -signal.SIGKILL else "")
    return f"ended with exit code {code}" if line.startswith("$ ") else line
