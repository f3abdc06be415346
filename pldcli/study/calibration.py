"""Measure what a step of each shape takes: alone, before any run starts, the shapes in turn."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pldcli import presets
from pldcli.bench.step_time import StepTime
from pldcli.config import Config, flatten
from pldcli.errors import DeviceError, PldError
from pldcli.study.plan import Shape
from pldcli.study.timings import QUIET, ShapeTime
from pldcli.system.workers import answering, answers_of, as_error, close_pipe, describe_error, end_with_parent, start_worker, tell

__all__ = ["Measured", "measure_shapes", "serve"]

_FEWEST_STEPS, _MOST_STEPS, _MODE_SECONDS = 5, 50, 0.5
"""Of each shape in a round, with all blocks and with half: as many steps as take so long."""
_FEWEST_ROUNDS, _MOST_ROUNDS = 3, 8
_ENOUGH_SECONDS, _MOST_SECONDS = 20.0, 60.0
"""Per shape: after the fewest rounds no more begin where they took so long, and longer where they differ much."""


@dataclass(frozen=True)
class Measured:
    """What came of it."""

    shapes: dict[str, ShapeTime]
    machine: dict[str, Any]


def measure_shapes(
    shapes: Sequence[Shape],
    *,
    data: Path,
    threads: int | None,
    environment: Mapping[str, str],
    report: Callable[[str], None],
) -> Measured:
    """Time steps of several shapes in a process that is like those of the runs.

    Args:
        shapes: What to measure.
        data: The prepared directory.
        threads: Of numeric libraries; None leaves them to the environment.
        environment: Variables besides those of this process.
        report: Told what is going on.

    Raises:
        PldError: What went wrong there.
    """
    worker = start_worker(__name__, threads=threads, environment=environment)
    labels = {shape.key: shape.label for shape in shapes}
    try:
        tell(worker, data=str(data), configs={shape.key: flatten(shape.config) for shape in shapes})
        for answer in answers_of(worker):
            if "error" in answer:
                raise as_error(answer)
            if "samples" in answer:
                found = {key: _summarise(labels[key], rounds, answer["steps"][key]) for key, rounds in answer["samples"].items()}
                return Measured(found, answer["machine"])
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
        samples, taken, machine = _take_turns(configs, Path(task["data"]), answer)
        answer(samples=samples, steps=taken, machine=machine)
    except PldError as error:
        answer(**describe_error(error))
    except BrokenPipeError:
        return  # the parent is gone


def _take_turns(
    configs: Mapping[str, Config], data: Path, answer: Callable[..., None]
) -> tuple[dict[str, Any], dict[str, int], dict[str, Any]]:
    """Measure each shape once per round; return (dense seconds, seconds per block) of every part of every round, and dense steps taken."""
    import torch

    from pldcli.bench.bench import bench
    from pldcli.engine.hardware import versions

    samples: dict[str, list[list[tuple[float, float]]]] = {key: [] for key in configs}
    steps, taken = dict.fromkeys(configs, _FEWEST_STEPS), dict.fromkeys(configs, 0)
    machine: dict[str, Any] = {}
    began = time.monotonic()
    for number in range(1, _MOST_ROUNDS + 1):
        enough = _ENOUGH_SECONDS if _are_alike(samples.values()) else _MOST_SECONDS
        if number > _FEWEST_ROUNDS and time.monotonic() - began > enough * len(configs):
            break
        for key, config in configs.items():
            torch.compiler.reset()  # after a few models of other shapes it would give up compiling
            measured = bench(config, data=data, steps=steps[key])
            steps[key] = min(_MOST_STEPS, max(_FEWEST_STEPS, round(_MODE_SECONDS / measured.modes[0].seconds)))
            taken[key] += measured.steps
            samples[key].append(_parts(config, measured))
            answer(shape=key, round=number, seconds=statistics.median(dense for dense, _ in samples[key][-1]))
            names = ("hardware", "threads", "precision", "compiled", "micro_batch_size")
            machine = {name: getattr(measured, name) for name in names}
    device = "cuda" if torch.cuda.is_available() and next(iter(configs.values())).runtime.device != "cpu" else "cpu"
    return samples, taken, {**versions(), **machine, "device": device, "cores": os.cpu_count()}


def _are_alike(samples: Iterable[Sequence[Sequence[tuple[float, float]]]]) -> bool:
    """Tell whether the rounds of every shape took about as long."""
    medians = [[statistics.median(dense for dense, _ in one) for one in rounds if one] for rounds in samples]
    return all(max(one) <= (1.0 + QUIET) * min(one) for one in medians if one)


def _parts(config: Config, measured: Any) -> list[tuple[float, float]]:
    """Read each part of a measurement on its own: neighbours in time, with the blocks that ran in it."""
    from pldcli.bench.budget import step_time

    pairs = []
    for part in range(len(measured.modes[0].step_seconds)):
        modes = []
        for mode in measured.modes:
            kept = (mode.kept_blocks_by_part[part],)
            modes.append(replace(mode, step_seconds=(mode.step_seconds[part],), kept_blocks_by_part=kept))
        if modes[0].kept_blocks - modes[1].kept_blocks < 0.5:  # a model of one block may happen to drop none
            continue
        found = step_time(config, replace(measured, modes=tuple(modes)))
        pairs.append((found.dense_seconds, found.block_seconds))
    return pairs


def _summarise(label: str, rounds: Sequence[Sequence[tuple[float, float]]], steps: int) -> ShapeTime:
    parts = [part for one in rounds for part in one]
    if not parts:
        raise DeviceError("a step could not be measured with blocks dropped", where=label, hint="use a model of two blocks or more")
    medians = [statistics.median(dense for dense, _ in one) for one in rounds if one]
    time_ = StepTime(statistics.median(dense for dense, _ in parts), statistics.median(block for _, block in parts))
    return ShapeTime(label, time_, min(medians), max(medians), steps)
