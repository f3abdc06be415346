"""Files and directories that are written completely or not at all.

Everything goes to a temporary sibling first, is flushed to the disk, and takes its name by a rename. Names of siblings:

    .NAME.tmp-MACHINE-PROCESS       what is being written
    .NAME.tmp-old-MACHINE-PROCESS   what had the name before, between the two renames of an overwrite
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pldcli.errors import FULL_DISK, UNUSABLE_PLACE, OutputError, reason_of
from pldcli.system.machine import boot_id
from pldcli.system.output_place import check_new

__all__ = [
    "directory",
    "output_errors",
    "remove",
    "remove_leftovers",
    "remove_leftovers_in",
    "set_aside",
    "sibling",
    "sync_directory",
    "write_bytes",
    "write_text",
]

_LEFTOVER = re.compile(r"\.(?P<stem>.+)\.tmp-(?P<old>old-)?(?:(?P<machine>[0-9a-f]{8})-)?(?P<process>\d+)", re.DOTALL)
_LONGEST_NAME_BYTES = 200
"""Of a name that stands whole in those of its siblings: file systems take 255."""
_SHORTENED = "~"

_ABANDONED_AFTER_SECONDS = 7 * 24 * 3600
"""A temporary of another machine is taken for dead when nothing in it has changed for so long: whether its process lives cannot be
seen from here, a wait costs only space on the disk, and a first pass over a large corpus may write nothing for a day."""

_in_hand: set[Path] = set()
"""The directories that threads of this process are writing."""

_UNWRITABLE = (*UNUSABLE_PLACE, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOENT)
"""And what is in the way, or missing, at a place that the user named."""
_OF_WRITING = (*FULL_DISK, errno.EROFS, errno.EFBIG, errno.EIO)
"""What comes without the name of a file when an open one is written. (Reading gives EIO too; whoever reads inputs names the file.)"""


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn a failure of the file system below `path` into an OutputError.

    Raises:
        OutputError: The disk is full, or the place is not writable.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise OutputError("the disk is full", where=str(path), hint="free some space and run the same command again") from error
        if error.errno in _UNWRITABLE:
            raise OutputError(f"cannot be written ({reason_of(error)})", where=str(path), hint="choose another place with --out") from error
        raise


def write_bytes(path: Path, content: bytes, *, is_private: bool = False) -> None:
    """Replace the file `path` by `content`, for nobody else to read where it is private.

    Raises:
        OutputError: The disk is full, or the place is not writable.
    """
    temporary = sibling(path)
    with output_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb", opener=_private if is_private else None) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_directory(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Replace the file `path` by `content` in UTF-8; of names that are no Unicode, such as Linux has, bytes are written as escapes."""
    write_bytes(path, content.encode(errors="backslashreplace"))


