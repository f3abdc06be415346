"""`pld finetune`: train a model on a task, once or over seeds and a grid."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pldcli.choices import Device, TaskKind
from pldcli.errors import UsageError
from pldcli.system.workers import processes_to_start

if TYPE_CHECKING:
    from pldcli.finetuning.finetune import Finetuned
    from pldcli.finetuning.glue import GlueResult

__all__ = ["finetune"]


def finetune(
    task: Annotated[
        str,
        typer.Argument(metavar="TASK or FILE", help="A task of `pld tasks`, glue/all, or your own csv, tsv, jsonl, parquet, CoNLL file."),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings; KEY=VALUE,VALUE is an axis of a grid.", show_default=False),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(help="Where to start: a run, a checkpoint or a Hugging Face directory.", show_default="the latest run"),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where the task's files are, in any common layout.", show_default="the Hugging Face hub")
    ] = None,
    train: Annotated[Path | None, typer.Option(help="A file that takes the place of the task's training split.")] = None,
    validation: Annotated[Path | None, typer.Option(help="A file to validate on.", show_default="the task's; a tenth of FILE")] = None,
    test: Annotated[Path | None, typer.Option(help="A file to predict at the end.")] = None,
    text_column: Annotated[list[str] | None, typer.Option(help="FILE's text; name it twice for pairs.", show_default="guessed")] = None,
    label_column: Annotated[str | None, typer.Option(help="FILE's labels.", show_default="guessed")] = None,
    kind: Annotated[TaskKind | None, typer.Option(help="What FILE's labels are.", show_default="guessed")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each setting, with seed, seed + 1, ...")] = 1,
    grid: Annotated[list[str] | None, typer.Option(help="KEY=VALUE,VALUE,...; further axes may follow as plain words.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at once.", show_default="one per GPU or core")] = None,
    gpus: Annotated[
        int | None,
        typer.Option(min=1, help="Split each run over so many processes, one per GPU; on a CPU they share its cores.", show_default=False),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A directory for the results.", show_default="finetuned/MODEL/TASK")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin anew where other results lie.")] = False,
    from_mnli: Annotated[bool, typer.Option("--from-mnli", help="Start mrpc, rte and stsb from the model fine-tuned on mnli.")] = False,
    from_scratch: Annotated[bool, typer.Option("--from-scratch", help="Start from random weights of the model's shape.")] = False,
    submission: Annotated[Path | None, typer.Option(help="Write test predictions as a zip for the GLUE server.")] = None,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out FILE's unusable rows instead of stopping.")] = False,
    allow_bin: Annotated[bool, typer.Option("--allow-bin", help="Read pytorch_model.bin, through torch's weights-only loader.")] = False,
    device: Annotated[Device, typer.Option(help="Where to run.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fine-tune a model on a task and score it; several seeds and a grid of settings if asked. A run that was stopped resumes.

    Settings: learning_rate, batch_size, epochs, warmup_fraction, max_seq_len, patience, keep, ... (`pld config finetune` explains them).
    """
    from pldcli.finetuning.config import cells

    settings = cells(overrides or [], grid=grid or [], num_seeds=seeds)  # what is wrong here shows before anything is read
    if jobs and gpus:
        raise UsageError("--jobs and --gpus exclude each other", hint="--jobs 2 does two runs at once, --gpus 2 each run in two processes")
    from rich.console import Console

    from pldcli.finetuning import finetune as single
    from pldcli.finetuning import glue
    from pldcli.finetuning.experiment import Experiment
    from pldcli.finetuning.submission import check_submission, submit
    from pldcli.runs.model_source import latest_run, short_name
    from pldcli.tasks.registry import ALL, task_name

    if submission is not None:
        check_submission(task, gpus or 1)
    start = model or latest_run()
    base = Path("finetuned") / (short_name(start) + ("-from-scratch" if from_scratch else ""))
    if (processes := processes_to_start(gpus)) > 1:
        from pldcli.system.launcher import run_processes

        kept = f"{out or base} has the runs that are finished"
        raise typer.Exit(run_processes(processes, lambda: sys.argv[1:], kept=lambda: kept))
    if model is None and os.environ.get("RANK", "0") == "0":
        typer.echo(f"starting from {start}, the latest run", err=True)
    files = {"train": train, "validation": validation, "test": test}
    experiment = Experiment(
        task=task,
        model=str(start),
        data_dir=None if data_dir is None else str(data_dir),
        files={name: str(path) for name, path in files.items() if path is not None},
        text_columns=tuple(text_column or ()),
        label_column=label_column,
        kind=kind,
        skip_bad=skip_bad,
        allow_bin=allow_bin,
        from_scratch=from_scratch,
    )
    how: Any = {"jobs": jobs or "auto", "device": device, "overwrite": overwrite}
    how["console"] = Console(stderr=True)  # so that --json stays alone on stdout
    if task.lower() == ALL:
        result = glue.finetune_glue(experiment, settings, base=out or base, from_mnli=from_mnli, **how)
    else:
        if from_mnli:
            experiment = experiment.after_mnli(base)
        place = out or base / (task_name(task) + ("-from-mnli" if from_mnli else ""))
        result = glue.GlueResult([single.finetune(experiment, settings, out=place, **how)])
    if not result.tasks[0].is_main:
        return
    missing = None
    try:
        if submission is not None:
            missing = submit(result.tasks, experiment, submission, device=device)
    finally:  # a zip that cannot be written must not take away what was measured
        if as_json:
            typer.echo(json.dumps(_as_json(result, missing)))
        else:
            for done in result.tasks:
                _show(done, several=len(result.tasks) > 1)
            _show_all(result)
    if missing is not None and not as_json:
        still = f"; the server still needs {', '.join(missing)}" if missing else ", complete"
        typer.echo(f"submission {submission}{still}")
    if result.error is not None:
        raise result.error


