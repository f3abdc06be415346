"""Fine-tuning assembled: a grid and seeds in, a directory with tables, predictions and the best model out (see `directory`)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from pldcli.choices import Device
from pldcli.console.progress import Progress
from pldcli.console.units import duration
from pldcli.engine.runtime import Runtime, launch
from pldcli.errors import DivergedError, PreemptedError, StoppedError
from pldcli.evaluation.prediction import json_lines
from pldcli.finetuning.assembly import num_steps
from pldcli.finetuning.card import task_card
from pldcli.finetuning.cell import predict_tests, read_result, run_cell
from pldcli.finetuning.config import FinetuneConfig, changed
from pldcli.finetuning.directory import check_usable, claim, has_model, is_predicted, keep_the_best, mark_best
from pldcli.finetuning.experiment import Experiment
from pldcli.finetuning.inputs import RunInputs
from pldcli.finetuning.results import Group, best_cell, flat_scores, group_cells, write_results
from pldcli.finetuning.workers import Job, run_jobs
from pldcli.huggingface.load import load_pretrained
from pldcli.huggingface.read_back import ReadBack, read_back
from pldcli.pretrained import Pretrained
from pldcli.runs.run_directory import RunDirectory
from pldcli.system import atomic
from pldcli.system.error_file import note_beginning
from pldcli.system.signals import StopRequest, stop_error, stop_requests
from pldcli.system.workers import available_cores
from pldcli.tasks.kinds import head_of
from pldcli.tasks.metrics import shown
from pldcli.tasks.reading import note_on_unknown
from pldcli.tasks.task import Task

__all__ = ["Finetuned", "cell_name", "finetune"]

_RESULT_KEYS_THAT_MAY_DIFFER = ("micro_batch_size",)
_AFTER_DIVERGENCE = "lower learning_rate or raise warmup_fraction; a run that diverged is not tried again, except with --overwrite"
"""Settings and seed decide everything, so that the same run would diverge again."""
_LONGEST_NAME = 120
"""Letters of a cell's name before it is cut: file systems take 255, and temporary names are longer."""
_RESUME = "run the same command again to resume"


@dataclass(frozen=True, kw_only=True)
class Finetuned:
    """What came out."""

    out: Path
    task: Task
    start: str
    cells: dict[str, dict[str, Any]]
    groups: list[Group]
    best: str
    """Name of the best cell."""
    done_before: int = 0
    """Cells that an earlier call had done."""
    read_back: ReadBack
    """What came of transformers reading the model back."""
    notes: list[str]
    is_main: bool = True
    """Whether this process speaks to the user."""

    @property
    def model(self) -> Path:
        """The best cell's model as a Hugging Face directory."""
        return self.out / "model"