@contextmanager
def directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path` when the block ends well and is removed when it does not.

    An OSError of the block about a file elsewhere, an input for example, passes unchanged.

    Args:
        path: The final place.
        overwrite: Replace what is there; without it an existing `path` is an error.

    Raises:
        OutputError: `path` exists and `overwrite` is off, the disk is full, or the place is not writable.
    """
    temporary = sibling(path)
    try:
        with output_errors(path):
            remove_leftovers(path)  # first: it may put back what was at `path`
            check_new(path, overwrite=overwrite)
            path.parent.mkdir(parents=True, exist_ok=True)
            _in_hand.add(temporary)
            temporary.mkdir()
        try:
            yield temporary
        except OSError as error:
            if not _concerns(error, temporary):
                raise
            with output_errors(path):
                raise
        with output_errors(path):
            _sync_tree(temporary)
            _put(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _in_hand.discard(temporary)


def set_aside(path: Path) -> Path:
    """Rename a file or directory to NAME.1, NAME.2, ...; return its new place.

    Raises:
        OutputError: It cannot be renamed, or is named by what it is from here, as in `.`, which would still be it.
    """
    if path.name in ("", ".."):
        hint = "change to another directory and give its path from there"
        raise OutputError("cannot be set aside under this name", where=str(path), hint=hint)
    number = 1
    while (place := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    with output_errors(path):
        path.rename(place)
    return place


def remove(path: Path) -> None:
    """Delete a directory so that its name never stands for a part of it; nothing happens where that cannot be done."""
    temporary = sibling(path)
    with suppress(OSError):
        path.rename(temporary)
        _remove(temporary)


def remove_leftovers(path: Path) -> None:
    """Delete what dead processes left beside `path`; where `path` itself is missing, put back what they had moved away.

    A process was killed between the two renames of an overwrite when `path` is missing and the earlier `path` lies beside it. What was
    to take its place is then complete, and takes it now if it is there; otherwise the earlier one comes back.

    Dead is a process of this machine, and of this container on it since the machine was started, whose number nobody has; what bears our
    own number and is not in hand here is an earlier process's. A number that another process has meanwhile hides the death: that leftover
    stays. One of another machine (on a shared file system), or of this one before it was restarted, goes when nothing in it has changed
    for a week.
    """
    _clear(path, [one for one in _leftovers(path.parent) if one.stem == _stem(path.name)])


def remove_leftovers_in(folder: Path) -> None:
    """Do what `remove_leftovers` does for everything in a directory."""
    leftovers = _leftovers(folder)
    for stem in {one.stem for one in leftovers if not one.stem.startswith(_SHORTENED)}:
        _clear(folder / stem, [one for one in leftovers if one.stem == stem])


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def sync_directory(path: Path) -> None:
    """Flush the names in the directory `path` to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class _Leftover:
    """A temporary sibling, taken apart."""

    path: Path
    stem: str
    owner: tuple[str, int]
    """Machine and process."""
    is_old: bool

    @property
    def is_abandoned(self) -> bool:
        machine, process = self.owner
        if machine == _machine() and process == os.getpid():
            return self.path not in _in_hand
        return not _alive(process) if machine == _machine() else time.time() - _last_change(self.path) > _ABANDONED_AFTER_SECONDS


def _leftovers(folder: Path) -> list[_Leftover]:
    if not folder.is_dir():
        return []
    matches = ((entry, _LEFTOVER.fullmatch(entry.name)) for entry in folder.iterdir())
    return [
        _Leftover(entry, match["stem"], (match["machine"] or "", int(match["process"])), bool(match["old"]))
        for entry, match in matches
        if match
    ]


def _clear(path: Path, leftovers: list[_Leftover]) -> None:
    abandoned = [one for one in leftovers if one.is_abandoned]
    olds = [one for one in abandoned if one.is_old]
    if olds and not os.path.lexists(path):
        newest = max(olds, key=lambda one: one.path.lstat().st_ctime)  # a rename sets it
        complete = [one for one in abandoned if one.owner == newest.owner and not one.is_old]
        (complete or [newest])[0].path.rename(path)
        sync_directory(path.parent)
    for one in abandoned:
        _remove(one.path)


def _put(temporary: Path, path: Path) -> None:
    """Rename a complete directory, in the place of what is there; what is there comes back when that fails."""
    old = sibling(path, "old-")
    try:
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        sync_directory(path.parent)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        _remove(old)


def sibling(path: Path, kind: str = "") -> Path:
    """Name the temporary beside `path` that this process writes.

    Raises:
        OutputError: `path` has no name of its own.
    """
    if path.name in ("", ".."):
        raise OutputError("has no name of its own", where=str(path), hint="give a path that ends in a name")
    return path.with_name(f".{_stem(path.name)}.tmp-{kind}{_machine()}-{os.getpid()}")


def _stem(name: str) -> str:
    encoded = os.fsencode(name)
    return name if len(encoded) <= _LONGEST_NAME_BYTES else _SHORTENED + hashlib.sha256(encoded).hexdigest()


@cache
def _machine() -> str:
    """Name where a process number means a process: this machine since it was started, and this container on it."""
    parts = [platform.node()]
    with suppress(OSError):  # no Linux: the name of the machine has to do
        parts += [boot_id(), str(Path("/proc/self/ns/pid").readlink())]
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=4).hexdigest()


def _last_change(path: Path) -> float:
    """Find the latest time at which something was written below `path`, in seconds since 1970."""
    places = [path, *(Path(folder, name) for folder, folders, files in os.walk(path) for name in (*folders, *files))]
    times = [place.lstat().st_mtime for place in places if os.path.lexists(place)]
    return max(times, default=0.0)


def _concerns(error: OSError, place: Path) -> bool:
    """Return whether an error is about a file in `place`, or, where it names none, comes of writing."""
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)]
    if not names:
        return error.errno in _OF_WRITING
    return any(Path(os.fsdecode(name)).resolve().is_relative_to(place.resolve()) for name in names)


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
    if process <= 0:
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
