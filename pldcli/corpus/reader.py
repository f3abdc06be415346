"""Stream documents out of text, JSON-lines and table files and exports of wikis, plain or compressed, in little memory.

A document comes as a sequence of pieces `(text, last)` of about a megabyte at most, cut at whitespace where there is
some, so that a single line of any length passes through. White space around a document is dropped, so that its text does
not depend on where in the file a piece was cut.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

from pldcli.choices import DocumentPer
from pldcli.console.progress import Progress
from pldcli.corpus.decoding import CHUNK_BYTES, HEAD_BYTES, EncodingError, Transcoded, Utf8Decoder, check_text, encoding_of_mark
from pldcli.corpus.hashed_file import HashedFile
from pldcli.corpus.sources import Source
from pldcli.corpus.tables import LONG_CELL, NoTextError, UndecodedText, columnar_texts, csv_texts
from pldcli.corpus.wikipedia import article_texts
from pldcli.errors import DataError, json_type
from pldcli.system.input_files import COLUMNAR, input_errors, unpacked
from pldcli.system.json_text import from_json

__all__ = ["UNSPACED", "WORD", "Corpus", "Piece", "Reader", "count_words", "cut_at_whitespace", "skip_line"]

Piece = tuple[str, bool]
"""A part of a document's text, and whether it is the last one."""

MAX_RECORD_BYTES = 128 << 20
"""What would take more memory than this, as one string, is skipped: records are held whole, and twice while they are read."""
_WIDEST = 4
"""Bytes of a character in memory, where one of a string needs as many."""
_CSV_WIDEST = 2 * _WIDEST
"""The csv module holds a cell with four bytes a character beside the string that it makes."""

EMPTY_DOCUMENT = "empty document"
NUL = "NUL character"
LONG_RECORD = "record too long"

UNSPACED = r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"
WORD = re.compile(rf"{UNSPACED}|\w+")
"""Of scripts that have no spaces, each letter is a word."""
_BLANK_LINES = re.compile(r"(?:[^\S\n]*\n)+")
_END_AT_BLANK_LINES = re.compile(r"\n(?:[^\S\n]*\n)+")
_MAX_CARRIED_CHARACTERS = 4096


