"""Read run directories for a comparison, and write what it came to."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pldcli import presets
from pldcli.comparison.runs import Measurement, Run
from pldcli.config import Config
from pldcli.engine.metrics import read_metrics
from pldcli.engine.run_directory import RunDirectory, read_starts, run_state
from pldcli.errors import CheckpointError, DataError, UsageError

__all__ = ["name_runs", "read_config", "read_run", "read_runs"]

_SPENT = ("progress/tokens", "progress/executed_flops", "progress/train_seconds")


def read_runs(paths: Sequence[Path], *, finetuned: Path) -> list[Run]:
    """Read several runs, each once, and give them names that differ.

    Args:
        paths: Run directories.
        finetuned: Where `pld finetune` wrote, MODEL/TASK/results.json; it need not exist.

    Raises:
        UsageError: A run is named twice.
        CheckpointError: A directory is no run.
        DataError: A run has no validation yet, or its metrics are damaged.
    """
    return [read_run(path, name=name, finetuned=finetuned) for path, name in zip(paths, name_runs(paths), strict=True)]


def read_run(path: Path, *, name: str, finetuned: Path) -> Run:
    """Read one run.

    Raises:
        CheckpointError: It is no run.
        DataError: It has no validation yet, or its metrics are damaged.
    """
    directory = RunDirectory(path)
    config = read_config(directory)
    rows = read_metrics(directory.metrics)
    logged = [row for row in rows if "train/loss" in row]
    validation = tuple(_measurement(row, "eval/mlm_loss", directory) for row in rows if "eval/mlm_loss" in row)
    if not validation:
        last = max((row["step"] for row in rows), default=0)
        raise DataError(
            f"has no validation yet (step {last:,} of {config.train.total_steps:,}, validated every {config.eval.every_steps:,})",
            where=str(path),
            hint="train it further, or leave it out",
        )
    return Run(
        name,
        str(path),
        config,
        validation,
        # Beside a second loss, train/loss is their sum.
        tuple(_measurement(row, "train/mlm_loss" if "train/mlm_loss" in row else "train/loss", directory) for row in logged),
        tuple((row["step"], row["optim/learning_rate"]) for row in logged if row.get("optim/learning_rate") is not None),
        tuple(start for start in read_starts(directory.environment) if isinstance(start, dict)),
        run_state(directory, config, max((row["step"] for row in rows), default=0)),
        max((row.get("progress/wall_seconds") or 0.0 for row in rows), default=0.0),
        _unreadable_lines(directory.metrics, len(rows)),
        next((row["eval/frequency_loss"] for row in reversed(rows) if "eval/frequency_loss" in row), None),
        _finetuned(path, finetuned),
    )


def read_config(run: RunDirectory) -> Config:
    """Read what a run was told.

    Raises:
        CheckpointError: It is no run.
    """
    if not run.path.is_dir():
        raise CheckpointError("no such run", where=str(run.path), hint="`pld runs` lists the runs here")
    if not run.config.is_file():
        raise CheckpointError("is no run: it has no config.yaml", where=str(run.path), hint="name a directory that `pld pretrain` wrote")
    return presets.load(run.config)


def name_runs(paths: Sequence[Path]) -> list[str]:
    """Name each directory by as many of its last parts as tell it from the others.

    Raises:
        UsageError: One is named twice.
    """
    places, names = [path.resolve() for path in paths], list[str]()
    for number, place in enumerate(places):
        if place in places[:number]:
            raise UsageError("the same run is named twice", where=str(paths[number]), hint="name another run")
    for place in places:
        depth = 1
        while depth < len(place.parts) and Counter("/".join(one.parts[-depth:]) for one in places)["/".join(place.parts[-depth:])] > 1:
            depth += 1
        names.append("/".join(place.parts[-depth:]))
    return names


def _measurement(row: Mapping[str, Any], name: str, directory: RunDirectory) -> Measurement:
    tokens, flops, seconds = (_number(row, spent, directory) for spent in _SPENT)
    if tokens <= 0:
        raise DataError(f"step {row['step']:,} comes after no tokens at all", where=str(directory.metrics), hint="leave this run out")
    loss = None if row[name] is None else _number(row, name, directory)
    return Measurement(row["step"], tokens, flops, seconds, loss if loss is not None and math.isfinite(loss) else None)


def _number(row: Mapping[str, Any], name: str, directory: RunDirectory) -> float:
    value = row.get(name)
    if not isinstance(value, int | float):
        raise DataError(f"step {row['step']:,} has no number under {name}", where=str(directory.metrics), hint="leave this run out")
    return float(value)


def _unreadable_lines(path: Path, readable: int) -> int:
    return sum(bool(line.strip()) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()) - readable


def _finetuned(run: Path, root: Path) -> dict[str, tuple[float, ...]]:
    """Read the scores that started from this run: of each task's best setting, every seed."""
    found: dict[str, tuple[float, ...]] = {}
    for path in sorted((root / run.resolve().name).glob("*/results.json")):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not _started_from(run, Path(content["start"])):
                continue
            scores = [group["score"]["values"] for group in content["groups"] if group["score"]]
            best = max(scores, key=lambda values: sum(values) / len(values), default=())
            if best:
                found[str(content["task"])] = tuple(float(value) for value in best)
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError) as error:
            raise DataError(f"cannot be read as fine-tuning results ({error!r})", where=str(path), hint="fine-tune again there") from error
    return found


def _started_from(run: Path, start: Path) -> bool:
    """Tell whether a fine-tuning began with this run; by its directory's name alone where what it names is no longer there."""
    return start.resolve().is_relative_to(run.resolve()) or not start.exists()
