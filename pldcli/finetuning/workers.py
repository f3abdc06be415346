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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pldcli.errors import DeviceError, PldError
from pldcli.finetuning.config import FinetuneConfig
from pldcli.finetuning.experiment import Experiment
from pldcli.settings import validate
from pldcli.system.signals import StopRequest
from pldcli.system.workers import answering, answers_of, as_error, close_pipe, describe_error, start_worker, tell, visible_gpus

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
        num_gpus: GPUs that this process sees; processes take them in turn.
        report: Told (name, steps done, steps in all, what is going on).
        stop: Looked at all the time.

    Raises:
        PldError: What went wrong in a worker.
    """
    waiting, answers = list(jobs), queue.SimpleQueue[tuple[int, dict[str, Any]]]()
    workers: list[subprocess.Popen[bytes]] = []
    listeners: list[threading.Thread] = []
    gpus = (visible_gpus() or [str(number) for number in range(num_gpus)])[:num_gpus]
    busy: dict[int, Job] = {}
    try:
        for number in range(min(at_once, len(jobs))):
            gpu = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
            worker = start_worker(__name__, [experiment.to_json(), device], threads=threads, environment=gpu)
            workers.append(worker)
            listeners.append(threading.Thread(target=_listen, args=(number, worker, answers), daemon=True))
            listeners[number].start()
            busy[number] = _give(worker, waiting.pop(0))
        while busy and not stop.signal_number:
            try:
                number, answer = answers.get(timeout=_LOOK_EVERY_SECONDS)
            except queue.Empty:
                # A process of a worker's own may hold its pipe open after its death: its end is not waited for.
                for number in (one for one in busy if workers[one].poll() is not None):
                    listeners[number].join(_LOOK_EVERY_SECONDS)
                    answers.put((number, _died(workers[number])))
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
        for worker, listener in zip(workers, listeners, strict=False):
            try:
                worker.wait(_STOP_WITHIN_SECONDS)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
            listener.join(_LOOK_EVERY_SECONDS)


def serve() -> None:
    """Do the jobs that standard input names until it closes: the main function of a worker."""
    from pldcli.engine.runtime import launch
    from pldcli.finetuning.cell import run_cell
    from pldcli.finetuning.inputs import RunInputs
    from pldcli.system.signals import stop_requests

    answer = answering()
    try:
        device: Any = sys.argv[2]
        with launch(device) as runtime, stop_requests() as stop:
            inputs = RunInputs(Experiment.from_json(sys.argv[1]))
            for line in sys.stdin:
                job = json.loads(line)
                result = run_cell(
                    inputs,
                    validate(FinetuneConfig, job["settings"]),
                    Path(job["place"]),
                    runtime,
                    report=lambda step, total, what: answer(step=step, total=total, what=what),
                    stop=stop,
                )
                answer(result=result)
    except PldError as error:
        answer(**describe_error(error))
    except BrokenPipeError:
        return  # the parent is gone


def _give(worker: subprocess.Popen[bytes], job: Job) -> Job:
    tell(worker, settings=dict(job.settings), place=str(job.place))
    return job


def _listen(number: int, worker: subprocess.Popen[bytes], answers: queue.SimpleQueue[tuple[int, dict[str, Any]]]) -> None:
    try:
        for answer in answers_of(worker):
            answers.put((number, answer))
    finally:
        answers.put((number, _died(worker)))
        close_pipe(worker.stdout)  # not by another thread, which would wait for this one to have read all


def _died(worker: subprocess.Popen[bytes]) -> dict[str, str]:
    try:
        code = worker.wait(_LOOK_EVERY_SECONDS)
    except subprocess.TimeoutExpired:
        how = ""
    else:
        how = f" (signal {-code})" if code < 0 else f" (exit code {code})"
    return describe_error(DeviceError(f"a process that fine-tunes died{how}", hint="try --jobs 1"))
