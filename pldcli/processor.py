"""What the operating system says of this machine's processor, and how numeric threads share it with other programs."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

__all__ = ["processor_fields", "processor_flags", "share_cores"]

_CPUINFO = Path("/proc/cpuinfo")
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_SPIN_COUNT = 1000
"""Rounds of a few nanoseconds each: longer than the gap between two operators of a step, far shorter than a time slice."""


@cache
def processor_fields() -> dict[str, str]:
    """Read the fields of the first core in Linux's /proc/cpuinfo, by their names there; none where that file is missing."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def processor_flags() -> set[str]:
    """List the first core's instruction sets as Linux spells them, as in `avx512_bf16`."""
    return set(processor_fields().get("flags", "").split())


def share_cores() -> None:
    """Let OpenMP's threads sleep soon after their work is done, instead of spinning; call it before torch loads.

    By default GNU's OpenMP spins for milliseconds at the end of each parallel region. On a core that another program uses too, the
    thread that waits then keeps away the one that it waits for, and a step takes up to twenty times as long. Whatever the user
    has set stays.

    Source: GCC's libgomp manual, `GOMP_SPINCOUNT`.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = str(_SPIN_COUNT)
