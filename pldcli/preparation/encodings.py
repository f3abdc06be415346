"""Files that are not UTF-8: large ones, of which a unit sees a part, and small ones, each of which alone could be an accident."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pldcli.corpus.addresses import Address
from pldcli.corpus.decoding import MANY_BAD_BYTES, MANY_BAD_SHARE, Utf8Decoder, looks_like
from pldcli.corpus.sources import Source
from pldcli.errors import DataError
from pldcli.preparation.units import Unit
from pldcli.system.input_files import input_errors

__all__ = ["check_encodings", "check_throughout"]

_PLACES, _PLACE_BYTES = 32, 1 << 14
_GUESSED_FROM_FILES, _GUESSED_FROM_BYTES, _BEFORE_BYTES = 20, 1 << 14, 100


def check_throughout(source: Source) -> None:
    """Refuse a file that is not UTF-8 at places all over it, so that not all of it has to be read before that is said.

    Args:
        source: A file of which a part is not UTF-8.

    Raises:
        EncodingError: It is not UTF-8, and by so much that these places are no accident.
    """
    decoder = Utf8Decoder(source.path, strict=False, lenient=False)
    for chunk in _places(source):
        decoder.decode(chunk, final=True)
    if decoder.bad_share >= 2 * MANY_BAD_SHARE:
        decoder.judge()


def check_encodings(sources: Sequence[Source], units: Sequence[Unit], scans: Iterable[Any]) -> None:
    """Refuse files that are not UTF-8.

    Args:
        sources: The files.
        units: Of them.
        scans: What reading each unit came to.

    Raises:
        DataError: There are many bad bytes in such files; the first one is named.
    """
    bad_bytes, num_bytes, replaced = defaultdict[int, float](float), Counter[int](), Counter[int]()
    for unit, scan in zip(units, scans, strict=True):
        for one, part in zip(unit.slices, scan.slices, strict=True):
            bad_bytes[one.source] += part["replaced_share"] * part["bytes"]
            num_bytes[one.source] += part["bytes"]
            replaced[one.source] += part["replaced"]
    bad = [number for number in num_bytes if bad_bytes[number] and bad_bytes[number] >= MANY_BAD_SHARE * num_bytes[number]]
    if sum(replaced[number] for number in bad) < MANY_BAD_BYTES:
        return
    found = looks_like(b"".join(_sample(sources[number]) for number in bad[:_GUESSED_FROM_FILES]))
    looks, what, it = ("it looks", "it is", "it") if len(bad) == 1 else ("they look", "they are", "them")
    files = {1: "", 2: ", and another file is not"}.get(len(bad), f", and {len(bad) - 1:,} more files are not")
    guess = f"; {looks} like {found[0]}" if found else ""
    name = found[0] if found else "NAME"
    hint = f"say what {what} with `pld prepare-data --encoding {name}`, or convert {it}; --encoding utf-8 replaces"
    raise DataError(f"is not UTF-8{files}{guess}", where=str(sources[bad[0]].path), hint=hint)


def _places(source: Source) -> Iterator[bytes]:
    """Read lines here and there of a file, and a small one whole."""
    if source.num_bytes <= _PLACES * _PLACE_BYTES:
        with input_errors(source.path), source.path.open("rb") as file:
            yield file.read()
        return
    for number in range(_PLACES):
        with input_errors(source.path), source.path.open("rb") as file:
            file.seek(source.num_bytes * number // _PLACES)
            chunk = file.read(_PLACE_BYTES)
        yield chunk[chunk.find(b"\n") + 1 : chunk.rfind(b"\n") + 1] or chunk


def _sample(source: Source) -> bytes:
    """Read what is not UTF-8 of a file, and what stands behind it."""
    sample = b""
    for chunk in () if isinstance(source.path, Address) or source.compression else _places(source):
        try:
            chunk.decode()
        except UnicodeDecodeError as error:
            sample += chunk[max(0, error.start - _BEFORE_BYTES) :]
    return sample[:_GUESSED_FROM_BYTES]
