"""JSON that comes from elsewhere, and JSON for others."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from pldcli.errors import DataError

__all__ = ["finite", "from_json", "parse_json"]


def finite(value: Any) -> Any:
    """Put None for every number within a value that is not finite: JSON has none."""
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(text: str | bytes, *, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parse JSON as `json.loads` does, and refuse what is nested too deeply for Python like anything else that is no JSON.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=object_pairs_hook)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_json(text: str, where: str, *, hint: str = "one object per line, or one list of objects, is needed") -> Any:
    """Read JSON; halves of surrogate pairs, which an escape can hold, are no text and are replaced.

    Raises:
        DataError: It is none; `hint` says what to do.
    """
    try:
        return from_json(text, object_pairs_hook=_without_surrogates if "\\ud" in text or "\\uD" in text else None)
    except ValueError as error:
        reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error).partition("\n")[0]
        raise DataError(f"is not JSON ({reason})", where=where, hint=hint) from error


def _without_surrogates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: _mended(value) for name, value in pairs}


def _mended(value: Any) -> Any:
    if isinstance(value, list):
        return [_mended(one) for one in value]
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(value, str) else value
