"""JSON that comes from elsewhere, and JSON for others."""

from __future__ import annotations

import json
import math
from typing import Any

__all__ = ["finite", "from_json"]


def finite(value: Any) -> Any:
    """Put None for every number within a value that is not finite: JSON has none."""
    if isinstance(value, dict):
        return {name: finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_json(text: str | bytes) -> Any:
    """Parse JSON as `json.loads` does, and refuse what is nested too deeply for Python like anything else that is no JSON.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
