"""Files and directories that are there whole or not at all.

Everything goes to a temporary sibling first, is flushed to the disk, and takes its name by a rename.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pldcli.errors import OutputError

__all__ = ["directory", "output_errors", "remove_leftovers", "sync_directory", "write_bytes", "write_text"]

_TEMPORARY = ".tmp-"
"""Infix of a temporary sibling's name; the process number follows."""

_UNWRITABLE = (
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.EIO,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.ENOENT,
)
"""What makes a place unusable, whoever asks."""


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn a failure of the file system below `path` into an OutputError.

    Raises:
        OutputError: The disk is full, or the place is not writable.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError("the disk is full", where=str(path), hint="free some space and run the same command again") from error
        if error.errno in _UNWRITABLE:
            reason = os.strerror(error.errno).lower()
            raise OutputError(f"cannot be written ({reason})", where=str(path), hint="choose another place with --out") from error
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Replace the file `path` by `content`.

    Raises:
        OutputError: The disk is full, or the place is not writable.
    """
    temporary = _sibling(path)
    with output_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Replace the file `path` by `content` in UTF-8."""
    write_bytes(path, content.encode())


@contextmanager
def directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary directory that becomes `path` when the block ends well and vanishes when it does not.

    Args:
        path: The final place.
        overwrite: Replace what is there; without it an existing `path` is an error.

    Raises:
        OutputError: `path` exists and `overwrite` is off, the disk is full, or the place is not writable.
    """
    if path.exists() and not overwrite:
        raise OutputError("is already there", where=str(path), hint="add --overwrite, or choose another place with --out")
    temporary, old = _sibling(path), _sibling(path, "old-")
    with output_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path)
            temporary.mkdir()
            yield temporary
            _sync_tree(temporary)
            if path.exists():
                path.rename(old)
            temporary.rename(path)
            sync_directory(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if old.exists() and not path.exists():
                old.rename(path)
            _remove(old)


def remove_leftovers(path: Path) -> None:
    """Delete temporary siblings of `path` whose process has died; one with our own number is of an earlier process."""
    for leftover in path.parent.glob(f".{path.name}{_TEMPORARY}*"):
        process = leftover.name.rpartition("-")[2]
        if not _alive(int(process) if process.isdigit() else 0):
            _remove(leftover)


def sync_directory(path: Path) -> None:
    """Flush the names in the directory `path` to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sibling(path: Path, kind: str = "") -> Path:
    return path.with_name(f".{path.name}{_TEMPORARY}{kind}{os.getpid()}")


def _sync_tree(path: Path) -> None:
    for folder, _, names in os.walk(path):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                os.fsync(file.fileno())
        sync_directory(Path(folder))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    if process <= 0 or process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
