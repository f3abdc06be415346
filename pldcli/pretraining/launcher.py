"""Run the program in several processes on this machine, under torchrun's agent."""

from __future__ import annotations

import logging
import signal
import sys
import uuid
from collections.abc import Callable, Sequence
from types import FrameType

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pldcli.errors import (
    CheckpointError,
    DataError,
    DeviceError,
    DivergedError,
    OutputError,
    PldError,
    PreemptedError,
    StoppedError,
    UsageError,
)
from pldcli.system.roll_call import LOST

__all__ = ["run_processes"]

_STOPS = frozenset({PreemptedError.exit_code, StoppedError.exit_code})
_FINAL = _STOPS | {error.exit_code for error in (UsageError, DataError, CheckpointError, DivergedError, OutputError)}
"""Exit codes that are no failure of a process, or that the next attempt would end with, too."""
_AGAIN = "run the same command again to resume; --max-restarts N does so by itself"


def run_processes(count: int, arguments: Callable[[], Sequence[str]], *, max_restarts: int = 0, say: Callable[[str], None]) -> int:
    """Run a command line of this program in several processes, and wait for them.

    A signal is passed on to all; those that have not ended half a minute later are killed. Where one fails, the others are ended too, and
    all begin anew as often as allowed, in the same job: a run then resumes from its newest checkpoint. Not where they were stopped, nor
    where the next attempt would fail alike.

    Args:
        count: How many; each sees its number in RANK and LOCAL_RANK.
        arguments: Gives what stands behind `pld`; called for every attempt.
        max_restarts: How often.
        say: Prints a line.

    Returns:
        The exit code of the process that failed by itself, after it has said why; 0 where none did.

    Raises:
        DeviceError: One was killed.
        PreemptedError, StoppedError: A signal arrived here; the processes have said what is saved.
    """
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the processes say what is wrong themselves
    job = uuid.uuid4().hex
    previous = signal.signal(signal.SIGUSR1, _as_sigterm)  # the agent does not know it
    try:
        for left in range(max_restarts, -1, -1):
            # Not the agent's own restarts: it would repeat a stop and a wrong setting as well.
            outcome = _run_once(count, arguments(), job)
            if outcome is None:
                return 0
            code, failure = outcome
            if not left or code in _FINAL:
                break
            what = failure.what if failure else f"a process ended with exit code {code}"
            say(f"warning: {what}; all {count} begin anew, {left - 1} more restarts")
    except SignalException as stop:
        kind = StoppedError if stop.sigval == signal.SIGINT else PreemptedError
        raise kind(f"all {count} processes have ended after {stop.sigval.name}") from stop
    finally:
        signal.signal(signal.SIGUSR1, previous)
    if failure is not None:
        raise failure
    return code


def _run_once(count: int, arguments: Sequence[str], job: str) -> tuple[int, PldError | None] | None:
    """Run all processes until they have ended; return the exit code of one that failed, and what it could not say itself."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id=job, max_restarts=0
    )
    try:
        elastic_launch(config, sys.executable)("-m", "pldcli", *arguments)
    except ChildFailedError as error:
        return _cause(error, count)
    return None


def _cause(error: ChildFailedError, count: int) -> tuple[int, PldError | None]:
    """Find the process that failed by itself, and its exit code; the others lost it, and wrote that down, or the agent ended them.

    Of several, the first: the agent ends the others by SIGTERM, and by SIGKILL half a minute later. One that has saved and stopped is none.
    """
    failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
    by_itself = [(rank, one) for rank, one in failures if not _loss(one) and one.exitcode != -signal.SIGTERM]
    candidates = by_itself or failures
    rank, failure = next(((rank, one) for rank, one in candidates if one.exitcode not in _STOPS), candidates[0])
    if failure.exitcode > 0:
        return failure.exitcode, None
    hung = next((one.message for _, one in failures if _loss(one).get("hung")), None)
    what = hung or f"process {rank} of {count} was ended by {signal.Signals(-failure.exitcode).name}"
    return DeviceError.exit_code, DeviceError(what, hint=_AGAIN)


def _loss(failure: ProcessFailure) -> dict[str, bool]:
    """Return what a process wrote down of its loss of the others; nothing where it failed by itself."""
    told = failure.error_file_data.get(LOST, {})
    return told if isinstance(told, dict) else {}


def _as_sigterm(number: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGTERM)
