"""Run the program in several processes on this machine, under torchrun's agent."""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from types import FrameType

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pldcli.errors import DeviceError, PreemptedError, StoppedError

__all__ = ["run_processes"]


def run_processes(count: int, arguments: Sequence[str], *, max_restarts: int = 0) -> int:
    """Run a command line of this program in several processes, and wait for them.

    A signal is passed on to all; those that have not ended half a minute later are killed. Where one fails, the others are ended too, and
    all begin anew as often as allowed: a run then resumes from its newest checkpoint.

    Args:
        count: How many; each sees its number in RANK and LOCAL_RANK.
        arguments: Behind `pld`.
        max_restarts: How often.

    Returns:
        The exit code of the process that failed first, after it has said why; 0 where none did.

    Raises:
        DeviceError: One was killed.
        PreemptedError, StoppedError: A signal arrived here; the processes have said what is saved.
    """
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the processes say what is wrong themselves
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=uuid.uuid4().hex,
        max_restarts=max_restarts,
    )
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # in the agent's own, processes that begin anew find addresses of dead ones
    previous = signal.signal(signal.SIGUSR1, _as_sigterm)  # the agent does not know it
    try:
        elastic_launch(config, sys.executable)("-m", "pldcli", *arguments)
    except ChildFailedError as error:
        rank, failure = _cause(error)
        if failure.exitcode >= 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        hint = "run the same command again to resume; --max-restarts N does so by itself"
        raise DeviceError(f"process {rank} of {count} was ended by {name}", hint=hint) from error
    except SignalException as stop:
        kind = StoppedError if stop.sigval == signal.SIGINT else PreemptedError
        raise kind(f"all {count} processes have ended after {stop.sigval.name}") from stop
    finally:
        signal.signal(signal.SIGUSR1, previous)
    return 0


def _cause(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """Find the process that failed by itself: one that was killed, else the first; the others only lost it.

    SIGTERM is how the agent ends the others.
    """
    killed = [rank for rank, failure in error.failures.items() if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM]
    rank = killed[0] if killed else error.get_first_failure()[0]
    return rank, error.failures[rank]


def _as_sigterm(number: int, frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGTERM)
