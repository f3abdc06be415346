"""From the bytes of a text file to characters: UTF-8 as it should be, almost is, or is not, and other encodings."""

from __future__ import annotations

import codecs
import io
import math
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO

from pldcli.corpus.addresses import Location
from pldcli.errors import DataError, UsageError
from pldcli.system.input_files import bare_name, compression_of, input_errors, open_content

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = [
    "CHUNK_BYTES",
    "HEAD_BYTES",
    "MANY_BAD_BYTES",
    "MANY_BAD_SHARE",
    "EncodingError",
    "Transcoded",
    "Utf8Decoder",
    "check_encoding",
    "check_text",
    "encoding_of_mark",
    "looks_like",
    "open_text",
]

CHUNK_BYTES = 1 << 20
"""Bytes read at a time."""
HEAD_BYTES = 1 << 13
"""From which a file of text is told."""

MANY_BAD_BYTES, MANY_BAD_SHARE = 100, 0.01
"""So many bytes, and so large a share, that are not UTF-8 are no accident."""
_SAMPLE_BYTES = 1 << 16
"""Of the text around bad bytes, from which the encoding is guessed."""

_MOST_NOISE = 0.4
_USUAL = "cp1252"
"""What Western text that is not UTF-8 mostly is; it holds Latin-1."""

_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
"""Those of UTF-32 first: the mark of UTF-16 is the beginning of one of them."""


class EncodingError(DataError):
    """A file that is in another encoding."""


def check_encoding(name: str) -> str:
    """Return Python's name of an encoding.

    Raises:
        UsageError: There is none of this name that text is written in.
    """
    try:
        "".encode(name)
        codecs.getincrementaldecoder(name)("replace").decode(codecs.BOM_UTF16_LE, True)  # those of domain names replace nothing
        return codecs.lookup(name).name
    except (LookupError, UnicodeError) as error:
        hint = "for example utf-8, utf-16, latin-1, cp1252, cp1251, shift_jis or gb18030"
        raise UsageError(f"no text encoding is called {name!r}", where="--encoding", hint=hint) from error


def encoding_of_mark(head: bytes) -> str | None:
    """Name the encoding that the first bytes of a file announce; None for UTF-8 or no mark."""
    return next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)


def check_text(head: bytes, path: Location, *, hint: str, option: str = "") -> None:
    """Refuse what is no text by how it begins.

    Raises:
        DataError: It is binary, and `hint` says what to name instead; or UTF-16 without its mark, of which `option` can tell.
    """
    if b"\0" not in head:
        return
    if found := _utf16_without_mark(head):
        convert = f"add {option} {found} to `pld prepare-data`, or convert it" if option else _how_to_convert(path, found)
        raise DataError("is UTF-16 without its mark", where=str(path), hint=convert)
    raise DataError("is binary, not text", where=str(path), hint=hint)


def _utf16_without_mark(head: bytes) -> str | None:
    """Name the encoding of Western text of which every other byte is zero."""
    for name, first in (("utf_16_le", 1), ("utf_16_be", 0)):
        high, low = head[first::2], head[1 - first :: 2]
        if low and high.count(0) > 0.5 * len(high) and not low.count(0):
            return name
    return None


@contextmanager
def open_text(path: Path, *, hint: str) -> Iterator[IO[str]]:
    """Open a text file to be held in memory, unpacked and its line ends kept; it is UTF-8, or UTF-16 or UTF-32 with their mark.

    Raises:
        DataError: It is no text (`hint` says what to name instead), in another encoding or damaged, or unpacks to far too much.
    """
    with input_errors(path), open_content(path) as stream:
        head = stream.peek(HEAD_BYTES)[:HEAD_BYTES]
        marked = encoding_of_mark(head)
        if marked is None:
            check_text(head, path, hint=hint)
        try:
            with io.TextIOWrapper(stream, encoding=marked or "utf-8-sig", newline="\n") as file:
                yield file
        except UnicodeDecodeError as error:
            raise _undecodable(path, error) from error


def _undecodable(path: Path, error: UnicodeDecodeError) -> DataError:
    if error.encoding != "utf-8":
        return DataError("is not in the encoding that its byte-order mark says", where=str(path), hint="save it as UTF-8")
    with open_content(path) as stream:
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError as bad:
                found = looks_like((line + stream.read(_SAMPLE_BYTES))[:_SAMPLE_BYTES])
                convert = _how_to_convert(path, found[0] if found else "ISO-8859-1")
                return DataError(f"byte 0x{line[bad.start]:02x} is not UTF-8", where=f"{path}:{number}", hint=convert)
    return DataError("is not UTF-8", where=str(path), hint="convert it")


