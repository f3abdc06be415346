"""Stream documents out of text and JSON-lines files, plain or compressed, in little memory.

A document comes as a sequence of pieces `(text, last)` of about a megabyte at most, cut at whitespace where there is
some, so that a single line of any length passes through. White space around a document is dropped, so that its text does
not depend on where in the file a piece was cut.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

from pldcli.choices import DocumentPer
from pldcli.errors import DataError, json_type

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["Piece", "Reader", "Source", "cut_at_whitespace", "find_sources"]

Piece = tuple[str, bool]
"""A part of a document's text, and whether it is the last one."""

CHUNK_BYTES = 1 << 20
"""Bytes read at a time, and characters of a piece at most."""

MAX_RECORD_BYTES = 128 << 20
"""A longer line of a JSON-lines file is skipped: it would have to be held in memory whole."""

EMPTY_DOCUMENT = "empty document"
EMPTY_FILE = "empty file"
FILE_TWICE = "file named twice"
LONG_RECORD = f"record over {MAX_RECORD_BYTES >> 20} MB"

_JSON_SUFFIXES = {".jsonl", ".json", ".ndjson"}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_BLANK_LINES = re.compile(r"(?:[^\S\n]*\n)+")
_END_AT_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_MAX_CARRIED_CHARACTERS = 4096


@dataclass(frozen=True)
class Source:
    """One file of a corpus."""

    path: Path
    num_bytes: int
    format: Literal["text", "json"]
    compression: str
    """`gzip`, `zstd`, or empty for a plain file."""


def find_sources(inputs: Sequence[Path], *, exclude: Path | None = None) -> tuple[list[Source], Counter[str]]:
    """List the files that the command line names.

    Args:
        inputs: Files and directories; a directory is walked in sorted order, its hidden files left out.
        exclude: A directory that is not walked into.

    Returns:
        Every file once, and what was left out, by reason.

    Raises:
        DataError: A file is missing, empty, or not a regular file; or there are no files.
    """
    sources: dict[Path, Source] = {}
    skipped: Counter[str] = Counter()
    for given in inputs:
        found = _walk(given, exclude) if given.is_dir() else [given]
        for path in found:
            if path.resolve() in sources:
                skipped[FILE_TWICE] += 1
                continue
            source = _source(path)
            if source.num_bytes:
                sources[path.resolve()] = source
            elif path is given:
                raise DataError("is empty", where=str(path), hint="name a file with text in it")
            else:
                skipped[EMPTY_FILE] += 1
    if not sources:
        raise DataError("no files with text here", where=", ".join(map(str, inputs)), hint="name text or JSON-lines files")
    return list(sources.values()), skipped


def _walk(directory: Path, exclude: Path | None) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise DataError(f"cannot be read ({_reason(error)})", where=str(error.filename)) from error

    excluded = exclude.resolve() if exclude else None
    for folder, folders, names in os.walk(directory, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and Path(folder, name).resolve() != excluded)
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _source(path: Path) -> Source:
    try:
        num_bytes = path.stat().st_size
    except OSError as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({_reason(error)})"
        raise DataError(what, where=str(path)) from error
    if not path.is_file():
        raise DataError("is not a regular file", where=str(path), hint="the corpus is read twice, so write it to a file first")
    compression = _COMPRESSIONS.get(path.suffix.lower(), "")
    suffix = Path(path.stem).suffix if compression else path.suffix
    return Source(path, num_bytes, "json" if suffix.lower() in _JSON_SUFFIXES else "text", compression)


