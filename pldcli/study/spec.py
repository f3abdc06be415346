"""What a study is to compare: systems, their lengths, seeds, checks, a halving, and tasks to fine-tune on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, Strict, model_validator

from pldcli.bench.step_time import parse_seconds
from pldcli.errors import UsageError
from pldcli.settings import Count, Fraction, Natural, Positive, Settings, spelled, split

__all__ = ["Check", "Finetuning", "Halving", "Length", "Name", "Rung", "Spec", "Study", "System", "SystemSpec"]

_LENGTHS = ("steps", "equal_time", "budget")
_ELSEWHERE = {
    "train.seed": "seeds stand under `seeds`",
    "train.init_from": "every run of a study begins with random weights",
}
"""Keys that a study does not set."""


def _file_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        raise ValueError(f"{name!r} cannot be a name of files; use letters, digits, dots, + and -")
    return name


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"must be different, not {list(values)}")
    return values


def _seconds(budget: Any) -> float:
    try:
        return parse_seconds(str(budget), "")
    except UsageError as error:
        raise ValueError(str(error)) from error


def _changes(given: Any) -> Any:
    """Read `set`: a list of KEY=VALUE, or a mapping of dotted keys."""
    if not isinstance(given, dict):
        return given or ()
    for key, value in given.items():
        if isinstance(value, dict):
            raise ValueError(f"{key} must be one value, not {value!r}; write dotted keys, as optim.learning_rate: 1e-3")
    return tuple(f"{key}={spelled(value)}" for key, value in given.items())


def _axes(given: Any) -> Any:
    """Read `set` of `finetune`, where several values make a grid."""
    if not isinstance(given, dict):
        return given or ()
    return _changes({key: ",".join(map(spelled, value)) if isinstance(value, list) else value for key, value in given.items()})


def _may_be_set(changes: Any) -> Any:
    """Check the keys of changes, or of a grid."""
    for key in (change if isinstance(changes, dict) else split(change)[0] for change in changes):
        if key in _ELSEWHERE:
            raise ValueError(f"{key} cannot be set here; {_ELSEWHERE[key]}")
    return changes


Scalar = str | int | float | bool | None
Name = Annotated[str, AfterValidator(_file_name)]
Names = Annotated[tuple[str, ...], Strict(False)]
Seeds = Annotated[tuple[Natural, ...], Strict(False), Field(min_length=1), AfterValidator(_distinct)]
Seconds = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=str)]
Changes = Annotated[
    tuple[str, ...],
    Strict(False),
    BeforeValidator(_changes, json_schema_input_type=dict[str, Any] | list[str] | None),
    AfterValidator(_may_be_set),
]
Axes = Annotated[
    tuple[str, ...],
    Strict(False),
    BeforeValidator(_axes, json_schema_input_type=dict[str, Any] | list[str] | None),
]
Grid = Annotated[
    dict[str, Annotated[tuple[Scalar, ...], Strict(False), Field(min_length=1)]], Field(min_length=1), AfterValidator(_may_be_set)
]


class Length(Settings):
    """How long a system trains: a fraction of one of four things; by default of the preset's steps."""

    fraction: Fraction = 1.0
    """So much of it."""
    steps: Count | None = None
    """So many steps."""
    equal_time: str | None = None
    """The training seconds of this system."""
    budget: Seconds | None = None
    """So many training seconds, written as 24h, 90m or 1h30m."""

    @model_validator(mode="after")
    def _check_one_is_given(self) -> Self:
        if len(self.given) > 1:
            raise ValueError(f"{' and '.join(f'`{key}`' for key in self.given)} exclude each other; leave one of them out")
        return self

    @property
    def given(self) -> list[str]:
        """List what takes the place of the preset's steps."""
        return [key for key in _LENGTHS if getattr(self, key) is not None]

    def __str__(self) -> str:
        """Say it in a few words."""
        whole = "the preset's steps"
        if self.steps is not None:
            whole = f"{self.steps:,} steps"
        elif self.equal_time is not None:
            whole = f"the time of {self.equal_time}"
        elif self.budget is not None:
            whole = f"{self.budget:,g} s"
        return whole if self.fraction == 1.0 else f"{self.fraction:g} of {whole}"


