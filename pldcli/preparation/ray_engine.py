"""Do tasks on a Ray cluster: the same ones, with the same results on the same file system, which every machine has to see."""

from __future__ import annotations

import os
import platform
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pldcli.console.progress import Progress
from pldcli.errors import DeviceError, PldError, reason_of
from pldcli.preparation.stages import Stages, Task, open_stages
from pldcli.system.workers import as_error, describe_error

__all__ = ["do_all_on_ray"]

_RETRIES = 3
"""Of a task whose worker dies."""


def do_all_on_ray(tasks: Sequence[Task], stages: Stages, *, processes: int | None, progress: Progress) -> None:
    """Do tasks, any of them at the same time as any other.

    The cluster is that of RAY_ADDRESS, or the one that runs here, or else one on this machine alone, which ends with the work.

    Args:
        tasks: In the order in which to begin.
        stages: What they are parts of.
        processes: Workers at most; None for as many as the cluster has processors.
        progress: Advanced by the bytes of tasks that are done.

    Raises:
        PldError: A task failed; the others are given up.
        DeviceError: Workers died again and again, or the cluster cannot be reached.
    """
    if not tasks:
        return
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with stages.described() as place:
        try:
            _connect(ray, processes)
            do = ray.remote(num_cpus=1, max_retries=_RETRIES)(_do)
            waiting = {do.remote(str(Path.cwd()), str(place), task.stage, task.number): task for task in tasks}
            try:
                while waiting:
                    done, _ = ray.wait(list(waiting), num_returns=1)
                    for one in done:
                        answer: dict[str, Any] = ray.get(one)
                        if "error" in answer:
                            raise as_error(answer)
                        progress.update(progress.completed + stages.num_bytes(waiting.pop(one)))
            finally:
                for one in waiting:
                    ray.cancel(one, force=True)
        except (ray.exceptions.RayError, ConnectionError) as error:
            what = f"Ray failed: {str(error).strip().splitlines()[0]}"
            raise DeviceError(what, where="--engine ray", hint="if memory ran out, try fewer --processes") from error
        finally:
            ray.shutdown()


def _connect(ray: Any, processes: int | None) -> None:
    """Connect, and answer SIGTERM as before: Ray's handler ends the process without a word."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        quiet = {"log_to_driver": False, "logging_level": "error"}
        if "RAY_ADDRESS" in os.environ:
            ray.init(**quiet)
            return
        try:
            ray.init(address="auto", **quiet)
        except ConnectionError:
            ray.init(address="local", num_cpus=processes, include_dashboard=False, **quiet)
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _do(directory: str, place: str, stage: Any, number: int) -> dict[str, Any]:
    """Do a task on a worker, in the directory that relative paths begin in; describe what is wrong, if anything."""
    try:
        os.chdir(directory)
        stages = open_stages(Path(place))
    except OSError as error:
        what = f"cannot be used on {platform.node()} ({reason_of(error)})"
        return dict(describe_error(DeviceError(what, where=directory, hint="every machine of the cluster has to see the same files")))
    try:
        stages.do(Task(stage, number), lambda num_bytes: None)
    except PldError as error:
        return dict(describe_error(error))
    return {}
