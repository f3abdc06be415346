"""`pld advise`: what to train on some data within a budget of time."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pldcli.commands.config import Overrides
from pldcli.system.command_line import command_line

__all__ = ["advise", "write_advice"]


def advise(
    budget: Annotated[str, typer.Option(help="Training time: 24h, 90m.")],
    overrides: Overrides = None,
    data: Annotated[Path, typer.Option(help="The prepared directory.")] = Path("data"),
    out: Annotated[Path, typer.Option(help="The preset to write.")] = Path("auto.yaml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda; short for runtime.device=...", show_default=False)] = None,
) -> None:
    """Choose size, recipe and what to drop for a budget, from runs on record and steps timed here; write a preset."""
    from pldcli.presets import check_new_preset

    check_new_preset(out, overwrite=overwrite)
    wanted = [*(overrides or []), *([f"runtime.device={device}"] if device else [])]
    write_advice(out, data=data, budget=budget, overrides=wanted, command=command_line())
    typer.echo(f"next: {shlex.join(['pld', 'pretrain', '--preset', str(out), '--data', str(data)])}")


def write_advice(out: Path, *, data: Path, budget: str, overrides: Sequence[str], command: str) -> None:
    """Choose, print why, and write the preset.

    Args:
        out: Where the preset goes.
        data: The prepared directory.
        budget: Training time, as typed.
        overrides: `KEY=VALUE` for every candidate.
        command: What was typed.
    """
    from pldcli.advice.advise import advise as choose
    from pldcli.advice.tables import candidates_table
    from pldcli.bench.step_time import budget_seconds
    from pldcli.console.screen import print_sections, screen
    from pldcli.data.prepared import open_prepared
    from pldcli.system import atomic

    seconds = budget_seconds(budget, overrides)
    advice = choose(open_prepared(data), seconds=seconds, overrides=overrides, report=lambda line: typer.echo(line, err=True))
    print_sections(screen(), [candidates_table(advice)])
    atomic.write_text(out, advice.preset(command))
    typer.echo(f"preset {out}")
