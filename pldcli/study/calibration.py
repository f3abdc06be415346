"""What a step of each shape of model takes: the clock of a study, measured before its first run and kept in plan.json.

Equal time rests on it. Steps are timed here, alone and in turn, with all blocks and with half of them; `StepTime` turns that into the
seconds of any schedule, and `Plan` gives each system the steps that fit. Runs' own clocks count for nothing: they may train side by side.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pldcli import presets
from pldcli.bench.step_time import StepTime
from pldcli.config import Config, flatten
from pldcli.errors import DeviceError, PldError, UsageError
from pldcli.study.jobs import Slot
from pldcli.study.plan import Shape
from pldcli.system import atomic
from pldcli.system.json_text import from_json
from pldcli.system.workers import answering, answers_of, as_error, close_pipe, describe_error, end_with_parent, start_worker, tell

__all__ = ["QUIET", "ShapeTime", "Timings", "calibrate", "measure_in_turn", "measure_shapes", "read_timings", "serve", "write_plan"]

QUIET = 0.1
"""Rounds of a measurement that differ by a larger share were disturbed."""

_FEWEST_STEPS, _MOST_STEPS, _MODE_SECONDS = 5, 50, 0.5
"""Of each shape in a round, with all blocks and with half: as many steps as take so long."""
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 8
_ENOUGH_SECONDS, _MOST_SECONDS = 20.0, 60.0
"""Per shape: after the fewest rounds no more begin where they took so long, and longer where they differ much."""

Report = Callable[[str], None]
Samples = Mapping[str, Sequence[Sequence[tuple[float, float]]]]
"""Of each shape's key a list per round, and in it of each part (dense seconds, seconds less per dropped block)."""


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

    @classmethod
    def of_rounds(cls, label: str, rounds: Sequence[Sequence[tuple[float, float]]], steps: int) -> ShapeTime:
        """Take medians over all parts of all rounds.

        Raises:
            DeviceError: No part had a block dropped.
        """
        parts = [part for one in rounds for part in one]
        if not parts:
            raise DeviceError("a step could not be measured with blocks dropped", where=label, hint="use a model of two blocks or more")
        medians = _dense_medians(rounds)
        step = StepTime(statistics.median(dense for dense, _ in parts), statistics.median(block for _, block in parts))
        return cls(label, step, min(medians), max(medians), steps)


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
        """Return the step times alone."""
        return {key: shape.time for key, shape in self.shapes.items()}


def calibrate(
    shapes: Sequence[Shape], stored: Timings | None, *, baseline: str, fingerprint: str, data: Path, slot: Slot, report: Report
) -> Timings:
    """Measure the shapes that are not measured yet.

    Beside them, if anything was measured before, one shape of that, the baseline's if it can be: it brings both measurements to one speed
    of the machine.

    Args:
        shapes: All shapes of the study.
        stored: What was measured before.
        baseline: The system whose shape is measured again.
        fingerprint: Of the data.
        data: The prepared directory.
        slot: Where runs train: steps are measured under the same conditions.
        report: Told what is going on.

    Raises:
        PldError: What went wrong while measuring.
    """
    known = stored.shapes if stored else {}
    missing = [shape for shape in shapes if shape.key not in known]
    if stored is not None and not missing:
        return stored
    anchors = sorted((shape for shape in shapes if shape.key in known), key=lambda shape: baseline not in shape.systems)
    anchor = anchors[0] if anchors else None
    asked = [*missing, *([anchor] if anchor else [])]
    report(f"measuring the steps of {len(asked)} shape(s) of model, alone and in turn")
    measured, machine = measure_shapes(asked, data=data, slot=slot, report=report)
    worst = max(shape.spread for shape in measured.values())
    if worst > QUIET:
        report(
            f"warning: this machine is not quiet, rounds differ by {worst:.0%}: times, and steps at equal time, are no more certain "
            "than that; stop, and begin when nothing else runs, or write `steps` into the file"
        )
    factor = known[anchor.key].time.dense_seconds / measured[anchor.key].time.dense_seconds if anchor else 1.0
    fresh = {shape.key: measured[shape.key].scaled(factor) for shape in missing}
    return Timings(fingerprint, machine, fresh) if stored is None else replace(stored, shapes={**known, **fresh})


