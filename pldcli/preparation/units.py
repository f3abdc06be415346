"""A corpus cut into units of work: runs of whole documents of about equal size, whoever does them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, BinaryIO

from pldcli.corpus.addresses import Location
from pldcli.corpus.decoding import CHUNK_BYTES, encoding_of_mark
from pldcli.corpus.reader import skip_line
from pldcli.corpus.sources import Source
from pldcli.corpus.tables import row_group_starts

__all__ = ["Slice", "Unit", "cut", "unit_bytes"]

_LEAST_BYTES = 4 << 20
_MOST_UNITS = 1024


@dataclass(frozen=True)
class Slice:
    """Whole documents of a file that follow each other."""

    source: int
    """Number of the file."""
    span: tuple[int, int] | None
    """The bytes that hold them; None for all of the file."""
    num_bytes: int


@dataclass(frozen=True)
class Unit:
    """What a worker reads at a time: slices that follow each other, of files that count alike."""

    number: int
    slices: tuple[Slice, ...]

    @property
    def num_bytes(self) -> int:
        """Count the bytes of its slices."""
        return sum(one.num_bytes for one in self.slices)


def unit_bytes(num_bytes: int) -> int:
    """Return the size of units of a corpus of so many bytes: enough of them for many workers, and not too many shards."""
    size = _LEAST_BYTES
    while num_bytes > _MOST_UNITS * size:
        size *= 2
    return size


def cut(sources: Sequence[Source], reading: Mapping[str, Any], size: int) -> list[Unit]:
    """Cut a corpus into units of about `size` bytes; only the files and how they are read decide where.

    Args:
        sources: The files.
        reading: Arguments of `Reader`.
        size: Of a unit; a document that is larger makes its own larger, and so does a file that can only be read from its begin.
    """
    units: list[Unit] = []
    slices: list[Slice] = []
    held = 0

    def end_unit() -> None:
        nonlocal held
        if slices:
            units.append(Unit(len(units), tuple(slices)))
        slices.clear()
        held = 0

    for number, source in enumerate(sources):
        if number and source.weight != sources[number - 1].weight:
            end_unit()
        for one in _slices(number, source, reading, size):
            slices.append(one)
            held += one.num_bytes
            if held >= size:
                end_unit()
    end_unit()
    return units


def _slices(number: int, source: Source, reading: Mapping[str, Any], size: int) -> list[Slice]:
    try:
        inner = list(_inner_edges(source, reading, size))
    except OSError:
        inner = []  # reading it will say why
    if not inner:
        return [Slice(number, None, source.num_bytes)]
    return [Slice(number, (start, stop), stop - start) for start, stop in pairwise([0, *inner, source.num_bytes])]


def _inner_edges(source: Source, reading: Mapping[str, Any], size: int) -> Iterator[int]:
    """Find the places at which a file is cut."""
    if source.num_bytes < 2 * size or not _is_divisible(source, reading):
        return
    if source.format == "parquet":
        yield from _far_apart(row_group_starts(source.path), source.num_bytes, size)
    else:
        yield from _edges(source, size, is_by_line=source.format == "json" or reading["document_per"] == "line")


def _is_divisible(source: Source, reading: Mapping[str, Any]) -> bool:
    """Return whether a file can be read from the middle: it has row groups, or its line ends are bytes, and documents end at them."""
    if source.format == "parquet":
        return True
    if source.compression or source.format not in ("text", "json") or reading["encoding"] not in (None, "utf-8"):
        return False
    return (source.format == "json" or reading["document_per"] != "file") and _has_plain_line_ends(source.path)


def _has_plain_line_ends(path: Location) -> bool:
    with path.open("rb") as file:
        return encoding_of_mark(file.read(4)) is None


def _edges(source: Source, size: int, *, is_by_line: bool) -> Iterator[int]:
    """Find places between documents, about `size` bytes apart."""
    wanted = size
    with source.path.open("rb") as file:
        while wanted < source.num_bytes:
            file.seek(wanted)
            skip_line(file)
            if not is_by_line:
                _skip_to_blank_line(file)
            if (edge := file.tell()) >= source.num_bytes:
                return
            yield edge
            wanted = edge + size


def _far_apart(places: Sequence[int], num_bytes: int, size: int) -> Iterator[int]:
    """Choose of the places where row groups begin such that lie `size` bytes or more apart, and from the end of the file."""
    before = 0
    for place in places:
        if place - before >= size and num_bytes - place >= size:
            yield place
            before = place


def _skip_to_blank_line(file: BinaryIO) -> None:
    """Go behind the next line that has nothing but white space."""
    is_blank = True
    while part := file.readline(CHUNK_BYTES):
        is_blank = is_blank and not part.strip()
        if part.endswith(b"\n"):
            if is_blank:
                return
            is_blank = True
