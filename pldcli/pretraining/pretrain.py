"""Pre-train: assemble the run, restore the state of an earlier one, record it to its end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from pldcli import presets
from pldcli.config import Config
from pldcli.data.prepared import PreparedData
from pldcli.data.step_batches import StepBatches
from pldcli.engine.runtime import Runtime, launch, out_of_memory, repeatable
from pldcli.engine.trainer import Trainer
from pldcli.errors import DivergedError, OutputError
from pldcli.pretrained import Pretrained
from pldcli.pretraining.assembly import build_trainer
from pldcli.pretraining.display import RunDisplay
from pldcli.pretraining.estimate import Estimate, estimate
from pldcli.pretraining.recorder import PretrainResult, RunRecorder
from pldcli.pretraining.starting_point import StartingPoint, find_starting_point, resume_of_restart
from pldcli.runs import checkpoint
from pldcli.runs.run_directory import RunDirectory
from pldcli.sharding import Processes
from pldcli.system import atomic
from pldcli.system.error_file import note_beginning
from pldcli.system.signals import StopRequest, stop_requests
from pldcli.system.workers import THREADS, share_of_cores

__all__ = ["dry_run", "pretrain"]

_MOST_ROLLBACKS = 3


def pretrain(
    config: Config,
    *,
    prepared: PreparedData,
    out: Path,
    source: Pretrained | None = None,
    resume: str = "auto",
    stop_at: float | None = None,
    command: str = "",
    console: Console | None = None,
) -> PretrainResult:
    """Pre-train to the end of the schedule, or resume a run that was stopped.

    Args:
        config: The resolved configuration.
        prepared: What it is trained on.
        out: The run directory.
        source: The model of `train.init_from`, whose weights are released once they are loaded; not needed to resume.
        resume: `auto` (the newest checkpoint that verifies), `never`, or the path of a checkpoint.
        stop_at: When `time.monotonic()` says this, stop with the state saved.
        command: What the user typed, for the model card.
        console: Where to show progress.

    Raises:
        PldError: Bad data, another run's checkpoint, out of memory, divergence, a full disk, or a stop with the state saved.
    """
    with _launch(config) as runtime:
        # In a function of its own: the model has to be released before the process group, or gloo may abort at exit.
        return _pretrain(
            config,
            runtime,
            prepared=replace(prepared, share=(runtime.rank, runtime.world_size)),
            run=RunDirectory(out),
            source=source,
            resume=resume,
            stop_at=stop_at,
            command=command,
            console=console or Console(),
        )


def dry_run(config: Config, *, prepared: PreparedData, source: Pretrained | None = None, processes: int = 1) -> Estimate:
    """Estimate what a run would take, from a few measured steps; nothing is written.

    Args:
        config: The resolved configuration.
        prepared: What it would be trained on.
        source: The model of `train.init_from`.
        processes: How many would be started; this one stands for each of them, and holds the whole model. Under torchrun 1: all are there.

    Raises:
        PldError: As `pretrain`, for what shows before the first step.
    """
    with _launch(config) as runtime:
        planned = runtime.processes if processes == 1 else Processes.of(processes, processes, config.runtime.sharding)
        share = runtime.rank, runtime.world_size
        trainer = build_trainer(config, replace(prepared, share=share), runtime, source=source, processes=planned)
        with _out_of_memory(trainer), _threads_of_one(processes):
            estimated = estimate(config, trainer, shards=planned.shards)
        del trainer  # before the process group
        return estimated


def _pretrain(
    config: Config,
    runtime: Runtime,
    *,
    prepared: PreparedData,
    run: RunDirectory,
    source: Pretrained | None,
    resume: str,
    stop_at: float | None,
    command: str,
    console: Console,
) -> PretrainResult:
    trainer = build_trainer(config, prepared, runtime, source=source)  # first: what does not fit is refused before anything is written
    if source is not None:
        source.weights.clear()  # the caller holds it for as long as the run takes
    display = RunDisplay(
        console,
        title=str(run.path),
        total_steps=config.train.total_steps,
        save_every=config.checkpoint.every_steps,
        quiet=not runtime.is_main,
        work=config.run_flops().executed_until,
    )

    told, resume = resume, resume_of_restart(run, resume, is_of_this_job=runtime.is_of_this_job)

    def find() -> StartingPoint:
        return find_starting_point(run, config, data=prepared.data_fingerprint, resume=resume, say=display.say)

    if resume == "auto" and run.is_finished and not run.is_locked and (end := find().end):  # said also where nothing can be written
        return PretrainResult(run, end, was_finished=True, is_main=runtime.is_main)
    runtime.wait_for_all()  # whoever looks at the lock holds it for a moment
    with ExitStack() as stack:
        if runtime.is_main:
            stack.enter_context(_claimed(run, resume, display))
        runtime.wait_for_all()
        start = find()
        runtime.check_agreement(start.facts)  # and every process has read the directory before one of them writes there
        if start.end is not None:
            return PretrainResult(run, start.end, was_finished=True, is_main=runtime.is_main)
        position, stranded_step, saved = start.position, start.stranded_step, start.snapshot
        if resumed := saved is not None:
            trainer.restore(saved.weights, saved.optimizer, saved.scaler, where=str(saved.path))
        assert resumed or source or config.train.init_from is None
        del start, saved  # tensors as large as the model and its optimizer's state
        stop = stack.enter_context(stop_requests(stop_at))
        note_beginning()
        if runtime.is_main:
            if resume != "auto":
                checkpoint.remove_later(run.checkpoints, position.step)  # as their metrics go: from here on they are of another course
            if stranded_step:
                aside = atomic.set_aside(run.metrics)
                display.say(f"warning: the {stranded_step:,} steps done here left no checkpoint; their metrics are now {aside}")
            atomic.write_text(run.config, presets.dump(config))  # before other files: it marks the directory as a run
        stack.enter_context(_told_when_gone(run))
        how = f"run the same command {'again' if told == 'auto' else 'with --resume auto'} to resume"
        recorder = stack.enter_context(
            RunRecorder(run, trainer, config=config, prepared=prepared, display=display, position=position, how_to_resume=how)
        )
        with _out_of_memory(trainer):
            recorder.announce(estimate(config, trainer), command, resumed=resumed)
            if runtime.is_on(config.runtime.compile):
                trainer.warm_up(position.step)
            with display:
                _train(recorder, stop, most_rollbacks=_MOST_ROLLBACKS if config.train.on_divergence == "rollback" else 0)
        return recorder.finish(command)


@contextmanager
def _told_when_gone(run: RunDirectory) -> Iterator[None]:
    """Name the run that was moved or removed while the block ran, not the file in it that could not be written then."""
    try:
        yield
    except OutputError:
        run.check_still_there()
        raise


@contextmanager
def _threads_of_one(processes: int) -> Iterator[None]:
    """Compute on the threads that one of so many processes will have, which the launcher starts."""
    before = torch.get_num_threads()
    if processes > 1 and THREADS not in os.environ:
        torch.set_num_threads(share_of_cores(processes))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _launch(config: Config) -> Iterator[Runtime]:
    settings = config.runtime
    reduce_dtype = torch.bfloat16 if settings.reduce_precision == "bf16" else None
    waits = settings.timeout_seconds
    with (
        repeatable(settings.deterministic),
        launch(settings.device, timeout_seconds=waits, reduce_dtype=reduce_dtype, sharding=settings.sharding) as runtime,
    ):
        yield runtime


def _train(recorder: RunRecorder, stop: StopRequest, *, most_rollbacks: int) -> None:
    """Train to the end; after divergence go back, so often in the whole run before it ends it."""
    while True:
        try:
            recorder.train(stop)
            return
        except DivergedError as error:
            if recorder.position.rollbacks >= most_rollbacks:
                raise
            recorder.roll_back(error)


@contextmanager
def _claimed(run: RunDirectory, resume: str, display: RunDisplay) -> Iterator[None]:
    """Hold a run directory: locked, without the run that `never` sets aside, and without what killed processes left half-written.

    Raises:
        OutputError: It holds something else, another process trains there, or it is not writable.
    """
    run.check_usable()
    if resume == "never" and (aside := run.set_aside()):
        display.say(f"the run that was there is now {aside}")
    with run.lock():
        for folder in (run.path, run.checkpoints):
            atomic.remove_leftovers_in(folder)
        yield


def _out_of_memory(trainer: Trainer[StepBatches]) -> AbstractContextManager[None]:
    size, device = trainer.batches.micro_batch_size, trainer.runtime.device
    return out_of_memory(size, device, key="train.micro_batch_size", otherwise="choose a smaller model or shorter sequences")
