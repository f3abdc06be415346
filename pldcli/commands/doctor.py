"""`pld doctor`: check this machine, and say how to fix what is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pldcli.errors import DeviceError, UsageError

if TYPE_CHECKING:
    from pldcli.doctor import Check

__all__ = ["doctor"]

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    path: Annotated[Path, typer.Option("--path", metavar="DIR", help="Where data and runs are to lie.")] = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    """Check Python, torch, devices, precision, compilation, threads and the disk, and say how to fix what is wrong."""
    from rich.console import Console

    from pldcli import doctor as engine

    if not path.is_dir():
        raise UsageError("is not a directory", where=f"--path {path}")
    found = {}
    with Console(stderr=True).status("") as status:
        for name, check in engine.checks(path.absolute()).items():
            status.update(f"checking {name} ...")
            found[name] = check()
    failed = [name for name, check in found.items() if check.status == "fail"]
    if as_json:
        typer.echo(json.dumps({"ok": not failed, "checks": [{"name": name} | asdict(check) for name, check in found.items()]}, indent=2))
    else:
        _print(found)
    if failed:
        raise DeviceError(f"{len(failed)} of {len(found)} checks failed: {', '.join(failed)}")


def _print(found: Mapping[str, Check]) -> None:
    from rich.markup import escape

    from pldcli.console.screen import screen, table

    rows = []
    for name, check in found.items():
        colour = _COLOURS[check.status]
        hint = f"\n[{colour}]→ {escape(check.hint)}[/]" if check.hint else ""
        rows.append((f"[{colour}]{check.status}[/]", name, escape(check.detail) + hint))
    screen().print(table(("", "check", "found"), rows, fold=("found",)))
