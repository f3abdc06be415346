"""From a study's file to its runs: how many steps each system gets, and what each run is called and told.

A system at equal time gets the steps that fit into its reference's seconds: steps x step time of the reference (`Plan.seconds`), from the
step times that `calibration` measured, divided by the mean step of its own schedule (`StepTime.steps_within`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pldcli import presets
from pldcli.bench.step_time import StepTime, half_dropped
from pldcli.config import RUN_CONTROL, Config, flatten
from pldcli.errors import UsageError
from pldcli.settings import located
from pldcli.study.spec import Spec, SystemSpec

__all__ = ["Plan", "PlannedRun", "Shape", "changed_keys", "make_plan", "shapes"]

_SHAPE_SECTIONS = ("model.", "data.", "objective.", "runtime.")
_SHAPE_KEYS = ("pld.draws_per_step", "optim.name", "train.global_batch_size", "train.micro_batch_size")
_NOT_IN_SHAPE = ("model.initializer_range", "model.attention_init", "model.layer_norm_eps")
"""What a step takes depends on these keys; what is dropped is weighed in by the schedule."""

_MAY_CHANGE = tuple(key for key in RUN_CONTROL if key != "runtime.precision")
"""Keys that leave the losses of a run what they are."""


@dataclass(frozen=True)
class Shape:
    """Everything that the time of a step depends on, but for what is dropped: systems of one shape are measured once."""

    key: str
    label: str
    config: Config
    """To measure: as many blocks dropped as leaves half of them."""
    systems: tuple[str, ...]


@dataclass(frozen=True)
class PlannedRun:
    """One run to be."""

    name: str
    """Its directory: SYSTEM-seedN, or SYSTEM-rungK-seedN."""
    group: str
    """What it is averaged with over seeds: SYSTEM, or SYSTEM-rungK."""
    system: str
    seed: int
    rung: int
    """From 1; 0 outside a halving."""
    config: Config
    preset: str
    changes: tuple[str, ...]
    """`KEY=VALUE` of its command line."""
    seconds: float
    """Of training, predicted from measured steps."""

    @property
    def tokens(self) -> int:
        """Count the tokens of its sequences."""
        return self.config.curriculum.num_tokens

    def seconds_left(self, step: int) -> float:
        """Predict the training time after `step` completed steps."""
        return self.seconds * (1.0 - step / self.config.train.total_steps)


@dataclass(frozen=True)
class Plan:
    """The systems of a study with their numbers of steps."""

    spec: Spec
    base: Mapping[str, Config]
    """Of every system, at the length that its preset says."""
    times: Mapping[str, StepTime]
    """Of every system, as calibrated."""

    @cached_property
    def configs(self) -> dict[str, Config]:
        """Return every system at its whole length in this study."""
        return {name: self._at_length(name) for name in self.spec.systems}

    def seconds(self, system: str) -> float:
        """Predict the training time of a system at its whole length."""
        config = self._at_length(system)
        return self.times[system].seconds_until(config.pld_schedule, config.train.total_steps)

    def runs(self) -> list[PlannedRun]:
        """List the runs outside the halving: every system with its first seed, then every system with its second, ..."""
        systems = [system for system in self.spec.systems.values() if system.name not in self.spec.candidates]
        most = max((len(system.seeds) for system in systems), default=0)
        return [
            self._run(system, system.name, system.seeds[turn], 0, self.configs[system.name])
            for turn in range(most)
            for system in systems
            if turn < len(system.seeds)
        ]

    def rung(self, number: int, candidates: Sequence[str]) -> list[PlannedRun]:
        """List the runs of a rung (0 is the first) with those candidates that take part."""
        assert self.spec.halving is not None
        rung, runs = self.spec.halving.rungs[number], []
        for seed in rung.seeds:
            for name in candidates:
                config = self._at_length(name, rung.fraction)
                runs.append(self._run(self.spec.systems[name], f"{name}-rung{number + 1}", seed, number + 1, config))
        return runs

    def _at_length(self, name: str, scale: float = 1.0) -> Config:
        """Give a system the steps of `scale` times its whole length: as many as fit into its time, or as the file says."""
        system, base = self.spec.systems[name], self.base[name]
        share = scale * system.length.fraction
        changes: dict[str, Any] = {"train": {"total_steps": self._steps(system, share)}}
        optim = base.optim
        if share < 1.0 and optim.warmup_steps is None and optim.warmup_tokens is None:
            # A shorter trial warms up as long as the whole run: a fraction of it would favour low rates.
            whole = round(optim.warmup_fraction * self._steps(system, 1.0))
            changes["optim"] = {"warmup_steps": min(whole, changes["train"]["total_steps"] // 2)}
        with located({"": system.entry}):
            return base.replace(**changes)

    def _steps(self, system: SystemSpec, share: float) -> int:
        length, base = system.length, self.base[system.name]
        if length.equal_time is not None:
            return self._steps_within(system, share * self.seconds(length.equal_time), 0.5)
        if length.budget is not None:
            return self._steps_within(system, share * length.budget, 0.0)  # a budget is not exceeded
        return max(1, round(share * (length.steps or base.train.total_steps)))

    def _steps_within(self, system: SystemSpec, seconds: float, upwards: float) -> int:
        time, schedule = self.times[system.name], self.base[system.name].pld_schedule
        steps = math.floor(time.steps_within(seconds, schedule) + upwards)
        if steps < 1:
            what = f"not one step of {time.mean_seconds(schedule):.1f} s fits into {seconds:.1f} s"
            raise UsageError(what, where=f"systems.{system.name}", hint="allow more time")
        return steps

    def _run(self, system: SystemSpec, group: str, seed: int, rung: int, config: Config) -> PlannedRun:
        config = config.replace(train={"seed": seed})
        shorter = config.optim.warmup_steps != self.base[system.name].optim.warmup_steps
        warmup = [f"optim.warmup_steps={config.optim.warmup_steps}"] if shorter else []
        return PlannedRun(
            name=f"{group}-seed{seed}",
            group=group,
            system=system.name,
            seed=seed,
            rung=rung,
            config=config,
            preset=system.preset,
            changes=(*system.overrides, *warmup, f"train.total_steps={config.train.total_steps}", f"train.seed={seed}"),
            seconds=self.times[system.name].seconds_until(config.pld_schedule, config.train.total_steps),
        )


def shapes(spec: Spec, from_data: Mapping[str, Any]) -> list[Shape]:
    """Group the systems of a study by what the time of a step depends on.

    Args:
        spec: The study.
        from_data: Values that the prepared data decides.

    Raises:
        UsageError: A configuration does not fit.
    """
    members: dict[str, list[tuple[str, Config]]] = {}
    for system in spec.systems.values():
        config = presets.resolve(system.preset, system.overrides, from_data=from_data).config
        for key, varies in (("data.length_stages", config.data.length_stages), ("train.batch_ramp", config.train.batch_ramp)):
            if varies:
                what = f"{key} makes steps unequal, and a study times one for all"
                raise UsageError(what, where=f"systems.{system.name}", hint=f"leave {key} out")
        members.setdefault(_shape_key(config), []).append((system.name, config))
    return [Shape(key, _label(found[0][1]), half_dropped(found[0][1]), tuple(name for name, _ in found)) for key, found in members.items()]


def make_plan(spec: Spec, from_data: Mapping[str, Any], times: Mapping[str, StepTime]) -> Plan:
    """Work out how many steps each system gets.

    Args:
        spec: The study.
        from_data: Values that the prepared data decides.
        times: Shape's key to what its steps take.

    Raises:
        UsageError: Not even one step fits into a system's time, or two runs would share a directory.
    """
    base = {system.name: presets.resolve(system.preset, system.overrides, from_data=from_data).config for system in spec.systems.values()}
    plan = Plan(spec, base, {name: times[_shape_key(config)] for name, config in base.items()})
    names = [run.name for run in plan.runs()]
    if spec.halving is not None:
        for number in range(len(spec.halving.rungs)):
            names += [run.name for run in plan.rung(number, spec.candidates)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two runs would be called {twice}", where="systems", hint="rename a system")
    return plan


def changed_keys(planned: Config, stored: Config) -> list[str]:
    """List the keys in which a run that is there differs from what is planned, but for those that change no loss."""
    ours, theirs = flatten(planned), flatten(stored)
    return [key for key in ours if ours[key] != theirs[key] and key not in _MAY_CHANGE]


def _shape_key(config: Config) -> str:
    flat = flatten(config)
    kept = {key: flat[key] for key in flat if key.startswith(_SHAPE_SECTIONS) or key in _SHAPE_KEYS}
    for key in _NOT_IN_SHAPE:
        del kept[key]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def _label(config: Config) -> str:
    model, train = config.model, config.train
    return (
        f"{model.num_hidden_layers} blocks of {model.hidden_size}, {'Pre' if model.norm == 'pre' else 'Post'}-LN, "
        f"{train.global_batch_size} x {config.data.seq_len} tokens, {config.runtime.precision}"
        + (f", dropout {model.dropout:g}" if model.dropout else "")
        + (f", {config.pld.draws_per_step} draws" if config.pld.draws_per_step > 1 else "")
    )
