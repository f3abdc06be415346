"""Task files as columns: CSV, TSV, JSON lines, Parquet, Arrow, and what `datasets` saved."""

from __future__ import annotations

import difflib
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pldcli.corpus.decoding import open_text
from pldcli.corpus.delimited import Joined, Row, delimiter_of, is_quoted, misplaced_quote, plain_rows, quoted_rows, without_declaration
from pldcli.errors import DataError, json_type
from pldcli.system.input_files import COLUMNAR, FORMATS, Format, compression_of, ending, format_of
from pldcli.system.json_text import parse_json
from pldcli.task_files import columnar

__all__ = ["ENDINGS", "KNOWN", "UNNAMED", "Table", "did_you_mean", "read_table"]

KNOWN = "known are .csv, .tsv, .jsonl, .json, .parquet, .arrow, or a directory that `datasets` saved"
UNNAMED = "unnamed column "
"""With its number, the name of a column whose heading is empty, but for the first such one."""
ENDINGS = (".txt", *(one for one, kind in FORMATS.items() if kind != "wiki"))
"""Endings of files that `read_table` reads; those of text also compressed."""


@dataclass(frozen=True)
class Table:
    """A file as columns, with the place of each row."""

    path: Path
    columns: dict[str, list[Any]]
    places: Sequence[int]
    """Of each row: its line, or its number from 1."""
    by_line: bool
    """Places are lines."""
    notes: tuple[str, ...] = ()
    headings: tuple[str, ...] = ()
    """The columns that the file has, whether they were kept or not."""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The names of the classes in columns that hold them as numbers, where the file says."""

    def __len__(self) -> int:
        return len(self.places)

    def where(self, row: int) -> str:
        """Return the place of a row, for example `my.csv:17` or `my.parquet: row 3`."""
        return f"{self.path}:{self.places[row]}" if self.by_line else f"{self.path}: row {self.places[row]}"

    def column(self, name: str, *aliases: str) -> list[Any]:
        """Take a column by its name, or by another that it may have.

        Raises:
            DataError: There is none.
        """
        for one in (name, *aliases):
            if one in self.columns:
                return self.columns[one]
        names = self.headings or tuple(self.columns)
        listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
        hint = did_you_mean(name, names)
        raise DataError(f"has no column {name!r}", where=str(self.path), hint=f"{hint}{' ' if hint else ''}its columns are: {listed}")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return `did you mean 'x'?`, or nothing where no name is close; case does not count."""
    by_lower = {one.lower(): one for one in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f"did you mean {by_lower[close[0]]!r}?" if close else ""


def read_table(
    path: Path,
    *,
    columns: Sequence[str] | None = None,
    quoted: bool | None = None,
    skip_broken_rows: bool = False,
    keep: Collection[str] | None = None,
) -> Table:
    """Read a file of rows.

    Args:
        path: The file, or a directory that `Dataset.save_to_disk` wrote.
        columns: Names for a CSV or TSV file without heading; a heading that is there nevertheless counts.
        quoted: Whether CSV or TSV cells may stand in quotes; None: where the file looks like it.
        skip_broken_rows: Leave out rows with a wrong number of cells, and lines without a JSON object, with a note, instead of failing.
        keep: Columns to keep where they are there; None for all.

    Raises:
        DataError: The file is missing, empty, damaged, not UTF-8, or has a row that is not like the others.
    """
    kind = _checked_format(path)
    if kind is None or kind in COLUMNAR:
        found, headings, num_rows, names = columnar.read_columns(path, kind, keep)
        table = Table(path, found, range(1, num_rows + 1), by_line=False, headings=headings, class_names=names)
    elif kind == "json":
        table = _read_json(path, keep, skip_broken_rows)
    else:
        table = _read_delimited(path, columns, quoted, skip_broken_rows, keep)
    if not len(table):
        what = "has a heading but no rows" if table.headings else "has no rows"
        raise DataError(what, where=str(path), hint="; ".join(table.notes) or "name a file with examples in it")
    return table


def _checked_format(path: Path) -> Format | None:
    """Tell the format of a file that has rows; None of a directory that `datasets` saved."""
    if not path.exists():
        raise DataError("no such file", where=str(path))
    if path.is_dir():
        if parts := columnar.splits_of(path):
            names, name = ", ".join(part.name for part in parts), shlex.quote(str(parts[0]))
            raise DataError(f"holds several splits: {names}", where=str(path), hint=f"name one of them, such as {name}")
        if not columnar.is_saved_dataset(path):
            raise DataError("is a directory that `datasets` did not save", where=str(path), hint="name a file in it")
        return None
    if not path.stat().st_size:
        raise DataError("is empty", where=str(path), hint="name a file with examples in it")
    compression = compression_of(path)
    kind = format_of(path, compression)
    if (kind in ("text", "wiki") and ending(path) != ".txt") or (compression and kind in COLUMNAR):
        raise DataError("has an ending that is not known", where=str(path), hint=KNOWN)
    return kind


def _read_delimited(
    path: Path, columns: Sequence[str] | None, quoted: bool | None, skip_broken_rows: bool, keep: Collection[str] | None
) -> Table:
    with open_text(path, hint=KNOWN) as file:
        delimiter = delimiter_of(file.readline(), ending(path))
    notes: tuple[str, ...] = ()
    if quoted is None:
        quoted, notes = _find_quoting(path, delimiter)
    with _open_rows(path) as lines:
        joined: list[Joined] = []
        rows = quoted_rows(lines, delimiter, path, joined) if quoted else plain_rows(lines, delimiter)
        first = next(rows, None)
        if first is None:
            raise DataError("is empty", where=str(path), hint="name a file with examples in it")
        if not quoted and any("\r" in cell for cell in first[1]):
            raise DataError("its lines end in carriage returns alone", where=str(path), hint="write line feeds, as Linux and Windows do")
        headless = columns is not None and len(set(columns) & {cell.strip() for cell in first[1]}) < 2
        headings = tuple(columns) if columns is not None and headless else _headings(first, path)
        pending = [first] if headless else []
        table = _collect(path, headings, pending, rows, skip_broken_rows, keep)
        return replace(table, notes=(*notes, *table.notes, *_joined_note(table, joined)))


@contextmanager
def _open_rows(path: Path) -> Iterator[Iterator[str]]:
    """Open a file of rows, without a line that only tells the delimiter."""
    with open_text(path, hint=KNOWN) as file:
        yield without_declaration(file)


def _find_quoting(path: Path, delimiter: str) -> tuple[bool, tuple[str, ...]]:
    """Find whether cells may stand in quotes; where a `.csv` is not what a writer of CSV writes, say that quotes are characters.

    Raises:
        DataError: It is not, and with quotes as characters rows have different numbers of columns.
    """
    with _open_rows(path) as lines:
        if delimiter == "\t":
            return is_quoted(lines, delimiter), ()
        line = misplaced_quote(lines, delimiter)
    if line is None:
        return True, ()
    with _open_rows(path) as lines:
        widths = {len(cells) for _, cells in plain_rows(lines, delimiter)}
    if len(widths) > 1:
        what = "a quote that opens here closes in the middle of a cell"
        raise DataError(
            what, where=f"{path}:{line}", hint='write a quote within a cell twice, and the cell in quotes: "so ""good"", it was"'
        )
    return False, (f"{path}: quotes are read as characters of the text: the one that opens in line {line} closes in the middle of a cell",)


def _headings(first: Row, path: Path) -> tuple[str, ...]:
    given = [cell.strip() for cell in first[1]]
    # Spreadsheets leave columns without a heading behind the last one; nobody asks for them.
    names = tuple(name or (f"{UNNAMED}{place}" if "" in given[: place - 1] else "") for place, name in enumerate(given, 1))
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"the heading has {name!r} twice", where=f"{path}:{first[0]}", hint="give each column its own name")
    return names