class System(Length):
    """One configuration to train with several seeds, or a grid of them."""

    preset: str
    """A shipped preset or a YAML file."""
    set: Changes = ()
    """Its changes, after those of the study."""
    seeds: Seeds = ()
    """Instead of the study's."""
    grid: Grid | None = None
    """Dotted key to values: one system for every combination."""
    baseline: str | None = None
    """What its losses are held against, instead of the study's baseline."""

    @model_validator(mode="after")
    def _check_length_is_free(self) -> Self:
        if self.given and "train.total_steps" in {*(split(change)[0] for change in self.set), *(self.grid or ())}:
            raise ValueError(f"`{self.given[0]}` sets train.total_steps; leave one of them out")
        return self


class Check(Settings):
    """What must hold before the study can answer anything: one system beats another clearly."""

    better: str
    """A system."""
    than: str
    """Another one."""
    by_seed_deviations: Positive
    """The difference of their mean losses, in standard deviations over seeds."""

    @model_validator(mode="after")
    def _check_two(self) -> Self:
        if self.better == self.than:
            raise ValueError(f"{self.better} cannot be better than itself")
        return self


class Rung(Settings):
    """A round of a halving."""

    fraction: Fraction = 1.0
    """Of each candidate's whole length."""
    keep: Count | None = None
    """So many of the candidates before take part; in the first rung, all."""
    seeds: Seeds = ()
    """By default the first of the study's."""


class Halving(Settings):
    """Successive halving: many candidates for a short time, the best of them for longer."""

    candidates: Names
    """Systems; the name of a grid stands for all of its systems."""
    rungs: Annotated[tuple[Rung, ...], Strict(False), Field(min_length=1)]
    """Its rounds, the shortest first."""

    def takes_part(self, rung: int) -> int:
        """Count the candidates of a rung (0 is the first)."""
        return self.rungs[rung].keep or len(self.candidates)


class Finetuning(Settings):
    """What finished runs are fine-tuned on."""

    tasks: Annotated[tuple[str, ...], Strict(False), Field(min_length=1)]
    """As `pld finetune` takes them."""
    data_dir: str | None = None
    """Where the files of tasks with a name are; by default they come from the Hugging Face hub."""
    systems: Names = ()
    """Whose runs, by default everyone's; of a candidate of the halving, those of the last rung."""
    seeds: Seeds = (0,)
    """Of each task."""
    set: Axes = ()
    """`KEY=VALUE` of `pld finetune`, or its keys with values; several values with commas between them, or a list, make a grid."""

    @property
    def settings(self) -> tuple[str, ...]:
        """List the `KEY=VALUE` of `pld finetune`, the seeds among them."""
        return (*self.set, f"seed={','.join(map(str, self.seeds))}")


class Study(Settings):
    """The file of a study."""

    extends: str | None = None
    """Another file, relative to this one, whose keys count where this one lacks them; of `set` and other mappings, each of their keys."""
    name: Name
    """Where its runs go, studies/NAME; by default the file's name."""
    data: str
    """The prepared directory."""
    set: Changes = ()
    """Changes of every system: KEY=VALUE texts, or dotted keys with values."""
    seeds: Seeds = (0,)
    """Of every run."""
    baseline: str | None = None
    """What losses are held against; by default the first system."""
    systems: Annotated[dict[Name, System], Field(min_length=1)]
    """What is compared, by name."""
    checks: Annotated[tuple[Check, ...], Strict(False)] = ()
    """What must hold before the study can answer anything."""
    halving: Halving | None = None
    """Candidates that train in rounds."""
    finetune: Finetuning | None = None
    """What finished runs are fine-tuned on."""
    minimal_pairs: Names = ()
    """Files and directories of minimal pairs, as `pld evaluate --minimal-pairs` takes them, for every finished run."""


@dataclass(frozen=True, kw_only=True)
class SystemSpec:
    """One configuration to train with several seeds, a point of a grid where it was one."""

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

    @property
    def entry(self) -> str:
        """Name its key in the file."""
        return f"systems.{self.grid or self.name}"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A whole study, grids expanded and defaults filled in."""

    name: str
    data: str
    """The prepared directory, as it was written."""
    seeds: tuple[int, ...]
    baseline: str
    systems: Mapping[str, SystemSpec]
    """By name."""
    checks: tuple[Check, ...]
    halving: Halving | None
    finetuning: Finetuning | None
    minimal_pairs: tuple[str, ...]
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
