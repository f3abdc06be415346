"""Fine-tuning assembled: a grid and seeds in, a directory with tables, predictions and the best model out.

    OUT/  experiment.json  results.{json,csv,md}  spread.png  predictions-*.jsonl  model/  cells/NAME/{result.json, predictions-*.jsonl}

A cell is done when its directory is there, so the same command goes on after a stop, and more seeds or a larger grid do only what is
new.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from pldcli.choices import Device
from pldcli.console.progress import Progress
from pldcli.console.units import duration
from pldcli.engine.run_directory import RunDirectory
from pldcli.engine.runtime import Runtime, launch
from pldcli.errors import DivergedError, OutputError, PreemptedError, StoppedError
from pldcli.evaluation.prediction import json_lines
from pldcli.finetuning.card import task_card
from pldcli.finetuning.cell import CellRunner, read_result
from pldcli.finetuning.config import FinetuneConfig, changed
from pldcli.finetuning.experiment import Experiment
from pldcli.finetuning.results import Group, best_cell, flat_scores, group_cells, write_results
from pldcli.finetuning.workers import Job, run_jobs
from pldcli.huggingface.load import load_pretrained
from pldcli.huggingface.read_back import ReadBack, read_back
from pldcli.system import atomic
from pldcli.system.signals import StopRequest, stop_error, stop_requests
from pldcli.system.workers import available_cores
from pldcli.tasks.kinds import head_of
from pldcli.tasks.metrics import shown
from pldcli.tasks.reading import note_on_unknown
from pldcli.tasks.task import Task

__all__ = ["Finetuned", "finetune"]

_RESULT_KEYS_THAT_MAY_DIFFER = ("micro_batch_size",)
_MARK = "experiment.json"
"""It marks a directory as one of ours."""
_AFTER_DIVERGENCE = "lower learning_rate or raise warmup_fraction; a run that diverged is not tried again, except with --overwrite"
"""Settings and seed decide everything, so that the same run would diverge again."""
_LONGEST_NAME = 120
"""Letters of a cell's name before it is cut: file systems take 255, and temporary names are longer."""


