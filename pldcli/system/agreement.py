"""Compare what the processes of a job have, by name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pldcli.errors import UsageError

__all__ = ["HASH_DIGITS", "check_equal", "hash_of"]

HASH_DIGITS = 8
"""Of a hash, where people read it."""
_MOST_NAMED = 3


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """Hash tensors on the host."""
    found = hashlib.sha256()
    for tensor in tensors.values():
        found.update(tensor.contiguous().numpy().data)
    return found.hexdigest()[:HASH_DIGITS]


def check_equal(everyone: Sequence[Mapping[str, Any]]) -> None:
    """Check that all processes have the same.

    Args:
        everyone: What each process has, by name.

    Raises:
        UsageError: One has something else than the first; it names what differs.
    """
    first, *others = everyone
    for rank, other in enumerate(others, 1):
        names = [name for name in {**first, **other} if other.get(name) != first.get(name)]
        if names:
            parts = [f"{name} is {other.get(name)}, on process 0 {first.get(name)}" for name in names[:_MOST_NAMED]]
            more = f", and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
            hint = "start all processes with one command, on equal files and machines"
            raise UsageError("; ".join(parts) + more, where=f"process {rank}", hint=hint)
