"""Estimate what a run will take: parameters, FLOPs, memory, disk and time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

from pldcli.config import Config
from pldcli.curriculum import Stretch
from pldcli.data.step_batches import StepBatches
from pldcli.engine.runtime import Runtime
from pldcli.engine.trainer import Trainer
from pldcli.pld import Plan
from pldcli.system.hardware import device_memory_bytes

__all__ = [
    "Estimate",
    "estimate",
    "expected_memory_bytes",
    "fitting_micro_batch",
    "measure_step_seconds",
]

_LONG_RUN_SECONDS = 24 * 3600
_MANY_EPOCHS = 40
_TRAINING_STATE_BYTES = 16
"""Per parameter: weight, gradient and two moments in float32."""
_CPU_TOKENS_PER_FORWARD = 4096
_CUDA_TOKENS_PER_FORWARD = 65536
_MEMORY_SHARE = 0.6
_MEASURE_SECONDS = 1.0
_LONG_SECONDS = 3.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A run before it starts."""

    config: Config
    num_parameters: int
    flops_per_token_dense: float
    flops_per_token_scheduled: float
    """Mean over the run, dropped blocks not counted."""
    num_tokens: int
    num_sequences: int
    packing_efficiency: float
    """Share of tokens that are not padding."""
    epochs: float
    memory_bytes: int
    """Of one process on its device, roughly."""
    checkpoint_bytes: int
    """Of one checkpoint."""
    disk_bytes: int
    """Of the whole run directory, roughly."""
    seconds: float
    """For the whole run on devices like the one here, from steps measured on it."""
    device: str
    precision: str
    micro_batch_size: int
    micro_steps: int
    """Forward passes per gate group and process, where the batch has its whole size."""
    world_size: int
    measured_in: int
    """Processes that were measured: one stands for all where they are not there."""
    is_main: bool
    """Whether this process prints."""

    @property
    def warnings(self) -> list[str]:
        """List what a user would want to know before the start."""
        found = []
        if self.seconds > _LONG_RUN_SECONDS:
            days = self.seconds / 86400
            found.append(f"this run would take about {days:,.1f} days here; a smaller preset or train.total_steps is quicker")
        if self.epochs > _MANY_EPOCHS:
            found.append(f"this run passes over the text {self.epochs:,.0f} times; more text or fewer steps would serve it better")
        return found


def estimate(config: Config, trainer: Trainer[StepBatches], *, shards: int | None = None) -> Estimate:
    """Estimate what a run will take; a few steps are measured, and the model is left as it was.

    Args:
        config: The resolved configuration.
        trainer: At the run's first step, with the batches of one of its processes.
        shards: Processes that will hold the parameters together; by default those that do.
    """
    batches, curriculum = trainer.batches, trainer.batches.curriculum
    flops = config.run_flops(batches.attended_tokens)
    num_parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    sequences = {length: (number, batches.samples[length]) for length, number in curriculum.sequences_by_length.items()}
    num_tokens = sum(number * length * samples.efficiency for length, (number, samples) in sequences.items())
    checkpoint_bytes, every = 12 * num_parameters, config.checkpoint.keep_every_steps
    kept_for_good = 0 if every is None else config.train.total_steps // every
    return Estimate(
        config=config,
        num_parameters=num_parameters,
        flops_per_token_dense=flops.dense_per_token,
        flops_per_token_scheduled=flops.executed_per_token,
        num_tokens=round(num_tokens),
        num_sequences=sum(number for number, _ in sequences.values()),
        packing_efficiency=num_tokens / curriculum.num_tokens,
        epochs=sum(number / samples.num_sequences for number, samples in sequences.values()),
        memory_bytes=expected_memory_bytes(config, batches.micro_batch_size, shards=shards or trainer.runtime.num_shards),
        checkpoint_bytes=checkpoint_bytes,
        disk_bytes=checkpoint_bytes * (config.checkpoint.keep + 1 + kept_for_good) + 4 * num_parameters,
        seconds=measure_step_seconds(trainer, config) * config.train.total_steps,
        device=str(trainer.runtime.device),
        precision=trainer.precision.name,
        micro_batch_size=batches.micro_batch_size,
        micro_steps=batches.micro_steps,
        world_size=batches.world_size,
        measured_in=trainer.runtime.world_size,
        is_main=trainer.runtime.is_main,
    )


def expected_memory_bytes(config: Config, micro_batch_size: int, *, shards: int = 1) -> int:
    """Estimate what one process needs on its device, if it holds one of so many shards."""
    return _TRAINING_STATE_BYTES * config.num_parameters // shards + micro_batch_size * _activation_bytes_per_sequence(config)


