"""Read a study's file: every key is known, every name exists, or one line says what is wrong and where."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise, product, takewhile
from pathlib import Path
from typing import Any

import yaml

from pldcli import presets
from pldcli.errors import UsageError
from pldcli.finetuning import config as finetune_config
from pldcli.settings import convert, located, read_yaml, spelled, split, validate
from pldcli.study.spec import Changes, Finetuning, Halving, Name, Spec, Study, SystemSpec
from pldcli.tasks.registry import is_known_task, task_name

__all__ = ["read_spec"]


def read_spec(path: Path) -> Spec:
    """Read a study and what it extends.

    Raises:
        UsageError: It cannot be read, or something in it is unknown or does not fit.
    """
    text, content, places = _read(path)
    study = validate(Study, {"name": path.stem} | content, places)
    with located(places):
        systems = _systems(study)
        spec = Spec(
            name=study.name,
            data=study.data,
            seeds=study.seeds,
            baseline=_known(study.baseline or next(iter(systems)), systems, "baseline"),
            systems=systems,
            checks=study.checks,
            halving=_halving(study.halving, systems, study.seeds[:1]) if study.halving else None,
            finetuning=_finetuning(study.finetune, systems) if study.finetune else None,
            minimal_pairs=_pairs(study.minimal_pairs),
            text=text,
        )
        _check_references(spec)
    return spec


def _read(path: Path, seen: tuple[Path, ...] = ()) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Read a file and what it extends.

    Returns:
        Its text, which stands alone: with what it extends put in; its content; and path and line of each key.
    """
    content, places = read_yaml(path)
    text = path.read_text(encoding="utf-8")
    with located(places):
        convert(Changes, content.get("set"), "set")
        if "extends" not in content:
            return text, content, places
        base = path.parent / convert(str, content.pop("extends"), "extends")
        if not base.is_file():
            raise UsageError(f"there is no file {base}", where="extends")
        if base.resolve() in (circle := (*seen, path.resolve())):
            raise UsageError(f"goes in a circle: {' -> '.join(one.name for one in (*circle, base))}", where="extends")
    _, inherited, before = _read(base, circle)
    inherited.pop("name", None)
    for one in (content, inherited):
        if isinstance(one.get("set"), list):
            one["set"] = dict(map(split, one["set"]))
    for key, value in content.items():
        mixed = isinstance(value, dict) and isinstance(inherited.get(key), dict)
        replaced = [f"{key}.{inner}" for inner in value] if mixed else [key]
        before = {place: line for place, line in before.items() if not f"{place}.".startswith(tuple(f"{one}." for one in replaced))}
        inherited[key] = inherited[key] | value if mixed else value
    comment = "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    return comment + yaml.safe_dump(inherited, sort_keys=False, allow_unicode=True, width=140), inherited, before | places


def _systems(study: Study) -> dict[str, SystemSpec]:
    """Build the systems of every entry: one, or one per point of its grid."""
    found: dict[str, SystemSpec] = {}
    for name, entry in study.systems.items():
        common = SystemSpec(
            name=name,
            preset=entry.preset,
            overrides=(*study.set, *entry.set),
            seeds=entry.seeds or study.seeds,
            length=entry,
            baseline=entry.baseline or study.baseline or "",
        )
        for system in _points(common, entry.grid) if entry.grid else [common]:
            own = {split(change)[0] for change in system.overrides[len(study.set) :]}
            shared = {split(change)[0] for change in study.set} - own
            with located({"": system.entry} | {key: f"set.{key}" for key in shared}):
                if system.name in found:
                    raise UsageError(f"a system of this name is there already: {system.name}", hint="rename one")
                presets.resolve(system.preset, system.overrides)
            found[system.name] = system
    first = next(iter(found))
    return {name: replace(system, baseline=system.baseline or first) for name, system in found.items()}


