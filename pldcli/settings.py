"""Settings of a run, a fine-tuning or a study: read from YAML and `KEY=VALUE`, merged, checked, frozen; or one line on what is wrong."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from pldcli.errors import UsageError

__all__ = [
    "AS_NUMBER",
    "Count",
    "Fraction",
    "Layer",
    "Natural",
    "NonNegative",
    "Off",
    "Positive",
    "Settings",
    "Share",
    "Switch",
    "convert",
    "fields",
    "located",
    "merge",
    "nearest",
    "parse",
    "parse_value",
    "read_yaml",
    "split",
    "validate",
]

Model = TypeVar("Model", bound=BaseModel)


class Settings(BaseModel):
    """The base of every configuration: strict, frozen, no unknown keys; the text below a field is its manual."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, values: Any) -> Any:
        for key in values if isinstance(values, dict) else ():
            if key not in cls.model_fields:
                raise PydanticCustomError(
                    "unknown", "{what}", {"what": f"unknown key; {nearest(str(key), cls.model_fields)}", "unknown": (key,)}
                )
        return values

    def replace(self, **changes: Any) -> Self:
        """Copy with other values, checked again; a mapping changes single values of a section.

        Raises:
            UsageError: A value that a check refuses.
        """
        sections = {name: dict(getattr(self, name)) | dict(change) for name, change in changes.items() if isinstance(change, Mapping)}
        return validate(type(self), dict(self) | changes | sections)


def _number(value: Any) -> Any:
    """Read numbers that YAML takes for text, such as 1e-4; a whole one may be written as 1e3."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _word(value: Any) -> Any:
    """Undo YAML's reading of on and off as truth values."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


AS_NUMBER = BeforeValidator(_number)
"""Stands last in the annotation of a number, so that its limits are known to the JSON Schema."""
Whole = Annotated[int, AS_NUMBER]
Number = Annotated[float, AS_NUMBER]
Count = Annotated[int, Field(ge=1), AS_NUMBER]
Natural = Annotated[int, Field(ge=0), AS_NUMBER]
Positive = Annotated[float, Field(gt=0), AS_NUMBER]
NonNegative = Annotated[float, Field(ge=0), AS_NUMBER]
Fraction = Annotated[float, Field(gt=0, le=1), AS_NUMBER]
Share = Annotated[float, Field(ge=0, lt=1), AS_NUMBER]
Off = Annotated[Literal["off"], BeforeValidator(_word)]
Switch = Annotated[Literal["auto", "on", "off"], BeforeValidator(_word)]


@dataclass(frozen=True)
class Layer:
    """Values from one source."""

    origin: str
    """Its name."""
    values: Mapping[str, Any]
    """By dotted key."""
    places: Mapping[str, str] = field(default_factory=dict)
    """Path and line by dotted key, where the source is a file."""


def merge(model: type[Model], layers: Iterable[Layer]) -> tuple[Model, dict[str, str]]:
    """Merge layers, later ones win, and check the result.

    Returns:
        The configuration, and the origin of each of its values by dotted key.

    Raises:
        UsageError: Unknown key, wrong type, or a value that a check refuses.
    """
    values: dict[str, Any] = {}
    places: dict[str, str] = {}
    origins = dict.fromkeys(fields(model), "default")
    for layer in layers:
        for key, value in layer.values.items():
            if key not in origins:
                with located(layer.places):
                    raise _unknown(key, origins)
            section, _, name = key.rpartition(".")
            (values.setdefault(section, {}) if section else values)[name] = value
            origins[key], places[key] = layer.origin, layer.places.get(key, "")
    return validate(model, values, places), origins


def validate(model: type[Model], values: Mapping[str, Any], places: Mapping[str, str] | None = None) -> Model:
    """Build a configuration.

    Args:
        model: Its class.
        values: As in its file.
        places: Path and line by dotted key, for the error.

    Raises:
        UsageError: Unknown key, wrong type, or a value that a check refuses.
    """
    with located(places or {}):
        try:
            return model.model_validate(values)
        except ValidationError as error:
            raise _refusal(error, values) from error


def convert(kind: Any, value: Any, where: str) -> Any:
    """Check one value.

    Raises:
        UsageError: It does not fit.
    """
    try:
        return TypeAdapter({int: Whole, float: Number}.get(kind, kind), config=Settings.model_config).validate_python(value)
    except ValidationError as error:
        raise UsageError(_what(error.errors()), where=where) from error


@contextmanager
def located(places: Mapping[str, str]) -> Iterator[None]:
    """Put path and line before the key of an error: those of the key, or of what should hold it."""
    try:
        yield
    except UsageError as error:
        key = error.where.partition(":")[0]
        while key and key not in places:
            key = key[: max(key.rfind("."), key.rfind("["), 0)]
        parts = [part for part in (places.get(key, ""), error.where) if part]
        raise UsageError(error.what, where=": ".join(parts), hint=error.hint) from error


