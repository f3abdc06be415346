"""`pld study`: a whole comparison of systems, from one file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pldcli.errors import UsageError

if TYPE_CHECKING:
    from pldcli.study.halving import Outcome
    from pldcli.study.results import Results
    from pldcli.study.study import Study
    from pldcli.study.tunings import TuningOutcome

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

    Typed again it goes on where it was. benchmarks/studies holds examples of SPEC.yaml.
    """
    if dry_run and report_only:
        raise UsageError("exclude each other", where="--dry-run and --report-only")
    from pldcli.study.read_spec import read_spec

    read = read_spec(spec)
    from rich.console import Console

    from pldcli.study.display import StudyDisplay
    from pldcli.study.study import make_slots, open_study, train_study, tune_study

    place = out or Path("studies") / read.name
    slots = make_slots(jobs=jobs, gpus=[gpu.strip() for gpu in gpus.split(",") if gpu.strip()])
    opened = open_study(
        read,
        out=place,
        data=data or Path(read.data),
        slots=slots,
        measure=not report_only,
        keep=not (dry_run or report_only),
        report=lambda line: typer.echo(line, err=True, color=False),
    )
    if dry_run:
        _show_dry_run(opened, len(slots), as_json)
        return
    outcomes: dict[str, Outcome] | None = None
    tuned: dict[str, TuningOutcome] | None = None
    if not report_only:
        if jobs > 1:
            note = "runs at once slow each other; times in the report are steps x step time, measured alone"
            typer.echo(f"note: {note}", err=True)
        display = StudyDisplay(place, at_once=len(slots), console=Console(stderr=True))
        outcomes = train_study(opened, slots=slots, display=display)
        tuned = tune_study(opened, slots=slots, display=display)
    results = _report(opened, outcomes, tuned)
    _show(results, place, as_json)
    if not report_only:
        _raise_failures(results)


def _report(opened: Study, outcomes: Mapping[str, Outcome] | None, tuned: Mapping[str, TuningOutcome] | None) -> Results:
    from pldcli.study.report import write_report
    from pldcli.study.results import read_results

    results = read_results(opened, outcomes, tuned)
    write_report(results, opened.out / "report")
    return results


def _show_dry_run(opened: Study, at_once: int, as_json: bool) -> None:
    from pldcli.console.screen import print_sections, screen
    from pldcli.console.units import duration
    from pldcli.study import tables

    runs = opened.runs()
    outcomes = [opened.outcome(run) for run in runs]
    if as_json:
        rows = [_run_json(run, outcome) for run, outcome in zip(runs, outcomes, strict=True)]
        typer.echo(json.dumps({"study": opened.spec.name, "out": str(opened.out), "runs": rows}))
        return
    print_sections(screen(), [tables.run_table(opened.plan, runs, outcomes)])
    left = sum(run.seconds_left(outcome.step) for run, outcome in zip(runs, outcomes, strict=True) if not outcome.is_settled)
    done = sum(outcome.is_settled for outcome in outcomes)
    typer.echo(f"{done} of {len(runs)} runs are done; about {duration(left / at_once)} of training left, from measured steps")
    if (tuning := opened.spec.finetuning) is not None:
        typer.echo(f"Then finished runs are fine-tuned on {', '.join(tuning.tasks)}; how long that takes is not in these times.")
    if not opened.is_measured_for_good:
        typer.echo("Steps are measured anew when the study begins: numbers of steps at equal time will differ a little.")


def _show(results: Results, place: Path, as_json: bool) -> None:
    from pldcli.console.screen import print_sections, screen
    from pldcli.study import tables

    if as_json:
        typer.echo(json.dumps(_results_json(results, place)))
        return
    held = tables.differences(results)
    print_sections(screen(), [tables.results_table(results), *([held] if held else []), *tables.finetuned(results).values()])
    for line in tables.check_lines(results):
        typer.echo(line)
    typer.echo(f"report {place / 'report' / 'report.md'}")


def _raise_failures(results: Results) -> None:
    """End with the exit code of the first run that failed, after a line for each."""
    ended: dict[str, Outcome | TuningOutcome] = {}
    for run in results.runs:
        outcome = results.outcomes[run.name]
        ended[f"{run.name} {outcome.state} at step {outcome.step:,}"] = outcome
    for tuning, tuned in results.tunings.items():
        ended[f"{tuning.name} {tuned.state}"] = tuned
    failed = {what: outcome for what, outcome in ended.items() if not outcome.is_settled}
    for what, one in failed.items():
        typer.echo(f"error: {what}: {one.note.removeprefix('error: ')}", err=True)
    if failed:
        typer.echo("run the same command again to try what is left", err=True)
        raise typer.Exit(next((end.exit_code for end in failed.values() if end.exit_code > 0), 1))


def _results_json(results: Results, place: Path) -> dict[str, Any]:
    return {
        "study": results.plan.spec.name,
        "out": str(place),
        "report": str(place / "report" / "report.md"),
        "is_complete": results.is_complete,
        "runs": [_run_json(run, results.outcomes[run.name]) for run in results.runs],
        "systems": [_system_json(results, group) for group in results.groups],
        "checks": [
            {
                "better": result.check.better,
                "than": result.check.than,
                "by_seed_deviations": result.check.by_seed_deviations,
                "difference": result.difference,
                "deviation": result.deviation,
                "num_seeds": result.num_seeds,
                "passed": result.passed,
            }
            for result in results.checks
        ],
        "finetunings": [
            {
                "run": tuning.run.name,
                "task": tuning.task,
                "state": outcome.state,
                "score": outcome.score,
                "note": outcome.note,
            }
            for tuning, outcome in results.tunings.items()
        ],
        "rungs": [
            {
                "number": rung.number,
                "fraction": rung.rung.fraction,
                "standing": [{"system": name, "loss": loss if loss < float("inf") else None} for name, loss in rung.standing],
            }
            for rung in results.rungs
        ],
    }


def _run_json(run: Any, outcome: Outcome) -> dict[str, Any]:
    return {
        "run": run.name,
        "system": run.group,
        "seed": run.seed,
        "total_steps": run.config.train.total_steps,
        "tokens": run.tokens,
        "seconds": run.seconds,
        "state": outcome.state,
        "step": outcome.step,
        "validation_loss": outcome.loss,
        "note": outcome.note,
    }


def _system_json(results: Results, group: str) -> dict[str, Any]:
    from pldcli.study.results import verdict

    contrast, system = results.contrast(group), results.systems.get(group)
    difference = None if contrast is None or contrast.difference is None else contrast.difference.interval
    return {
        "system": group,
        "against": results.baseline_of(group),
        "validation_losses": list(system.final_losses) if system else [],
        "difference": None if difference is None else {"mean": difference.mean, "low": difference.low, "high": difference.high},
        "verdict": None if contrast is None else verdict(contrast),
    }
