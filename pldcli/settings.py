"""`KEY=VALUE` texts and YAML values, turned into what a key's type says or refused with a hint."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from pldcli.errors import UsageError

__all__ = ["convert", "nearest", "parse", "parse_value", "split"]


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
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"{text!r} is not a value", where=key) from error


def convert(annotation: Any, value: Any, where: str) -> Any:
    """Check a value against a type; texts such as `1e-4`, which YAML reads as text, count as numbers.

    Raises:
        UsageError: It does not fit.
    """
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    for option in options:
        if get_origin(option) is Literal:
            if _spelled(value) in get_args(option):
                return _spelled(value)
        elif option in (bool, str) and isinstance(value, option):
            return value
        elif option is type(None) and value is None:
            return None
        elif option in (int, float):
            number = _number(value)
            if number is not None and (option is float or number == int(number)):
                return option(number)
    allowed = [_describe(option) for option in options if option is not type(None)]
    raise UsageError(f"must be {' or '.join(allowed)}, not {value!r}", where=where)


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
    return ""


def _spelled(value: Any) -> Any:
    """Undo YAML's reading of on and off as truth values."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _number(value: Any) -> float | int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return None
    return value if isinstance(value, float) and abs(value) < float("inf") else None


def _describe(option: Any) -> str:
    if get_origin(option) is Literal:
        return " or ".join(map(str, get_args(option)))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[option]
