"""`pld data`: look after prepared data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["verify"]


def verify(
    directory: Annotated[Path, typer.Argument(metavar="[DIR]", help="A prepared directory.", show_default="data")] = Path("data"),
) -> None:
    """Read every byte of prepared data and compare it with the checksums that were taken when it was made."""
    from pldcli.data.shards import open_prepared, verify_prepared
    from pldcli.progress import Progress

    total = open_prepared(directory).num_bytes()
    with Progress("Verifying", total=total, unit="bytes") as progress:
        data = verify_prepared(directory, progress=progress.update)
    files = f"{len(data.manifest['shards'])} shards, {total / 1e6:,.1f} MB"
    typer.echo(f"{directory}: sound ({files}, tokenizer and manifest)")
