"""`pld analyze`: what the blocks of trained models do, and why dropping them may destabilise training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pldcli.choices import Device
from pldcli.errors import UsageError

if TYPE_CHECKING:
    from pldcli.analysis.results import Analysis

__all__ = ["analyze"]


def analyze(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Directories that `pld pretrain` wrote.")],
    data: Annotated[
        Path | None, typer.Option(help="The prepared directory whose validation split is read.", show_default="the run's own, else data")
    ] = None,
    gates: Annotated[
        str | None,
        typer.Option(
            metavar="schedule or 0.5",
            help="Drop blocks too: as each run's schedule does at that step, or with this keep probability everywhere.",
            show_default="every block runs",
        ),
    ] = None,
    draws: Annotated[int | None, typer.Option(help="Draws of --gates to average over.", show_default="8")] = None,
    sequences: Annotated[int, typer.Option(help="Validation sequences to compute on.")] = 64,
    batch_size: Annotated[int, typer.Option(help="Sequences at a time; lower it when memory runs out.")] = 16,
    device: Annotated[Device, typer.Option(help="Where to run.")] = "auto",
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Write numbers and pictures there.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Measure blocks over training: gradients, distance and angle between input and output, and the loss without each block.

    The initial weights, every checkpoint that is there (checkpoint.keep) and
    the finished model are measured on the first validation sequences, under
    fixed masks, without dropout, in fp32. Several runs stand side by side,
    for example Post-LN and Pre-LN.
    """
    from pldcli.analysis.results import parse_gates

    if gates is None and draws is not None:
        raise UsageError("--draws does nothing without --gates", hint="leave it out")
    chosen = None if gates is None else parse_gates(gates)
    from pldcli.analysis.analyze import Settings
    from pldcli.analysis.analyze import analyze as run_analysis
    from pldcli.analysis.files import as_json as numbers
    from pldcli.analysis.files import write_analysis

    settings = Settings(sequences, batch_size, chosen, 8 if draws is None else draws, device)
    analysis = run_analysis(runs, data=data, settings=settings)
    # Files first: a reader that closes the pipe early must not cost them.
    written = [] if out is None else write_analysis(analysis, out)
    for note in analysis.notes:
        typer.echo(f"note: {note}", err=True)
    if as_json:
        typer.echo(json.dumps(numbers(analysis)))
    else:
        _show(analysis)
    if written:
        typer.echo(f"written to {out}: {', '.join(written)}", err=as_json)


def _show(analysis: Analysis) -> None:
    from pldcli.analysis.tables import run_lines, tables
    from pldcli.console.screen import print_sections, screen

    console = screen()
    for line in run_lines(analysis):
        console.print(line, markup=False)
    console.print()
    print_sections(console, tables(analysis, columns=console.width))