def measure_shapes(shapes: Sequence[Shape], *, data: Path, slot: Slot, report: Report) -> tuple[dict[str, ShapeTime], dict[str, Any]]:
    """Time steps of several shapes in a process that is like those of the runs.

    Args:
        shapes: What to measure.
        data: The prepared directory.
        slot: Where: variables of the environment and threads of numeric libraries.
        report: Told what is going on.

    Returns:
        Key to time of each shape, and the machine.

    Raises:
        PldError: What went wrong there.
    """
    worker = start_worker(__name__, threads=slot.threads, environment=slot.environment)
    labels = {shape.key: shape.label for shape in shapes}
    try:
        limits = {"enough_seconds": _ENOUGH_SECONDS, "most_seconds": _MOST_SECONDS}
        tell(worker, data=str(data), configs={shape.key: flatten(shape.config) for shape in shapes}, limits=limits)
        for answer in answers_of(worker):
            if "error" in answer:
                raise as_error(answer)
            if "samples" in answer:
                rounds, steps = answer["samples"], answer["steps"]
                return {key: ShapeTime.of_rounds(labels[key], rounds[key], steps[key]) for key in rounds}, answer["machine"]
            report(f"{labels[answer['shape']]}: {answer['seconds'] * 1e3:,.1f} ms a step (round {answer['round']})")
    finally:
        close_pipe(worker.stdin)
        worker.terminate()
        worker.wait()
        close_pipe(worker.stdout)
    raise DeviceError("the process that measures steps died", hint="memory may have run out: try train.micro_batch_size=8")


def serve() -> None:
    """Measure what standard input asks for: the main function of the worker."""
    answer = answering()
    task = json.loads(sys.stdin.readline())
    end_with_parent()
    try:
        configs = {key: presets.build(flat) for key, flat in task["configs"].items()}
        samples, taken, machine = measure_in_turn(configs, Path(task["data"]), answer, **task["limits"])
        answer(samples=samples, steps=taken, machine=machine)
    except PldError as error:
        answer(**describe_error(error))
    except BrokenPipeError:
        return  # the parent is gone


def measure_in_turn(
    configs: Mapping[str, Config],
    data: Path,
    answer: Callable[..., None],
    *,
    enough_seconds: float = _ENOUGH_SECONDS,
    most_seconds: float = _MOST_SECONDS,
) -> tuple[Samples, dict[str, int], dict[str, Any]]:
    """Measure each shape once per round, until rounds are enough and alike.

    Args:
        configs: Key to configuration of each shape.
        data: The prepared directory.
        answer: Told the median of each round.
        enough_seconds: Per shape: after the fewest rounds no more begin where they took so long.
        most_seconds: Instead, where rounds differ much.

    Returns:
        Samples, dense steps taken of each shape, and the machine.
    """
    import torch

    from pldcli.bench.bench import bench
    from pldcli.bench.budget import step_times_by_part
    from pldcli.system.hardware import versions

    samples: dict[str, list[list[tuple[float, float]]]] = {key: [] for key in configs}
    steps, taken = dict.fromkeys(configs, _FEWEST_STEPS), dict.fromkeys(configs, 0)
    machine: dict[str, Any] = {}
    began = time.monotonic()
    for number in range(1, _MOST_ROUNDS + 1):
        enough = enough_seconds if _are_alike(samples.values()) else most_seconds
        if number > _FEWEST_ROUNDS and time.monotonic() - began > enough * len(configs):
            break
        for key, config in configs.items():
            torch.compiler.reset()  # after a few models of other shapes it would give up compiling
            measured = bench(config, data=data, steps=steps[key])
            steps[key] = min(_MOST_STEPS, max(_FEWEST_STEPS, round(_MODE_SECONDS / measured.modes[0].seconds)))
            taken[key] += measured.steps
            samples[key].append([(one.dense_seconds, one.block_seconds) for one in step_times_by_part(config, measured)])
            answer(shape=key, round=number, seconds=statistics.median(dense for dense, _ in samples[key][-1]))
            names = ("hardware", "threads", "precision", "compiled", "micro_batch_size")
            machine = {name: getattr(measured, name) for name in names}
    device = "cuda" if torch.cuda.is_available() and next(iter(configs.values())).runtime.device != "cpu" else "cpu"
    return samples, taken, {**versions(), **machine, "device": device, "cores": os.cpu_count()}


def _are_alike(samples: Iterable[Sequence[Sequence[tuple[float, float]]]]) -> bool:
    """Return whether the rounds of every shape took about as long."""
    return all(max(one) <= (1.0 + QUIET) * min(one) for one in map(_dense_medians, samples) if one)


def _dense_medians(rounds: Sequence[Sequence[tuple[float, float]]]) -> list[float]:
    return [statistics.median(dense for dense, _ in one) for one in rounds if one]


def read_timings(path: Path) -> Timings | None:
    """Read what a study measured, or None where it has not begun.

    Raises:
        UsageError: The file is damaged.
    """
    if not path.is_file():
        return None
    try:
        content = from_json(path.read_text(encoding="utf-8"))
        measured = {
            key: ShapeTime(**{**shape, "time": StepTime(**shape["time"])}) for key, shape in content["calibration"]["shapes"].items()
        }
        return Timings(content["data_fingerprint"], content["calibration"]["machine"], measured)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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
