"""What a study is to compare: systems, their lengths, seeds, checks, a halving, and tasks to fine-tune on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Check", "Finetuning", "Halving", "Length", "Rung", "Spec", "SystemSpec"]


@dataclass(frozen=True)
class Length:
    """How long a system trains: a fraction of one of four things."""

    fraction: float = 1.0
    steps: int | None = None
    """So many steps."""
    equal_time: str | None = None
    """The training seconds of this system."""
    budget_seconds: float | None = None
    """So many training seconds."""

    def __str__(self) -> str:
        """Say it in a few words."""
        whole = "the preset's steps"
        if self.steps is not None:
            whole = f"{self.steps:,} steps"
        elif self.equal_time is not None:
            whole = f"the time of {self.equal_time}"
        elif self.budget_seconds is not None:
            whole = f"{self.budget_seconds:,g} s"
        return whole if self.fraction == 1.0 else f"{self.fraction:g} of {whole}"


@dataclass(frozen=True)
class SystemSpec:
    """One configuration to train with several seeds."""

    name: str
    preset: str
    overrides: tuple[str, ...]
    """`KEY=VALUE`: the study's, then its own, then those of its grid."""
    seeds: tuple[int, ...]
    length: Length
    baseline: str
    """What its losses are held against."""
    grid: str | None = None
    """The entry of the file that it was expanded from."""
    values: tuple[tuple[str, Any], ...] = ()
    """Its point on that grid: dotted key and value."""


@dataclass(frozen=True)
class Check:
    """What must hold before the study can answer anything: one system beats another clearly."""

    better: str
    than: str
    by_seed_deviations: float


@dataclass(frozen=True)
class Rung:
    """A round of a halving."""

    fraction: float
    """Of each candidate's whole length."""
    keep: int | None
    """So many of the candidates before take part; None: all."""
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Halving:
    """Successive halving: many candidates for a short time, the best of them for longer."""

    candidates: tuple[str, ...]
    rungs: tuple[Rung, ...]

    def takes_part(self, rung: int) -> int:
        """Count the candidates of a rung (0 is the first)."""
        return self.rungs[rung].keep or len(self.candidates)


@dataclass(frozen=True)
class Finetuning:
    """What finished runs are fine-tuned on."""

    tasks: tuple[str, ...]
    """As `pld finetune` takes them."""
    data_dir: str | None
    """Where the files of tasks with a name are; None for the Hugging Face hub."""
    systems: tuple[str, ...]
    """Whose runs; of a candidate of the halving, those of the last rung."""
    settings: tuple[str, ...]
    """`KEY=VALUE` of `pld finetune`, the seeds among them."""


@dataclass(frozen=True)
class Spec:
    """A whole study."""

    name: str
    data: str
    """The prepared directory, as it was written."""
    seeds: tuple[int, ...]
    baseline: str
    systems: Mapping[str, SystemSpec]
    """By name; grids are expanded."""
    checks: tuple[Check, ...]
    halving: Halving | None
    finetuning: Finetuning | None
    text: str
    """The file."""

    @property
    def candidates(self) -> tuple[str, ...]:
        """List the systems that train in rungs only."""
        return self.halving.candidates if self.halving else ()

    @property
    def grids(self) -> dict[str, list[SystemSpec]]:
        """Group the systems that were expanded from a grid."""
        found: dict[str, list[SystemSpec]] = {}
        for system in self.systems.values():
            if system.grid is not None:
                found.setdefault(system.grid, []).append(system)
        return found
