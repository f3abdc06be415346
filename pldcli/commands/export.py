"""`pld export`: write a model, whole or with fewer blocks, as a Hugging Face directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pldcli.choices import BlockChoice
from pldcli.errors import UsageError
from pldcli.evaluation.tables import block_names

__all__ = ["export"]


def export(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="RUN or MODEL DIR", help="A run, a checkpoint, a fine-tuned model or a Hugging Face directory.", show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option(help="The directory to make.", show_default=False)],
    keep_blocks: Annotated[int | None, typer.Option(metavar="N", help="How many blocks it has.", show_default="all")] = None,
    blocks: Annotated[BlockChoice | None, typer.Option(help="Which blocks are kept.", show_default="keep-prob")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Prepared data that holds a checkpoint's tokenizer.", show_default="the run's own, else data")
    ] = None,
    allow_bin: Annotated[
        bool, typer.Option("--allow-bin", help="Read a pytorch_model.bin where there are no safetensors, running no code of it.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a model that is there.")] = False,
) -> None:
    """Write a model as a Hugging Face directory, with all of its blocks or some.

    The head goes with it: the masked-LM head of a pre-trained model, the task's of a fine-tuned one.
    """
    if blocks is not None and keep_blocks is None:
        raise UsageError("--blocks does nothing without --keep-blocks", hint="leave it out")
    from pldcli import export as engine

    done = engine.export(
        model,
        out,
        keep_blocks=keep_blocks,
        blocks=blocks or "keep-prob",
        data=data,
        allow_bin=allow_bin,
        overwrite=overwrite,
    )
    for note in done.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(f"{sum(done.gates)} of {len(done.gates)} blocks of {done.source} written to {done.path}")
    if done.reason:
        typer.echo(f"kept: {block_names(done.gates)}, {done.reason}")
    if done.left_out:
        typer.echo(f"left out: {', '.join(done.left_out)}")
    if (failure := done.read_back.failure) is not None:
        typer.echo(f"warning: {done.path}: {failure}", err=True)
    else:
        typer.echo(str(done.read_back))