def _collect(
    path: Path, headings: tuple[str, ...], pending: list[Row], rows: Iterator[Row], skip_broken_rows: bool, keep: Collection[str] | None
) -> Table:
    width = len(headings)
    chosen = [number for number, name in enumerate(headings) if keep is None or name in keep]
    cells_of: list[list[str]] = [[] for _ in chosen]
    appends = [(cells.append, number) for cells, number in zip(cells_of, chosen, strict=True)]
    places: list[int] = []
    broken: list[int] = []
    for some in (pending, rows):
        for line, cells in some:
            if len(cells) != width:
                if not skip_broken_rows:
                    raise _wrong_width(f"{path}:{line}", len(cells), width)
                broken.append(line)
                continue
            places.append(line)
            for append, number in appends:
                append(cells[number])
    columns: dict[str, list[Any]] = {headings[number]: cells for number, cells in zip(chosen, cells_of, strict=True)}
    return Table(path, columns, places, by_line=True, notes=_broken_note(path, broken, "with a wrong number of columns"), headings=headings)


def _wrong_width(where: str, found: int, wanted: int) -> DataError:
    what = f"has {found} {'column' if found == 1 else 'columns'}, the heading has {wanted}"
    hint = "is the file cut short?" if found < wanted else "does a text hold the character that separates columns?"
    return DataError(what, where=where, hint=hint)


