"""Scores of a run after its pre-training, as `pld finetune` and `pld evaluate --save` wrote them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pldcli.errors import DataError
from pldcli.system.json_text import from_json

__all__ = ["MINIMAL_PAIRS", "best_group", "find_results", "read_scores"]

MINIMAL_PAIRS = "minimal-pairs"
"""What stands for them among the tasks that a run was fine-tuned on."""

_SEED = re.compile(r",?seed=\d+$")


@dataclass(frozen=True)
class _Found:
    """What a file holds."""

    task: str
    place: Path
    values: tuple[float, ...]
    """Of each fine-tuning with the best setting; none where all diverged."""
    conditions: dict[str, str]
    note: str = ""

    @property
    def is_elsewhere(self) -> bool:
        """Return whether it lies in another directory than `pld finetune` chooses by itself."""
        return self.place.name != self.task.rpartition("/")[2]


def find_results(run: Path, root: Path) -> list[Path]:
    """List what may hold scores of a run: MODEL/TASK/results.json and MODEL/minimal-pairs.json below `root`."""
    place = root / run.resolve().name
    return [*place.glob(f"{MINIMAL_PAIRS}.json"), *sorted(place.glob("*/results.json"))]


def best_group(groups: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Choose the setting with the highest mean over its seeds; one of which a seed diverged comes after all others.

    Args:
        groups: As results.json lists them.

    Returns:
        One of them; None where all seeds of all diverged.
    """
    scored = [group for group in groups if group["score"]]
    return max(scored, key=lambda group: (not group.get("diverged"), group["score"]["mean"]), default=None)


def read_scores(run: Path, files: Sequence[Path]) -> dict[str, Any]:
    """Read the scores that started from a run, as fields of `Run`; of several results on a task one counts, and a note tells of the others.

    Raises:
        DataError: A file is damaged.
    """
    read = [_read_pairs(run, path) if path.stem == MINIMAL_PAIRS else _read_results(run, path) for path in files]
    kept: dict[str, _Found] = {}
    notes = []
    for found in sorted((one for one in read if one is not None), key=lambda one: one.is_elsewhere):
        if found.task in kept:
            notes.append(f"left out {found.place}: {kept[found.task].place} holds results on {found.task} too")
            continue
        kept[found.task] = found
        notes += [found.note] if found.note else []
    return {
        "finetuned": {task: found.values for task, found in kept.items()},
        "score_conditions": {task: found.conditions for task, found in kept.items()},
        "score_notes": tuple(notes),
    }


def _read_pairs(run: Path, path: Path) -> _Found | None:
    try:
        content = from_json(path.read_text(encoding="utf-8"))
        if not _started_from(run, Path(content.get("model", run))):
            return None
        conditions = {"data": str(content["fingerprints"]["data"])} if "fingerprints" in content else {}
        return _Found(MINIMAL_PAIRS, path, (float(content["mean_accuracy"]),), conditions)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"cannot be read as minimal pairs ({error!r})", where=str(path), hint="evaluate again with --save") from error


def _read_results(run: Path, path: Path) -> _Found | None:
    mark = path.with_name("experiment.json")
    try:
        content = from_json(path.read_text(encoding="utf-8"))
        about = from_json(mark.read_text(encoding="utf-8")) if mark.is_file() else {"experiment": {}, "fingerprints": {}}
        if about["experiment"].get("from_scratch") or not _started_from(run, Path(content["start"])):
            return None
        conditions = {"settings": "; ".join(dict.fromkeys(_SEED.sub("", name) or "the defaults" for name in content.get("cells", {})))}
        conditions |= {"data": str(about["fingerprints"]["data"])} if about["fingerprints"] else {}
        best = best_group(content["groups"])
        values = tuple(float(value) for value in best["score"]["values"]) if best else ()
        lost = int(best.get("diverged", 0)) if best else len(content["groups"])
        note = f"{lost} of {lost + len(values)} fine-tunings with the best setting diverged" if best else "all fine-tunings diverged"
        return _Found(str(content["task"]), path.parent, values, conditions, f"{path.parent}: {note}" if lost else "")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"cannot be read as fine-tuning results ({error!r})", where=str(path), hint="fine-tune again there") from error


def _started_from(run: Path, start: Path) -> bool:
    """Return whether a fine-tuning began with this run; by its directory's name alone where what it names is no longer there."""
    return start.resolve().is_relative_to(run.resolve()) or not start.exists()