def fitting_micro_batch(config: Config, num_parameters: int, device: torch.device, *, sharing: int = 1) -> int:
    """Estimate how many sequences fit into one forward pass, where so many processes share the host's memory."""
    # A function of the machine and the configuration alone, not of the memory that happens to be free: equal runs stay equal.
    left = _MEMORY_SHARE * device_memory_bytes(device, sharing=sharing) - _TRAINING_STATE_BYTES * num_parameters
    most_tokens = _CUDA_TOKENS_PER_FORWARD if device.type == "cuda" else _CPU_TOKENS_PER_FORWARD
    by_memory = int(left / _activation_bytes_per_sequence(config))
    by_entries = (config.objective.sampled_softmax - 1) // config.most_targets if config.objective.sampled_softmax else by_memory
    return max(1, min(by_memory, by_entries, most_tokens // config.data.seq_len))


class _Cost(NamedTuple):
    """Seconds."""

    dense: float
    """With all blocks."""
    per_block: float
    """So much less for each that is dropped."""

    def without(self, blocks: float) -> float:
        """Return what is left where so many are dropped."""
        return self.dense - self.per_block * blocks


def measure_step_seconds(trainer: Trainer[StepBatches], config: Config) -> float:
    """Time forward and backward on real batches of each length, and updates, with all blocks and with half of them; average over the run.

    Weights and the optimizer's state are left as they were.
    """
    schedule, curriculum = config.pld_schedule, config.curriculum
    sequences: dict[int, _Cost] = {}
    update = _measure_update(trainer, schedule.num_blocks)
    total = 0.0
    for stretch in curriculum.stretches:
        if stretch.seq_len not in sequences:
            sequences[stretch.seq_len] = _measure_sequence(trainer, stretch, schedule.num_blocks)
        dropped = schedule.num_blocks * (1.0 - schedule.mean_kept_fraction_between(stretch.first_step, stretch.stop))
        num_sequences = stretch.num_sequences / trainer.batches.world_size
        total += stretch.steps * (num_sequences * sequences[stretch.seq_len].without(dropped) + update.without(dropped))
    return total / curriculum.total_steps


def _measure_sequence(trainer: Trainer[StepBatches], stretch: Stretch, num_blocks: int) -> _Cost:
    """Measure what a sequence takes; on a CPU a few stand for a micro-batch."""
    trainer.set_length(stretch.first_step)
    sequences = trainer.batches.micro_batch_size * trainer.batches.curriculum.seq_len // stretch.seq_len
    if trainer.runtime.device.type == "cpu":
        sequences = min(sequences, max(1, 1024 // stretch.seq_len))
    middle = (stretch.first_step + stretch.stop) // 2  # the mean of a share of targets that moves
    batch = trainer.batches.batch(middle, 0, sequences)
    counts = [float(n) for n in trainer.objective.num_targets(batch)]

    def seconds(kept: int) -> float:
        plan = Plan(tuple(i < kept for i in range(num_blocks)), (1.0,) * num_blocks, (1.0,) * num_blocks)
        return _timed(partial(trainer.forward_backward, batch, plan, counts), trainer.runtime) / sequences

    cost = _cost(seconds, num_blocks)
    trainer.optimizer.zero_grad(set_to_none=True)
    return cost


def _measure_update(trainer: Trainer[StepBatches], num_blocks: int) -> _Cost:
    """Measure what an update takes, with one that changes nothing: its rate and all gradients are 0, its state its own."""
    optimizer: torch.optim.Optimizer = object.__new__(type(trainer.optimizer))
    optimizer.__dict__ |= trainer.optimizer.__dict__
    optimizer.state = defaultdict(dict)
    optimizer.param_groups = [{**group, "lr": 0.0} for group in trainer.optimizer.param_groups]

    def seconds(kept: int) -> float:
        left_out = {parameter for block in trainer.model.blocks[kept:] for parameter in block.parameters()}
        for parameter in trainer.model.parameters():
            parameter.grad = None if parameter in left_out else torch.zeros_like(parameter)
        return _timed(optimizer.step, trainer.runtime)

    cost = _cost(seconds, num_blocks)
    trainer.optimizer.zero_grad(set_to_none=True)
    return cost


def _cost(seconds: Callable[[int], float], num_blocks: int) -> _Cost:
    """Measure with all blocks, and with half of them."""
    half = num_blocks // 2
    dense = seconds(num_blocks)
    return _Cost(dense, (dense - seconds(half)) / (num_blocks - half))


def _timed(work: Callable[[], object], runtime: Runtime) -> float:
    """Time some work, after once in vain; on a CPU, where nothing is built at first, once is enough if that takes long."""
    started = time.perf_counter()
    work()
    runtime.synchronize()
    if runtime.device.type == "cpu" and (first := _mean_seconds_since(started, runtime)) > _LONG_SECONDS:
        return first
    started, repeats = time.perf_counter(), 0
    while repeats == 0 or (repeats < 5 and _mean_seconds_since(started, runtime) < _MEASURE_SECONDS):
        work()
        runtime.synchronize()
        repeats += 1
    return (time.perf_counter() - started) / repeats


def _mean_seconds_since(started: float, runtime: Runtime) -> float:
    """Average over processes that hold shards, so that all go on or none: they run every pass together."""
    if runtime.num_shards == 1:
        return time.perf_counter() - started
    return runtime.sum_on_host([time.perf_counter() - started])[0] / runtime.world_size


def _activation_bytes_per_sequence(config: Config) -> int:
    """Estimate what one sequence keeps for the backward pass, in bytes: measured on autocast runs, rounded up."""
    model, length = config.model, config.data.seq_len
    block = length * (40 * model.hidden_size + 8 * model.intermediate_size) + 6 * model.num_attention_heads * length**2
    head = config.most_targets * (config.softmax_entries + config.objective.span_boundary * model.vocab_size) * 16
    return model.num_hidden_layers * block + head