@dataclass(frozen=True)
class Finetuned:
    """What came out."""

    out: Path
    task: Task
    start: str
    cells: dict[str, dict[str, Any]]
    groups: list[Group]
    best: str
    """Name of the best cell."""
    done_before: int
    """Cells that an earlier call had done."""
    notes: list[str]
    read_back: ReadBack
    """Of the best cell's model."""
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
        jobs: Cells at once; `auto` is one per GPU, or per core on a CPU.
        device: Where to run.
        overwrite: Begin anew where other results lie.
        console: Where to speak.

    Raises:
        PldError: Bad data or model, results of another experiment in `out`, out of memory, every cell diverged, or a stop.
    """
    with launch(device) as runtime, ExitStack() as stack:
        speaker = console if console and runtime.is_main else Console(quiet=not runtime.is_main)
        runner = CellRunner(experiment, runtime)
        for note in runner.notes:
            speaker.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
        if runtime.is_main:
            _check_usable(out)
            stack.enter_context(RunDirectory(out).lock())
            _claim(out, experiment, runner, overwrite=overwrite)
        runtime.wait_for_all()
        names = {cell_name(one): one for one in settings}
        done = {name: result for name, one in names.items() if (result := _done(out / "cells" / name, one, runner)) is not None}
        before = len(done)
        all_jobs = {name: Job(name, one, out / "cells" / name) for name, one in names.items()}
        if before:
            speaker.print(f"{before} of {len(names)} runs were done before", highlight=False)
        while todo := [job for name, job in all_jobs.items() if name not in done] or _without_its_model(out, all_jobs, done):
            for job, result in _run(runner, todo, experiment, runtime, jobs, speaker):
                done[job.name] = result
                if runtime.is_main:
                    _keep_the_best(out, done)
                    write_results(out, runner.data.task, runner.start_name, {name: done[name] for name in names if name in done})
            runtime.wait_for_all()
        cells = {name: done[name] for name in names}
        best = best_cell(cells)
        if runtime.is_main:
            write_results(out, runner.data.task, runner.start_name, cells)
        if best is None:
            raise DivergedError("training diverged", where=f"all {len(cells)} run(s)", hint=_AFTER_DIVERGENCE)
        checked = ReadBack()
        if runtime.is_main:
            _keep_the_best(out, cells)
            checked = _read_back(out / "model", runner)
            card = task_card(runner.data.task, runner.start_name, cells[best], len(cells))
            atomic.write_text(out / "model" / "README.md", card)
        if runner.data.test and not _is_predicted(out, best, runner):
            for split, lines in runner.predict_tests(names[best], out / "model").items():
                if runtime.is_main:
                    atomic.write_text(out / f"predictions-{split}.jsonl", json_lines(lines))
            if runtime.is_main:
                _mark_best(out, best, cells[best]["score"], predicted=True)
        runtime.wait_for_all()
        groups = group_cells(list(cells.values()))
        notes = _notes_on(cells)
        start, is_main = runner.start_name, runtime.is_main
        return Finetuned(out, runner.data.task, start, cells, groups, best, before, notes, checked, is_main)


def cell_name(settings: FinetuneConfig) -> str:
    """Name a cell after what is not the default in it."""
    text = ",".join(f"{key}={value}" for key, value in changed(settings).items() if key not in _RESULT_KEYS_THAT_MAY_DIFFER)
    if len(text) > _LONGEST_NAME:
        text = f"{text[:_LONGEST_NAME]}...{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return f"{text},seed={settings.seed}" if text else f"seed={settings.seed}"


def _check_usable(out: Path) -> None:
    """Refuse a place that holds something else, before anything is written there.

    Raises:
        OutputError: It is a file, or a directory without our mark.
    """
    if out.exists() and not out.is_dir():
        raise OutputError("is a file", where=str(out), hint="choose another place with --out")
    ours = (".lock", f".{_MARK}.")  # all that there is when a process was killed before it wrote the mark
    if out.is_dir() and not (out / _MARK).is_file() and any(not entry.name.startswith(ours) for entry in out.iterdir()):
        raise OutputError("holds something that is no fine-tuning", where=str(out), hint="choose another place with --out")


def _claim(out: Path, experiment: Experiment, runner: CellRunner, *, overwrite: bool) -> None:
    """Make the directory this experiment's, or refuse one that holds another's results.

    Raises:
        OutputError: It holds results of another experiment.
    """
    path = out / _MARK
    identity = runner.fingerprints
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))["fingerprints"]
            different = [name for name in identity if before.get(name) != identity[name]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            different = list(identity)
        if different and not overwrite:
            what = " and ".join(different)
            raise OutputError(
                f"holds results of another {what}", where=str(out), hint="choose another place with --out, or add --overwrite"
            )
        if overwrite:
            _remove_results(out)
    atomic.write_text(path, json.dumps({"experiment": asdict(experiment), "fingerprints": identity}, indent=1) + "\n")


def _remove_results(out: Path) -> None:
    """Delete what an earlier experiment left, so that nothing of it stands beside what comes."""
    with atomic.output_errors(out):
        for entry in ("cells", "model"):
            if (out / entry).is_dir():
                shutil.rmtree(out / entry)
        for path in [*out.glob("results.*"), *out.glob("predictions-*.jsonl"), out / "spread.png", out / "best.json"]:
            path.unlink(missing_ok=True)


def _done(place: Path, settings: FinetuneConfig, runner: CellRunner) -> dict[str, Any] | None:
    """Read a cell that was done under the same settings, on the same scale of targets."""
    result = read_result(place)
    if result is None or result.get("targets") != (asdict(runner.targets) if runner.targets else None):
        return None
    wanted = {key: value for key, value in settings if key not in _RESULT_KEYS_THAT_MAY_DIFFER}
    return result if {key: result["settings"].get(key) for key in wanted} == wanted else None


def _run(
    runner: CellRunner, todo: Sequence[Job], experiment: Experiment, runtime: Runtime, jobs: int | Literal["auto"], console: Console
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Do the cells that are left, with progress; a stop gives up the ones under way and says how to go on."""
    if not todo:
        return
    totals = {job.name: runner.num_steps(job.settings) for job in todo}
    steps = dict.fromkeys(totals, 0)
    at_once, threads, num_gpus = _share_out(len(todo), jobs, runtime)
    finished = 0
    with (
        stop_requests() as stop,
        Progress(_describe(0, len(todo), ""), total=sum(totals.values()), unit="steps", quiet=not runtime.is_main, console=console) as bar,
    ):

        def report(name: str, step: int, total: int, what: str) -> None:
            steps[name], totals[name] = step, total
            bar.total = sum(totals.values())
            bar.describe(_describe(finished, len(todo), what))
            bar.update(sum(steps.values()))

        try:
            if at_once == 1:
                results = _one_after_the_other(runner, todo, report, stop)
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
            raise type(error)(f"{error.what}, {_kept(finished, len(todo))}", hint="run the same command again to go on") from error
        if stop.signal_number:
            raise stop_error(stop.signal_number, _kept(finished, len(todo)), hint="run the same command again to go on")