class Reader:
    """One pass over one source, or over a slice of it.

    Args:
        source: The file.
        span: The bytes to read; None for all. Of a plain file of text or JSON lines they hold whole documents, of a Parquet file whole row
            groups.
        document_per: What ends a document in a text file.
        text_field: The field of a JSON object that holds the text.
        encoding: Of the file; None for UTF-8, or what its first bytes announce, and an error where it is clearly neither.
        strict: Make a byte that does not belong to the encoding an error, instead of replacing and counting it.
        skip_bad: Leave out lines of a JSON-lines file that hold no text, and count them by cause, instead of making them an error.
    """

    def __init__(
        self,
        source: Source,
        *,
        span: tuple[int, int] | None = None,
        document_per: DocumentPer = "blank-line",
        text_field: str = "text",
        encoding: str | None = None,
        strict: bool = False,
        skip_bad: bool = False,
    ) -> None:
        self.source = source
        self._span = span or (0, source.num_bytes)
        self.encoding = encoding
        """What it is, once reading has begun."""
        self.skipped: Counter[str] = Counter()
        self._document_per = document_per
        self._text_field = text_field
        self._raw = HashedFile(None if span is None else span[1] - span[0])
        num_bytes = math.inf if source.compression else source.num_bytes
        told: Any = {"strict": strict, "lenient": encoding is not None, "num_bytes": num_bytes}
        self._decoder = Utf8Decoder(source.path, **told, lines_before=lambda: self._lines_before, at_start=self._span[0] == 0)
        self._transcoded: Transcoded | None = None
        self._strict, self._skip_bad, self._is_slice = strict, skip_bad, span is not None

    @property
    def raw_bytes(self) -> int:
        """Bytes of the file read so far."""
        return self._raw.num_bytes

    @property
    def sha256(self) -> str:
        """Hash of the bytes read so far: of the file, after the last piece."""
        return self._raw.hash.hexdigest()

    @property
    def replaced_share(self) -> float:
        """Share of the bytes so far that are not UTF-8, where nobody said that they are."""
        return self._decoder.bad_share

    @property
    def replaced_bytes(self) -> int:
        """Bytes that do not belong to the encoding so far."""
        return self._decoder.replaced_bytes + (self._transcoded.num_replaced if self._transcoded else 0)

    @cached_property
    def _lines_before(self) -> int:
        """Count the lines in front of the slice, for errors."""
        num_lines, left = 0, self._span[0]
        with self.source.path.open("rb") as file:
            while left and (chunk := file.read(min(left, CHUNK_BYTES))):
                num_lines, left = num_lines + chunk.count(b"\n"), left - len(chunk)
        return num_lines

    def readable_pieces(self) -> Iterator[Piece]:
        """Stream what can be read: as `pieces`, but where bad lines are left out, the rest of a file that ends in an error is, too."""
        is_open = False
        try:
            for text, last in self.pieces():
                is_open = not last
                yield text, last
        except DataError as error:
            # Of a file in another encoding, what was read is no better than the rest.
            if self._strict or not self._skip_bad or isinstance(error, EncodingError):
                raise
            self.skipped[f"file that {re.split(':| [(]', error.what)[0]}"] += 1
            if is_open:
                yield "", True

    def pieces(self) -> Iterator[Piece]:
        """Stream the documents, in the order of the file.

        Raises:
            DataError: The file cannot be read, is binary, truncated or damaged, or holds a line that is not what it should be.
        """
        path = self.source.path
        with input_errors(path):
            self._raw.open(path, self._span[0])
            with self._raw, self._raw.hashed_whole(after_errors=self._skip_bad):
                if self.source.format in COLUMNAR:
                    told: Any = {
                        "is_parquet": self.source.format == "parquet",
                        "span": self._span,
                        "most_bytes": MAX_RECORD_BYTES // _WIDEST,
                    }
                    rows = columnar_texts(path, field=self._text_field, **told)
                    yield from self._trimmed(self._row_pieces(rows))
                    return
                file = unpacked(self._raw, self.source.compression, path, buffer_bytes=CHUNK_BYTES)
                is_beginning = self._span[0] == 0
                marked = encoding_of_mark(file.peek(4)[:4]) if is_beginning else None
                if marked and not (self.encoding or marked).startswith(marked):
                    raise DataError(f"is {marked.upper()}, as its mark says", where=str(path), hint="leave out --encoding")
                self.encoding = self.encoding or marked or "utf-8"
                if self.encoding != "utf-8":
                    self._transcoded = Transcoded(file, self.encoding, path, strict=self._strict)
                    file = io.BufferedReader(self._transcoded, CHUNK_BYTES)
                if is_beginning:
                    hint = "name text or JSON-lines files, plain or compressed"
                    check_text(file.peek(HEAD_BYTES)[:HEAD_BYTES], path, hint=hint, option="--encoding")
                read = {"json": self._json_pieces, "text": self._text_pieces, "wiki": self._wiki_pieces}
                pieces = read.get(self.source.format, self._csv_pieces)
                yield from self._trimmed(pieces(file))
                if not self._is_slice:  # a slice says nothing of the file
                    self._decoder.judge()

    def _trimmed(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """Drop NUL characters, the white space around each document, and documents that hold nothing else."""
        begun, held, held_space = False, "", ""
        for piece, last in pieces:
            text = piece
            if num_nul := piece.count("\0"):
                self.skipped[NUL] += num_nul
                text = piece.replace("\0", "")
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
        blocks = _whole_lines(self._decoder.decode_all(file, CHUNK_BYTES))
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
        number = 0
        while line := file.readline(MAX_RECORD_BYTES + 1):
            number += 1
            if _may_fill_memory(line):
                is_cut = not line.endswith(b"\n")
                del line
                if is_cut:
                    skip_line(file)
                self._decoder.skip_line()
                self.skipped[LONG_RECORD] += 1
                continue
            record = self._decoder.decode(line, final=True)
            del line  # it may be large, and the record four times as large
            if record.isspace() or not record:
                continue
            try:
                text = self._text_of(record)
            except NoTextError as bad:
                if not self._skip_bad:
                    raise bad.at(f"{self.source.path}:{self._lines_before + number}") from bad.__cause__
                self.skipped[bad.cause] += 1
            else:
                yield from cut_at_whitespace(text, CHUNK_BYTES)

    def _csv_pieces(self, file: BinaryIO) -> Iterator[Piece]:
        most_characters = MAX_RECORD_BYTES // _CSV_WIDEST
        lines = _lines(_whole_lines(self._decoder.decode_all(file, CHUNK_BYTES)), most_characters)
        is_tsv = self.source.format == "tsv"
        yield from self._row_pieces(
            csv_texts(lines, self.source.path, field=self._text_field, is_tsv=is_tsv, most_characters=most_characters)
        )

    def _wiki_pieces(self, file: BinaryIO) -> Iterator[Piece]:
        chunks = self._decoder.decode_all(file, CHUNK_BYTES)
        for text, cause in article_texts(chunks, self.source.path, most_characters=MAX_RECORD_BYTES // _WIDEST):
            if cause:
                self.skipped[cause] += 1
            else:
                yield from cut_at_whitespace(text, CHUNK_BYTES)

    def _row_pieces(self, rows: Iterator[tuple[str, Any]]) -> Iterator[Piece]:
        for where, value in rows:
            if value is LONG_CELL:
                self.skipped[LONG_RECORD] += 1
                continue
            try:
                text = self._cell(value)
            except NoTextError as bad:
                if not self._skip_bad:
                    raise bad.at(where) from None
                self.skipped[bad.cause] += 1
            else:
                yield from cut_at_whitespace(text, CHUNK_BYTES)

    def _cell(self, value: Any) -> str:
        if isinstance(value, NoTextError):
            raise value
        if isinstance(value, UndecodedText):
            if self._strict:
                raise NoTextError("text that is not UTF-8", "holds text that is not UTF-8", hint="mend it, or leave out --strict")
            return self._decoder.replaced(value)
        if not isinstance(value, str):
            field, what = self._text_field, "nothing" if value is None else json_type(value)
            raise NoTextError(f"{field!r} that is {what}", f"column {field!r} holds {what}, not a text", hint="mend it")
        return self._sound(value)

    def _text_of(self, line: str) -> str:
        one_object = "one JSON object per line is needed"
        try:
            record = from_json(line)
        except ValueError as error:
            reason = f" ({error.msg}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
            raise NoTextError("line that is not JSON", f"is not JSON{reason}", hint=one_object) from error
        if not isinstance(record, dict):
            what = f"is not a JSON object but {json_type(record)}"
            raise NoTextError("line that is no JSON object", what, hint=one_object)
        field = self._text_field
        if field not in record:
            hint = f"name it with --text-field; its fields are: {', '.join(record) or 'none'}"
            raise NoTextError(f"line without a field {field!r}", f"has no field {field!r}", hint=hint)
        text = record[field]
        if not isinstance(text, str):
            others = ", ".join(name for name, value in record.items() if isinstance(value, str)) or "none"
            what = f"field {field!r} is not a string but {json_type(text)}"
            raise NoTextError(f"{field!r} that is {json_type(text)}", what, hint=f"fields that are strings: {others}")
        return self._sound(text)

    def _sound(self, text: str) -> str:
        """Replace halves of surrogate pairs, which escapes of JSON can hold, or refuse them."""
        sound = self._decoder.without_surrogates(text)
        if self._strict and sound is not text:
            raise NoTextError("text with half of a surrogate pair", "half of a surrogate pair is no character", hint="mend it")
        return sound


@dataclass(frozen=True)
class Corpus:
    """Sources, and how they are read."""

    sources: list[Source]
    reading: Mapping[str, Any]
    """Arguments of `Reader`."""
    quiet: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of all files."""
        return sum(source.num_bytes for source in self.sources)

    def pieces(self, description: str, *, done: Callable[[Source, Reader], None]) -> Generator[Piece, None, None]:
        """Read everything once, and call `done` at the end of each source."""
        earlier = 0
        with Progress(description, total=self.num_bytes, unit="bytes", quiet=self.quiet) as progress:
            for source in self.sources:
                reader = Reader(source, **self.reading)
                for piece in reader.pieces():
                    yield piece
                    progress.update(earlier + reader.raw_bytes)
                earlier += source.num_bytes
                done(source, reader)


def _may_fill_memory(line: bytes) -> bool:
    """Return whether a record may take more memory than a string is given: only long ones are looked through."""
    if len(line) <= MAX_RECORD_BYTES // _WIDEST:
        return False
    return len(line) > MAX_RECORD_BYTES or not line.isascii() or b"\\u" in line


def skip_line(file: BinaryIO) -> None:
    """Go behind the end of the line, however long it is."""
    while (part := file.readline(CHUNK_BYTES)) and not part.endswith(b"\n"):
        pass


def count_words(text: str) -> int:
    """Count what stands between white space."""
    return len(text.split())


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
            yield _unix_ends(block[:end])
        rest = block[end:]
    if rest:
        yield _unix_ends(rest)


def _unix_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _lines(blocks: Iterator[str], most_characters: int) -> Iterator[str]:
    """Part blocks into lines with their ends, and put together a line that comes in parts, up to the first character that is too many."""
    begun = ""
    for block in blocks:
        *whole, rest = (begun + block).split("\n")
        yield from (f"{line}\n" for line in whole)
        begun = rest[: most_characters + 1]
    if begun:
        yield begun


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
