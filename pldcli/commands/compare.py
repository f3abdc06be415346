"""`pld compare`: pre-training runs beside one another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pldcli.errors import UsageError

if TYPE_CHECKING:
    from pldcli.comparison.comparison import Comparison

__all__ = ["compare"]


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Directories that `pld pretrain` wrote, or a comparison's or study's metrics.csv.gz."),
    ],
    baseline: Annotated[
        str | None, typer.Option("--baseline", metavar="RUN", help="What to compare with, by path or name.", show_default="the first run")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", metavar="NAME", help="Runs to keep; `*` and `?` stand for any letters; repeatable."),
    ] = None,
    finetuned: Annotated[
        Path | None,
        typer.Option("--finetuned", metavar="DIR", help="Where `pld finetune` wrote; shown where there is any.", show_default="finetuned"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write a row per run.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw validation losses, .png or .svg.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Write everything there, with a page that opens without a network.")
    ] = None,
) -> None:
    """Compare runs: final losses, tokens and time to the baseline's loss, speed, saving, and what else differs.

    Runs that differ in their seed alone are one system; systems are paired by seed.
    """
    from pldcli.plots.canvas import check_picture_path

    if plot is not None:
        check_picture_path(plot)
    if finetuned is not None and not finetuned.is_dir():
        raise UsageError("no such directory", where=f"--finetuned {finetuned}")
    from pldcli.comparison.comparison import compare_runs
    from pldcli.comparison.files import as_json as numbers
    from pldcli.comparison.files import runs_csv
    from pldcli.comparison.read import read_runs
    from pldcli.system import atomic

    comparison = compare_runs(read_runs(runs, finetuned=finetuned or Path("finetuned"), only=only or ()), baseline=baseline)
    # Files first: a reader that closes the pipe early must not cost them.
    if csv is not None:
        atomic.write_text(csv, runs_csv(comparison))
    if plot is not None:
        from pldcli.comparison.plots import plot_comparison

        plot_comparison(comparison, plot)
    if out is not None:
        from pldcli.comparison.report import write_comparison

        write_comparison(comparison, out)
    if as_json:
        typer.echo(json.dumps(numbers(comparison)))
    else:
        _show(comparison)
    for written in (csv, plot, None if out is None else out / "index.html"):
        if written is not None:
            typer.echo(f"written: {written}", err=as_json)


def _show(comparison: Comparison) -> None:
    from rich.markup import escape
    from rich.padding import Padding

    from pldcli.comparison.tables import sections, summary, words
    from pldcli.console.screen import print_sections, screen

    console = screen()
    for line in summary(comparison):
        console.print(escape(line) + "\n")
    print_sections(console, sections(comparison))
    console.print("[bold cyan]What differs[/]")
    for heading, lines in words(comparison):
        console.print(escape(heading))
        for line in lines:
            console.print(Padding(escape(line), (0, 0, 0, 2), expand=False))
    if comparison.warnings:
        console.print("\n[bold yellow]Read this before the numbers[/]")
        for warning in comparison.warnings:
            console.print(Padding(f"warning: {escape(warning)}", (0, 0, 0, 2), expand=False))