def _one_after_the_other(runner: CellRunner, todo: Sequence[Job], report: Any, stop: StopRequest) -> Iterator[tuple[Job, dict[str, Any]]]:
    for job in todo:

        def told(step: int, total: int, what: str, name: str = job.name) -> None:
            report(name, step, total, what)

        yield job, runner.run(job.settings, job.place, report=told, stop=stop)


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
    """Say in a line how a run ended."""
    if result["score"] is None:
        return f"{name}: diverged"
    scores = ", ".join(f"{metric} {shown(metric, value)}" for metric, value in flat_scores(result).items())
    return f"{name}: {scores} at step {result['best_step']:,} ({duration(result['train_seconds'])})"


def _kept(finished: int, num_cells: int) -> str:
    return f"{finished} of {num_cells} run(s) finished, what was under way is saved"


def _keep_the_best(out: Path, cells: dict[str, dict[str, Any]]) -> None:
    """Move the best cell's model and predictions up, and drop the other models.

    Every step can be cut short: the mark is made first and the model moves last, so that the next call does what is missing.
    """
    best = best_cell(cells)
    if best is None:
        return
    model, candidate = out / "model", out / "cells" / best / "model"
    is_new = candidate.is_dir()
    if is_new:
        _mark_best(out, best, cells[best]["score"], predicted=False)
    for path in (out / "cells" / best).glob("predictions-*.jsonl"):
        if is_new or not (out / path.name).is_file():
            atomic.write_bytes(out / path.name, path.read_bytes())
    if is_new:
        old = out / ".model-before"
        shutil.rmtree(old, ignore_errors=True)
        if model.exists():
            model.rename(old)
        candidate.rename(model)
        atomic.sync_directory(out)
        shutil.rmtree(old, ignore_errors=True)
    for other in cells:
        if other != best:
            shutil.rmtree(out / "cells" / other / "model", ignore_errors=True)


def _without_its_model(out: Path, jobs: dict[str, Job], done: dict[str, dict[str, Any]]) -> list[Job]:
    """List the best cell if its model is gone: an earlier call dropped it for a cell that this call does not ask for."""
    best = best_cell({name: done[name] for name in jobs})
    if best is None or (out / "cells" / best / "model").is_dir():
        return []
    return [] if _read_mark(out).get("cell") == best and (out / "model").is_dir() else [jobs[best]]


def _read_mark(out: Path) -> dict[str, Any]:
    """Read which cell the model and the predictions at the top are of, and whether the test splits are predicted."""
    try:
        mark = json.loads((out / "best.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) else {}


def _mark_best(out: Path, best: str, score: float, *, predicted: bool) -> None:
    atomic.write_text(out / "best.json", json.dumps({"cell": best, "score": score, "tests_predicted": predicted}) + "\n")


def _is_predicted(out: Path, best: str, runner: CellRunner) -> bool:
    mark = _read_mark(out)
    there = all((out / f"predictions-{split}.jsonl").is_file() for split in runner.data.test)
    return there and mark.get("cell") == best and bool(mark.get("tests_predicted"))


def _read_back(model: Path, runner: CellRunner) -> ReadBack:
    """Compare the saved model as transformers reads it with ours."""
    loaded = load_pretrained(model)
    return read_back(model, loaded.with_head(head_of(runner.data.task), trained=True), loaded.tokenizer.special)


def _notes_on(cells: dict[str, dict[str, Any]]) -> list[str]:
    """Say what the numbers hide: cut texts, runs that diverged."""
    first = next(iter(cells.values()))
    cut = {split: count for split, count in first["truncated"].items() if count}
    notes = []
    if cut:
        parts = ", ".join(f"{count:,} of {first['examples'][split]:,} in {split}" for split, count in cut.items())
        notes.append(f"longer than a row and cut: {parts}; max_seq_len is the row's length")
    notes += note_on_unknown(first.get("unknown", {}))
    if (best := best_cell(cells)) is not None:
        notes += cells[best].get("notes", [])
    if diverged := [name for name, cell in cells.items() if cell["score"] is None]:
        notes.append(f"diverged: {', '.join(diverged)}; {_AFTER_DIVERGENCE}")
    return notes
