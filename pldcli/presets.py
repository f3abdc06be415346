"""From a preset's name to a configuration: find, extend, override, check, dump.

A shipped preset is a size with a system (`bert-base-pld`: `presets/sizes/bert-base.yaml` with `presets/systems/pld.yaml`), or a file of its
own where it is more than that; a size names the systems that make no sense for it (`without`). Layers, later ones win: defaults < presets
named by `extends` < the preset < what it says of this size (`sizes`) < the prepared data's vocabulary < the model that a run begins with <
KEY=VALUE.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product, takewhile
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pldcli.config import Config
from pldcli.errors import UsageError
from pldcli.settings import Layer, located, merge, parse, read_yaml
from pldcli.system.output_place import check_new

__all__ = ["Part", "Resolved", "build", "check_new_preset", "dump", "header", "load", "names", "parts", "resolve", "schema", "system"]

_REMOVED = {"pld.scaling_error": False, "pld.scale_residual": True}
"""Keys that earlier versions had, and their defaults: run directories of that time hold them."""

_FIELDS = ("Purpose", "System", "Beside preln", "Size", "Source", "Differs from the paper", "Hardware", "Time and score", "Command")
"""What the comment at the top of a preset says, in this order; `PRESET` in a text stands for the preset's name."""

_NO_SETTINGS = ("extends", "sizes", "without")
"""What a preset's file holds beside settings."""

_OF_MASKS = tuple(f"objective.{key}" for key in ("mask_probability", "final_mask_probability", "masking", "span_boundary"))
"""Keys that do nothing for a causal model. A preset may have them for its other objectives; typed by hand they are a mistake."""

_FOLDERS = {"preset": ".", "size": "sizes", "system": "systems"}
"""Where the shipped files of a kind lie in the folder of presets."""


@dataclass(frozen=True)
class Resolved:
    """A configuration and where each of its values came from."""

    preset: str
    config: Config
    origins: dict[str, str]
    """Dotted key to `default`, a preset's name, `prepared data`, `initial model` or `command line`."""


class Part(NamedTuple):
    """A file that a preset is made of."""

    name: str
    """As presets name it: of a size, a system or a preset, or the path of an own file."""
    kind: str
    """`size`, `system` or `preset`."""
    path: Path
    content: Mapping[str, Any]
    places: Mapping[str, str]
    """Path and line of each key, dotted."""


def names() -> list[str]:
    """List the shipped presets.

    Raises:
        UsageError: They are missing.
    """
    return sorted([*_stems("preset"), *_products()])


def parts(preset: str, seen: tuple[str, ...] = ()) -> list[Part]:
    """List the files that a preset is made of, the strongest last.

    Raises:
        UsageError: One is missing, no YAML, or extends itself.
    """
    if preset in seen:
        raise UsageError("extends itself", where=" -> ".join((*seen, preset)))
    pair = _products().get(preset)
    own = [] if pair else [_find(preset)]
    parents = pair or _parents(own[0])
    return [*(part for parent in parents for part in parts(parent, (*seen, preset))), *own]


def header(preset: str) -> dict[str, str]:
    """Read the `field: text` lines at the top of a preset, or of the size and the system that it consists of."""
    fields: dict[str, str] = {}
    for name in _products().get(preset, (preset,)):
        comment = takewhile(lambda line: line.startswith("# "), _find(name).path.read_text(encoding="utf-8").splitlines())
        fields |= {field: text.replace("PRESET", preset) for field, _, text in (line[2:].partition(": ") for line in comment)}
    return {field: fields[field] for field in _FIELDS if field in fields}


def system(preset: str) -> str:
    """Name the part that says what a preset is apart from its size: the last system of its parts, or itself where there is none."""
    return [preset, *(part.name for part in parts(preset) if part.kind == "system")][-1]


def resolve(
    preset: str,
    overrides: Sequence[str] = (),
    *,
    from_data: Mapping[str, Any] | None = None,
    from_model: Mapping[str, Any] | None = None,
) -> Resolved:
    """Build the configuration of a preset with `KEY=VALUE` changes.

    Args:
        preset: The name of a shipped preset, or the path of a YAML file.
        overrides: `KEY=VALUE` texts with dotted keys.
        from_data: Values that the prepared data decides.
        from_model: Values that the model decides whose weights the run begins with.

    Raises:
        UsageError: Unknown preset or key, wrong type, or a value that a check refuses.
    """
    given = {"prepared data": from_data or {}, "initial model": from_model or {}, "command line": parse(overrides)}
    config, origins = merge(Config, [*_layers(preset), *(_layer(origin, values) for origin, values in given.items())])
    if from_model:
        config.check_shape(of_source=True)
    if config.objective.is_causal:
        for key in _OF_MASKS:
            if origins[key] == "command line":
                raise UsageError("nothing is masked with objective.kind=causal", where=key, hint="leave it out")
    return Resolved(preset, config, origins)


