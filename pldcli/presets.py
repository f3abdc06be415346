"""From a preset's name to a configuration: find, extend, override, check, dump.

Layers, later ones win: defaults < presets named by `extends` < the preset < the prepared data's vocabulary < the model that a run
begins with < KEY=VALUE.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pldcli.config import Config
from pldcli.errors import UsageError
from pldcli.settings import Layer, located, merge, parse, read_yaml

__all__ = ["Resolved", "build", "dump", "header", "load", "names", "preset_directory", "resolve", "schema", "system"]

_REMOVED = {"pld.scaling_error": False}
"""Keys that earlier versions had, and their defaults: run directories of that time hold them."""


@dataclass(frozen=True)
class Resolved:
    """A configuration and where each of its values came from."""

    preset: str
    config: Config
    origins: dict[str, str]
    """Dotted key to `default`, a preset's name, `prepared data`, `initial model` or `command line`."""


def preset_directory() -> Path:
    """Find the shipped presets: inside the package when installed, beside it in a checkout.

    Raises:
        UsageError: Neither is there.
    """
    package = Path(__file__).parent
    for place in (package / "_presets", package.parent / "presets"):
        if place.is_dir():
            return place
    raise UsageError("the shipped presets are missing", where=str(package), hint="install pldcli again")


def names() -> list[str]:
    """List the shipped presets."""
    return sorted(path.stem for path in preset_directory().glob("*.yaml"))


def header(preset: str) -> list[str]:
    """Read the comment at the top of a preset, line by line."""
    lines = []
    for line in _find(preset).read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return lines


def system(preset: str) -> str:
    """Name the part that says what a shipped preset is apart from its size: the last one that it extends."""
    path = _find(preset)
    return [preset, *_parents(read_yaml(path)[0], path)][-1]


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


def _layers(preset: str, seen: tuple[str, ...] = ()) -> list[Layer]:
    """Read a preset and what it extends, the strongest last."""
    if preset in seen:
        raise UsageError("extends itself", where=" -> ".join((*seen, preset)))
    path = _find(preset)
    content, places = read_yaml(path)
    inherited = [layer for parent in _parents(content, path) for layer in _layers(parent, (*seen, preset))]
    values = {section: content[section] for section in content if section != "extends"}
    return [*inherited, _layer(preset, values, places)]


def _parents(content: Mapping[str, Any], path: Path) -> list[str]:
    """Read what a preset extends; a parent that is a file lies relative to the file that names it."""
    parents = content.get("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise UsageError("`extends` must be a list of preset names", where=str(path))
    return [str(path.parent / parent) if parent.endswith((".yaml", ".yml")) else parent for parent in parents]


def _find(preset: str) -> Path:
    if preset.endswith((".yaml", ".yml")):
        path = Path(preset)
        if not path.is_file():
            raise UsageError("no such preset file", where=preset)
        return path
    shipped = preset_directory()
    for path in (shipped / f"{preset}.yaml", shipped / "parts" / f"{preset}.yaml"):
        if path.is_file():
            return path
    close = difflib.get_close_matches(preset, names(), n=1, cutoff=0.6)
    hint = f"did you mean {close[0]}?" if close else "`pld config list` shows them"
    raise UsageError(f"unknown preset {preset!r}", hint=hint)


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
    properties = {"extends": extends, "sizes": sizes, **whole["properties"]}
    return whole | {"title": "Preset", "properties": properties, "patternProperties": dotted}
