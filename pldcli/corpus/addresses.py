"""Files that are not on this machine: found, and read in parts where they lie, by whatever fsspec has for their kind of address."""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from pldcli.errors import DataError, UsageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["SAVED_DATASET", "Address", "Location", "address_of", "files_at", "path_of"]

_ADDRESS = re.compile(r"([a-z][a-z0-9+]+):/+(.+)")
_WITHOUT_HOST = re.compile(r"\A([a-z][a-z0-9+]+:)/{3,}")
_LOCAL = ("file", "local")
_ROOT = "%2F"
"""The third slash of an address without a host, in a path: that runs slashes together."""
_SECRETS = re.compile(r"(?<=://)[^/@]*@|[?#].*")
"""Of an address: who reads it, and what follows the path, which may be a signature."""
_VERSIONS = ("ETag", "etag", "version_id", "LastModified", "Last-Modified", "last_modified", "last_commit", "mtime", "updated", "created")
"""What tells that a file has changed, by the names that file systems give it."""
SAVED_DATASET = {"state.json", "dataset_info.json"}
"""Files in a folder that `datasets` saved, beside its Arrow files."""
_PAGE = "text/html"
_BUFFER_BYTES = 1 << 16
_TRIES = 4
_FIRST_WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class Address:
    """A file at an address, with as much of a path's ways as a corpus needs; as text it has no secrets."""

    given: str
    """What the user named, which tells how to get there."""
    place: str
    """Of the file, as its file system has it."""
    shown: str
    num_bytes: int | None
    """None where the other side does not say."""
    version: str = ""
    """Changes with the file where the other side says, and else with what of its place is not shown."""

    def __str__(self) -> str:
        return self.shown

    @property
    def name(self) -> str:
        """The last part, as a path's."""
        return PurePosixPath(self.shown).name

    @property
    def stem(self) -> str:
        """The last part without its ending, as a path's."""
        return PurePosixPath(self.shown).stem

    @property
    def suffix(self) -> str:
        """The ending of the last part, as a path's."""
        return PurePosixPath(self.shown).suffix

    def resolve(self) -> Address:
        """Return what is the same for the same file, in whatever way it was found."""
        return replace(self, given="", num_bytes=None, version="")

    def open(self, mode: Literal["rb"] = "rb", buffering: int = -1) -> BinaryIO:
        """Open the file as a path is opened; what is asked of it is asked of the other side, by `buffering` bytes or more.

        Reading raises DataError where there is nothing, or what fails is tried several times from where it failed, and fails again.
        """
        raw = _RemoteFile(self)
        return cast(BinaryIO, raw) if buffering == 0 else io.BufferedReader(raw, _BUFFER_BYTES if buffering < 0 else buffering)


Location = Path | Address
"""Of a file of a corpus."""


class _RemoteFile(io.RawIOBase):
    """Reads a file in parts. Where it stands is kept here: some file systems open a file once for all."""

    def __init__(self, address: Address) -> None:
        self._address, self._at = address, 0
        self._file: Any = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._address.num_bytes or 0}[whence]
        return self._at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        for trial in range(_TRIES):
            try:
                data = self._read(len(view))
                break
            except Exception as error:
                if trial == _TRIES - 1 or isinstance(error, FileNotFoundError):
                    raise _failed(self._address.shown, error) from error
                self._file = None
                time.sleep(_FIRST_WAIT_SECONDS * 2**trial)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _read(self, num_bytes: int) -> bytes:
        import fsspec

        if self._file is None:
            system, _ = fsspec.core.url_to_fs(self._address.given)
            self._file = system.open(self._address.place, "rb", cache_type="none")
        if self._file.tell() != self._at:
            self._file.seek(self._at)
        data: bytes = self._file.read(num_bytes)
        return data

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()


def path_of(typed: str) -> Path:
    """Make a path of what was typed, from which `address_of` takes the same address; of `hdfs:///x` it keeps that no host is named."""
    return Path(_WITHOUT_HOST.sub(rf"\1//{_ROOT}", typed))


def address_of(path: Path) -> str | None:
    """Return the address that a command line names, where it names one; as a path its slashes are run together."""
    match = _ADDRESS.fullmatch(str(path))
    if not match or path.exists():
        return None
    begins_at_root = match[1] in _LOCAL or match[2].startswith(_ROOT)
    return f"{match[1]}:{'///' if begins_at_root else '//'}{match[2].removeprefix(_ROOT)}"


def files_at(address: str) -> list[Address]:
    """List the files at an address, sorted; patterns and folders stand for the files there, as folders here do.

    Raises:
        UsageError: What reads it is not installed.
        DataError: There is nothing, or it cannot be looked at.
    """
    import fsspec

    shown = _SECRETS.sub("", address)
    try:
        system, place = fsspec.core.url_to_fs(address)
        if "*" in place:
            matched = {name: info for name, info in system.glob(place, detail=True).items() if info.get("type") != "directory"}
            there = _without_side_files(matched, place.partition("*")[0])
        elif place.startswith(("http://", "https://")) and (info := system.info(place)).get("mimetype") != _PAGE:
            there = {place: info}  # isdir would fetch all of it, to look for links
        else:
            there = _without_side_files(system.find(place, detail=True), place) if system.isdir(place) else {place: system.info(place)}
        found = [_found(address, system, one, info) for one, info in sorted(there.items())]
    except (ImportError, ValueError) as error:
        raise UsageError(f"cannot be read here ({error})", where=shown, hint="fetch the files yourself, and name them") from error
    except Exception as error:
        raise _failed(shown, error) from error
    if not found:
        raise DataError("there is nothing", where=shown, hint="** stands for folders at any depth")
    return found


def _without_side_files(there: dict[str, Any], root: str) -> dict[str, Any]:
    """Leave out what is left out of folders here: hidden files, and what `datasets` saves beside its Arrow files."""
    folders = defaultdict[str, set[str]](set)
    for place in there:
        folder, _, name = place.rpartition("/")
        folders[folder].add(name)

    def is_text(place: str) -> bool:
        folder, _, name = place.rpartition("/")
        is_hidden = any(part.startswith(".") for part in place.removeprefix(root).split("/"))
        is_beside = name == "dataset_dict.json" or (folders[folder] >= SAVED_DATASET and not name.endswith(".arrow"))
        return not (is_hidden or is_beside)

    return {place: info for place, info in there.items() if is_text(place)}


def _found(address: str, system: Any, place: str, info: dict[str, Any]) -> Address:
    size, version = info.get("size"), next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    whole = system.unstrip_protocol(place)
    shown = _SECRETS.sub("", whole)
    if not version and shown != whole:
        version = hashlib.sha256(whole.encode()).hexdigest()[:16]
    return Address(address, place, shown, None if size is None else int(size), version)


def _failed(shown: str, error: Exception) -> DataError:
    """Say why an address cannot be read; libraries for it raise what they like."""
    if isinstance(error, FileNotFoundError):
        return DataError("no such file", where=shown, hint="is the address right, and may you read it?")
    reason = _SECRETS.sub("", (str(error).splitlines() or [""])[0]) or type(error).__name__
    hint = "run the same command again to go on with what is missing"
    return DataError(f"cannot be fetched ({reason})", where=shown, hint=hint)
