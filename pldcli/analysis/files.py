"""An analysis as files: JSON and CSV with every number in full and every draw by itself, and pictures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pldcli.analysis.plots import plot_gradients, plot_removal, plot_similarity
from pldcli.analysis.results import Analysis, Probe, measures
from pldcli.console.section import csv_text
from pldcli.system import atomic
from pldcli.system.json_text import finite

__all__ = ["as_json", "blocks_csv", "removal_csv", "write_analysis"]

_BLOCK_COLUMNS = ("run", "norm", "step", "gates", "draw", "loss", "block", "runs", *measures())
_REMOVAL_COLUMNS = ("run", "norm", "step", "block", "loss", "loss_without", "increase", "loss_without_from_here", "increase_from_here")


def write_analysis(analysis: Analysis, out: Path) -> list[str]:
    """Write every file into a directory.

    Returns:
        Their names.

    Raises:
        OutputError: One cannot be written.
    """
    texts = {
        "analysis.json": json.dumps(as_json(analysis), indent=1) + "\n",
        "blocks.csv": blocks_csv(analysis),
        "removal.csv": removal_csv(analysis),
    }
    for name, text in texts.items():
        atomic.write_text(out / name, text)
    pictures = {"gradients": plot_gradients, "similarity": plot_similarity, "removal": plot_removal}
    names = [f"{name}.{ending}" for name in pictures for ending in ("png", "svg")]
    for name in names:
        pictures[Path(name).stem](analysis, out / name)
    if analysis.gates is not None:
        for ending in ("png", "svg"):
            names.append(f"gradients-dropped.{ending}")
            plot_gradients(analysis, out / names[-1], dropped=True)
    return [*texts, *names]


def as_json(analysis: Analysis) -> dict[str, Any]:
    """Name every number; what is not finite, or not there because a block did not run, is null."""
    content = {
        "gates": analysis.gates,
        "num_draws": analysis.num_draws,
        "notes": list(analysis.notes),
        "runs": [{**asdict(run), "num_blocks": run.num_blocks} for run in analysis.runs],
    }
    return {name: finite(value) for name, value in content.items()}


def blocks_csv(analysis: Analysis) -> str:
    """Write a row per run, step, draw and block; `gates` is empty and `draw` too where every block ran."""
    rows: list[dict[str, Any]] = []
    for run in analysis.runs:
        for state in run.states:
            probes: list[tuple[object, object, Probe]] = [("", "", state.whole)]
            probes += [(analysis.gates, number, probe) for number, probe in enumerate(state.draws, 1)]
            for gates, draw, probe in probes:
                common = {"run": run.name, "norm": run.norm, "step": state.step, "gates": gates, "draw": draw, "loss": probe.loss}
                for number, block in enumerate(probe.blocks, 1):
                    rows.append({**common, "block": number, "runs": int(probe.gates[number - 1]), **asdict(block)})
    return csv_text(rows, _BLOCK_COLUMNS)


def removal_csv(analysis: Analysis) -> str:
    """Write a row per run and block: the loss without it, and without it and every block after it."""
    rows = []
    for run in analysis.runs:
        removal = run.removal
        columns = (removal.alone, removal.increases(), removal.from_here, removal.increases(from_here=True))
        for block, values in enumerate(zip(*columns, strict=True), 1):
            rows.append(dict(zip(_REMOVAL_COLUMNS, (run.name, run.norm, removal.step, block, removal.loss, *values), strict=True)))
    return csv_text(rows, _REMOVAL_COLUMNS)
