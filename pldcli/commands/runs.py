"""`pld runs`: what was trained here."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["runs"]


def runs(
    directory: Annotated[Path, typer.Argument(metavar="[DIRECTORY]", help="Where the runs are.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the runs here: state, steps, losses, training time, and what to do next with each."""
    from rich.markup import escape

    from pldcli.console.screen import screen, table
    from pldcli.console.units import duration
    from pldcli.runs.run_directory import list_runs

    found = list_runs(directory)
    if as_json:
        typer.echo(json.dumps([asdict(run) | {"path": str(run.path)} for run in found]))
        return
    if not found:
        typer.echo(f"no runs in {directory}; start one with `pld pretrain --preset modern-tiny-preln`")
        return
    headings = ["run", "state", "step", "of", "train loss", "validation", "time"]
    rows = [
        [
            escape(run.path.name),
            run.state,
            f"{run.step:,}",
            f"{run.total_steps:,}",
            "-" if run.train_loss is None else f"{run.train_loss:.4f}",
            "-" if run.eval_loss is None else f"{run.eval_loss:.4f}",
            duration(run.train_seconds),
        ]
        for run in found
    ]
    console = screen()
    console.print(table(headings, rows, right=headings[2:], fold=["run"]))
    for run in found:
        console.print(f"{run.path.name}: {run.next_action}", highlight=False, markup=False, soft_wrap=True)