def _broken_note(path: Path, broken: list[int], what: str, unit: str = "line") -> tuple[str, ...]:
    if not broken:
        return ()
    rows = "1 row" if len(broken) == 1 else f"{len(broken):,} rows"
    return (f"{path}: left out {rows} {what} (the first is {unit} {broken[0]})",)


def _joined_note(table: Table, joined: list[Joined]) -> tuple[str, ...]:
    """Tell of rows whose every line looks like a row: in some column each has a number, or what that column holds elsewhere."""
    suspects = [(line, rows) for line, rows in joined if len(rows[0]) == len(table.headings)]
    known = {place: set(table.columns[name]) for place, name in enumerate(table.headings) if suspects and name in table.columns}

    def fits(cell: str, place: int) -> bool:
        return bool(cell) and (cell in known[place] or cell.replace(".", "", 1).isdecimal())

    found = [line for line, rows in suspects if any(all(fits(row[place].strip(), place) for row in rows) for place in known)]
    if not found:
        return ()
    count = "1 row has" if len(found) == 1 else f"{len(found):,} rows have"
    what = f"{count} several lines that look like rows themselves (the first begins in line {found[0]})"
    hint = 'a quote that is part of the text is written twice, and the cell in quotes: "a 5"" pipe"'
    return (f"{table.path}: {what}; {hint}",)


def _read_json(path: Path, keep: Collection[str] | None, skip_broken_rows: bool) -> Table:
    with open_text(path, hint=KNOWN) as file:
        is_list = next((line.lstrip()[0] for line in file if line.strip()), "") == "["
    columns: dict[str, list[Any]] = {}
    headings: dict[str, None] = {}
    places: list[int] = []
    broken: list[int] = []
    with open_text(path, hint=KNOWN) as file:
        given = parse_json(file.read(), str(path)) if is_list else file
        for place, value in enumerate(given, 1):
            if not is_list and not value.strip():
                continue
            where = f"{path}: row {place}" if is_list else f"{path}:{place}"
            try:
                record = _record(value if is_list else parse_json(value.rstrip(), where), where)
            except DataError:
                if not skip_broken_rows:
                    raise
                broken.append(place)
                continue
            if record.keys() != headings.keys():
                headings.update(dict.fromkeys(record))
                for name in record:
                    if name not in columns and (keep is None or name in keep):
                        columns[name] = [None] * len(places)
            for name, values in columns.items():
                values.append(record.get(name))
            places.append(place)
    notes = _broken_note(path, broken, "without a JSON object", "row" if is_list else "line")
    return Table(path, columns, places, by_line=not is_list, notes=notes, headings=tuple(headings))


def _record(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        what = f"is not a JSON object but {json_type(value)}"
        raise DataError(what, where=where, hint='an example is an object, for example {"text": "so good", "label": 1}')
    return value
