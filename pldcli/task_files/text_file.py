"""Text files of tasks, opened and parsed: what can be wrong with their bytes becomes one line."""

from __future__ import annotations

import io
import json
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pldcli.corpus.decoding import encoding_of_mark, looks_like
from pldcli.errors import DataError, reason_of
from pldcli.system.unpacking import PACKED, open_packed

__all__ = ["FORMATS", "open_text", "parse_json"]

FORMATS = ".csv, .tsv, .jsonl, .json, .parquet, .arrow, or a directory that `datasets` saved"
_HEAD_BYTES = 4096
_SAMPLE_BYTES = 1 << 16
"""From the first byte that is not UTF-8 on; the encoding is guessed from them."""


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a text file, its line ends kept, and turn what can be wrong with its bytes into one line.

    It is UTF-8, or UTF-16 or UTF-32 with their mark, packed if its ending says so.

    Raises:
        DataError: It cannot be read, is in another encoding, is not packed as its name says, or unpacks to far too much.
    """
    try:
        with path.open("rb") as raw:
            stream = open_packed(path, raw) if path.suffix.lower() in PACKED else raw
            head = stream.peek(_HEAD_BYTES)[:_HEAD_BYTES]
            marked = encoding_of_mark(head)
            if marked is None and b"\0" in head:
                raise DataError("is binary, not text", where=str(path), hint=f"known are {FORMATS}")
            with io.TextIOWrapper(stream, encoding=marked or "utf-8-sig", newline="\n") as file:
                yield file
    except UnicodeDecodeError as error:
        raise _undecodable(path, error) from error
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path) from error
    except FileNotFoundError as error:
        raise DataError("no such file", where=str(path)) from error
    except OSError as error:
        if error.errno is None:
            raise _damaged(path) from error
        raise DataError(f"cannot be read ({reason_of(error)})", where=str(path)) from error


def parse_json(text: str, where: str, *, hint: str = "one object per line, or one list of objects, is needed") -> Any:
    """Read JSON.

    Raises:
        DataError: It is none; `hint` says what to do.
    """
    try:
        if "\\ud" in text or "\\uD" in text:
            # Halves of surrogate pairs, which an escape can hold, are no text.
            return json.loads(text, object_pairs_hook=_without_surrogates)
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error).partition("\n")[0]
        raise DataError(f"is not JSON ({reason})", where=where, hint=hint) from error


def _without_surrogates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: _mended(value) for name, value in pairs}


def _mended(value: Any) -> Any:
    if isinstance(value, list):
        return [_mended(one) for one in value]
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(value, str) else value


def _damaged(path: Path) -> DataError:
    return DataError("is truncated or damaged", where=str(path), hint="compress or copy it again")


def _undecodable(path: Path, error: UnicodeDecodeError) -> DataError:
    if error.encoding != "utf-8":
        return DataError("is not in the encoding that its byte-order mark says", where=str(path), hint="save it as UTF-8")
    with path.open("rb") as raw:
        stream = open_packed(path, raw) if path.suffix.lower() in PACKED else raw
        for number, line in enumerate(stream, 1):
            try:
                line.decode()
            except UnicodeDecodeError as bad:
                found = looks_like((line + stream.read(_SAMPLE_BYTES))[:_SAMPLE_BYTES])
                name = found[0].replace("_", "-") if found else "ISO-8859-1"
                convert = f"convert the file to UTF-8, for example: iconv -f {name} -t UTF-8 {path.name} > utf8{path.suffix}"
                return DataError(f"byte 0x{line[bad.start]:02x} is not UTF-8", where=f"{path}:{number}", hint=convert)
    return DataError("is not UTF-8", where=str(path), hint="convert it")
