"""Text files of tasks, opened and parsed: what can be wrong with their bytes becomes one line."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pldcli.errors import DataError, reason_of
from pldcli.system.unpacking import open_gzip

__all__ = ["FORMATS", "open_text", "parse_json"]

FORMATS = ".csv, .tsv, .jsonl, .json, .parquet, .arrow, or a directory that `datasets` saved"


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a text file, its line ends kept, and turn what can be wrong with its bytes into one line.

    Raises:
        DataError: It cannot be read, is not UTF-8, or is not the gzip file that its name says, or one that unpacks to far too much.
    """
    try:
        with path.open("rb") as raw:
            stream = open_gzip(path, raw) if path.suffix.lower() == ".gz" else raw
            _check_head(path, stream.peek(4096)[:4096])
            with io.TextIOWrapper(stream, encoding="utf-8-sig", newline="\n") as file:
                yield file
    except UnicodeDecodeError as error:
        raise _not_utf8(path) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError("is truncated or damaged", where=str(path), hint="compress or copy it again") from error
    except FileNotFoundError as error:
        raise DataError("no such file", where=str(path)) from error
    except OSError as error:
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


def _check_head(path: Path, head: bytes) -> None:
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        hint = f"convert it: iconv -f UTF-16 -t UTF-8 {path.name} > utf8{path.suffix}"
        raise DataError("is UTF-16, not UTF-8", where=str(path), hint=hint)
    if b"\0" in head:
        raise DataError("is binary, not text", where=str(path), hint=f"known are {FORMATS}")


def _not_utf8(path: Path) -> DataError:
    with path.open("rb") as raw:
        for number, line in enumerate(open_gzip(path, raw) if path.suffix.lower() == ".gz" else raw, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                convert = f"convert the file to UTF-8, for example: iconv -f ISO-8859-1 -t UTF-8 {path.name} > utf8{path.suffix}"
                return DataError(f"byte 0x{line[error.start]:02x} is not UTF-8", where=f"{path}:{number}", hint=convert)
    return DataError("is not UTF-8", where=str(path), hint="convert it")
