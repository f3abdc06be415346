"""Runs as one compressed CSV: a row per logged step of each run, to keep beside code and to compare again."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pldcli import presets
from pldcli.comparison.runs import SPENT, Run
from pldcli.config import flatten
from pldcli.console.section import csv_text
from pldcli.errors import DataError, PldError
from pldcli.runs.metrics import VALIDATION_LOSSES, validation_key
from pldcli.system.input_files import open_content
from pldcli.system.json_text import from_json

__all__ = ["FILE", "read_table", "table_bytes"]

FILE = "metrics.csv.gz"
"""What such a table is called."""

_NEEDED = ("run", "about", "step")
_ABOUT = ("path", "state", "starts", "unreadable_lines", "finetuned")
"""Fields of a run that are not in its metrics; they stand, with its configuration, in the first of its rows, as JSON."""

_LATER = ("score_conditions", "score_notes")
"""Likewise; earlier versions did not write them."""

_WRITE_AGAIN = "write it again with `pld compare RUN RUN --out DIR`"


def table_bytes(runs: Sequence[Run]) -> bytes:
    """Write runs as a gzipped CSV that `read_table` reads back to equal ones.

    Columns are `run`, `about` and the names in metrics.jsonl; a cell is empty where a row has no such number, and `nan` where it was not
    finite.
    """
    rows = []
    for run in runs:
        about = {"config": flatten(run.config)} | {field: getattr(run, field) for field in (*_ABOUT, *_LATER)}
        for number, row in enumerate(run.rows):
            numbers = {name: "nan" if value is None else value for name, value in row.items()}
            rows.append({"run": run.name, "about": "" if number else json.dumps(about), **numbers})
    return gzip.compress(csv_text(rows).encode(), mtime=0)  # no time in it: the same runs give the same bytes


def read_table(path: Path) -> dict[str, Run]:
    """Read the runs of a table by name.

    Args:
        path: A CSV file, compressed or not.

    Raises:
        DataError: It is damaged, or no such table, or unpacks to far too much.
    """
    runs = {}
    for name, rows in _read_rows(path).items():
        try:
            about = from_json(rows[0].pop("about"))
            known = {field: about[field] for field in _ABOUT} | {"starts": tuple(about["starts"])}
            known["score_conditions"] = {task: dict(found) for task, found in about.get("score_conditions", {}).items()}
            known["score_notes"] = tuple(map(str, about.get("score_notes", ())))
            known["finetuned"] = {task: tuple(scores) for task, scores in about["finetuned"].items()}
            config = presets.build(about["config"])
        except (ValueError, KeyError, TypeError, AttributeError, PldError) as error:
            raise DataError(f"does not say how {name} was trained ({error!r})", where=str(path), hint=_WRITE_AGAIN) from error
        runs[name] = Run(rows=tuple(rows), name=name, config=config, source=f"{path}: {name}", **known)
    return runs


def _read_rows(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read the rows of each run; `about` stays in the first one."""
    try:
        with open_content(path) as file:
            text = file.read().decode()
        lines = csv.reader(io.StringIO(text), strict=True)
        columns = next(lines, [])
        needed = (*_NEEDED, validation_key(dict.fromkeys(columns)) or VALIDATION_LOSSES[0], *SPENT)
        if missing := [name for name in needed if name not in columns]:
            raise DataError(f"is no table of runs: it has no column {', '.join(missing)}", where=str(path), hint=_WRITE_AGAIN)
        runs: dict[str, list[dict[str, Any]]] = {}
        csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # a run that was started often has much to say
        for cells in lines:
            if len(cells) != len(columns):
                raise ValueError(f"line {lines.line_num:,} has {len(cells)} cells, the head {len(columns)}")
            name, row = _read_row(dict(zip(columns, cells, strict=True)), lines.line_num)
            if "about" in row and name in runs:
                raise ValueError(f"line {lines.line_num:,} begins {name} a second time")
            runs.setdefault(name, []).append(row)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"cannot be read as a table of runs ({error})", where=str(path), hint=_WRITE_AGAIN) from error
    if not runs:
        raise DataError("holds no run", where=str(path), hint=_WRITE_AGAIN)
    return runs


def _read_row(cells: Mapping[str, str], line: int) -> tuple[str, dict[str, Any]]:
    """Turn the cells of a row into numbers.

    Raises:
        ValueError: One is none.
    """
    row: dict[str, Any] = {"about": cells["about"]} if cells["about"] else {}
    for name, cell in cells.items():
        if name in ("run", "about") or not cell:
            continue
        try:
            row[name] = None if cell == "nan" else int(cell) if cell.lstrip("-").isdecimal() else float(cell)
        except ValueError:
            raise ValueError(f"line {line:,}: {name} is {cell!r}, which is no number") from None
    if not isinstance(row.get("step"), int):
        raise ValueError(f"line {line:,} has no step")
    return cells["run"], row
