"""What benchmarks/first_hour.py runs: the contestants of a plan file, their candidates, and the runs that these make."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from pldcli.bench.step_time import parse_seconds
from pldcli.errors import UsageError

__all__ = ["Contestant", "Job", "Peer", "Plan", "read_plan", "written"]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A model of transformers in its Trainer. Defaults are those of `run_mlm`, which takes TrainingArguments as they come."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int
    batch_size: int = 8
    learning_rate: float = 5e-5
    warmup_fraction: float = 0.0
    weight_decay: float = 0.0
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    mask_probability: float = 0.15
    dropout: float | None = None
    """None for the architecture's own: 0.1 in BERT, 0 in ModernBERT."""
    sparse_prediction: bool = False
    """ModernBERT's head on masked positions only."""
    bf16: bool = False
    compile: bool = False


@dataclass(frozen=True)
class Job:
    """One run: a contestant with some settings, for so long, from one seed."""

    contestant: str
    kind: str
    preset: str | None
    settings: dict[str, Any]
    candidate: dict[str, Any]
    """The part of the settings that is the contestant's grid."""
    budget: float
    """Seconds of training."""
    seed: int
    seq_len: int
    points: int
    """Validations on the way, the last one at the end."""

    @property
    def key(self) -> str:
        """Name its files."""
        chosen = [f"{name.rpartition('.')[2]}{written(value)}" for name, value in self.candidate.items()]
        return "-".join([self.contestant, *chosen, f"{self.budget:g}s", f"seed{self.seed}"])


@dataclass(frozen=True)
class Contestant:
    """A way to train, and the settings out of which its best are chosen."""

    name: str
    label: str
    kind: str
    """`bert` and `modernbert` are transformers' in Trainer, `pld` is our own program."""
    preset: str | None = None
    set: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, list[Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] | None = None
    shares: tuple[float, ...] = (1.0,)
    """Of the budget: a run of half of it has a schedule that ends there."""
    is_goal: bool = False
    """A peer whose final loss the others are timed to."""

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """Every combination of the grid."""
        return [dict(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())]


