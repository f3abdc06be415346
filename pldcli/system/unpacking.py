"""What is packed and comes from elsewhere, unpacked into memory with an end: a small file may not fill the machine."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pldcli.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["PACKED", "check_expansion", "open_packed"]

PACKED = (".gz", ".bz2", ".xz", ".zst")
"""Endings of files that `open_packed` reads."""

_ALWAYS_BYTES = 64 << 20
_MOST_EXPANSION = 100
"""Text packs to a tenth of its size, tables of the same few cells to a fiftieth; gzip reaches a thousandth with one letter."""


def check_expansion(num_bytes: int, packed_bytes: int, where: str) -> None:
    """Refuse a file of which more comes than text packs to.

    Args:
        num_bytes: Unpacked so far.
        packed_bytes: The file's size.
        where: The file, for errors.

    Raises:
        DataError: It is over 64 MB and over a hundred times the file's size.
    """
    if num_bytes > _ALWAYS_BYTES and num_bytes > _MOST_EXPANSION * packed_bytes:
        what = f"unpacks to more than {_MOST_EXPANSION} times its size"
        raise DataError(what, where=where, hint="if that is meant, unpack it yourself and name the result")


def open_packed(path: Path, packed: BinaryIO) -> io.BufferedReader:
    """Unpack gzip, bzip2, xz or zstd while it is read.

    Args:
        path: The file, whose ending says which.
        packed: It, open.

    Returns:
        The content. Reading it raises `EOFError`, `zlib.error`, `lzma.LZMAError` or an `OSError` without a number where it is damaged, and
        DataError where more comes than text packs to.
    """
    return io.BufferedReader(_Bounded(path, packed))


class _Bounded(io.RawIOBase):
    def __init__(self, path: Path, packed: BinaryIO) -> None:
        self._path, self._num_bytes, self._packed_bytes = path, 0, path.stat().st_size
        self._file = _unpacked(path.suffix.lower(), packed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        count: int = self._file.readinto(buffer)
        self._num_bytes += count
        check_expansion(self._num_bytes, self._packed_bytes, str(self._path))
        return count


def _unpacked(ending: str, packed: BinaryIO) -> Any:
    if ending == ".bz2":
        return bz2.BZ2File(packed)
    if ending == ".xz":
        return lzma.LZMAFile(packed)
    if ending == ".zst":
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), "zstd")
    return gzip.GzipFile(fileobj=packed)
