"""`pld study`: a whole comparison of systems, from one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pldcli.errors import UsageError

if TYPE_CHECKING:
    from pldcli.study_report.results import Results

__all__ = ["study"]


def study(
    spec: Annotated[Path, typer.Argument(metavar="SPEC.yaml", help="What to compare.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Where runs and report go.", show_default="studies/NAME")] = None,
    data: Annotated[Path | None, typer.Option(help="The prepared directory.", show_default="what the file says")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at once, each on its part of the cores; with --gpus, on each of them.")] = 1,
    gpus: Annotated[str, typer.Option(metavar="0,1", help="GPUs to use.", show_default="the first")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which runs there are, how long they take, and stop.")] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Write the report of what is finished, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what came out as one JSON object.")] = False,
) -> None:
    """Train and compare several systems with several seeds, at equal tokens or equal time, and write a report.

    The same command again resumes it. benchmarks/studies holds examples of SPEC.yaml.
    """
    if dry_run and report_only:
        raise UsageError("exclude each other", where="--dry-run and --report-only")
    from pldcli.study.read_spec import read_spec

    read = read_spec(spec)
    from rich.console import Console

    from pldcli.study.display import StudyDisplay
    from pldcli.study.jobs import make_slots
    from pldcli.study.study import carry_out, open_study
    from pldcli.study_report.report import report_study
    from pldcli.study_report.screen import show_plan, show_results

    place = out or Path("studies") / read.name
    slots = make_slots(jobs=jobs, gpus=[gpu.strip() for gpu in gpus.split(",") if gpu.strip()])
    opened = open_study(
        read,
        out=place,
        data=data or Path(read.data),
        slot=slots[0],
        measure=not report_only,
        keep=not (dry_run or report_only),
        report=lambda line: typer.echo(line, err=True, color=False),
    )
    if dry_run:
        show_plan(opened, len(slots), as_json=as_json)
        return
    if report_only:
        show_results(report_study(opened), as_json=as_json)
        return
    if jobs > 1:
        typer.echo("note: runs at once slow each other; times in the report are steps x step time, measured alone", err=True)
    ended = carry_out(opened, slots=slots, display=StudyDisplay(place, at_once=len(slots), console=Console(stderr=True)))
    results = report_study(opened, ended)
    show_results(results, as_json=as_json)
    _raise_failures(results)


def _raise_failures(results: Results) -> None:
    """End with the exit code of the first job that failed, after a line for each."""
    ended = {f"{run.name} {(end := results.outcomes[run.name]).state} at step {end.step:,}": end for run in results.runs}
    ended |= {f"{planned.name} {outcome.state}": outcome for planned, outcome in results.scorings.items()}
    failed = {what: outcome for what, outcome in ended.items() if not outcome.is_settled}
    for what, outcome in failed.items():
        typer.echo(f"error: {what}: {outcome.note.removeprefix('error: ')}", err=True)
    if failed:
        typer.echo("run the same command again to try what is left", err=True)
        raise typer.Exit(next((outcome.exit_code for outcome in failed.values() if outcome.exit_code > 0), 1))
