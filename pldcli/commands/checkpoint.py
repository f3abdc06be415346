"""`pld checkpoint`: look after the checkpoints of a run."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pldcli.errors import CheckpointError

__all__ = ["list_", "prune", "verify"]

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)]


def list_(run: Run) -> None:
    """List the checkpoints of a run: step, tokens, size, and when each was saved; every byte is read, and damaged ones are marked."""
    from pldcli.console.screen import screen, table
    from pldcli.console.units import quantity
    from pldcli.errors import CheckpointError
    from pldcli.runs import checkpoint

    rows, damaged = [], []
    for path in _checkpoints(run):
        step, tokens = path.name.removeprefix("step-").lstrip("0"), ""
        try:
            saved, size = _saved(path), sum(file.stat().st_size for file in path.iterdir() if file.is_file())
            position = checkpoint.position(path)
            step, tokens = f"{position.step:,}", quantity(position.tokens)
            checkpoint.verify(path)
        except FileNotFoundError:  # a run that is training has removed it
            continue
        except CheckpointError as error:
            if not path.is_dir():
                continue
            damaged.append(_damage(path, error))
            saved += ", damaged"
        rows.append([str(path), step, tokens, f"{size / 1e6:,.1f}", saved])
    headings = ["checkpoint", "step", "tokens", "MB", "saved"]
    screen().print(table(headings, rows, right=headings[1:4], fold=["checkpoint"]))
    for line in damaged:
        typer.echo(line)


def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, or one checkpoint.", show_default=False)],
) -> None:
    """Read every byte of a run's checkpoints and compare it with the checksums that were taken when they were saved."""
    from pldcli.errors import CheckpointError
    from pldcli.runs import checkpoint

    paths = [run] if (run / "state.json").is_file() else _checkpoints(run)
    damaged = []
    for path in paths:
        try:
            checkpoint.verify(path)
            typer.echo(f"{path}: sound")
        except CheckpointError as error:
            if not path.is_dir():  # a run that is training has removed it
                continue
            damaged.append(path)
            typer.echo(_damage(path, error))
    if damaged:
        raise CheckpointError(
            f"{len(damaged)} of {len(paths)} checkpoints damaged",
            where=str(run),
            hint="a run resumes from the newest sound one; `pld checkpoint prune` removes the others",
        )


def prune(
    run: Run,
    keep: Annotated[int, typer.Option(min=1, help="Newest sound checkpoints that stay.")] = 1,
    keep_every: Annotated[
        int | None, typer.Option(min=1, help="Those at multiples of so many steps stay, too.", show_default=False)
    ] = None,
) -> None:
    """Remove checkpoints that are damaged, and older ones; a run that is training is left alone."""
    from pldcli.runs import checkpoint
    from pldcli.runs.run_directory import RunDirectory

    there = _checkpoints(run)
    with RunDirectory(run).lock():
        removed = checkpoint.prune(RunDirectory(run).checkpoints, keep=keep, keep_every=keep_every)
    for path in removed:
        typer.echo(f"removed {path}")
    typer.echo(f"{len(there) - len(removed)} of {len(there)} checkpoints stay")


def _damage(path: Path, error: CheckpointError) -> str:
    return f"{path}: damaged ({error.where}: {error.what})"


def _saved(path: Path) -> str:
    """Return when a checkpoint was saved; of one without its state, when its directory was changed last."""
    state = path / "state.json"
    return datetime.fromtimestamp((state if state.exists() else path).stat().st_mtime).isoformat(" ", timespec="minutes")


def _checkpoints(run: Path) -> list[Path]:
    """List the checkpoints of a run, oldest first.

    Raises:
        CheckpointError: There are none.
    """
    from pldcli.errors import CheckpointError
    from pldcli.runs.checkpoint import list_checkpoints
    from pldcli.runs.run_directory import RunDirectory

    found = list_checkpoints(RunDirectory(run).checkpoints)
    if not found:
        raise CheckpointError("no checkpoints here", where=str(run), hint="name a directory that `pld pretrain` made")
    return found
