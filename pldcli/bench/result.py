"""What `pld bench` measured, and the numbers that follow from it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from pldcli.engine.phases import Phase

__all__ = ["Bench", "MicroBatch", "Mode"]


@dataclass(frozen=True)
class Mode:
    """What was measured of one way to train."""

    name: str
    """`dense` or `dropped`."""
    step_seconds: tuple[float, ...]
    """Mean of each part of the measurement."""
    tokens_per_step: float
    """Real ones; padding is not counted."""
    flops_per_step: tuple[float, ...]
    """Executed FLOPs, mean of each part."""
    kept_blocks_by_part: tuple[float, ...]
    """Mean over the steps of each part."""
    phase_seconds: dict[Phase, float]
    """Per step."""
    peak_memory_bytes: int

    @property
    def kept_blocks(self) -> float:
        """Average over all steps."""
        return statistics.fmean(self.kept_blocks_by_part)

    @property
    def seconds(self) -> float:
        """Average over all steps."""
        return statistics.fmean(self.step_seconds)

    @property
    def tokens_per_second(self) -> float:
        """Compute the throughput, tokens per second."""
        return self.tokens_per_step / self.seconds

    @property
    def flops_per_second(self) -> float:
        """Compute executed FLOPs per second."""
        return statistics.fmean(self.flops_per_step) / self.seconds


@dataclass(frozen=True)
class MicroBatch:
    """A size that was tried."""

    sequences: int
    tokens_per_second: float | None
    """None where it did not fit."""
    peak_memory_bytes: int


@dataclass(frozen=True)
class Bench:
    """A measurement of a preset on a machine."""

    modes: tuple[Mode, ...]
    """Dense, and dropped where the configuration drops."""
    micro_batch_size: int
    micro_batches: tuple[MicroBatch, ...]
    """Those tried to find it; none where it was given."""
    steps: int
    """Of each mode."""
    num_blocks: int
    sequences_per_step: int
    seq_len: int
    precision: str
    compiled: bool
    hardware: str
    threads: int
    processes: int
    peak_flops_per_second: float
    peak_source: str
    """Where the peak is from, in words."""
    whole_run_saved: float
    """Fraction of all FLOPs that the schedule saves over a whole run."""
    text: str
    """What the sequences are made of."""
    is_main: bool = True

    @property
    def saved(self) -> tuple[float, float] | None:
        """Compute the fractions of FLOPs and of time that the dropped steps saved; None where nothing was dropped."""
        if len(self.modes) < 2:
            return None
        dense, dropped = self.modes
        flops = 1.0 - statistics.fmean(dropped.flops_per_step) / statistics.fmean(dense.flops_per_step)
        return flops, 1.0 - dropped.seconds / dense.seconds

    @property
    def saved_by_part(self) -> list[tuple[float, float]]:
        """Compute the same for each part of the measurement, neighbours in time."""
        if len(self.modes) < 2:
            return []
        dense, dropped = self.modes
        pairs = zip(dense.flops_per_step, dropped.flops_per_step, dense.step_seconds, dropped.step_seconds, strict=True)
        return [(1.0 - some / all_, 1.0 - less / time_) for all_, some, time_, less in pairs]

    def mfu(self, mode: Mode) -> float:
        """Compute the model FLOPs utilization: executed FLOPs per second over the peak of all processes."""
        return mode.flops_per_second / (self.peak_flops_per_second * self.processes)

    def to_json(self) -> dict[str, Any]:
        """List everything, for machines."""
        modes = {
            mode.name: {
                "step_seconds": mode.seconds,
                "step_seconds_by_part": list(mode.step_seconds),
                "tokens_per_step": mode.tokens_per_step,
                "tokens_per_second": mode.tokens_per_second,
                "kept_blocks": mode.kept_blocks,
                "executed_flops_per_step": statistics.fmean(mode.flops_per_step),
                "mfu": self.mfu(mode),
                "phase_seconds": mode.phase_seconds,
                "peak_memory_bytes": mode.peak_memory_bytes,
            }
            for mode in self.modes
        }
        saved = self.saved
        values = {name: value for name, value in vars(self).items() if name not in ("modes", "micro_batches", "is_main")}
        return values | {
            "modes": modes,
            "micro_batches": [vars(tried) for tried in self.micro_batches],
            "operations_saved": saved[0] if saved else None,
            "time_saved": saved[1] if saved else None,
            "saved_by_part": self.saved_by_part,
        }