@dataclass(frozen=True)
class Plan:
    """All contestants, and how long they get."""

    name: str
    seq_len: int
    budget: float
    """Seconds of training of a run that counts."""
    tuning_share: float
    """Of the budget, for the runs that choose among a grid."""
    seeds: tuple[int, ...]
    points: int
    """Validations of a run of the whole budget."""
    contestants: tuple[Contestant, ...]

    def only(self, names: list[str]) -> Plan:
        """Leave out other contestants."""
        if unknown := set(names) - {contestant.name for contestant in self.contestants}:
            sys.exit(f"{', '.join(sorted(unknown))}: no such contestant; there are {', '.join(c.name for c in self.contestants)}")
        return replace(self, contestants=tuple(one for one in self.contestants if one.name in names))

    def tuning(self, contestant: Contestant) -> list[Job]:
        """The runs out of which the best candidate is chosen; none where there is nothing to choose."""
        if len(contestant.candidates) < 2:
            return []
        seed = (contestant.seeds or self.seeds)[0]
        return [self._job(contestant, candidate, self.tuning_share, seed) for candidate in contestant.candidates]

    def final(self, contestant: Contestant, candidate: dict[str, Any]) -> list[Job]:
        """The runs that count."""
        pairs = itertools.product(contestant.seeds or self.seeds, contestant.shares)
        return [self._job(contestant, candidate, share, seed) for seed, share in pairs]

    def best(self, contestant: Contestant, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
        """Choose the candidate with the lowest loss at the end of its tuning run; None while one is missing, or all diverged."""
        tuning = self.tuning(contestant)
        if not tuning:
            return contestant.candidates[0]
        if any(job.key not in results for job in tuning):
            return None
        losses = {job.key: loss for job in tuning if (loss := results[job.key]["final_loss"]) is not None}
        return next((job.candidate for job in tuning if losses and job.key == min(losses, key=lambda key: losses[key])), None)

    def jobs(self, results: Mapping[str, Mapping[str, Any]]) -> Iterator[Job]:
        """List what can be run by what is known: all tuning first, and of a contestant that is tuned the runs that count."""
        for contestant in self.contestants:
            yield from self.tuning(contestant)
        finals = []
        for contestant in self.contestants:
            best = self.best(contestant, results)
            finals.append([] if best is None else self.final(contestant, best))
        for jobs in itertools.zip_longest(*finals):  # one of each contestant, then the next: an early end leaves whole comparisons
            yield from (job for job in jobs if job is not None)

    @property
    def num_runs(self) -> tuple[int, int]:
        """How many runs choose and how many count; one that does both is among those that choose."""
        choosing = sum(len(self.tuning(contestant)) for contestant in self.contestants)
        keys = {job.key for contestant in self.contestants for job in self.tuning(contestant)}
        finals = [job for contestant in self.contestants for job in self.final(contestant, contestant.candidates[0])]
        return choosing, sum(job.key not in keys for job in finals)

    @property
    def core_seconds(self) -> float:
        """Training seconds of all runs."""
        tuning = sum(job.budget for contestant in self.contestants for job in self.tuning(contestant))
        keys = {job.key for contestant in self.contestants for job in self.tuning(contestant)}
        finals = [job for contestant in self.contestants for job in self.final(contestant, contestant.candidates[0])]
        return tuning + sum(job.budget for job in finals if job.key not in keys)

    def _job(self, contestant: Contestant, candidate: dict[str, Any], share: float, seed: int) -> Job:
        return Job(
            contestant=contestant.name,
            kind=contestant.kind,
            preset=contestant.preset,
            settings=contestant.set | candidate,
            candidate=candidate,
            budget=self.budget * share,
            seed=seed,
            seq_len=self.seq_len,
            points=max(2, round(self.points * share)),
        )


def read_plan(path: Path, *, budget: str | None = None, tuning_share: float | None = None) -> Plan:
    """Read a plan file, with another budget if asked; end with one line where something in it is wrong."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        contestants = tuple(_contestant(name, entry) for name, entry in content["contestants"].items())
        return Plan(
            name=path.stem,
            seq_len=int(content["seq_len"]),
            budget=parse_seconds(budget or content["budget"], "--budget"),
            tuning_share=float(content["tuning_share"] if tuning_share is None else tuning_share),
            seeds=tuple(content["seeds"]),
            points=int(content["points"]),
            contestants=contestants,
        )
    except UsageError as error:
        sys.exit(str(error))
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError) as error:
        sys.exit(f"{path}: not a plan: {type(error).__name__}: {error}")


def _contestant(name: str, entry: Mapping[str, Any]) -> Contestant:
    known = dict(entry)
    grid = {key: [_number(value) for value in values] for key, values in known.pop("grid", {}).items()}
    settings = {key: _number(value) for key, value in known.pop("set", {}).items()}
    for key in ("seeds", "shares"):
        if key in known:
            known[key] = tuple(known[key])
    found = Contestant(name=name, set=settings, grid=grid, **known)
    if found.kind not in ("bert", "modernbert", "pld"):
        raise ValueError(f"{name}: kind {found.kind!r} is none of bert, modernbert, pld")
    if found.kind == "pld":
        if found.preset is None:
            raise ValueError(f"{name} names no preset")
    elif unknown := {*settings, *grid} - {one.name for one in fields(Peer)}:
        raise ValueError(f"{name}: {', '.join(sorted(unknown))} is no setting of a peer")
    return found


def written(value: Any) -> str:
    """Write a setting as short as it goes."""
    return value if isinstance(value, str) else f"{value:g}"


def _number(value: Any) -> Any:
    """Read 1e-3, which YAML takes for a text without a point in it."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
