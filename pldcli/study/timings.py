"""The measured time of a step of each shape, as a study keeps it beside its runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pldcli.bench.step_time import StepTime
from pldcli.errors import UsageError
from pldcli.system import atomic

__all__ = ["QUIET", "ShapeTime", "Timings", "read_timings", "write_plan"]

QUIET = 0.1
"""Rounds of a measurement that differ by a larger share were disturbed."""


@dataclass(frozen=True)
class ShapeTime:
    """What a step of one shape takes."""

    label: str
    time: StepTime
    """Medians."""
    least_seconds: float
    most_seconds: float
    """Of the medians of each round, all blocks running."""
    steps: int
    """Measured, with all blocks; as many with half of them."""
    scaled_by: float = 1.0
    """What was measured later is brought to the speed that the machine had first, by a shape measured both times."""

    @property
    def spread(self) -> float:
        """Compute by what share rounds differ: what the machine did beside."""
        return self.most_seconds / self.least_seconds - 1.0

    def scaled(self, factor: float) -> ShapeTime:
        """Multiply every time."""
        return replace(
            self,
            time=StepTime(self.time.dense_seconds * factor, self.time.block_seconds * factor),
            least_seconds=self.least_seconds * factor,
            most_seconds=self.most_seconds * factor,
            scaled_by=self.scaled_by * factor,
        )


@dataclass(frozen=True)
class Timings:
    """All that a study measured before its first run."""

    data_fingerprint: str
    """Of the text that it was measured on, and that every run trains on."""
    machine: Mapping[str, Any]
    """Hardware, threads and versions."""
    shapes: Mapping[str, ShapeTime] = field(default_factory=dict)
    """By key."""

    @property
    def times(self) -> dict[str, StepTime]:
        """Give the step times alone."""
        return {key: shape.time for key, shape in self.shapes.items()}


def read_timings(path: Path) -> Timings | None:
    """Read what a study measured, or None where it has not begun.

    Raises:
        UsageError: The file is damaged.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        measured = {
            key: ShapeTime(**{**shape, "time": StepTime(**shape["time"])}) for key, shape in content["calibration"]["shapes"].items()
        }
        return Timings(content["data_fingerprint"], content["calibration"]["machine"], measured)
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"cannot be read as the plan of a study ({error!r})"
        raise UsageError(what, where=str(path), hint="choose another --out, or remove it to measure again") from error


def write_plan(path: Path, timings: Timings, systems: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what was measured, and for readers what follows from it for each system.

    Raises:
        OutputError: It cannot be written.
    """
    calibration = {"machine": timings.machine, "shapes": {key: asdict(shape) for key, shape in timings.shapes.items()}}
    content = {"data_fingerprint": timings.data_fingerprint, "calibration": calibration, "systems": systems}
    atomic.write_text(path, json.dumps(content, indent=1) + "\n")
