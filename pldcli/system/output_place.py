"""Refuse an output directory that could not be taken in the end, before any work is done."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pldcli.errors import OutputError

__all__ = ["check_file", "check_new", "check_output", "check_place"]

_ELSEWHERE = "choose another place with --out"


def check_file(place: Path | None, option: str) -> None:
    """Refuse a directory where an option names a file to write.

    Raises:
        OutputError: It is one.
    """
    if place is not None and place.is_dir():
        raise OutputError("is a directory", where=str(place), hint=f"name a file with {option}")


def check_new(out: Path, *, overwrite: bool = False, hint: str = f"add --overwrite, or {_ELSEWHERE}") -> None:
    """Refuse a place that is taken, or that has no name of its own, as `.` has none.

    Raises:
        OutputError: It has no name, something is there and `overwrite` is off, or a file system is mounted there.
    """
    if out.name in ("", ".."):
        raise OutputError("does not name a new place", where=str(out), hint=_ELSEWHERE)
    if out.is_mount():
        raise OutputError(
            "is a mount point, which nothing can be put in the place of", where=str(out), hint="name a directory in it with --out"
        )
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


def check_place(out: Path, what: str, *, mark: str, inputs: Iterable[Path], overwrite: bool) -> None:
    """Refuse a place that is taken, that holds something else, or that holds what is read.

    Args:
        out: The directory to make, or to replace.
        what: What it may hold already.
        mark: The file that every such directory has.
        inputs: Files, directories and patterns that are read.
        overwrite: Replace what is there.

    Raises:
        OutputError: It is such a place.
    """
    check_new(out, overwrite=overwrite)
    check_output(out, what, mark=mark)
    for given in inputs:
        if out.resolve() == given.resolve() or out.resolve() in given.resolve().parents:
            raise OutputError("holds the corpus itself", where=str(out), hint=_ELSEWHERE)