def finetune(
    experiment: Experiment,
    settings: Sequence[FinetuneConfig],
    *,
    out: Path,
    start: Pretrained | None = None,
    jobs: int | Literal["auto"] = "auto",
    device: Device = "auto",
    overwrite: bool = False,
    console: Console | None = None,
) -> Finetuned:
    """Fine-tune once per setting, several at once where cores or GPUs allow, and keep the best model.

    Args:
        experiment: What on what.
        settings: One per cell; they differ in settings, seeds or both.
        out: The directory of results.
        start: The experiment's model where it was read before.
        jobs: Cells at once; `auto` is one per GPU, or per core on a CPU.
        device: Where to run.
        overwrite: Begin anew where other results lie.
        console: Where to speak.

    Raises:
        PldError: Bad data or model, results of another experiment in `out`, out of memory, every cell diverged, or a stop.
    """
    with launch(device) as runtime, ExitStack() as stack:
        speaker = console if console and runtime.is_main else Console(quiet=not runtime.is_main)
        inputs = RunInputs(experiment, start)
        task = inputs.data.task
        for note in inputs.notes:
            speaker.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
        if runtime.is_main:
            check_usable(out)
            stack.enter_context(RunDirectory(out).lock())
            claim(out, experiment, inputs.fingerprints, overwrite=overwrite)
        runtime.wait_for_all()
        named = {cell_name(one): one for one in settings}
        all_jobs = {name: Job(name, one, out / "cells" / name) for name, one in named.items()}
        done = {name: result for name, job in all_jobs.items() if (result := _done(job, inputs)) is not None}
        before = len(done)
        if before:
            speaker.print(f"{before} of {len(all_jobs)} runs were done before", highlight=False)
        while todo := _left(all_jobs, done, out):
            for job, result in _run(inputs, todo, experiment, runtime, jobs, speaker):
                done[job.name] = result
                if runtime.is_main:
                    so_far = {name: done[name] for name in all_jobs if name in done}  # in this order the first of equals is the best
                    keep_the_best(out, so_far)
                    write_results(out, task, inputs.start_name, so_far)
            runtime.wait_for_all()
        cells = {name: done[name] for name in all_jobs}
        best = best_cell(cells)
        if runtime.is_main:
            write_results(out, task, inputs.start_name, cells)
        if best is None:
            raise DivergedError("training diverged", where=f"all {len(cells)} run(s)", hint=_AFTER_DIVERGENCE)
        if runtime.is_main:
            keep_the_best(out, cells)
        runtime.wait_for_all()
        outcome = _finish(out, inputs, all_jobs[best].settings, best, cells, runtime)
        return Finetuned(
            out=out,
            task=task,
            start=inputs.start_name,
            cells=cells,
            groups=group_cells(list(cells.values())),
            best=best,
            done_before=before,
            read_back=outcome,
            notes=_notes_on(cells, best),
            is_main=runtime.is_main,
        )


def cell_name(settings: FinetuneConfig) -> str:
    """Name a cell after what is not the default in it."""
    text = ",".join(f"{key}={value}" for key, value in changed(settings).items() if key not in _RESULT_KEYS_THAT_MAY_DIFFER)
    if len(text) > _LONGEST_NAME:
        text = f"{text[:_LONGEST_NAME]}...{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return f"{text},seed={settings.seed}" if text else f"seed={settings.seed}"


def _done(job: Job, inputs: RunInputs) -> dict[str, Any] | None:
    """Read a cell that was done under the same settings, on the same scale of targets."""
    result = read_result(job.place)
    if result is None or result.get("targets") != (asdict(inputs.targets) if inputs.targets else None):
        return None
    wanted = {key: value for key, value in job.settings if key not in _RESULT_KEYS_THAT_MAY_DIFFER}
    return result if {key: result["settings"].get(key) for key in wanted} == wanted else None


def _left(jobs: Mapping[str, Job], done: Mapping[str, Mapping[str, Any]], out: Path) -> list[Job]:
    """List the cells to do: those that are not done, at the end the best one if its model is gone."""
    if todo := [job for name, job in jobs.items() if name not in done]:
        return todo
    best = best_cell({name: done[name] for name in jobs})
    return [] if best is None or has_model(out, best) else [jobs[best]]