def _show(done: Finetuned, *, several: bool) -> None:
    """Print a task's table, what its numbers hide, and what to do next."""
    from pldcli.console.screen import screen, table
    from pldcli.finetuning.results import as_table

    headings, rows = as_table(done.groups)
    console = screen()
    console.print()
    console.print(f"{done.task.name} from {done.start}", markup=False, soft_wrap=True)
    console.print(table(headings, rows, right=headings[len(done.groups[0].settings) :], fold=headings))
    for note in done.notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    console.print(f"model {done.model}, of the best single run, {done.best} ({done.read_back})", markup=False, soft_wrap=True)
    if (failure := done.read_back.failure) is not None:
        typer.echo(f"warning: {done.model}: {failure}", err=True)
    if not several:
        console.print(f"tables {done.out / 'results.md'}, .csv, .json; spread {done.out / 'spread.png'}", markup=False, soft_wrap=True)


def _show_all(result: GlueResult) -> None:
    for line in result.skipped:
        typer.echo(f"left out: {line}")
    for name, error in result.failed.items():
        typer.echo(f"failed: {name}: {error}")
    if len(result.tasks) == 1 and not result.skipped and not result.failed:
        return
    if result.average is not None:
        typer.echo(f"GLUE average as the leaderboard computes it {100 * result.average:.2f}")
    else:
        typer.echo("no GLUE average: it takes all nine tasks")
    if result.geometric_mean is not None:
        typer.echo(f"geometric mean of the 12 numbers in the PLD paper's table {100 * result.geometric_mean:.2f}")


def _as_json(result: GlueResult, missing: list[str] | None) -> dict[str, Any]:
    values: dict[str, Any] = {
        "tasks": {
            done.task.name: {
                "out": str(done.out),
                "model": str(done.model),
                "start": done.start,
                "best": done.best,
                "score": done.cells[done.best]["score"],
                "groups": [asdict(group) for group in done.groups],
                "notes": done.notes,
            }
            for done in result.tasks
        },
        "skipped": result.skipped,
        "failed": {name: str(error) for name, error in result.failed.items()},
        "leaderboard_average": result.average,
        "paper_geometric_mean": result.geometric_mean,
    }
    return values if missing is None else values | {"server_still_needs": missing}
