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
    from pldcli.console.progress import Progress
    from pldcli.data.prepared import verify_prepared

    with Progress("Verifying", unit="bytes") as bar:

        def report(done: int, total: int) -> None:
            bar.total = total
            bar.update(done)

        data = verify_prepared(directory, progress=report)
    files = f"{len(data.manifest['shards'])} shards, {data.num_bytes() / 1e6:,.1f} MB"
    typer.echo(f"{directory}: sound ({files}, tokenizer and manifest)")
