"""Read runs for a comparison, from their directories or from the table that an earlier comparison or a study wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from pldcli import presets
from pldcli.comparison.metrics_table import read_table
from pldcli.comparison.runs import Run
from pldcli.comparison.scores import find_results, read_scores
from pldcli.config import Config
from pldcli.errors import CheckpointError, UsageError
from pldcli.runs.metrics import read_metrics
from pldcli.runs.run_directory import RunDirectory, read_starts, run_state
from pldcli.system.short_names import shortest_names

__all__ = ["name_runs", "read_config", "read_run", "read_runs"]


def read_runs(paths: Sequence[Path], *, finetuned: Path, only: Sequence[str] = ()) -> list[Run]:
    """Read runs, each once, and give them names that differ.

    Args:
        paths: Run directories, and tables as `pld compare --out` writes them, which hold several runs.
        finetuned: Where `pld finetune` wrote, MODEL/TASK/results.json, and perhaps `pld evaluate --save`, MODEL/minimal-pairs.json; it
            need not exist.
        only: Names to keep, with `*` and `?` for any letters; all by default.

    Raises:
        UsageError: A run is named twice, or none has such a name.
        CheckpointError: A directory is no run.
        DataError: A run has no validation yet, or its metrics are damaged.
    """
    tables = {path: read_table(path) for path in paths if path.is_file()}
    places = [place for path in paths for place in ([path.parent / name for name in tables[path]] if path in tables else [path])]
    read = {path.parent / name: run for path, table in tables.items() for name, run in table.items()}
    named = list(zip(places, name_runs(places), strict=True))
    if missing := [pattern for pattern in only if not any(fnmatchcase(name, pattern) for _, name in named)]:
        names = ", ".join(name for _, name in named)
        raise UsageError("no run has such a name", where=f"--only {missing[0]}", hint=f"choose from {names}")
    kept = [(place, name) for place, name in named if not only or any(fnmatchcase(name, pattern) for pattern in only)]
    return [
        replace(read[place], name=name) if place in read else read_run(place, name=name, results=find_results(place, finetuned))
        for place, name in kept
    ]


def read_run(path: Path, *, name: str, results: Sequence[Path]) -> Run:
    """Read one run, and its scores from these files.

    Raises:
        CheckpointError: It is no run.
        DataError: It has no validation yet, or its metrics or scores are damaged.
    """
    directory = RunDirectory(path)
    config, rows = read_config(directory), read_metrics(directory.metrics)
    return Run(
        rows=tuple(rows),
        name=name,
        path=str(path),
        config=config,
        source=str(directory.metrics),
        starts=tuple(read_starts(directory.environment)),
        state=run_state(directory, config, max((row["step"] for row in rows), default=0)),
        unreadable_lines=_unreadable_lines(directory.metrics, len(rows)) if rows else 0,
        **read_scores(path, results),
    )


def read_config(run: RunDirectory) -> Config:
    """Read the configuration of a run.

    Raises:
        CheckpointError: It is no run.
    """
    if not run.path.is_dir():
        raise CheckpointError("no such run", where=str(run.path), hint="`pld runs` lists the runs here")
    if not run.config.is_file():
        raise CheckpointError(
            "is not a run directory: it has no config.yaml", where=str(run.path), hint="name a directory that `pld pretrain` wrote"
        )
    return presets.load(run.config)


def name_runs(paths: Sequence[Path]) -> list[str]:
    """Name each directory by as many of its last parts as tell it from the others.

    Raises:
        UsageError: One is named twice.
    """
    places = [path.resolve() for path in paths]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise UsageError("the same run is named twice", where=str(paths[number]), hint="name another run")
    return shortest_names(places)


def _unreadable_lines(path: Path, readable: int) -> int:
    return sum(bool(line.strip()) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()) - readable