def _run(
    inputs: RunInputs, todo: Sequence[Job], experiment: Experiment, runtime: Runtime, jobs: int | Literal["auto"], console: Console
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Do the cells that are left, with progress; a stop gives up the ones under way and says how to resume."""
    totals = {job.name: num_steps(inputs, job.settings) for job in todo}
    steps = dict.fromkeys(totals, 0)
    at_once, threads, num_gpus = _share_out(len(todo), jobs, runtime)
    finished = 0
    with (
        stop_requests() as stop,
        Progress(_describe(0, len(todo), ""), total=sum(totals.values()), unit="steps", quiet=not runtime.is_main, console=console) as bar,
    ):
        note_beginning()

        def report(name: str, step: int, total: int, what: str) -> None:
            steps[name], totals[name] = step, total
            bar.total = sum(totals.values())
            bar.describe(_describe(finished, len(todo), what))
            bar.update(sum(steps.values()))

        try:
            if at_once == 1:
                results = _one_after_the_other(inputs, todo, runtime, report, stop)
            else:
                results = run_jobs(
                    experiment,
                    todo,
                    at_once=at_once,
                    threads=threads,
                    device=runtime.device.type,
                    num_gpus=num_gpus,
                    report=report,
                    stop=stop,
                )
            for job, result in results:
                finished += 1
                steps[job.name] = totals[job.name]
                console.print(_outcome(job.name, result), highlight=False, markup=False, soft_wrap=True)
                yield job, result
        except (StoppedError, PreemptedError) as error:
            raise type(error)(f"{error.what}, {_kept(finished, len(todo))}", hint=_RESUME) from error
        if stop.signal_number:
            raise stop_error(stop.signal_number, _kept(finished, len(todo)), hint=_RESUME)


def _one_after_the_other(
    inputs: RunInputs, todo: Sequence[Job], runtime: Runtime, report: Any, stop: StopRequest
) -> Iterator[tuple[Job, dict[str, Any]]]:
    for job in todo:
        yield job, run_cell(inputs, job.settings, job.place, runtime, report=partial(report, job.name), stop=stop)


def _share_out(num_cells: int, jobs: int | Literal["auto"], runtime: Runtime) -> tuple[int, int, int]:
    """Choose the processes at once, the threads of each, and the GPUs they share."""
    threads = torch.get_num_threads()
    if runtime.world_size > 1:
        return 1, threads, 0
    num_gpus = torch.cuda.device_count() if runtime.device.type == "cuda" else 0
    available = num_gpus or min(threads, available_cores())
    at_once = min(num_cells, available if jobs == "auto" else jobs)
    return at_once, max(1, threads // at_once), num_gpus


def _describe(finished: int, num_cells: int, what: str) -> str:
    label = "training" if num_cells == 1 else f"run {min(finished + 1, num_cells)}/{num_cells}"
    return f"{label}, {what}" if what else label


def _outcome(name: str, result: dict[str, Any]) -> str:
    if result["score"] is None:
        return f"{name}: diverged"
    scores = ", ".join(f"{metric} {shown(metric, value)}" for metric, value in flat_scores(result).items())
    return f"{name}: {scores} at step {result['best_step']:,} ({duration(result['train_seconds'])})"


def _kept(finished: int, num_cells: int) -> str:
    return f"{finished} of {num_cells} run(s) finished, the checkpoints of the others are kept"


def _finish(
    out: Path, inputs: RunInputs, settings: FinetuneConfig, best: str, cells: dict[str, dict[str, Any]], runtime: Runtime
) -> ReadBack:
    """Read the best model back, write its card, and predict the test splits with it."""
    task = inputs.data.task
    loaded = load_pretrained(out / "model")
    model, outcome = loaded.with_head(head_of(task), trained=True), ReadBack()
    if runtime.is_main:
        outcome = read_back(out / "model", model, loaded.tokenizer)
        atomic.write_text(out / "model" / "README.md", task_card(task, inputs.start_name, cells[best], len(cells)))
    if inputs.data.test and not is_predicted(out, best, inputs.data.test):
        for split, lines in predict_tests(inputs, settings, model.to(runtime.device), runtime).items():
            if runtime.is_main:
                atomic.write_text(out / f"predictions-{split}.jsonl", json_lines(lines))
        if runtime.is_main:
            mark_best(out, best, cells[best]["score"], predicted=True)
    runtime.wait_for_all()
    return outcome


def _notes_on(cells: dict[str, dict[str, Any]], best: str) -> list[str]:
    """List what the numbers hide: cut texts, unknown tokens, runs that diverged."""
    first = next(iter(cells.values()))
    notes = []
    if cut := {split: count for split, count in first["truncated"].items() if count}:
        parts = ", ".join(f"{count:,} of {first['examples'][split]:,} in {split}" for split, count in cut.items())
        notes.append(f"longer than a row and cut: {parts}; max_seq_len is the row's length")
    notes += [*note_on_unknown(first["unknown"]), *cells[best]["notes"]]
    if skipped := {name: count for name, cell in cells.items() if (count := cell.get("skipped_steps"))}:
        listed = ", ".join(f"{count:,} in {name}" for name, count in skipped.items())
        notes.append(f"steps left out, since the loss or its gradient was not finite: {listed}")
    if diverged := [name for name, cell in cells.items() if cell["score"] is None]:
        notes.append(f"diverged: {', '.join(diverged)}; {_AFTER_DIVERGENCE}")
    return notes
