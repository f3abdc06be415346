"""Start worker processes: fresh interpreters behind two pipes.

Unlike `multiprocessing` they never import the caller's main module, so that any script may use them; their own session keeps
Ctrl-C away from them, and they end when their pipe closes, even if this process was killed.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from pldcli import errors
from pldcli.errors import PldError

__all__ = [
    "THREADS",
    "answering",
    "answers_of",
    "as_error",
    "available_cores",
    "close_pipe",
    "container_cores",
    "describe_error",
    "end_with_parent",
    "own_stdout",
    "processes_to_start",
    "share_of_cores",
    "start_command",
    "start_worker",
    "tell",
    "visible_gpus",
]

THREADS = "OMP_NUM_THREADS"
"""Variable of the environment: on how many threads numeric libraries compute."""


def available_cores() -> int:
    """Count the cores that this process may use, by its affinity and by its container's limit."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, math.ceil(container_cores() or cores)))


def share_of_cores(count: int) -> int:
    """Return how many of the cores that this process may use each of so many processes gets; at least one."""
    return max(1, available_cores() // count)


def container_cores() -> float | None:
    """Read the control group's limit of processor time, in cores; None where there is none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def visible_gpus() -> list[str] | None:
    """List the GPUs that this process may use by the names that CUDA_VISIBLE_DEVICES has for them: numbers, UUIDs or MIG instances.

    Returns:
        None where the variable is not set, so that all may be used, by their numbers.
    """
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def processes_to_start(wanted: int | None) -> int:
    """Return in how many processes a command that was asked for so many does its work; 1 in each of those that it or torchrun started."""
    return 1 if os.environ.get("WORLD_SIZE", "1") != "1" else wanted or 1


def start_worker(
    module: str, arguments: Sequence[str] = (), *, threads: int | None = 1, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start the function `serve` of a module in an interpreter of its own.

    Args:
        module: Its full name.
        arguments: What it finds in sys.argv[1:].
        threads: Of numeric libraries; None leaves them to the environment.
        environment: Variables besides those of this process.
    """
    return _start(f"from {module} import serve; serve()", arguments, threads, environment, None)


def start_command(
    arguments: Sequence[str], *, log: IO[bytes], threads: int | None, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a command line of this program in an interpreter of its own; it is asked to stop when its standard input closes.

    Args:
        arguments: What follows `pld`.
        log: Takes what it writes, errors too.
        threads: Of numeric libraries; None leaves them to the environment.
        environment: Variables besides those of this process.
    """
    code = "from pldcli.system.workers import end_with_parent; end_with_parent(); from pldcli.cli import main; main()"
    return _start(code, arguments, threads, environment, log)


def _start(
    code: str, arguments: Sequence[str], threads: int | None, environment: Mapping[str, str] | None, log: IO[bytes] | None
) -> subprocess.Popen[bytes]:
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "TOKENIZERS_PARALLELISM": "false",
        **({} if threads is None else {THREADS: str(threads), "OPENBLAS_NUM_THREADS": str(threads)}),
        **(environment or {}),
    }
    command = [sys.executable, "-c", code, *arguments]
    out, err = (subprocess.PIPE, None) if log is None else (log, log)
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=err, env=variables, start_new_session=True)


def end_with_parent() -> None:
    """Send SIGTERM to this worker when the pipe on its standard input closes, even in the middle of its work."""

    def watch() -> None:
        while os.read(0, 4096):  # not sys.stdin, whose lock would be held while the interpreter ends
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def tell(worker: subprocess.Popen[bytes], **values: Any) -> None:
    """Hand a worker a line of JSON; of one that is gone the last words come through the other pipe."""
    assert worker.stdin is not None
    try:
        worker.stdin.write(json.dumps(values).encode() + b"\n")
        worker.stdin.flush()
    except BrokenPipeError:
        pass


def own_stdout() -> IO[bytes]:
    """Keep standard output for this worker's answers; what libraries print there, those in C too, goes to standard error."""
    sys.stdout.flush()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return out


def answering() -> Callable[..., None]:
    """Keep standard output for lines of JSON, in a worker.

    Returns:
        Writes its keyword arguments as a line.
    """
    out = own_stdout()

    def answer(**values: Any) -> None:
        out.write(json.dumps(values).encode() + b"\n")
        out.flush()

    return answer


def answers_of(worker: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """Yield what a worker answers until its pipe closes; whatever else comes through it is passed on to standard error."""
    assert worker.stdout is not None
    for line in worker.stdout:
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if isinstance(answer, dict):
            yield answer
        else:
            sys.stderr.write(line.decode(errors="replace"))


def describe_error(error: PldError) -> dict[str, str]:
    """Name the parts of an error, for the other side of a pipe; a kind of another module as the one it is derived from."""
    kind = next(one.__name__ for one in type(error).__mro__ if one.__module__ == errors.__name__)
    return {"error": kind, "what": error.what, "where": error.where, "hint": error.hint}


def as_error(answer: Mapping[str, Any]) -> PldError:
    """Build the error again that `describe_error` took apart."""
    kind: type[PldError] = getattr(errors, answer["error"], PldError)
    return kind(answer["what"], where=answer["where"], hint=answer["hint"])


def close_pipe(pipe: IO[bytes] | None) -> None:
    """Close a pipe to a worker that may be gone."""
    try:
        if pipe is not None:
            pipe.close()
    except OSError:
        return  # what was left to flush went to a worker that is gone
