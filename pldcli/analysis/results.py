"""What is measured of the blocks of a model, at one moment of training and over all of it.

Source: Zhang & He 2020, section 3 (gradients, distances and angles, leaving out blocks) and section 5 (Post-LN against Pre-LN).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from pldcli.choices import Norm
from pldcli.errors import UsageError

__all__ = [
    "Analysis",
    "AnalyzedRun",
    "BlockProbe",
    "GateChoice",
    "Measure",
    "Probe",
    "Removal",
    "State",
    "measures",
    "parse_gates",
]

GateChoice = float | Literal["schedule"]
"""One keep probability of every block, or what a run's own schedule does at the step."""

Measure = Literal["weight_gradient_norm", "input_gradient_norm", "distance", "relative_distance", "angle_degrees"]
"""What is measured of a block: the fields of `BlockProbe`."""


@dataclass(frozen=True)
class BlockProbe:
    """One block in one pass over the sequences. A block that did not run has None, but for the gradient that passes it by."""

    weight_gradient_norm: float | None
    """Euclidean norm over all of the block's parameters."""
    input_gradient_norm: float
    """Euclidean norm over all tokens of all sequences, of the gradient with respect to what enters the block."""
    distance: float | None
    """Euclidean distance between a token's vectors before and after the block, mean over tokens."""
    relative_distance: float | None
    """That distance as a multiple of the norm before the block, mean over tokens."""
    angle_degrees: float | None
    """Angle between a token's vectors before and after the block, mean over tokens."""


@dataclass(frozen=True)
class Probe:
    """All blocks in one pass over the sequences, under one set of gates."""

    gates: tuple[bool, ...]
    loss: float
    """Masked-LM loss in nats per target."""
    blocks: tuple[BlockProbe, ...]


@dataclass(frozen=True)
class State:
    """A model at one moment of its training."""

    step: int
    """Completed updates."""
    source: str
    """Where the weights came from."""
    whole: Probe
    """Every block running."""
    draws: tuple[Probe, ...] = ()
    """Under gates, a probe per draw."""

    def values(self, measure: Measure, *, dropped: bool = False) -> list[float]:
        """List a measure block by block.

        Args:
            measure: Which.
            dropped: Average over those draws in which a block has the measure, instead of every block running.

        Returns:
            A value per block; not a number where a block ran in no draw.
        """
        return [_mean(found) for found in self._found(measure, dropped)]

    def ranges(self, measure: Measure) -> list[tuple[float, float]]:
        """List the least and the greatest value over the draws, block by block."""
        return [(min(found, default=math.nan), max(found, default=math.nan)) for found in self._found(measure, dropped=True)]

    def loss(self, *, dropped: bool = False) -> float:
        """Return the loss; under gates the mean over draws."""
        return _mean([probe.loss for probe in self._probes(dropped)])

    def _probes(self, dropped: bool) -> tuple[Probe, ...]:
        return self.draws if dropped else (self.whole,)

    def _found(self, measure: Measure, dropped: bool) -> list[list[float]]:
        rows = [[getattr(block, measure) for block in probe.blocks] for probe in self._probes(dropped)]
        return [[value for value in column if value is not None] for column in zip(*rows, strict=True)]


@dataclass(frozen=True)
class Removal:
    """What a trained model loses with some of its blocks left out, nothing else changed. Losses in nats per target."""

    step: int
    loss: float
    """With every block."""
    alone: tuple[float, ...]
    """Entry i - 1: with block i left out."""
    from_here: tuple[float, ...]
    """Entry i - 1: with block i and every block after it left out."""

    def increases(self, *, from_here: bool = False) -> list[float]:
        """Subtract the loss of the whole model."""
        return [loss - self.loss for loss in (self.from_here if from_here else self.alone)]


@dataclass(frozen=True, kw_only=True)
class AnalyzedRun:
    """A run's blocks over its training."""

    name: str
    path: str
    norm: Norm
    seq_len: int
    """Tokens per sequence."""
    num_sequences: int
    """Validation sequences that everything is computed on."""
    data: str
    """The prepared directory."""
    states: tuple[State, ...]
    """In the order of steps."""
    removal: Removal

    @property
    def num_blocks(self) -> int:
        """Count the blocks."""
        return len(self.removal.alone)

    @property
    def title(self) -> str:
        """Name the run and where its norms stand."""
        return f"{self.name} ({'Pre' if self.norm == 'pre' else 'Post'}-LN)"


@dataclass(frozen=True)
class Analysis:
    """Runs beside one another."""

    runs: tuple[AnalyzedRun, ...]
    gates: GateChoice | None
    """What blocks were dropped by, beside every block running; None for nothing."""
    num_draws: int
    """Draws under these gates; 0 without."""
    notes: tuple[str, ...] = ()
    """What a reader should know before the numbers."""

    @property
    def dropping(self) -> str:
        """Return what blocks were dropped by."""
        if self.gates is None:
            return ""
        by = "each run's own schedule" if self.gates == "schedule" else f"keep probability {self.gates:g} in every block"
        return f"{by}, mean of {self.num_draws} draws"


def measures() -> tuple[str, ...]:
    """Return what is measured of a block."""
    return tuple(field.name for field in fields(BlockProbe))


def parse_gates(text: str) -> GateChoice:
    """Read `schedule`, or a keep probability.

    Raises:
        UsageError: It is neither.
    """
    if text == "schedule":
        return "schedule"
    try:
        probability = float(text)
    except ValueError:
        probability = math.nan
    if not 0.0 < probability < 1.0:
        raise UsageError(f"{text!r} is neither `schedule` nor a keep probability between 0 and 1", where="--gates", hint="try --gates 0.5")
    return probability


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan
