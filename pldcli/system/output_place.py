"""Refuse an output directory that could not be taken in the end, before any work is done."""

from __future__ import annotations

from pathlib import Path

from pldcli.errors import OutputError

__all__ = ["check_new", "check_output"]

_ELSEWHERE = "choose another place with --out"


def check_new(out: Path, *, overwrite: bool = False, hint: str = f"add --overwrite, or {_ELSEWHERE}") -> None:
    """Refuse a place that is taken.

    Raises:
        OutputError: Something is there, and `overwrite` is off.
    """
    if out.exists() and not overwrite:
        raise OutputError("is already there", where=str(out), hint=hint)


def check_output(out: Path, what: str, *, mark: str) -> None:
    """Refuse a place that holds something else than what is written there, so that a mistyped --out never costs a file.

    Args:
        out: The directory to make, to resume in, or to replace.
        what: What it may hold already, as in "a run directory".
        mark: The file that every such directory has.

    Raises:
        OutputError: It is a file, or a directory with something in it and without the mark.
    """
    if out.exists() and not out.is_dir():
        raise OutputError("is a file, not a directory", where=str(out), hint=_ELSEWHERE)
    beginnings = (".lock", f".{mark}.")  # all that there is when a process was killed before it wrote the mark
    if out.is_dir() and not (out / mark).is_file() and any(not entry.name.startswith(beginnings) for entry in out.iterdir()):
        raise OutputError(f"is not {what}, and is left alone", where=str(out), hint=_ELSEWHERE)
