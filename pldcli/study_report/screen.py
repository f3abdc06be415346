"""What a person sees of a study's plan and of its results."""

from __future__ import annotations

import json

import typer

from pldcli.console.screen import print_sections, screen
from pldcli.console.units import duration
from pldcli.study.directory import Study
from pldcli.study_report import files, tables
from pldcli.study_report.results import Results

__all__ = ["show_plan", "show_results"]


def show_plan(study: Study, at_once: int, *, as_json: bool) -> None:
    """Print which runs there are, and how long those that are left take `at_once` at a time."""
    runs = study.runs()
    outcomes = [study.outcome(run) for run in runs]
    spec = study.plan.spec
    if as_json:
        typer.echo(json.dumps({"study": spec.name, "out": str(study.out), "runs": files.runs_json(runs, outcomes)}))
        return
    print_sections(screen(), [tables.run_table(study.plan, runs, outcomes)])
    left = sum(run.seconds_left(outcome.step) for run, outcome in zip(runs, outcomes, strict=True) if not outcome.is_settled)
    done = sum(outcome.is_settled for outcome in outcomes)
    typer.echo(f"{done} of {len(runs)} runs are done; about {duration(left / at_once)} of training left, from measured steps")
    if (finetuning := spec.finetuning) is not None:
        typer.echo(f"Then finished runs are fine-tuned on {', '.join(finetuning.tasks)}; how long that takes is not in these times.")
    if spec.minimal_pairs:
        typer.echo(f"Finished runs choose between the minimal pairs of {', '.join(spec.minimal_pairs)}.")
    if not study.is_measured_for_good:
        typer.echo("Steps are measured anew when the study begins: numbers of steps at equal time will differ a little.")


def show_results(results: Results, *, as_json: bool) -> None:
    """Print what came out, and where the report is."""
    if as_json:
        typer.echo(json.dumps(files.as_json(results)))
        return
    differences = tables.differences(results)
    print_sections(screen(), [tables.results_table(results), *([differences] if differences else []), *tables.finetuned(results).values()])
    for line in tables.check_lines(results):
        typer.echo(line)
    typer.echo(f"report {results.study.out / 'report' / 'report.md'}")
