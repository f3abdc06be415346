"""Carry out the commands of a study: each in a process of its own, some at once."""

from __future__ import annotations

import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pldcli.engine.run_directory import RunDirectory
from pldcli.errors import PreemptedError, StoppedError
from pldcli.system import atomic
from pldcli.system.signals import StopRequest
from pldcli.system.workers import close_pipe, start_command

__all__ = ["STOPPED_CODES", "Command", "Slot", "describe_failure", "last_line", "run_commands"]

Outcome = TypeVar("Outcome")

STOPPED_CODES = (StoppedError.exit_code, PreemptedError.exit_code, -signal.SIGINT, -signal.SIGTERM)
"""How commands end that were asked to: having saved themselves, or before they had anything to save."""

_LOOK_EVERY_SECONDS = 0.2
_UNLOCKED_WITHIN_SECONDS = 60.0
"""A command whose study was killed saves itself and lets go of its directory."""

_TAIL_BYTES = 65536


@dataclass(frozen=True)
class Slot:
    """Where one command at a time can run."""

    environment: Mapping[str, str]
    threads: int | None


@dataclass(frozen=True)
class Command:
    """A command line of this program."""

    name: str
    """What the study calls it."""
    arguments: tuple[str, ...]
    """What follows `pld`."""
    place: Path
    """The directory that it locks."""
    log: Path


def run_commands(
    commands: Sequence[Command],
    *,
    slots: Sequence[Slot],
    settle: Callable[[str, int], Outcome],
    tell: Callable[[str, Outcome | None], None],
    watch: Callable[[Sequence[str]], None] = lambda names: None,
    stop: StopRequest,
) -> dict[str, Outcome]:
    """Carry out commands, one in each slot at a time, until all have ended or a stop is asked for.

    Args:
        commands: In the order in which to begin.
        slots: Where they run.
        settle: Says what became of one, from its name and its exit code.
        tell: Told the name of each as it begins (None) and ends.
        watch: Told again and again the names of those at work.
        stop: Looked at all the time; what is at work is asked to save and end.

    Returns:
        Name to outcome of every one that was begun.
    """
    outcomes: dict[str, Outcome] = {}
    waiting, free = list(commands), list(slots)
    active: list[tuple[Command, Slot, subprocess.Popen[bytes]]] = []
    passed_on = False
    try:
        while active or (waiting and not stop.signal_number):
            while waiting and free and not stop.signal_number:
                command, slot = waiting.pop(0), free.pop(0)
                active.append((command, slot, _start(command, slot, stop)))
                tell(command.name, None)
            if stop.signal_number and not passed_on:
                passed_on = True
                for _, _, process in active:
                    process.send_signal(stop.signal_number)
            time.sleep(_LOOK_EVERY_SECONDS)
            watch([command.name for command, _, _ in active])
            for ended in [one for one in active if one[2].poll() is not None]:
                active.remove(ended)
                command, slot, process = ended
                close_pipe(process.stdin)
                free.append(slot)
                outcomes[command.name] = settle(command.name, process.returncode)
                tell(command.name, outcomes[command.name])
    finally:
        for _, _, process in active:
            process.kill()
            process.wait()
            close_pipe(process.stdin)
    return outcomes


def last_line(log: Path) -> str:
    """Read the last line of a log; where an error is among the last ones, that."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines[-3:] if line.startswith("error: ")]
    return (errors or lines or [""])[-1]


def describe_failure(line: str, code: int) -> str:
    """Say why a command failed: what it wrote last, or how it ended."""
    if code < 0:
        return f"ended by signal {-code}" + (", perhaps out of memory" if code == -9 else "")
    return f"ended with exit code {code}" if line.startswith("$ ") else line


def _start(command: Command, slot: Slot, stop: StopRequest) -> subprocess.Popen[bytes]:
    until = time.monotonic() + _UNLOCKED_WITHIN_SECONDS
    while RunDirectory(command.place).is_locked and time.monotonic() < until and not stop.signal_number:
        time.sleep(_LOOK_EVERY_SECONDS)
    with atomic.output_errors(command.log):
        command.log.parent.mkdir(parents=True, exist_ok=True)
        with command.log.open("ab") as file:
            file.write(f"$ {shlex.join(['pld', *command.arguments])}\n".encode())  # logs of several starts follow each other
            file.flush()
            return start_command(command.arguments, log=file, threads=slot.threads, environment=slot.environment)
