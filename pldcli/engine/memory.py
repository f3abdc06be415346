"""What to try when memory runs out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pldcli.errors import DeviceError

__all__ = ["out_of_memory"]


@contextmanager
def out_of_memory(size: int, device: torch.device, *, key: str, otherwise: str) -> Iterator[None]:
    """Name the micro-batch to try when memory runs out.

    Args:
        size: Rows per forward pass now.
        device: Where.
        key: The setting that lowers it.
        otherwise: What to do where it is 1 already.

    Raises:
        DeviceError: Memory ran out.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_memory = not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not is_memory:
            raise
        smaller = next((n for n in range(size // 2, 0, -1) if size % n == 0), 1)
        hint = f"try {key}={smaller}" if size > 1 else otherwise
        raise DeviceError(f"out of memory with {size} sequences per forward pass", where=str(device), hint=hint) from error
