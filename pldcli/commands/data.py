"""`pld data`: look after prepared data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pldcli.commands.config import Overrides, complete_preset

__all__ = ["inspect", "verify"]


def verify(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="A prepared directory.", show_default="data")] = Path("data"),
) -> None:
    """Read every byte of prepared data and compare it with its checksums, and the tokens with the vocabulary."""
    from pldcli.console.progress import Progress
    from pldcli.data.prepared import verify_prepared

    with Progress("Verifying", unit="bytes") as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        data = verify_prepared(directory, progress=report)
    files = f"{len(data.manifest['shards'])} shards, {data.num_bytes() / 1e6:,.1f} MB"
    typer.echo(f"{directory}: sound ({files}, tokenizer and manifest)")


def inspect(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="A prepared directory.", show_default="data")] = Path("data"),
    overrides: Overrides = None,
    preset: Annotated[
        str, typer.Option(help="How sequences are cut and masked: a shipped preset or a YAML file.", autocompletion=complete_preset)
    ] = "modern-tiny-preln",
    samples: Annotated[int, typer.Option(min=0, help="Sequences to show as the model sees them.")] = 2,
    pieces: Annotated[int, typer.Option(min=0, help="Entries of the vocabulary to show, the most frequent ones.")] = 20,
    plot: Annotated[Path | None, typer.Option(help="Draw lengths and frequencies to this .png or .svg.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what prepared data hold: documents, lengths, frequent pieces, what was left out, and sequences with their masks."""
    from pldcli import inspection, presets
    from pldcli.data.prepared import open_prepared
    from pldcli.plots.canvas import check_picture_path

    if plot is not None:
        check_picture_path(plot)
    prepared = open_prepared(directory)
    wanted = ["model.global_layers=1", *(overrides or ())]  # no model is made, whose windows would have to fit
    config = presets.resolve(preset, wanted, from_data={"model.vocab_size": prepared.vocab_size}).config
    found = inspection.inspect(prepared, config, num_samples=samples, num_pieces=pieces)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=1, ensure_ascii=False))
    else:
        inspection.show(found)
    if plot is not None:
        inspection.draw(found, plot)
        typer.echo(f"plot {plot}", err=as_json)
