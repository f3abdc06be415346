"""Run the program in several processes on this machine, under torchrun's agent."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pldcli.errors import DeviceError, PldError, PreemptedError, StoppedError
from pldcli.system.command_line import COMMAND_LINE, JOB, command_line
from pldcli.system.error_file import FINAL_CODES, STOP_CODES, count_lost, read_endings
from pldcli.system.roll_call import LOST
from pldcli.system.workers import THREADS, share_of_cores

__all__ = ["run_processes"]

_AGAIN = "run the same command again to resume"


def run_processes(
    count: int,
    arguments: Callable[[], Sequence[str]],
    *,
    kept: Callable[[], str],
    max_restarts: int | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Run a command line of this program in several processes, and wait for them.

    A signal is passed on to all; those that have not ended half a minute later are killed. Where one fails, the others are ended too, and
    all begin anew as often as allowed, in the same job: a run then resumes from its newest checkpoint. Not where they were stopped, nor
    where the next attempt would fail alike.

    Args:
        count: How many; each sees its number in RANK and LOCAL_RANK.
        arguments: Gives what stands behind `pld`; called for every attempt.
        kept: Says what is there of their work, where a signal ended them before they had saved.
        max_restarts: How often; None where the user was not asked.
        say: Prints a line.

    Returns:
        The exit code of the process that failed by itself, after it has said why; 0 where none did.

    Raises:
        DeviceError: One was killed, or ended after a signal without having saved.
        PreemptedError, StoppedError: A signal arrived here; the processes have said what is saved, or had not begun.
    """
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the processes say what is wrong themselves
    job = uuid.uuid4().hex
    # The agent does not know SIGUSR1, and answers SIGTERM only once it has started the processes.
    answers = {signal.SIGUSR1: _as_sigterm, signal.SIGTERM: _stop}
    previous = {number: signal.signal(number, answer) for number, answer in answers.items()}
    code, what, hint = 0, "", _AGAIN if max_restarts is None else f"{_AGAIN}; --max-restarts N does so by itself"
    # torchrun's command would set one thread, its agent sets none: every process would compute on all cores.
    threads = {} if THREADS in os.environ else {THREADS: str(share_of_cores(count))}
    variables = {COMMAND_LINE: command_line(), JOB: job, **threads}
    with TemporaryDirectory(prefix="pld-", ignore_cleanup_errors=True) as endings, _handed_down(variables):
        try:
            for left in range(max_restarts or 0, -1, -1):
                # Not the agent's own restarts: it would repeat a stop and a wrong setting as well.
                code, what = _run_once(count, arguments(), job, Path(endings, str(left)))
                if not left or not code or code in FINAL_CODES:
                    break
                cause = what or f"a process ended with exit code {code}"
                say(f"warning: {cause}; all {count} begin anew, {left - 1} more restarts")
        except SignalException as stop:
            code, what, hint = _after_signal(stop.sigval, count, Path(endings, str(left)), kept), "", ""
        finally:
            for number, answer in previous.items():
                signal.signal(number, answer)
    if what:
        raise DeviceError(what, hint=hint)
    return code


@contextmanager
def _handed_down(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the processes that are started meanwhile: the agent hands on its own."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run_once(count: int, arguments: Sequence[str], job: str, endings: Path) -> tuple[int, str]:
    """Run all processes until they have ended; return the exit code of one that failed, or 0, and what it could not say itself."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=job,
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(endings)),
    )
    try:
        elastic_launch(config, sys.executable)("-m", "pldcli", *arguments)
    except ChildFailedError as error:
        return _cause(error, count)
    return 0, ""


def _after_signal(number: signal.Signals, count: int, endings: Path, kept: Callable[[], str]) -> int:
    """Return the exit code of processes that a signal ended: 0 where they had finished, or that of one that failed after it.

    Raises:
        PreemptedError, StoppedError: Nothing is lost: all have saved or had not begun to work. The latter also otherwise, as Ctrl-C asks
            for no more.
        DeviceError: Work is lost.
    """
    places = list(endings.glob("*/attempt_0"))
    codes = [ending.exit_code for place in places for ending in read_endings(place)]
    if failed := [code for code in codes if code and code not in STOP_CODES]:
        return failed[0]
    if len(codes) == count and not any(codes):
        return 0
    kind: type[PldError] = StoppedError if number == signal.SIGINT else PreemptedError
    if len(codes) == count:
        raise kind(f"all {count} processes have ended after {number.name}")
    if not sum(map(count_lost, places)):
        raise kind(f"{count - len(codes)} of {count} processes were still starting when {number.name} arrived", hint=_AGAIN)
    kind = StoppedError if number == signal.SIGINT else DeviceError
    raise kind(f"{count - len(codes)} of {count} processes ended after {number.name} without having saved, {kept()}", hint=_AGAIN)


def _cause(error: ChildFailedError, count: int) -> tuple[int, str]:
    """Find the process that failed by itself: its exit code, and what it could not say. The others lost it, or the agent ended them.

    Of several, the first: the agent ends the others by SIGTERM, and by SIGKILL half a minute later. One that has saved and stopped is none.
    """
    failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
    by_itself = [(rank, one) for rank, one in failures if not _loss(one) and one.exitcode != -signal.SIGTERM]
    candidates = by_itself or failures
    rank, failure = next(((rank, one) for rank, one in candidates if one.exitcode not in STOP_CODES), candidates[0])
    if failure.exitcode > 0:
        return failure.exitcode, ""
    hung = next((one.message for _, one in failures if _loss(one).get("hung")), None)
    return DeviceError.exit_code, hung or f"process {rank} of {count} was ended by {signal.Signals(-failure.exitcode).name}"


def _loss(failure: ProcessFailure) -> dict[str, bool]:
    """Return what a process wrote down of its loss of the others; nothing where it failed by itself."""
    told = failure.error_file_data.get(LOST, {})
    return told if isinstance(told, dict) else {}


def _stop(number: int, frame: FrameType | None) -> None:
    raise SignalException("before the processes were there", sigval=signal.Signals(number))


def _as_sigterm(number: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGTERM)