@cache
def fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """List the keys of a configuration, dotted."""
    found: dict[str, FieldInfo] = {}
    for name, info in model.model_fields.items():
        section = info.annotation
        if isinstance(section, type) and issubclass(section, Settings):
            found |= {f"{name}.{key}": inner for key, inner in fields(section).items()}
        else:
            found[name] = info
    return found


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Read a file.

    Returns:
        Its content, and path and line of each key in it, dotted.

    Raises:
        UsageError: It cannot be read, holds no keys, or one of them twice: YAML would drop the first without a word.
    """
    try:
        text = path.read_text(encoding="utf-8")
        content = _load(text)
        lines = list(_lines(yaml.compose(text, Loader=yaml.SafeLoader)))
    except FileNotFoundError as error:
        raise UsageError("no such file", where=str(path)) from error
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"cannot be read as YAML ({error})", where=str(path)) from error
    if not isinstance(content, dict):
        raise UsageError("must hold keys with values", where=str(path))
    places = {"": str(path)}
    for key, line in lines:
        if key in places:
            raise UsageError(f"{key} stands there twice", where=f"{path}:{line}", hint="rename one")
        places[key] = f"{path}:{line}"
    return content, places


class _Loader(yaml.SafeLoader):
    """YAML without numbers that only its version 1.1 has: 010 stays a text, not 8, and 1:30, not 90; `AS_NUMBER` reads the former as 10."""


def _whole(loader: _Loader, node: yaml.ScalarNode) -> int | str:
    try:
        return int(node.value, base=0)
    except ValueError:
        return str(node.value)


def _decimal(loader: _Loader, node: yaml.ScalarNode) -> float | str:
    return str(node.value) if ":" in node.value else loader.construct_yaml_float(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _whole)
_Loader.add_constructor("tag:yaml.org,2002:float", _decimal)


def _load(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader


def _lines(node: yaml.Node | None, parent: str = "") -> Iterator[tuple[str, int]]:
    pairs: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        pairs = [(f"{parent}.{key.value}".lstrip("."), key, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        pairs = [(f"{parent}[{number}]", value, value) for number, value in enumerate(node.value)]
    for key, start, value in pairs:
        yield key, start.start_mark.line + 1
        yield from _lines(value, key)


def spelled(value: Any) -> str:
    """Write a value as it is typed after KEY=."""
    return json.dumps(value) if value is None or isinstance(value, bool | list) else str(value)


def split(text: str) -> tuple[str, str]:
    """Cut `KEY=VALUE` in two.

    Raises:
        UsageError: It is something else.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"{text!r} is not KEY=VALUE", hint="for example train.total_steps=1000")
    return key.strip(), value


def parse(overrides: Sequence[str]) -> dict[str, Any]:
    """Read `KEY=VALUE` texts, values as YAML; the last of several for a key counts.

    Raises:
        UsageError: A text is something else.
    """
    return {key: parse_value(value, key) for key, value in map(split, overrides)}


def parse_value(text: str, key: str) -> Any:
    """Read a value as YAML.

    Raises:
        UsageError: It is none.
    """
    try:
        return _load(text)
    except (yaml.YAMLError, ValueError) as error:  # the latter of a date that no calendar has
        raise UsageError(f"{text!r} is not a value", where=key) from error


def nearest(key: str, known: Iterable[str]) -> str:
    """Guess what an unknown key was meant to be: the same last part elsewhere, or a similar one, in its own section first."""
    keys = list(known)
    section, _, name = key.rpartition(".")
    own = {one.rpartition(".")[2]: one for one in keys if one.rpartition(".")[0] == section}
    every = {one.rpartition(".")[2]: one for one in keys}
    for candidates in (own, every):
        close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
        if close:
            return f"did you mean {candidates[close[0]]}?"
    if own:
        return f"the keys of {section} are {', '.join(own)}" if section else f"the keys are {', '.join(own)}"
    return f"the sections are {', '.join(dict.fromkeys(one.partition('.')[0] for one in keys))}"


def _unknown(key: str, known: Mapping[str, Any]) -> UsageError:
    if any(one.startswith(f"{key}.") for one in known):
        return UsageError("must hold keys with values", where=key, hint=nearest(f"{key}.", known))
    return UsageError("unknown key", where=key, hint=nearest(key, known))


def _refusal(error: ValidationError, values: Any) -> UsageError:
    """Turn the first of pydantic's errors, or all of one value, into one of ours."""
    errors = error.errors(include_url=False)
    keys = [_key(one, values) for one in errors]
    # Of a union the kind that the value is of says more: that it goes wrong within the value.
    key = max((key for key in keys if key == keys[0] or key.startswith((f"{keys[0]}[", f"{keys[0]}."))), key=len)
    return UsageError(_what([one for one, its in zip(errors, keys, strict=True) if its == key]), where=key)


def _key(error: ErrorDetails, values: Any) -> str:
    """Write the place of an error as dotted keys; parts of it that are not in the values name types."""
    key = ""
    for part in (*error["loc"], *error.get("ctx", {}).get("unknown", ())):
        if isinstance(values, dict) and (part in values or error["type"] == "missing"):
            key, values = f"{key}.{part}".lstrip("."), values.get(part)
        elif isinstance(values, list) and isinstance(part, int):
            key, values = f"{key}[{part}]", values[part]
    return key


def _what(errors: Sequence[ErrorDetails]) -> str:
    """Say what is wrong with one value; of a union, every kind that it could have been."""
    first = errors[0]
    if first["type"] == "missing":
        return "is missing"
    if first["type"] in ("model_type", "dict_type"):
        return "must hold keys with values"
    allowed = " or ".join(one["msg"].removeprefix("Input should be ") for one in errors)
    text = allowed.removeprefix("Value error, ") if allowed.startswith(first["msg"]) else f"must be {allowed}, not {first['input']!r}"
    for theirs, ours in _SHORTER.items():
        text = text.replace(theirs, ours)
    return text


_SHORTER = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "a valid boolean": "true or false",
    "a valid tuple": "a list",
    "Tuple should have": "must hold",
    "Dictionary should have": "must hold",
    " after validation": "",
}
"""Of pydantic's words, those that say less than ours, or speak of Python."""
