"""Files that come from elsewhere: told by how they begin, unpacked while they are read, and what is wrong with their bytes as one line."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, Protocol, cast

from pldcli.errors import DataError, reason_of

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = [
    "COLUMNAR",
    "FORMATS",
    "Format",
    "InputFile",
    "bare_name",
    "check_expansion",
    "compression_of",
    "ending",
    "format_of",
    "head_of",
    "input_errors",
    "open_content",
    "unpacked",
]

_COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}
_FIRST_BYTES = re.compile(
    rb"(?P<gzip>\x1f\x8b\x08)|(?P<bzip2>BZh[1-9](?:1AY&SY|\x17rE8P\x90))|(?P<xz>\xfd7zXZ\0)|(?P<zstd>\x28\xb5\x2f\xfd)"
)
"""Of compressed files, whatever they are called. Source: RFC 1952, RFC 8878; the formats of bzip2, xz."""

Format = Literal["text", "json", "csv", "tsv", "parquet", "arrow", "wiki"]
FORMATS: dict[str, Format] = {
    ".jsonl": "json", ".json": "json", ".ndjson": "json", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet", ".arrow": "arrow",
    ".xml": "wiki",
}  # fmt: skip
"""By the endings that tell them."""
COLUMNAR = ("parquet", "arrow")
"""Formats that are not compressed as a whole."""
_CONTENTS = re.compile(
    rb'(?:\xef\xbb\xbf)?\s*(?:(?P<json>(?:\[\s*)?\{\s*"(?:[^"\\]|\\.)*"\s*:)|(?P<wiki>(?:<\?xml[^>]*>\s*)?<mediawiki\b))'
    rb"|(?P<parquet>PAR1)|(?P<arrow>ARROW1)",
    re.DOTALL,
)
"""How they begin."""

_NO_TEXT = re.compile(r"[\0-\x08\x0e-\x1f]")
_HEAD_BYTES = 1 << 12
_PACKED_BYTES = 1 << 20
"""Of a compressed file, read at a time."""
_ALWAYS_BYTES = 64 << 20
_MOST_EXPANSION = 100
"""Text packs to a tenth of its size, tables of the same few cells to a fiftieth; gzip reaches a thousandth with one letter."""
_ZSTD_WINDOW = "too much memory"
"""In what zstd says of a window that its decoder does not take unasked."""


class InputFile(Protocol):
    """A path, or what has as much of a path's ways."""

    @property
    def suffix(self) -> str: ...
    @property
    def stem(self) -> str: ...
    def open(self, mode: Literal["rb"], *, buffering: Literal[0]) -> Any: ...


def bare_name(path: InputFile) -> Path:
    """Return a file's name without the ending of a compressed file."""
    return Path(path.stem if path.suffix.lower() in _COMPRESSIONS else path.stem + path.suffix)


def ending(path: InputFile) -> str:
    """Return the ending that tells the format."""
    return bare_name(path).suffix.lower()


def compression_of(path: InputFile) -> str:
    """Tell from a file's first bytes how it is compressed, or from its name where they are damaged; empty where it is not."""
    by_name = _COMPRESSIONS.get(path.suffix.lower(), "")
    try:
        with path.open("rb", buffering=0) as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return by_name  # reading it says why
    if found := _FIRST_BYTES.match(head):
        return str(found.lastgroup)
    return "" if _is_plain_text(head) else by_name


def _is_plain_text(head: bytes) -> bool:
    """Return whether a file begins with UTF-8, and nothing in it that no text has."""
    try:
        text, _ = codecs.utf_8_decode(head, "strict", len(head) < _HEAD_BYTES)
    except UnicodeDecodeError:
        return False
    return bool(text) and not _NO_TEXT.search(text)


def format_of(path: InputFile, compression: str) -> Format:
    """Tell a file's format from its name, or from how its content begins where the name does not say it; text where nothing does."""
    if known := FORMATS.get(ending(path)):
        return known
    found = _CONTENTS.match(head_of(path, compression))
    return cast(Format, found.lastgroup) if found else "text"


def head_of(path: InputFile, compression: str) -> bytes:
    """Read where a file's content begins; empty where it cannot be read."""
    try:
        with unpacked(path.open("rb", buffering=0), compression, path, buffer_bytes=_HEAD_BYTES) as file:
            return file.peek(_HEAD_BYTES)[:_HEAD_BYTES]
    except (OSError, DataError):
        return b""  # reading it says why


def open_content(path: Path) -> io.BufferedReader:
    """Open a file, and unpack it as its first bytes ask for, to be held in memory: a small file may not fill the machine.

    Raises:
        DataError: It is damaged, or more comes of it than text packs to; while it is read.
        OSError: It cannot be opened.
    """
    return unpacked(path.open("rb", buffering=0), compression_of(path), path, packed_bytes=path.stat().st_size)


def unpacked(
    file: io.RawIOBase,
    compression: str,
    path: object,
    *,
    packed_bytes: int | None = None,
    buffer_bytes: int = io.DEFAULT_BUFFER_SIZE,
) -> io.BufferedReader:
    """Unpack a file while it is read.

    Args:
        file: The file as it is.
        compression: As `compression_of` tells it.
        path: For errors.
        packed_bytes: The file's size, where there shall be an end to what comes of it.
        buffer_bytes: Of the content.

    Returns:
        The content; reading it raises DataError where it is damaged, or where more comes than text packs to.
    """
    raw = _Unpacked(io.BufferedReader(file, _PACKED_BYTES), compression, path, packed_bytes) if compression else file
    return io.BufferedReader(raw, buffer_bytes)


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


@contextmanager
def input_errors(path: object) -> Iterator[None]:
    """Turn what the system says against reading a file into one line.

    Raises:
        DataError: It is not there, or cannot be read.
    """
    try:
        yield
    except OSError as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({reason_of(error)})"
        raise DataError(what, where=str(path)) from error


class _Unpacked(io.RawIOBase):
    def __init__(self, packed: io.BufferedReader, compression: str, path: object, packed_bytes: int | None) -> None:
        self._packed, self._path, self._packed_bytes = packed, path, packed_bytes
        self._num_bytes = 0
        with self._damage():
            self._file = _decompressor(packed, compression)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        with self._damage():
            count: int = self._file.readinto(buffer)
        self._num_bytes += count
        if self._packed_bytes is not None:
            check_expansion(self._num_bytes, self._packed_bytes, str(self._path))
        return count

    def close(self) -> None:
        self._packed.close()
        super().close()

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the system, not of what the file holds
            if _ZSTD_WINDOW in str(error):
                what, hint = "was compressed with a window of more than 128 MB", f"unpack it with `zstd -d --long=31 {self._path}`"
            else:
                what, hint = "is truncated or damaged", "compress or copy it again"
            raise DataError(what, where=str(self._path), hint=hint) from error


def _decompressor(packed: BinaryIO, compression: str) -> Any:
    if compression == "zstd":
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(packed, mode="r"), "zstd")
    openers: dict[str, Any] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
    return openers[compression](packed)
