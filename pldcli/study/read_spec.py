"""Read a study's file: every key is known, every name exists, or one line says what is wrong and where."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from pldcli import presets
from pldcli.bench.step_time import parse_seconds
from pldcli.errors import UsageError
from pldcli.finetuning import config as finetune_config
from pldcli.settings import convert, split
from pldcli.study.spec import Check, Finetuning, Halving, Length, Rung, Spec, SystemSpec
from pldcli.tasks.registry import is_known_task, task_name

__all__ = ["read_spec"]

_STUDY = ("name", "data", "set", "seeds", "baseline", "systems", "checks", "halving", "finetune")
_SYSTEM = ("preset", "set", "seeds", "steps", "fraction", "equal_time", "budget", "grid", "baseline")
_LENGTHS = ("steps", "equal_time", "budget")
_CHECK = ("better", "than", "by_seed_deviations")
_HALVING = ("candidates", "rungs")
_RUNG = ("fraction", "keep", "seeds")
_FINETUNE = ("tasks", "data_dir", "systems", "seeds", "set")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_ELSEWHERE = {
    "train.seed": "seeds stand under `seeds`",
    "train.init_from": "every run of a study begins with random weights",
}
"""Keys that a study does not set."""


def read_spec(path: Path) -> Spec:
    """Read a study.

    Raises:
        UsageError: It cannot be read, or something in it is unknown or does not fit.
    """
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"cannot be read as YAML ({error})", where=str(path)) from error
    if node is not None:
        _refuse_twice(node, str(path))
    where = str(path)
    content = _mapping(content, where, _STUDY)
    for key in ("data", "systems"):
        if key not in content:
            raise UsageError(f"has no `{key}`", where=where, hint="see benchmarks/studies/tiny.yaml for an example")
    seeds = _seeds(content.get("seeds", [0]), f"{where}: seeds")
    systems = _systems(content, seeds, where)
    spec = Spec(
        name=_name(content.get("name", path.stem), f"{where}: name"),
        data=convert(str, content["data"], f"{where}: data"),
        seeds=seeds,
        baseline=_known(content.get("baseline", next(iter(systems))), systems, f"{where}: baseline"),
        systems=systems,
        checks=tuple(_check(one, systems, f"{where}: checks[{number}]") for number, one in enumerate(_list(content, "checks", where))),
        halving=_halving(content["halving"], systems, seeds[:1], f"{where}: halving") if "halving" in content else None,
        finetuning=_finetuning(content["finetune"], systems, f"{where}: finetune") if "finetune" in content else None,
        text=text,
    )
    _check_references(spec, where)
    return spec


def _systems(content: Mapping[str, Any], seeds: tuple[int, ...], where: str) -> dict[str, SystemSpec]:
    entries = content["systems"]
    if not isinstance(entries, dict) or not entries:
        raise UsageError("must name at least one system", where=f"{where}: systems")
    shared = _overrides(content.get("set"), f"{where}: set")
    systems: dict[str, SystemSpec] = {}
    for name, entry in entries.items():
        place = f"{where}: systems.{name}"
        for system in _expand(_name(name, f"{where}: systems"), _mapping(entry, place, _SYSTEM), shared, seeds, place):
            if system.name in systems:
                raise UsageError(f"a system of this name is there already: {system.name}", where=place, hint="rename one")
            systems[system.name] = system
    default = content.get("baseline", next(iter(systems)))
    return {name: replace(system, baseline=system.baseline or str(default)) for name, system in systems.items()}


def _expand(name: str, entry: Mapping[str, Any], shared: tuple[str, ...], seeds: tuple[int, ...], where: str) -> Iterable[SystemSpec]:
    """Build the systems of one entry: one, or one per point of its grid."""
    if "preset" not in entry:
        raise UsageError("has no `preset`", where=where, hint="`pld config list` shows them")
    own = _overrides(entry.get("set"), f"{where}.set")
    length = _length(entry, where)
    if any(key in entry for key in _LENGTHS) and any(split(change)[0] == "train.total_steps" for change in own):
        given = next(key for key in _LENGTHS if key in entry)
        raise UsageError(f"`{given}` sets train.total_steps", where=f"{where}.set", hint="leave one of them out")
    common = SystemSpec(
        name=name,
        preset=convert(str, entry["preset"], f"{where}.preset"),
        overrides=(*shared, *own),
        seeds=_seeds(entry["seeds"], f"{where}.seeds") if "seeds" in entry else seeds,
        length=length,
        baseline=convert(str, entry["baseline"], f"{where}.baseline") if "baseline" in entry else "",
    )
    for system in _points(common, entry["grid"], f"{where}.grid") if "grid" in entry else [common]:
        try:
            presets.resolve(system.preset, system.overrides)
        except UsageError as error:
            raise UsageError(error.what, where=f"{where}: {error.where}" if error.where else where, hint=error.hint) from error
        yield system


def _points(common: SystemSpec, grid: Any, where: str) -> Iterable[SystemSpec]:
    if not isinstance(grid, dict) or not grid:
        raise UsageError("must map keys to lists of values", where=where)
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise UsageError("must be a list of values", where=f"{where}.{key}")
        _check_key(str(key), f"{where}.{key}")
    for chosen in product(*grid.values()):
        spelled = [_spell(value, f"{where}.{key}") for key, value in zip(grid, chosen, strict=True)]
        yield replace(
            common,
            name=_name("-".join([common.name, *spelled]), where),
            overrides=(*common.overrides, *(f"{key}={value}" for key, value in zip(grid, spelled, strict=True))),
            grid=common.name,
            values=tuple(zip(map(str, grid), chosen, strict=True)),
        )


def _length(entry: Mapping[str, Any], where: str) -> Length:
    given = [key for key in _LENGTHS if key in entry]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(f'`{key}`' for key in given)} exclude each other", where=where, hint="leave one of them out")
    steps = _whole(entry["steps"], f"{where}.steps") if "steps" in entry else None
    return Length(
        fraction=_fraction(entry.get("fraction", 1.0), f"{where}.fraction"),
        steps=steps,
        equal_time=convert(str, entry["equal_time"], f"{where}.equal_time") if "equal_time" in entry else None,
        budget_seconds=parse_seconds(str(entry["budget"]), f"{where}.budget") if "budget" in entry else None,
    )


def _overrides(given: Any, where: str) -> tuple[str, ...]:
    """Read `set`: a list of KEY=VALUE, or a mapping of dotted keys."""
    if given is None:
        return ()
    if isinstance(given, dict):
        changes = tuple(f"{key}={_spell(value, f'{where}.{key}')}" for key, value in given.items())
    elif isinstance(given, list) and all(isinstance(change, str) for change in given):
        changes = tuple(given)
    else:
        raise UsageError("must be a list of KEY=VALUE, or KEY: VALUE lines with dotted keys", where=where)
    for change in changes:
        _check_key(split(change)[0], where)
    return changes


def _check_key(key: str, where: str) -> None:
    if key in _ELSEWHERE:
        raise UsageError(f"{key} cannot be set here", where=where, hint=_ELSEWHERE[key])


def _spell(value: Any, where: str) -> str:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    raise UsageError(f"must be one value, not {value!r}", where=where, hint="write dotted keys, as optim.learning_rate: 1e-3")


def _check(given: Any, systems: Mapping[str, SystemSpec], where: str) -> Check:
    content = _mapping(given, where, _CHECK)
    for key in _CHECK:
        if key not in content:
            raise UsageError(f"has no `{key}`", where=where, hint="write {better: A, than: B, by_seed_deviations: 3}")
    deviations = convert(float, content["by_seed_deviations"], f"{where}.by_seed_deviations")
    if deviations <= 0:
        raise UsageError(f"must be positive, not {deviations:g}", where=f"{where}.by_seed_deviations")
    better, than = (_known(content[key], systems, f"{where}.{key}") for key in ("better", "than"))
    if better == than:
        raise UsageError(f"{better} cannot be better than itself", where=where)
    return Check(better, than, deviations)


def _halving(given: Any, systems: Mapping[str, SystemSpec], seeds: tuple[int, ...], where: str) -> Halving:
    content = _mapping(given, where, _HALVING)
    candidates = _members(_list(content, "candidates", where), systems, f"{where}.candidates")
    if len(set(candidates)) < max(2, len(candidates)):
        raise UsageError("must name at least two systems, each once", where=f"{where}.candidates")
    rungs: list[Rung] = []
    for number, one in enumerate(_list(content, "rungs", where)):
        place = f"{where}.rungs[{number}]"
        rung = _mapping(one, place, _RUNG)
        before = rungs[-1] if rungs else None
        fraction = _fraction(rung.get("fraction", 1.0), f"{place}.fraction")
        keep = _whole(rung["keep"], f"{place}.keep") if "keep" in rung else None
        most = (before.keep if before else None) or len(candidates)
        if before is not None and keep is None:
            raise UsageError("has no `keep`", where=place, hint="say how many candidates go on")
        if keep is not None and keep > most:
            raise UsageError(f"cannot keep {keep} of {most}", where=f"{place}.keep")
        if before is None and keep not in (None, most):
            raise UsageError("all candidates take part in the first rung", where=f"{place}.keep", hint="leave it out")
        if before is not None and fraction < before.fraction:
            raise UsageError("must not be shorter than the rung before", where=f"{place}.fraction")
        rungs.append(Rung(fraction, keep, _seeds(rung["seeds"], f"{place}.seeds") if "seeds" in rung else seeds))
    if not rungs:
        raise UsageError("must hold at least one rung", where=f"{where}.rungs")
    return Halving(tuple(candidates), tuple(rungs))


def _finetuning(given: Any, systems: Mapping[str, SystemSpec], where: str) -> Finetuning:
    content = _mapping(given, where, _FINETUNE)
    tasks = [convert(str, task, f"{where}.tasks") for task in _list(content, "tasks", where)]
    if not tasks:
        raise UsageError("must name at least one task", where=f"{where}.tasks", hint="`pld tasks` lists them")
    names = [_task_name(task, f"{where}.tasks") for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"two tasks would be called {twice}", where=f"{where}.tasks", hint="rename a file")
    seeds = _seeds(content.get("seeds", [0]), f"{where}.seeds")
    settings = (*_overrides(content.get("set"), f"{where}.set"), f"seed={','.join(map(str, seeds))}")
    try:
        finetune_config.cells(settings)
    except UsageError as error:
        raise UsageError(error.what, where=f"{where}.set: {error.where}", hint=error.hint) from error
    return Finetuning(
        tasks=tuple(tasks),
        data_dir=convert(str, content["data_dir"], f"{where}.data_dir") if "data_dir" in content else None,
        systems=tuple(_members(_list(content, "systems", where), systems, f"{where}.systems")) or tuple(systems),
        settings=settings,
    )


def _task_name(task: str, where: str) -> str:
    try:
        if not is_known_task(task) and not Path(task).is_file():
            raise UsageError(f"there is no file {task}")
        return task_name(task)
    except UsageError as error:
        raise UsageError(error.what, where=where, hint=error.hint) from error


def _members(names: Sequence[Any], systems: Mapping[str, SystemSpec], where: str) -> list[str]:
    """Look names up; that of a grid stands for all of its systems."""
    found: list[str] = []
    for name in names:
        found += [system.name for system in systems.values() if system.grid == name] or [_known(name, systems, where)]
    return found


def _check_references(spec: Spec, where: str) -> None:
    """Make sure that every system which another one names is there, trains in full, and that lengths do not go in circles."""
    for system in spec.systems.values():
        place = f"{where}: systems.{system.grid or system.name}"
        _known(system.baseline, spec.systems, f"{place}.baseline")
        if system.length.equal_time is not None:
            _known(system.length.equal_time, spec.systems, f"{place}.equal_time")
    for system in spec.systems.values():
        seen, reference = [system.name], system.length.equal_time
        while reference is not None:
            if reference in seen:
                circle = " -> ".join([*seen, reference])
                raise UsageError(f"goes in a circle: {circle}", where=f"{where}: systems.{system.grid or system.name}.equal_time")
            seen.append(reference)
            reference = spec.systems[reference].length.equal_time
    named = {"baseline": [spec.baseline], "checks": [name for check in spec.checks for name in (check.better, check.than)]}
    named["systems"] = [system.baseline for system in spec.systems.values()]
    for key, names in named.items():
        for name in names:
            if name in spec.candidates:
                raise UsageError(f"{name} is a candidate of the halving and has no run of its own", where=f"{where}: {key}")


def _known(name: Any, systems: Mapping[str, SystemSpec], where: str) -> str:
    if name in systems:
        return str(name)
    members = [system.name for system in systems.values() if system.grid == name]
    if members:
        raise UsageError(f"{name} is a grid of {len(members)} systems", where=where, hint=f"name one of them, such as {members[0]}")
    raise UsageError(f"no system is called {name}", where=where, hint=_guess(str(name), systems))


def _mapping(given: Any, where: str, keys: Sequence[str]) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise UsageError("must hold keys with values", where=where)
    for key in given:
        if key not in keys:
            raise UsageError(f"unknown key {key}", where=where, hint=_guess(str(key), keys))
    return given


def _guess(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"


def _list(content: Mapping[str, Any], key: str, where: str) -> list[Any]:
    given = content.get(key, [])
    if not isinstance(given, list):
        raise UsageError("must be a list", where=f"{where}: {key}" if ": " not in where else f"{where}.{key}")
    return given


def _name(given: Any, where: str) -> str:
    if not isinstance(given, str) or not _NAME.fullmatch(given):
        raise UsageError(f"{given!r} cannot be a name of files", where=where, hint="use letters, digits, dots, + and -")
    return given


def _seeds(given: Any, where: str) -> tuple[int, ...]:
    seeds = tuple(convert(int, seed, where) for seed in given) if isinstance(given, list) else ()
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UsageError("must be a list of different whole numbers from 0", where=where, hint="for example [0, 1, 2]")
    return seeds


def _fraction(given: Any, where: str) -> float:
    fraction: float = convert(float, given, where)
    if not 0.0 < fraction <= 1.0:
        raise UsageError(f"must be in (0, 1], not {fraction:g}", where=where)
    return fraction


def _whole(given: Any, where: str) -> int:
    number: int = convert(int, given, where)
    if number < 1:
        raise UsageError(f"must be at least 1, not {number}", where=where)
    return number


def _refuse_twice(node: yaml.Node, where: str) -> None:
    """Refuse a key that stands twice in one mapping: YAML would drop the first one without a word."""
    if isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value]
        for key, value in node.value:
            if keys.count(key.value) > 1:
                raise UsageError(f"{key.value} stands there twice", where=f"{where}:{key.start_mark.line + 1}", hint="rename one")
            _refuse_twice(value, where)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _refuse_twice(value, where)
