"""JSON that comes from elsewhere."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["from_json"]


def from_json(text: str | bytes) -> Any:
    """Parse JSON as `json.loads` does, and refuse what is nested too deeply for Python like anything else that is no JSON.

    Raises:
        ValueError: It is no JSON.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
