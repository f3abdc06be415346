"""Estimate what a run will take: parameters, FLOPs, memory, disk and time."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from pldcli.config import Config
from pldcli.data.loader import StepBatches
from pldcli.engine.hardware import device_memory_bytes
from pldcli.engine.trainer import Trainer
from pldcli.pld import Plan

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
    """For the whole run on this machine, from measured steps."""
    device: str
    precision: str
    micro_batch_size: int
    micro_steps: int
    """Forward passes per gate group and process."""
    world_size: int
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


def estimate(config: Config, trainer: Trainer[StepBatches]) -> Estimate:
    """Estimate what a run will take; a few steps are measured, and the model is left as it was."""
    schedule, train, batches = config.pld_schedule, config.train, trainer.batches
    flops = config.flops.attending_to(batches.samples.attended_tokens)
    num_parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    num_sequences = train.total_steps * train.global_batch_size
    checkpoint_bytes = 12 * num_parameters
    return Estimate(
        config=config,
        num_parameters=num_parameters,
        flops_per_token_dense=flops.dense,
        flops_per_token_scheduled=flops.executed(schedule.mean_kept_fraction * schedule.num_blocks),
        num_tokens=round(num_sequences * config.data.seq_len * batches.samples.efficiency),
        num_sequences=num_sequences,
        packing_efficiency=batches.samples.efficiency,
        epochs=num_sequences / batches.samples.num_sequences,
        memory_bytes=expected_memory_bytes(config, batches.micro_batch_size),
        checkpoint_bytes=checkpoint_bytes,
        disk_bytes=checkpoint_bytes * (config.checkpoint.keep + 1) + 4 * num_parameters,
        seconds=measure_step_seconds(trainer, config) * train.total_steps,
        device=str(trainer.runtime.device),
        precision=trainer.precision.name,
        micro_batch_size=batches.micro_batch_size,
        micro_steps=batches.micro_steps,
        world_size=trainer.runtime.world_size,
        is_main=trainer.runtime.is_main,
    )


def expected_memory_bytes(config: Config, micro_batch_size: int) -> int:
    """Estimate what one process needs on its device."""
    return _TRAINING_STATE_BYTES * config.num_parameters + micro_batch_size * _activation_bytes_per_sequence(config)


def fitting_micro_batch(config: Config, num_parameters: int, device: torch.device) -> int:
    """Estimate how many sequences fit into one forward pass."""
    # A function of the machine and the configuration alone, not of the memory that happens to be free: equal runs stay equal.
    left = _MEMORY_SHARE * device_memory_bytes(device) - _TRAINING_STATE_BYTES * num_parameters
    most_tokens = _CUDA_TOKENS_PER_FORWARD if device.type == "cuda" else _CPU_TOKENS_PER_FORWARD
    by_memory = int(left / _activation_bytes_per_sequence(config))
    return max(1, min(by_memory, most_tokens // config.data.seq_len))


def measure_step_seconds(trainer: Trainer[StepBatches], config: Config) -> float:
    """Time forward and backward on real batches, with all blocks and with half of them, and weigh both by the schedule.

    On a CPU a few sequences stand for a micro-batch. The model is left as it was.
    """
    batches, num_blocks = trainer.batches, config.model.num_hidden_layers
    on_cpu = trainer.runtime.device.type == "cpu"
    sequences = min(batches.micro_batch_size, max(1, 1024 // config.data.seq_len)) if on_cpu else batches.micro_batch_size
    probe = StepBatches(
        batches.samples, batches.masking, global_batch_size=sequences, num_groups=1, micro_steps=1, micro_batch_size=sequences
    )
    batch = probe.step(config.train.total_steps // 2)[0][0]  # the mean of a share of targets that moves
    counts = [float(n) for n in trainer.objective.num_targets(batch)]
    half = num_blocks // 2
    seconds = {}
    for kept in (num_blocks, half):
        plan = Plan(tuple(i < kept for i in range(num_blocks)), (1.0,) * num_blocks, (1.0,) * num_blocks)
        trainer.forward_backward(batch, plan, counts)
        trainer.runtime.synchronize()
        started, repeats = time.perf_counter(), 0
        while repeats == 0 or (repeats < 5 and time.perf_counter() - started < _MEASURE_SECONDS):
            trainer.forward_backward(batch, plan, counts)
            trainer.runtime.synchronize()
            repeats += 1
        seconds[kept] = (time.perf_counter() - started) / repeats
    trainer.optimizer.zero_grad(set_to_none=True)
    schedule = config.pld_schedule
    per_block = (seconds[num_blocks] - seconds[half]) / (num_blocks - half)
    mean = seconds[num_blocks] - per_block * num_blocks * (1.0 - schedule.mean_kept_fraction)
    return mean * config.train.global_batch_size / (sequences * trainer.runtime.world_size)


def _activation_bytes_per_sequence(config: Config) -> int:
    """Estimate what one sequence keeps for the backward pass, in bytes: measured on autocast runs, rounded up."""
    model, length = config.model, config.data.seq_len
    block = length * (40 * model.hidden_size + 8 * model.intermediate_size) + 6 * model.num_attention_heads * length**2
    heads = 1 + config.objective.span_boundary
    head = heads * int(max(config.objective.mask_probabilities) * length + 1) * model.vocab_size * 16
    return model.num_hidden_layers * block + head
