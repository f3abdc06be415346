"""What the operating system says of this machine's processor."""

from __future__ import annotations

from functools import cache
from pathlib import Path

__all__ = ["processor_fields", "processor_flags"]

_CPUINFO = Path("/proc/cpuinfo")


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