class Reader:
    """One pass over one source.

    Args:
        source: The file.
        document_per: What ends a document in a text file.
        text_field: The field of a JSON object that holds the text.
        strict: Make a byte that is not UTF-8 an error, instead of replacing and counting it.
    """

    def __init__(self, source: Source, *, document_per: DocumentPer = "blank-line", text_field: str = "text", strict: bool = False) -> None:
        self.source = source
        self.skipped: Counter[str] = Counter()
        self._document_per = document_per
        self._text_field = text_field
        self._raw = _HashedFile()
        self._decoder = _Decoder(source.path, strict=strict)

    @property
    def raw_bytes(self) -> int:
        """Bytes of the file read so far."""
        return self._raw.num_bytes

    @property
    def sha256(self) -> str:
        """Hash of the bytes read so far: of the file, after the last piece."""
        return self._raw.hash.hexdigest()

    @property
    def replaced_bytes(self) -> int:
        """Bytes that were not UTF-8 so far."""
        return self._decoder.replaced_bytes

    def pieces(self) -> Iterator[Piece]:
        """Stream the documents, in the order of the file.

        Raises:
            DataError: The file cannot be read, is binary, truncated or damaged, or holds a line that is not what it should be.
        """
        path = self.source.path
        try:
            self._raw.open(path)
            with self._raw:
                file = self._decompressed()
                _check_head(path, file.peek(8192)[:8192])
                yield from self._trimmed(self._json_pieces(file) if self.source.format == "json" else self._text_pieces(file))
                while self._raw.read(CHUNK_BYTES):
                    pass  # what lies behind a compressed stream still counts in the hash
        except (EOFError, zlib.error, ValueError) as error:
            raise DataError("is truncated or damaged", where=str(path), hint="compress or copy it again") from error
        except OSError as error:
            damaged = bool(self.source.compression) and error.errno is None
            what = "is truncated or damaged" if damaged else f"cannot be read ({_reason(error)})"
            raise DataError(what, where=str(path), hint="compress or copy it again" if damaged else "") from error

    def _decompressed(self) -> io.BufferedReader:
        if self.source.compression == "gzip":
            return io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=cast(BinaryIO, io.BufferedReader(self._raw, CHUNK_BYTES)))))
        if self.source.compression == "zstd":
            import pyarrow as pa

            return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(self._raw, mode="r"), "zstd"), CHUNK_BYTES)
        return io.BufferedReader(self._raw, CHUNK_BYTES)

    def _trimmed(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Drop the white space around each document, and documents that hold nothing else."""
        begun, held, held_space = False, "", ""
        for text, last in pieces:
            stripped = text.rstrip()
            if stripped:
                if begun:
                    if held:
                        yield held, False
                    held = held_space + stripped
                else:
                    begun, held = True, stripped.lstrip()
                held_space = text[len(stripped) :]
            elif begun:
                held_space = (held_space + text)[:_MAX_CARRIED_CHARACTERS]
            if last:
                if begun:
                    yield held, True
                else:
                    self.skipped[EMPTY_DOCUMENT] += 1
                begun, held, held_space = False, "", ""
        if begun:
            yield held, True

    def _text_pieces(self, file: BinaryIO) -> Iterator[Piece]:
        blocks = _whole_lines(self._decoder.decode_all(file))
        if self._document_per == "file":
            yield from ((block, False) for block in blocks)
            yield "", True
        elif self._document_per == "line":
            for block in blocks:
                *lines, rest = block.split("\n")
                yield from ((line, True) for line in lines)
                if rest:
                    yield rest, False
        else:
            yield from _between_blank_lines(blocks)

    def _json_pieces(self, file: BinaryIO) -> Iterator[Piece]:
        path, number = self.source.path, 0
        while line := file.readline(MAX_RECORD_BYTES + 1):
            number += 1
            if len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
                del line
                while (rest := file.readline(CHUNK_BYTES)) and not rest.endswith(b"\n"):
                    pass
                self.skipped[LONG_RECORD] += 1
                continue
            record = self._decoder.decode(line, final=True)
            if not record.isspace() and record:
                yield from cut_at_whitespace(self._text_of(record, f"{path}:{number}"), CHUNK_BYTES)

    def _text_of(self, line: str, where: str) -> str:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            reason = f" ({error.msg}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
            raise DataError(f"is not JSON{reason}", where=where, hint="one JSON object per line is needed") from error
        if not isinstance(record, dict):
            raise DataError(f"is not a JSON object but {json_type(record)}", where=where, hint="one JSON object per line is needed")
        if self._text_field not in record:
            fields = ", ".join(record) or "none"
            raise DataError(f"has no field {self._text_field!r}", where=where, hint=f"name it with --text-field; its fields are: {fields}")
        text = record[self._text_field]
        if not isinstance(text, str):
            others = ", ".join(name for name, value in record.items() if isinstance(value, str)) or "none"
            what = f"field {self._text_field!r} is not a string but {json_type(text)}"
            raise DataError(what, where=where, hint=f"fields that are strings: {others}")
        return self._decoder.without_surrogates(text)


class _HashedFile(io.RawIOBase):
    """A binary file that hashes and counts what is read from it."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self.num_bytes = 0
        self._file: BinaryIO | None = None

    def open(self, path: Path) -> None:
        self._file = cast(BinaryIO, path.open("rb", buffering=0))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        assert self._file is not None
        view = memoryview(buffer)
        data = self._file.read(len(view))
        view[: len(data)] = data
        self.hash.update(data)
        self.num_bytes += len(data)
        return len(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()


class _Decoder:
    """UTF-8 to text across chunks; bad bytes become U+FFFD and are counted, or are an error that says where they are."""

    def __init__(self, path: Path, *, strict: bool) -> None:
        self.replaced_bytes = 0
        self._path = path
        self._strict = strict
        self._pending = b""
        self._line = 1
        self._column = 1
        self._at_start = True

    def decode_all(self, file: BinaryIO) -> Iterator[str]:
        while chunk := file.read(CHUNK_BYTES):
            yield self.decode(chunk)
        yield self.decode(b"", final=True)

    def decode(self, chunk: bytes, *, final: bool = False) -> str:
        """Decode the next bytes of the file.

        Args:
            chunk: The bytes.
            final: Nothing that belongs to these bytes follows.

        Raises:
            DataError: Some are not UTF-8, and the decoder is strict.
        """
        data = self._pending + chunk
        if self._at_start and data:
            data, self._at_start = data.removeprefix(codecs.BOM_UTF8), False
        try:
            text, used = codecs.utf_8_decode(data, "strict", final)
        except UnicodeDecodeError as error:
            if self._strict:
                self._advance(data[: error.start].decode())
                where = f"{self._path}:{self._line}:{self._column}"
                what = f"byte 0x{data[error.start]:02x} is not UTF-8 (line {self._line}, column {self._column})"
                raise DataError(what, where=where, hint="mend it, or leave out --strict to replace such bytes") from error
            text, used = codecs.utf_8_decode(data, "replace", final)
            num_replacements = text.count("\ufffd") - data[:used].count(b"\xef\xbf\xbd")
            self.replaced_bytes += used - (len(text.encode()) - 3 * num_replacements)
        self._pending = data[used:]
        if self._strict:
            self._advance(text)
        return text

    def without_surrogates(self, text: str) -> str:
        """Replace the halves of surrogate pairs that JSON escapes can hold."""
        try:
            text.encode()
        except UnicodeEncodeError:
            clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            self.replaced_bytes += 2 * sum(0xD800 <= ord(letter) <= 0xDFFF for letter in text)
            return clean
        return text

    def _advance(self, text: str) -> None:
        newlines = text.count("\n")
        self._line += newlines
        self._column = len(text) - text.rfind("\n") if newlines else self._column + len(text)


def cut_at_whitespace(text: str, size: int) -> Iterator[Piece]:
    """Cut a document into pieces of at most `size` characters, after white space where there is some."""
    start = 0
    while len(text) - start > size:
        end = max(text.rfind("\n", start, start + size), text.rfind(" ", start, start + size)) + 1
        end = end if end > start else start + size
        yield text[start:end], False
        start = end
    yield text[start:] if start else text, True


def _whole_lines(chunks: Iterator[str]) -> Iterator[str]:
    """Cut after line ends, which become those of Unix; a line longer than a chunk comes in parts."""
    rest = ""
    for chunk in chunks:
        block = rest + chunk
        end = block.rfind("\n") + 1
        if not end and len(block) >= CHUNK_BYTES:
            end = block.rfind(" ") + 1 or len(block) - block.endswith("\r")
        if end:
            yield block[:end].replace("\r\n", "\n")
        rest = block[end:]
    if rest:
        yield rest


def _between_blank_lines(blocks: Iterator[str]) -> Iterator[Piece]:
    is_open, at_line_start = False, True
    for block in blocks:
        text = block
        if at_line_start and (blank := _BLANK_LINES.match(text)):
            if is_open:
                yield "", True
            is_open, text = False, text[blank.end() :]
        *documents, rest = _END_AT_BLANK_LINES.split(text)
        for document in documents:
            if is_open or (document and not document.isspace()):
                yield document, True
            is_open = False
        if is_open or (rest and not rest.isspace()):
            yield rest, False
            is_open = True
        at_line_start = block.endswith("\n")
    if is_open:
        yield "", True


def _check_head(path: Path, head: bytes) -> None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise DataError("is UTF-16, not UTF-8", where=str(path), hint=f"convert it: iconv -f UTF-16 -t UTF-8 {path.name} > utf8.txt")
    if b"\0" in head:
        raise DataError("is binary, not text", where=str(path), hint="name text or JSON-lines files, plain, .gz or .zst")


def _reason(error: OSError) -> str:
    return (os.strerror(error.errno) if error.errno else str(error)).lower()
