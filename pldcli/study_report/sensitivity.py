"""How the final loss depends on a setting: the systems of grids as lines over their values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pldcli import presets
from pldcli.config import flatten
from pldcli.study.jobs import Outcome, State
from pldcli.study.spec import Spec

__all__ = ["Line", "Point", "find_lines", "is_number"]


@dataclass(frozen=True)
class Point:
    """One value of a setting and what came of it."""

    system: str
    value: Any
    label: str
    """The value as the file spells it."""
    outcomes: tuple[Outcome, ...]
    """Of each seed."""

    @property
    def losses(self) -> tuple[float, ...]:
        """List the final losses of the runs that finished."""
        return tuple(outcome.loss for outcome in self.outcomes if outcome.loss is not None)

    @property
    def diverged(self) -> tuple[int, ...]:
        """List the steps at which runs diverged."""
        return tuple(outcome.step for outcome in self.outcomes if outcome.state == State.DIVERGED)


@dataclass(frozen=True)
class Line:
    """The points of a grid along its first key, the others held."""

    name: str
    points: tuple[Point, ...]


def find_lines(spec: Spec, outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, list[Line]]:
    """Arrange the systems of every grid in lines.

    Args:
        spec: The study.
        outcomes: System to the outcome of each of its runs.

    Returns:
        First key of a grid to the lines over it, in the order of the file.
    """
    found: dict[str, dict[str, list[Point]]] = {}
    for name, members in spec.grids.items():
        for system in members:
            if system.name not in outcomes:
                continue
            (key, value), *others = system.values
            held = ", ".join(f"{other.rpartition('.')[2]} {one}" for other, one in others)
            line = f"{name}, {held}" if held else name
            number = flatten(presets.resolve(system.preset, system.overrides).config)[key]
            point = Point(system.name, number, str(value), tuple(outcomes[system.name]))
            found.setdefault(key, {}).setdefault(line, []).append(point)
    return {key: [Line(name, _in_order(points)) for name, points in lines.items()] for key, lines in found.items()}


def _in_order(points: Sequence[Point]) -> tuple[Point, ...]:
    if all(is_number(point.value) for point in points):
        return tuple(sorted(points, key=lambda point: float(point.value)))
    return tuple(points)


def is_number(value: Any) -> bool:
    """Return whether a value has a place on an axis of numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
