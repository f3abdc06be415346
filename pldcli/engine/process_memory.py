"""The memory of a process, as Linux counts it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["memory_counters"]


def memory_counters(process: int | str = "self") -> dict[str, int]:
    """Read the memory counters of a process; none where the system has none, or the process ended.

    `VmRSS` is what it holds, `RssAnon` what of that is no page of a file, and `VmHWM` the most it held. Unlike that of `getrusage`
    this peak begins anew with a program, instead of with the peak of the process that started it.

    Args:
        process: Its number; `self` for this one.

    Returns:
        Bytes by counter.

    Source: proc(5), `status`.
    """
    try:
        text = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    entries = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): 1024 * int(number) for name, number, _ in entries}
