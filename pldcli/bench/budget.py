"""Turn a budget of training time into a number of steps, which then belongs to the run like any other; and read step times off a bench."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pldcli.bench.bench import bench
from pldcli.bench.result import Bench, Mode
from pldcli.bench.step_time import StepTime, half_dropped
from pldcli.config import Config
from pldcli.curriculum import Curriculum
from pldcli.data.prepared import PreparedData
from pldcli.errors import UsageError
from pldcli.pld import Schedule

__all__ = ["Calibration", "calibrate", "step_time", "step_times_by_part"]

_STEPS = 10
_ROUNDS = 4
"""The mean step depends on the length of the run a little: so often is the length corrected."""


@dataclass(frozen=True)
class Calibration:
    """How long a step takes on average over a run, and how many fit."""

    step_seconds: float
    total_steps: int


def calibrate(
    config: Config, *, data: Path | PreparedData, seconds: float, report: Callable[[str], None] = lambda line: None
) -> Calibration:
    """Measure steps on this machine and count how many fit into so many training seconds.

    Training seconds hold no validation and no saving. Every schedule of the run then decays to its own end, as `total_steps` is fixed
    before the first step.

    Args:
        config: The resolved configuration; its number of steps does not matter.
        data: Prepared data, opened or not.
        seconds: The budget.
        report: Told what is going on.

    Raises:
        UsageError: Not even one step fits, or there are several processes, which would not agree on what they measured.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError("works with one process", where="--budget", hint="time a step with `pld bench`, and set train.total_steps")
    # With as few blocks dropped as some schedules ever drop, ten steps would not show what a block takes.
    base = config if config.pld_schedule.is_dense else half_dropped(config)
    lengths = dict.fromkeys([*(stage.seq_len for stage in config.data.length_stages), config.data.seq_len])
    measured = {length: bench(_at_length(base, length), data=data, steps=_STEPS, report=report) for length in lengths}

    def mean_seconds(total_steps: int) -> float:
        length = max(1, total_steps)
        return _mean_step_seconds(
            replace(config.pld_schedule, total_steps=length), replace(config.curriculum, total_steps=length), measured
        )

    steps = seconds / mean_seconds(config.train.total_steps)
    for _ in range(_ROUNDS):
        steps = seconds / mean_seconds(round(steps))
    if steps < 1:
        what = f"a step takes {mean_seconds(1):.1f} s"
        raise UsageError(what, where="--budget", hint="allow more time, or lower train.global_batch_size")
    return Calibration(mean_seconds(math.floor(steps)), math.floor(steps))


def _at_length(config: Config, seq_len: int) -> Config:
    """Make all sequences so long; a step and a forward pass keep their tokens."""
    train, times = config.train, config.data.seq_len // seq_len
    size = train.micro_batch_size if train.micro_batch_size == "auto" else times * train.micro_batch_size
    batch: dict[str, Any] = {"global_batch_size": times * train.global_batch_size, "micro_batch_size": size, "batch_ramp": 0.0}
    model = {"local_attention": min(config.model.local_attention, seq_len)}
    return config.replace(data={"seq_len": seq_len, "length_stages": ()}, train=batch, model=model)


def _mean_step_seconds(schedule: Schedule, curriculum: Curriculum, measured: Mapping[int, Bench]) -> float:
    """Average a step over a run, from measured steps by length of sequences."""
    seconds = [
        _step_time(measured[stretch.seq_len], stretch.num_sequences).seconds_between(schedule, stretch.first_step, stretch.stop)
        for stretch in curriculum.stretches
    ]
    return sum(seconds) / curriculum.total_steps


def step_time(config: Config, measured: Bench) -> StepTime:
    """Read what a step of a run takes off a measurement; forward passes count as often as the run's step has them.

    Args:
        config: The run's; its batch counts.
        measured: Steps of the same model, dense and perhaps dropped; where none was dropped, a block is taken to save nothing.
    """
    return _step_time(measured, config.train.global_batch_size)


def _step_time(measured: Bench, num_sequences: int) -> StepTime:
    """Read what a step of so many sequences takes off a measurement."""
    forwards = num_sequences / measured.sequences_per_step
    dense = _step_seconds(measured.modes[0], forwards)
    if len(measured.modes) < 2:
        return StepTime(dense, 0.0)
    dropped = measured.modes[1]
    missing = measured.num_blocks - dropped.kept_blocks
    return StepTime(dense, (dense - _step_seconds(dropped, forwards)) / missing if missing else 0.0)


def step_times_by_part(config: Config, measured: Bench) -> list[StepTime]:
    """Read the step time off each part of a measurement: neighbours in time, with the blocks that ran in it.

    Args:
        config: The run's; its batch counts.
        measured: Steps of the same model, dense and dropped. A part in which nothing was dropped is left out.
    """
    times = []
    for part in range(len(measured.modes[0].step_seconds)):
        dense, dropped = (
            replace(mode, step_seconds=(mode.step_seconds[part],), kept_blocks_by_part=(mode.kept_blocks_by_part[part],))
            for mode in measured.modes
        )
        if dense.kept_blocks - dropped.kept_blocks >= 0.5:  # a model of one block may happen to drop none
            times.append(step_time(config, replace(measured, modes=(dense, dropped))))
    return times


def _step_seconds(mode: Mode, forwards: float) -> float:
    """A measured step has one forward pass per gate group; all but the optimizer grows with their number."""
    optimizer = mode.phase_seconds["optimizer"]
    seconds = optimizer + (statistics.median(mode.step_seconds) - optimizer) * forwards
    assert math.isfinite(seconds)
    return seconds
