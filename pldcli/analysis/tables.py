"""How an analysis is told on the screen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from pldcli.analysis.results import Analysis, AnalyzedRun, Measure, State
from pldcli.console.section import Section

__all__ = ["run_lines", "tables"]

_WIDEST = 12
"""Columns of a cell at most; a longer name of a run is folded."""
_GAP = 2


_Column = tuple[str, Callable[[AnalyzedRun], Sequence[float]], Callable[[float], str]]
"""Heading, values by block, and how one is written."""


def run_lines(analysis: Analysis) -> list[str]:
    """Return of each run what was measured on what."""
    lines = []
    for run in analysis.runs:
        last = run.states[-1]
        lines.append(
            f"{run.title}: {run.num_blocks} blocks, {len(run.states)} moments from step {run.states[0].step:,} to {last.step:,}, "
            f"on {run.num_sequences:,} sequences of {run.seq_len} tokens of {run.data}"
        )
    return lines


def tables(analysis: Analysis, *, columns: int) -> Iterator[Section]:
    """Lay out every table.

    Args:
        analysis: The runs.
        columns: Width of the screen in characters; runs that do not fit beside one another come in further tables.
    """
    for run in analysis.runs:
        yield _over_training(run, dropped=analysis.gates is not None)
    last = "of the trained model" if len(analysis.runs) == 1 else "of the trained models"
    yield from _by_block(f"Norms of gradients {last}, every block running", analysis, _gradients(dropped=False), columns)
    if analysis.gates is not None:
        title, note = f"Norms of gradients {last}, blocks dropped", f"{analysis.dropping}; a block's weights over the draws that run it"
        yield from _by_block(title, analysis, _gradients(dropped=True), columns, note)
    changes: list[_Column] = [
        ("distance", _last("distance"), _short),
        ("relative", _last("relative_distance"), _short),
        ("angle", _last("angle_degrees"), lambda value: f"{value:.1f}°"),
    ]
    note = "L2 distance, the same as a multiple of the input's norm, and angle: means over tokens"
    yield from _by_block(f"Input and output of each block {last}", analysis, changes, columns, note)
    losses: list[_Column] = [
        ("it alone", lambda run: run.removal.increases(), _signed),
        ("all from it", lambda run: run.removal.increases(from_here=True), _signed),
    ]
    note = "nats per target more than with every block: without the block, and without it and all after it"
    yield from _by_block(f"Blocks left out {last}: increase of the validation loss", analysis, losses, columns, note)


def _gradients(*, dropped: bool) -> list[_Column]:
    return [
        ("weights", _last("weight_gradient_norm", dropped=dropped), _short),
        ("input", _last("input_gradient_norm", dropped=dropped), _short),
    ]


def _last(measure: Measure, *, dropped: bool = False) -> Callable[[AnalyzedRun], Sequence[float]]:
    return lambda run: run.states[-1].values(measure, dropped=dropped)


def _by_block(title: str, analysis: Analysis, columns: Sequence[_Column], width: int, note: str = "") -> Iterator[Section]:
    """Lay out runs beside one another, as many as fit."""
    cell = _GAP + max(max(len(heading) for heading, _, _ in columns), min(_WIDEST, max(len(run.name) for run in analysis.runs)))
    fitting = max(1, (width - len("block")) // (cell * len(columns)))
    for start in range(0, len(analysis.runs), fitting):
        runs = analysis.runs[start : start + fitting]
        headings, cells = ["block"], []
        for run in runs:
            name = f"{run.name}\n" if len(analysis.runs) > 1 else ""
            headings += [f"{name}{heading}" for heading, _, _ in columns]
            cells += [[_cell(value, write) for value in values(run)] for _, values, write in columns]
        blocks = range(1, max(run.num_blocks for run in runs) + 1)
        rows = [(str(block), *(column[block - 1] if block <= len(column) else "" for column in cells)) for block in blocks]
        yield _numbers(title, headings, rows, note)


def _over_training(run: AnalyzedRun, *, dropped: bool) -> Section:
    """Sum up each moment: losses, gradients at both ends of the network, mean change by a block."""
    ends_of = [f"{what},\nblock {block}" for what in ("weights", "input") for block in (1, run.num_blocks)]
    headings = ["step", "loss", *ends_of, "relative\ndistance", "angle"]
    rows = []
    for state in run.states:
        ends = [end for measure in ("weight_gradient_norm", "input_gradient_norm") for end in _ends(state, measure)]
        relative, angle = (_mean(state.values(measure)) for measure in ("relative_distance", "angle_degrees"))
        loss = f"{state.loss():.4f}"
        row = [f"{state.step:,}", loss, *(_cell(end, _short) for end in ends), _cell(relative, _short), _cell(angle, lambda x: f"{x:.1f}°")]
        rows.append((*row, f"{state.loss(dropped=True):.4f}") if dropped else tuple(row))
    note = "every block running: norms of gradients at both ends; distance and angle are means over blocks"
    return _numbers(f"{run.title} over training", [*headings, "loss,\ndropped"] if dropped else headings, rows, note)


def _numbers(title: str, headings: Sequence[str], rows: Sequence[tuple[str, ...]], note: str) -> Section:
    return Section(title, tuple(headings), tuple(rows), left=0, notes=(note,) if note else (), fold_headings=True)


def _ends(state: State, measure: Measure) -> tuple[float, float]:
    values = state.values(measure)
    return values[0], values[-1]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _cell(value: float, write: Callable[[float], str]) -> str:
    return write(value) if math.isfinite(value) else "-"


def _short(value: float) -> str:
    return f"{value:#.3g}".removesuffix(".") if 1e-3 <= abs(value) < 1e3 else f"{value:.1e}"


def _signed(value: float) -> str:
    return f"{value:+.4f}"
