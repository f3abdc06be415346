"""The directory of a fine-tuning: whose it is, which cell's model and predictions stand at its top.

    OUT/  experiment.json  results.{json,csv,md}  spread.png  best.json  predictions-*.jsonl  model/
          cells/NAME/{result.json, predictions-*.jsonl}

A cell is done when its directory is there, so the same command resumes after a stop, and more seeds or a larger grid do only what is new.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pldcli.errors import OutputError
from pldcli.finetuning.experiment import Experiment
from pldcli.finetuning.results import best_cell
from pldcli.system import atomic
from pldcli.system.json_text import from_json
from pldcli.system.output_place import check_output

__all__ = ["check_usable", "claim", "has_model", "is_predicted", "keep_the_best", "mark_best"]

_MARK = "experiment.json"
"""It marks a directory as one of ours."""


def check_usable(out: Path) -> None:
    """Refuse a place that holds something else, before anything is written there.

    Raises:
        OutputError: It is a file, or a directory without our mark.
    """
    check_output(out, "a fine-tuning directory", mark=_MARK)


def claim(out: Path, experiment: Experiment, fingerprints: Mapping[str, str], *, overwrite: bool) -> None:
    """Make the directory this experiment's, known by hashes of its parts; `overwrite` removes the results that are there.

    Raises:
        OutputError: It holds results of another experiment.
    """
    path = out / _MARK
    if path.is_file():
        try:
            before = from_json(path.read_text(encoding="utf-8"))["fingerprints"]
            different = [name for name in fingerprints if before.get(name) != fingerprints[name]]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            different = list(fingerprints)
        if different and not overwrite:
            what = f"holds results of another {' and '.join(different)}"
            raise OutputError(what, where=str(out), hint="choose another place with --out, or add --overwrite")
        if overwrite:
            _remove_results(out)
    atomic.write_text(path, json.dumps({"experiment": asdict(experiment), "fingerprints": fingerprints}, indent=1) + "\n")


def keep_the_best(out: Path, cells: Mapping[str, Mapping[str, Any]]) -> None:
    """Move the best cell's model and predictions up, and drop the other models.

    Every step can be cut short: the mark is made first and the model moves last, so that the next call does what is missing.
    """
    best = best_cell(cells)
    if best is None:
        return
    model, candidate = out / "model", out / "cells" / best / "model"
    is_new = candidate.is_dir()
    if is_new:
        mark_best(out, best, cells[best]["score"], predicted=False)
    for path in (out / "cells" / best).glob("predictions-*.jsonl"):
        if is_new or not (out / path.name).is_file():
            atomic.write_bytes(out / path.name, path.read_bytes())
    if is_new:
        old = out / ".model-before"
        shutil.rmtree(old, ignore_errors=True)
        if model.exists():
            model.rename(old)
        candidate.rename(model)
        atomic.sync_directory(out)
        shutil.rmtree(old, ignore_errors=True)
    for other in cells:
        if other != best:
            atomic.remove(out / "cells" / other / "model")


def has_model(out: Path, cell: str) -> bool:
    """Return whether a cell's model is there, or moved up; an earlier call may have dropped it for a better cell of a larger grid."""
    return (out / "cells" / cell / "model").is_dir() or (_read_mark(out).get("cell") == cell and (out / "model").is_dir())


def mark_best(out: Path, best: str, score: float, *, predicted: bool) -> None:
    """Record which cell the model and the predictions at the top are of, and whether the test splits are predicted."""
    atomic.write_text(out / "best.json", json.dumps({"cell": best, "score": score, "tests_predicted": predicted}) + "\n")


def is_predicted(out: Path, best: str, tests: Collection[str]) -> bool:
    """Return whether the test splits were predicted with the best cell's model."""
    mark = _read_mark(out)
    there = all((out / f"predictions-{split}.jsonl").is_file() for split in tests)
    return there and mark.get("cell") == best and bool(mark.get("tests_predicted"))


def _read_mark(out: Path) -> dict[str, Any]:
    try:
        mark = from_json((out / "best.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) else {}


def _remove_results(out: Path) -> None:
    """Delete what an earlier experiment left, so that nothing of it stands beside what comes."""
    with atomic.output_errors(out):
        for entry in ("cells", "model"):
            if (out / entry).is_dir():
                shutil.rmtree(out / entry)
        for path in [*out.glob("results.*"), *out.glob("predictions-*.jsonl"), out / "spread.png", out / "best.json"]:
            path.unlink(missing_ok=True)