def _points(common: SystemSpec, grid: Mapping[str, Sequence[object]]) -> Iterable[SystemSpec]:
    for chosen in product(*grid.values()):
        texts = [spelled(value) for value in chosen]
        yield replace(
            common,
            name=convert(Name, "-".join([common.name, *texts]), common.entry),
            overrides=(*common.overrides, *(f"{key}={text}" for key, text in zip(grid, texts, strict=True))),
            grid=common.name,
            values=tuple(zip(grid, chosen, strict=True)),
        )


def _halving(given: Halving, systems: Mapping[str, SystemSpec], seeds: tuple[int, ...]) -> Halving:
    candidates = _members(given.candidates, systems, "halving.candidates")
    if len(set(candidates)) < max(2, len(candidates)):
        raise UsageError("must name at least two systems, each once", where="halving.candidates")
    rungs = tuple(rung if rung.seeds else rung.replace(seeds=seeds) for rung in given.rungs)
    if rungs[0].keep not in (None, len(candidates)):
        raise UsageError("all candidates take part in the first rung", where="halving.rungs[0].keep", hint="leave it out")
    for number, (before, rung) in enumerate(pairwise(rungs), 1):
        place, most = f"halving.rungs[{number}]", before.keep or len(candidates)
        if rung.keep is None:
            raise UsageError("has no `keep`", where=place, hint="say how many candidates go on")
        if rung.keep > most:
            raise UsageError(f"cannot keep {rung.keep} of {most}", where=f"{place}.keep")
        if rung.fraction < before.fraction:
            raise UsageError("must not be shorter than the rung before", where=f"{place}.fraction")
    return Halving(candidates=candidates, rungs=rungs)


def _finetuning(given: Finetuning, systems: Mapping[str, SystemSpec]) -> Finetuning:
    with located({"": "finetune.tasks"}):
        for task in given.tasks:
            if not is_known_task(task) and not Path(task).is_file():
                raise UsageError(f"there is no file {task}")
        names = [task_name(task) for task in given.tasks]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UsageError(f"two tasks would be called {twice}", hint="rename a file")
    with located({"": "finetune.set"}):
        finetune_config.cells(given.settings)
    return given.replace(systems=_members(given.systems, systems, "finetune.systems") or tuple(systems))


def _pairs(files: tuple[str, ...]) -> tuple[str, ...]:
    for file in files:
        if not Path(file).exists():
            raise UsageError(f"there is no file {file}", where="minimal_pairs")
    return files


def _members(names: Sequence[str], systems: Mapping[str, SystemSpec], where: str) -> tuple[str, ...]:
    """Look names up; that of a grid stands for all of its systems."""
    found: list[str] = []
    for name in names:
        found += [system.name for system in systems.values() if system.grid == name] or [_known(name, systems, where)]
    return tuple(found)


def _check_references(spec: Spec) -> None:
    """Check that every system which another one names exists, trains in full, and that lengths do not go in circles."""
    named = [("baseline", spec.baseline)]
    for number, check in enumerate(spec.checks):
        named += [(f"checks[{number}].better", check.better), (f"checks[{number}].than", check.than)]
    named += [(f"{system.entry}.baseline", system.baseline) for system in spec.systems.values()]
    for where, name in named:
        if _known(name, spec.systems, where) in spec.candidates:
            raise UsageError(f"{name} is a candidate of the halving and has no run of its own", where=where)
    for system in spec.systems.values():
        where, seen, reference = f"{system.entry}.equal_time", [system.name], system.length.equal_time
        while reference is not None:
            if reference in seen:
                raise UsageError(f"goes in a circle: {' -> '.join([*seen, reference])}", where=where)
            seen.append(reference)
            reference = spec.systems[_known(reference, spec.systems, where)].length.equal_time


def _known(name: str, systems: Mapping[str, SystemSpec], where: str) -> str:
    if name in systems:
        return name
    members = [system.name for system in systems.values() if system.grid == name]
    if members:
        raise UsageError(f"{name} is a grid of {len(members)} systems", where=where, hint=f"name one of them, such as {members[0]}")
    close = difflib.get_close_matches(name, systems, n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(systems)}"
    raise UsageError(f"no system is called {name}", where=where, hint=hint)