def build(flat: Mapping[str, Any]) -> Config:
    """Rebuild a configuration from a dump.

    Raises:
        UsageError: Unknown key or wrong type.
    """
    return merge(Config, [_layer("", flat)])[0]


def dump(config: Config) -> str:
    """Write a configuration as YAML that `load` reads back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def load(path: Path) -> Config:
    """Read a dumped configuration.

    Raises:
        UsageError: It is missing, no YAML, or holds unknown keys.
    """
    return merge(Config, [_layer("", *read_yaml(path))])[0]


def _layers(preset: str) -> list[Layer]:
    """Read the values of each part of a preset, the strongest last; `sizes` in a part holds values for a size that stands before it."""
    layers, size = [], ""
    for part in parts(preset):
        size = part.name if part.kind == "size" else size
        sizes, known = part.content.get("sizes", {}), _stems("size")
        if not (isinstance(sizes, dict) and all(one in known and isinstance(values, dict) for one, values in sizes.items())):
            raise UsageError(f"must hold values for {', '.join(known)}", where=f"{part.places['sizes']}: sizes")
        inside = f"sizes.{size}."
        of_size = {key.removeprefix(inside): place for key, place in part.places.items() if key.startswith(inside)}
        values = {key: value for key, value in part.content.items() if key not in _NO_SETTINGS}
        layers += [_layer(part.name, values, part.places), _layer(part.name, sizes.get(size, {}), of_size)]
    return layers


def _parents(part: Part) -> list[str]:
    """Read what a preset extends; a parent that is a file lies relative to the file that names it."""
    parents = part.content.get("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise UsageError("`extends` must be a list of preset names", where=str(part.path))
    return [str(part.path.parent / parent) if parent.endswith((".yaml", ".yml")) else parent for parent in parents]


def _shipped() -> Path:
    """Find the shipped presets: inside the package when installed, beside it in a checkout."""
    package = Path(__file__).parent
    for place in (package / "_presets", package.parent / "presets"):
        if place.is_dir():
            return place
    raise UsageError("the shipped presets are missing", where=str(package), hint="install pldcli again")


_read_shipped = cache(read_yaml)


@cache
def _stems(kind: str) -> list[str]:
    return sorted(path.stem for path in (_shipped() / _FOLDERS[kind]).glob("*.yaml"))


@cache
def _products() -> dict[str, tuple[str, str]]:
    """Map the name of every size, with every system that makes sense for it, to both."""
    pairs = product(_stems("size"), _stems("system"))
    return {"-".join(pair): pair for pair in pairs if pair[1] not in _find(pair[0]).content.get("without", ())}


def _find(preset: str) -> Part:
    if preset.endswith((".yaml", ".yml")):
        if not Path(preset).is_file():
            raise UsageError("no such preset file", where=preset)
        return Part(preset, "preset", Path(preset), *read_yaml(Path(preset)))
    for kind, folder in _FOLDERS.items():
        path = _shipped() / folder / f"{preset}.yaml"
        if path.is_file():
            return Part(preset, kind, path, *_read_shipped(path))
    close = difflib.get_close_matches(preset, names(), n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else "`pld config list` shows them"
    raise UsageError(f"unknown preset {preset!r}", hint=hint)


def check_new_preset(path: Path, *, overwrite: bool) -> None:
    """Refuse a place for a preset by which --preset could not name it, or that is taken.

    Raises:
        UsageError: Its ending is not that of presets.
        OutputError: Something is there and `overwrite` is off.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise UsageError("must end in .yaml, as presets do", where=f"--out {path}")
    check_new(path, overwrite=overwrite)


def _layer(origin: str, content: Mapping[str, Any], places: Mapping[str, str] | None = None) -> Layer:
    """Flatten sections; a removed key passes with the value that every configuration of that time had."""
    flat: dict[str, Any] = {}
    for section, values in content.items():
        flat |= {f"{section}.{name}": value for name, value in values.items()} if isinstance(values, dict) else {str(section): values}
    for key in _REMOVED.keys() & flat.keys():
        if (value := flat.pop(key)) != _REMOVED[key]:
            with located(places or {}):
                raise UsageError(f"was removed; only its default {_REMOVED[key]} is still accepted, not {value!r}", where=key)
    return Layer(origin, flat, places or {})


def schema() -> dict[str, Any]:
    """Describe a preset's file as JSON Schema: the sections of a run, and what only a preset has."""
    whole = Config.model_json_schema()
    name = {"type": "string"}
    extends = {"description": "Presets that this one changes.", "anyOf": [name, {"type": "array", "items": name}]}
    sizes = {"description": "What differs for a size.", "type": "object", "additionalProperties": {"$ref": "#"}}
    dotted = {r"^[a-z]+\.[a-z0-9_]+$": {"description": "A key of a section, written in one line."}}
    without = {"description": "Of a size: systems that make no sense for it.", "type": "array", "items": name}
    properties = {"extends": extends, "sizes": sizes, "without": without, **whole["properties"]}
    return whole | {"title": "Preset", "properties": properties, "patternProperties": dotted}
