"""Do tasks in several processes, or in this one; what a task comes to lies on the disk."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from subprocess import Popen

from pldcli.console.progress import Progress
from pldcli.errors import DeviceError, PldError
from pldcli.preparation.stages import Stages, Task, open_stages
from pldcli.system.workers import answering, answers_of, as_error, close_pipe, describe_error, start_worker, tell

__all__ = ["do_all"]

_LOOK_EVERY_SECONDS = 0.1


def do_all(tasks: Sequence[Task], stages: Stages, *, processes: int, progress: Progress) -> None:
    """Do tasks, any of them at the same time as any other.

    Args:
        tasks: In the order in which to begin.
        stages: What they are parts of.
        processes: Workers; with 1, or one task, this process does them.
        progress: Advanced by the bytes that they read.

    Raises:
        PldError: A task failed; the others are given up.
        DeviceError: A worker died.
    """
    if processes > 1 and len(tasks) > 1:
        _Pool(tasks, stages, min(processes, len(tasks))).run(progress)
        return
    for task in tasks:
        before = progress.completed
        stages.do(task, lambda num_bytes, before=before: progress.update(before + num_bytes))  # type: ignore[misc]
        progress.update(before + stages.num_bytes(task))


class _Pool:
    """Workers, each served by a thread of this process."""

    def __init__(self, tasks: Sequence[Task], stages: Stages, processes: int) -> None:
        self._tasks, self._stages = deque(tasks), stages
        self._lock = threading.Lock()
        self._read: dict[Task, int] = {}
        self._workers: list[Popen[bytes]] = []
        self._processes = processes

    def run(self, progress: Progress) -> None:
        before = progress.completed
        try:
            with self._stages.described() as place, ThreadPoolExecutor(self._processes) as threads:
                try:
                    self._workers = [start_worker(__name__, [str(place)]) for _ in range(self._processes)]
                    waiting: set[Future[None]] = {threads.submit(self._serve, worker) for worker in self._workers}
                    while waiting:
                        done, waiting = wait(waiting, _LOOK_EVERY_SECONDS, FIRST_EXCEPTION)
                        for one in done:
                            one.result()
                        progress.update(before + sum(self._read.values()))
                finally:
                    self._tasks.clear()
                    for worker in self._workers:
                        worker.kill()
        finally:
            for worker in self._workers:
                worker.wait()
                close_pipe(worker.stdin)
                close_pipe(worker.stdout)

    def _serve(self, worker: Popen[bytes]) -> None:
        answers = answers_of(worker)
        while True:
            with self._lock:
                if not self._tasks:
                    return
                task = self._tasks.popleft()
            tell(worker, stage=task.stage, number=task.number)
            for answer in answers:
                if "error" in answer:
                    raise as_error(answer)
                self._read[task] = answer["bytes"]
                if answer["done"]:
                    break
            else:
                raise DeviceError("a process that prepares text died", hint="if memory ran out, try fewer --processes")


def serve() -> None:
    """Do tasks that are named on standard input until it closes: the main function of a worker."""
    answer: Callable[..., None] = answering()
    stages = open_stages(Path(sys.argv[1]))
    for line in sys.stdin.buffer:
        task = Task(**json.loads(line))
        try:
            stages.do(task, lambda num_bytes: answer(bytes=num_bytes, done=False))
            answer(bytes=stages.num_bytes(task), done=True)
        except PldError as error:
            answer(**describe_error(error))
        except BrokenPipeError:
            os._exit(0)