def _how_to_convert(path: Location, encoding: str) -> str:
    name = encoding.replace("_", "-").replace("16-", "16")  # iconv writes utf-16le
    file, compression = shlex.quote(str(path)), compression_of(path)
    convert = f"{compression} -dc {file} | iconv -f {name} -t UTF-8" if compression else f"iconv -f {name} -t UTF-8 {file}"
    return f"convert the file to UTF-8, for example: {convert} > {shlex.quote(f'utf8{bare_name(path).suffix}')}"


def looks_like(sample: bytes) -> list[str]:
    """Guess the encoding of text that is not UTF-8, by Python's names, the likeliest first; none where nothing fits."""
    from charset_normalizer import from_bytes

    matches = [match for match in from_bytes(sample) if match.encoding not in ("ascii", "utf_8")]
    found = dict.fromkeys(match.encoding for match in matches)
    # Of encodings that make as much sense, the usual one comes first; to the library its accents are noise, and short texts full of it.
    usual = [match.coherence for match in from_bytes(sample, threshold=_MOST_NOISE) if _USUAL in match.could_be_from_charset]
    if usual and max(usual) >= 0.9 * max((match.coherence for match in matches), default=0.0):
        return [_USUAL, *(name for name in found if name != _USUAL)]
    return list(found)


@dataclass
class _Place:
    """Where in a text what has been read so far ends, counted from 1."""

    line: int = 1
    column: int = 1

    def advance(self, text: str) -> None:
        newlines = text.count("\n")
        self.line += newlines
        self.column = len(text) - text.rfind("\n") if newlines else self.column + len(text)


class Utf8Decoder:
    """UTF-8 to text across chunks; bad bytes become U+FFFD and are counted, or are an error.

    Args:
        path: For errors.
        strict: Make any bad byte an error that says where it is.
        lenient: Take any number of them; else so many that the text must be in another encoding are an error.
        num_bytes: Of the file, where they are known: it is judged while reading, as soon as so many of them are bad.
        lines_before: Counts the lines of the file in front of what is decoded, for errors.
        at_start: A byte-order mark may come first, which is no text.
    """

    def __init__(
        self,
        path: Location,
        *,
        strict: bool,
        lenient: bool,
        num_bytes: float = math.inf,
        lines_before: Callable[[], int] = lambda: 0,
        at_start: bool = True,
    ) -> None:
        self._lines_before, self._too_many = lines_before, MANY_BAD_SHARE * num_bytes
        self.replaced_bytes = 0
        self._num_bytes = self._bad_bytes = 0
        self._lenient = lenient
        self._sample = b""
        self._path = path
        self._strict = strict
        self._pending = b""
        self._place = _Place()
        self._at_start = at_start

    def decode_all(self, file: BinaryIO, chunk_bytes: int) -> Iterator[str]:
        """Decode a whole file, in chunks."""
        while chunk := file.read(chunk_bytes):
            yield self.decode(chunk)
        yield self.decode(b"", final=True)

    def decode(self, chunk: bytes, *, final: bool = False) -> str:
        """Decode the next bytes of the file.

        Args:
            chunk: The bytes.
            final: Nothing that belongs to these bytes follows.

        Raises:
            DataError: Some are not UTF-8, and the decoder is strict; or so many that it is no accident.
        """
        data = self._pending + chunk
        self._num_bytes += len(chunk)
        if self._at_start and data:
            data, self._at_start = data.removeprefix(codecs.BOM_UTF8), False
        try:
            text, used = codecs.utf_8_decode(data, "strict", final)
        except UnicodeDecodeError as error:
            if self._strict:
                self._place.advance(data[: error.start].decode())
                line, column = self._lines_before() + self._place.line, self._place.column
                where = f"{self._path}:{line}:{column}"
                what = f"byte 0x{data[error.start]:02x} is not UTF-8 (line {line}, column {column})"
                raise DataError(what, where=where, hint="mend it, or leave out --strict to replace such bytes") from error
            text, used, num_bad = _with_replacements(data, final=final)
            self.replaced_bytes, self._bad_bytes = self.replaced_bytes + num_bad, self._bad_bytes + num_bad
            self._sample = (self._sample + data)[:_SAMPLE_BYTES]
            if self._bad_bytes >= self._too_many:
                self.judge()
        self._pending = data[used:]
        if self._strict:
            self._place.advance(text)
        return text

    def replaced(self, text: bytes) -> str:
        """Decode a text of a file that is not UTF-8 itself; bad bytes are replaced and counted."""
        whole, _, num_bad = _with_replacements(text, final=True)
        self.replaced_bytes += num_bad
        return whole

    def skip_line(self) -> None:
        """Count a line that is not decoded, for errors."""
        self._place = _Place(self._place.line + 1)

    def judge(self) -> None:
        """Refuse what has been read so far if it cannot be UTF-8.

        Raises:
            EncodingError: It cannot.
        """
        share = self.bad_share
        if self._bad_bytes < MANY_BAD_BYTES or share < MANY_BAD_SHARE:
            return
        found = looks_like(self._sample)
        guess = f"; it looks like {' or '.join(found[:2])}" if found else ""
        what = f"is not UTF-8: {share:.1%} of its bytes would have to be replaced{guess}"
        name = found[0] if found else "NAME"
        raise EncodingError(
            what,
            where=str(self._path),
            hint=f"say what it is with `pld prepare-data --encoding {name}`, or convert it; --encoding utf-8 replaces them",
        )

    @property
    def bad_share(self) -> float:
        """Share of the bytes that are not UTF-8; 0 where any number of them is taken."""
        return 0.0 if self._lenient else self._bad_bytes / max(1, self._num_bytes)

    def without_surrogates(self, text: str) -> str:
        """Replace the halves of surrogate pairs that JSON escapes can hold."""
        try:
            for start in range(0, len(text), CHUNK_BYTES):  # of a text in wide characters, all at once takes as much memory again
                text[start : start + CHUNK_BYTES].encode()
        except UnicodeEncodeError:
            clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            self.replaced_bytes += 2 * sum(0xD800 <= ord(letter) <= 0xDFFF for letter in text)
            return clean
        return text


