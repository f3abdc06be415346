"""Fine-tune several cells at once, each in a process of its own.

A worker reads one line of JSON per cell and answers with lines of JSON: how far it is, that it is done, or what went wrong.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pldcli.engine.experiment import Experiment
from pldcli.engine.signals import StopRequest
from pldcli.errors import PldError
from pldcli.finetune_config import FinetuneConfig, from_dict
from pldcli.workers import answering, as_error, close_pipe, describe_error, start_worker, tell

__all__ = ["Job", "run_jobs", "serve"]

_LOOK_EVERY_SECONDS = 0.2
_STOP_WITHIN_SECONDS = 20.0


@dataclass(frozen=True)
class Job:
    """A cell to do."""

    name: str
    settings: FinetuneConfig
    place: Path


def run_jobs(
    experiment: Experiment,
    jobs: Sequence[Job],
    *,
    at_once: int,
    threads: int,
    device: str,
    num_gpus: int,
    report: Callable[[str, int, int, str], None],
    stop: StopRequest,
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Do every job and yield each with its result as it ends; on a stop request the rest is given up.

    Args:
        experiment: What on what.
        jobs: The cells.
        at_once: Number of processes.
        threads: Of each process.
        device: `cpu` or `cuda`.
        num_gpus: Processes take GPUs 0, 1, ... in turn.
        report: Told (name, steps done, steps in all, what is going on).
        stop: Looked at all the time.

    Raises:
        PldError: What went wrong in a worker.
    """
    waiting, answers = list(jobs), queue.SimpleQueue[tuple[int, dict[str, Any]]]()
    workers: list[subprocess.Popen[bytes]] = []
    busy: dict[int, Job] = {}
    try:
        for number in range(min(at_once, len(jobs))):
            gpu = {"CUDA_VISIBLE_DEVICES": str(number % num_gpus)} if num_gpus else {}
            worker = start_worker(__name__, [experiment.to_json(), device], threads=threads, environment=gpu)
            workers.append(worker)
            threading.Thread(target=_listen, args=(number, worker, answers), daemon=True).start()
            busy[number] = _give(worker, waiting.pop(0))
        while busy and not stop.signal_number:
            try:
                number, answer = answers.get(timeout=_LOOK_EVERY_SECONDS)
            except queue.Empty:
                continue
            if number not in busy:
                continue  # it had nothing left to do
            job = busy[number]
            if "error" in answer:
                raise as_error(answer)
            if "result" not in answer:
                report(job.name, answer["step"], answer["total"], answer["what"])
                continue
            del busy[number]
            if waiting:
                busy[number] = _give(workers[number], waiting.pop(0))
            yield job, answer["result"]
    finally:
        for worker in workers:
            close_pipe(worker.stdin)
            worker.terminate()
        for worker in workers:
            try:
                worker.wait(_STOP_WITHIN_SECONDS)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            close_pipe(worker.stdout)


def serve() -> None:
    """Do the jobs that standard input names until it closes: the main function of a worker."""
    from pldcli.engine.finetune_cell import CellRunner
    from pldcli.engine.runtime import launch
    from pldcli.engine.signals import stop_requests

    answer = answering()
    try:
        device: Any = sys.argv[2]
        with launch(device) as runtime, stop_requests() as stop:
            runner = CellRunner(Experiment.from_json(sys.argv[1]), runtime)
            for line in sys.stdin:
                job = json.loads(line)
                result = runner.run(
                    from_dict(job["settings"]),
                    Path(job["place"]),
                    report=lambda step, total, what: answer(step=step, total=total, what=what),
                    stop=stop,
                )
                answer(result=result)
    except PldError as error:
        answer(**describe_error(error))
    except BrokenPipeError:
        return  # the parent is gone


def _give(worker: subprocess.Popen[bytes], job: Job) -> Job:
    tell(worker, settings=asdict(job.settings), place=str(job.place))
    return job


def _listen(number: int, worker: subprocess.Popen[bytes], answers: queue.SimpleQueue[tuple[int, dict[str, Any]]]) -> None:
    assert worker.stdout is not None
    for line in worker.stdout:
        answers.put((number, json.loads(line)))
    answers.put((number, {"error": "DeviceError", "what": "a process that fine-tunes died", "where": "", "hint": "try --jobs 1"}))
