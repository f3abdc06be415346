"""What several fine-tunings of one task came to: tables and a picture of their spread."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pldcli.choices import TaskKind
from pldcli.console.section import csv_text, markdown_text
from pldcli.console.units import MISSING, duration
from pldcli.finetuning.plots import plot_spread
from pldcli.runs.model_source import short_name
from pldcli.system import atomic
from pldcli.tasks.metrics import Summary, shown, summary
from pldcli.tasks.task import Task

__all__ = ["Group", "as_table", "best_cell", "flat_scores", "group_cells", "write_results"]

_NOT_COMPARED = ("seed", "micro_batch_size")


@dataclass(frozen=True)
class Group:
    """The cells that differ in their seed alone."""

    label: str
    """The settings in which groups differ."""
    settings: dict[str, Any]
    """The same as a mapping."""
    score: Summary | None
    """Of the task's score over seeds; None where all diverged."""
    metrics: dict[str, Summary]
    seeds: list[int]
    diverged: int
    train_seconds: float | None
    """Mean over seeds, but for those that diverged; None where all did."""


def flat_scores(result: Mapping[str, Any]) -> dict[str, float]:
    """Name every metric of a cell once: those of a second validation split get its name behind theirs."""
    flat: dict[str, float] = {}
    for number, (split, scores) in enumerate(result["scores"].items()):
        ending = f"_{split.removeprefix('validation_')}" if number else ""
        flat |= {name + ending: value for name, value in scores.items()}
    return flat


def group_cells(cells: Sequence[Mapping[str, Any]]) -> list[Group]:
    """Put the seeds of each setting together, in the order in which settings first appear."""
    settings = [{key: value for key, value in cell["settings"].items() if key not in _NOT_COMPARED} for cell in cells]
    varying = [key for key in (settings[0] if settings else {}) if len({repr(one[key]) for one in settings}) > 1]
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for cell, own in zip(cells, settings, strict=True):
        grouped.setdefault(json.dumps(own), []).append(cell)
    groups = []
    for text, members in grouped.items():
        own = {key: value for key, value in json.loads(text).items() if key in varying}
        good = [cell for cell in members if cell["score"] is not None]
        names = [name for name in flat_scores(good[0]) if all(name in flat_scores(cell) for cell in good)] if good else []
        groups.append(
            Group(
                ", ".join(f"{key}={value}" for key, value in own.items()),
                own,
                summary([cell["score"] for cell in good]) if good else None,
                {name: summary([flat_scores(cell)[name] for cell in good]) for name in names},
                [cell["settings"]["seed"] for cell in members],
                len(members) - len(good),
                sum(cell["train_seconds"] for cell in good) / len(good) if good else None,
            )
        )
    return groups


def best_cell(cells: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Name the cell with the highest score, of equals that with the lowest RMSE, then the first; None where all diverged."""
    good = {
        name: (cell["score"], -sum(scores.get("rmse", 0.0) for scores in cell["scores"].values()))
        for name, cell in cells.items()
        if cell["score"] is not None
    }
    return max(good, key=lambda name: good[name]) if good else None


def as_table(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Lay out groups: headings and rows, scores times 100."""
    axes = list(groups[0].settings) if groups else []
    metrics = next((list(group.metrics) for group in groups if group.metrics), [])
    several = any(len(group.seeds) > 1 for group in groups)
    alone = metrics.pop() if len(metrics) == 1 else "score"
    headings = [*axes, "seeds", alone, *(["std", "median", "min", "max"] if several else []), *metrics, "time"]
    rows = []
    for group in groups:
        row = [str(group.settings[axis]) for axis in axes] + [_ended(group)]
        if group.score is None:
            row += ["diverged"] + [""] * (len(headings) - len(row) - 2)
        else:
            score = group.score
            spread = [f"{100 * value:.2f}" for value in (score.std, score.median, score.minimum, score.maximum)]
            row += [f"{100 * score.mean:.2f}", *(spread if several else [])]
            spreads = {name: f" ± {shown(name, group.metrics[name].std)}" if several else "" for name in metrics}
            row += [shown(name, group.metrics[name].mean) + spread for name, spread in spreads.items()]
        rows.append([*row, MISSING if group.train_seconds is None else duration(group.train_seconds)])
    return headings, rows


def _ended(group: Group) -> str:
    """Count the seeds that the numbers of a setting are of, and all of them where some diverged."""
    return f"{len(group.seeds) - group.diverged} of {len(group.seeds)}" if group.diverged else str(len(group.seeds))


def write_results(out: Path, task: Task, start: str, cells: Mapping[str, Mapping[str, Any]]) -> None:
    """Write results.json, results.csv, results.md and spread.png; each is there whole or not at all."""
    groups = group_cells(list(cells.values()))
    best = best_cell(cells)
    content = {
        "task": task.name,
        "start": start,
        "metrics": list(task.metrics),
        "score": "mean of the task's metrics over its validation splits",
        "best": best,
        "groups": [asdict(group) for group in groups],
        "cells": {name: {key: value for key, value in cell.items() if key != "history"} for name, cell in cells.items()},
    }
    atomic.write_text(out / "results.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    atomic.write_text(out / "results.csv", _csv(cells))
    atomic.write_text(out / "results.md", _markdown(task, start, groups, best))
    series = [
        ((group.label or task.name) + (f" ({_ended(group)})" if group.diverged else ""), [100 * value for value in group.score.values])
        for group in groups
        if group.score
    ]
    if series:
        plot_spread(
            series, out / "spread.png", title=f"{task.name} from {short_name(Path(start))}", x_label="score x 100, one point per seed"
        )


def _csv(cells: Mapping[str, Mapping[str, Any]]) -> str:
    metrics = list(dict.fromkeys(name for cell in cells.values() for name in flat_scores(cell)))
    columns = ["cell", *(next(iter(cells.values()))["settings"] if cells else []), "score", *metrics]
    columns += ["best_step", "total_steps", "train_seconds", "tokens_per_second", "error"]
    rows = [
        {"cell": name, **cell["settings"], **flat_scores(cell), **{key: cell[key] for key in columns if key in cell}}
        for name, cell in cells.items()
    ]
    return csv_text(rows, columns)


def _markdown(task: Task, start: str, groups: Sequence[Group], best: str | None) -> str:
    headings, rows = as_table(groups)
    lines = [
        f"# {markdown_text(f'{task.name} from {start}')}",
        "",
        f"Score: mean of {', '.join(task.metrics)}, x 100, on validation examples.",
        "",
    ]
    head, *cells = (f"| {' | '.join(map(markdown_text, row))} |" for row in (headings, *rows))
    lines += [head, "|" + "---|" * len(headings), *cells]
    if task.kind == TaskKind.REGRESSION:
        lines += ["", f"Errors (mae, rmse) are in the units of {markdown_text(task.label_column)}, and not part of the score."]
    return "\n".join([*lines, "", f"The model is that of the best single run: {markdown_text(best or 'none, all diverged')}."]) + "\n"
