"""`pld plot-schedule`: what a schedule does over a run, before any of it is run."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pldcli.commands.config import Overrides, complete_preset
from pldcli.errors import UsageError

if TYPE_CHECKING:
    from pldcli.plots.schedules import NamedSchedule

__all__ = ["plot_schedule"]

DEFAULT_POINTS = {"json": 401, "csv": 401, "table": 21}
"""Steps listed per schedule when `--points` does not say."""


def plot_schedule(
    overrides: Overrides = None,
    preset: Annotated[
        list[str] | None,
        typer.Option("--preset", help="Preset to draw; several overlay. bert-base-pld by default.", autocompletion=complete_preset),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Picture to write, .png or .svg; schedule.png by default.")
    ] = None,
    output: Annotated[
        Literal["picture", "table", "json", "csv"],
        typer.Option("--format", help="The last three print numbers, and draw only where --out says."),
    ] = "picture",
    points: Annotated[
        int | None, typer.Option("--points", metavar="N", help="Steps listed, evenly chosen with the first and the last.")
    ] = None,
) -> None:
    """Draw theta, keep probabilities, expected kept blocks and the saving of a schedule."""
    from pldcli.plots.canvas import check_picture_path
    from pldcli.plots.schedules import plot_schedules

    if out is not None:
        check_picture_path(out)
    if points is not None and points < 2:
        raise UsageError(f"must be at least 2 (the first and the last step), not {points}", where="--points")
    if points is not None and output == "picture":
        raise UsageError("--points does nothing without --format table, json or csv", hint="leave it out")
    schedules = [_named(name, overrides or []) for name in preset or ["bert-base-pld"]]
    if output == "picture":
        _print_picture(schedules)
    else:
        {"json": _print_json, "csv": _print_csv, "table": _print_table}[output](schedules, points or DEFAULT_POINTS[output])
    if out is not None or output == "picture":
        picture = out or Path("schedule.png")
        plot_schedules(schedules, picture)
        typer.echo(f"picture written to {picture}", err=output != "picture")


def _named(preset: str, overrides: list[str]) -> NamedSchedule:
    from pldcli.plots.schedules import NamedSchedule
    from pldcli.presets import resolve

    return NamedSchedule(preset, resolve(preset, overrides).config.run_flops())


def _print_json(schedules: list[NamedSchedule], points: int) -> None:
    from pldcli.plots.schedules import listed, summary

    typer.echo(json.dumps({"schedules": [{**summary(named), "steps": listed(named, points)} for named in schedules]}))


def _print_csv(schedules: list[NamedSchedule], points: int) -> None:
    """Print one row per step, a column per block; the columns of blocks that a schedule does not have are empty."""
    from pldcli.console.section import csv_cell
    from pldcli.plots.schedules import listed

    # Row by row to stdout itself: a pipe that closes early ends the command at once.
    deepest = max(named.schedule.num_blocks for named in schedules)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["preset", "step", "theta", "expected_kept_blocks", *(f"keep_prob_{block + 1}" for block in range(deepest))])
    for named in schedules:
        for row in listed(named, points):
            missing = [""] * (deepest - named.schedule.num_blocks)
            writer.writerow([csv_cell(named.name), row["step"], row["theta"], row["expected_kept_blocks"], *row["keep_probs"], *missing])


def _print_table(schedules: list[NamedSchedule], points: int) -> None:
    from pldcli.console.screen import screen, table
    from pldcli.plots.schedules import listed, sentences

    console = screen()
    headings = ("step", "theta", "keep prob., first block", "last block", "blocks run", "saved so far")
    for named in schedules:
        rows = [
            (
                f"{row['step']:,}",
                f"{row['theta']:.4f}",
                f"{row['keep_probs'][0]:.4f}",
                f"{row['keep_probs'][-1]:.4f}",
                f"{row['expected_kept_blocks']:.2f}",
                f"{named.saved_until(row['step'] + 1):.1%}",
            )
            for row in listed(named, points)
        ]
        console.print("\n".join(sentences(named)), markup=False)
        console.print(table(headings, rows, right=headings))
        console.print()


def _print_picture(schedules: list[NamedSchedule]) -> None:
    """Draw in the terminal: two charts for one schedule, a row each for several."""
    from pldcli.console.screen import PICTURE_COLUMNS, screen
    from pldcli.plots.canvas import evenly_spaced
    from pldcli.plots.schedules import sentences
    from pldcli.plots.terminal import block_chart, sparkline

    width = min(screen().width, PICTURE_COLUMNS)
    for named in schedules:
        schedule = named.schedule
        steps = evenly_spaced(schedule.total_steps, 2 * width)
        theta = [schedule.theta(step) for step in steps]
        kept = [schedule.expected_kept_blocks(step) for step in steps]
        for sentence in sentences(named):
            typer.echo(sentence)
        if len(schedules) > 1:
            space = width - len("  blocks run  ")
            typer.echo("  theta       " + sparkline(theta, low=0, high=1, width=space))
            typer.echo("  blocks run  " + sparkline(kept, low=0, high=schedule.num_blocks, width=space) + "\n")
            continue
        ends = {"left": "step 0", "right": f"{schedule.total_steps - 1:,}"}
        for line in block_chart(theta, low=0, high=1, height=6, width=width, title="\ntheta", **ends):
            typer.echo(line)
        for line in block_chart(kept, low=0, high=schedule.num_blocks, height=6, width=width, title="\nexpected blocks that run", **ends):
            typer.echo(line)
        typer.echo()