def _with_replacements(data: bytes, *, final: bool) -> tuple[str, int, int]:
    """Decode what is not UTF-8 throughout; return how many bytes were taken, and how many of them replaced, too."""
    text, used = codecs.utf_8_decode(data, "replace", final)
    num_replacements = text.count("\ufffd") - data[:used].count(b"\xef\xbf\xbd")
    return text, used, used - (len(text.encode()) - 3 * num_replacements)


class Transcoded(io.RawIOBase):
    """A file in another encoding as one in UTF-8; what does not belong to it becomes U+FFFD and is counted, or is an error.

    Args:
        file: In that encoding.
        encoding: Python's name.
        path: For errors.
        strict: Make a bad byte an error.
    """

    def __init__(self, file: BinaryIO, encoding: str, path: Location, *, strict: bool) -> None:
        self.num_replaced = 0
        self._file, self._encoding, self._path, self._strict = file, encoding, path, strict
        self._decoder = codecs.getincrementaldecoder(encoding)("strict")
        self._ready, self._ended = b"", False
        self._place = _Place()

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill a buffer with UTF-8; return how many bytes there are, 0 at the end.

        Raises:
            DataError: A byte does not belong to the encoding, and this is strict.
        """
        view = memoryview(buffer)
        while not self._ready and not self._ended:
            chunk = self._file.read(CHUNK_BYTES)
            self._ended = not chunk
            text = self._decoded(chunk)
            if self._strict:
                self._place.advance(text)
            self._ready = text.encode("utf-8", "replace")
        data, self._ready = self._ready[: len(view)], self._ready[len(view) :]
        view[: len(data)] = data
        return len(data)

    def _decoded(self, chunk: bytes) -> str:
        """Decode the next bytes; the last ones where there are none."""
        state = self._decoder.getstate()
        try:
            return self._decoder.decode(chunk, not chunk)
        except UnicodeError as error:
            if self._strict:
                raise self._bad(chunk, state, error) from error
        self._decoder.errors = "replace"
        self._decoder.setstate(state)
        text = self._decoder.decode(chunk, not chunk)
        self._decoder.errors = "strict"
        self.num_replaced += text.count("\ufffd")
        return text

    def _bad(self, chunk: bytes, state: tuple[bytes, int], error: UnicodeError) -> DataError:
        """Say where a chunk holds a byte that does not belong to the encoding."""
        num_good = error.start - len(state[0]) if isinstance(error, UnicodeDecodeError) else 0
        self._decoder.setstate(state)
        self._place.advance(self._decoder.decode(chunk[: max(0, num_good)]))
        line, column = self._place.line, self._place.column
        what = f"is not {self._encoding} throughout (line {line}, column {column})"
        return DataError(what, where=str(self._path), hint="mend it, or leave out --strict to replace such bytes")
