"""What the operating system says of this machine's processor, and what a process asks of it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from functools import cache
from pathlib import Path

__all__ = [
    "boot_id",
    "end_with_agent",
    "has_agent",
    "keep_freed_memory",
    "memory_counters",
    "processor_fields",
    "processor_flags",
    "share_cores",
]

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
CPUINFO = Path("/proc/cpuinfo")
LOADAVG = Path("/proc/loadavg")
_KEEP_EVERYTHING = ((-1, 2**31 - 1), (-2, 64 << 20), (-4, 0))
"""glibc's M_TRIM_THRESHOLD, M_TOP_PAD and M_MMAP_MAX: never trim the heap, grow it in large pieces, map no single allocation."""
_PR_SET_PDEATHSIG = 1
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
_LOOKS, _BETWEEN_LOOKS_SECONDS = 3, 0.003


def boot_id() -> str:
    """Read what Linux names the time since the machine was started.

    Raises:
        OSError: This is no Linux.
    """
    return BOOT_ID.read_text(encoding="ascii").strip()


@cache
def processor_fields() -> dict[str, str]:
    """Read the fields of the first core in Linux's /proc/cpuinfo, by their names there; none where that file is missing."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def processor_flags() -> set[str]:
    """List the first core's instruction sets as Linux spells them, as in `avx512_bf16`."""
    return set(processor_fields().get("flags", "").split())


def share_cores() -> None:
    """Let OpenMP's threads sleep as soon as they wait where other programs use the cores now; call it before torch loads.

    By default GNU's OpenMP spins for milliseconds at the end of each parallel region, which is quickest on quiet cores. On a core that
    another program uses too, the thread that waits then keeps away the one that it waits for. What the user has set stays. OpenMP
    reads the setting once: what other programs do later changes nothing.

    Source: OpenMP 5, `OMP_WAIT_POLICY`; GCC's libgomp manual, `GOMP_SPINCOUNT`.
    """
    if not any(name in os.environ for name in _WAITING) and _cores_are_crowded():
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def _cores_are_crowded() -> bool:
    """Return whether the threads of other programs and ours are more than there are cores.

    Source: proc(5), the threads that are runnable now in /proc/loadavg; elsewhere than on Linux nothing is known.
    """
    cores, wanted = os.cpu_count() or 1, os.environ.get("OMP_NUM_THREADS", "")
    threads = int(wanted) if wanted.isdecimal() else cores
    for look in range(_LOOKS):  # one look may meet a thread that runs for a moment only
        if look:
            time.sleep(_BETWEEN_LOOKS_SECONDS)
        try:
            running = LOADAVG.read_text(encoding="ascii").split()[3].partition("/")[0]
            if int(running) - 1 + threads <= cores:
                return False
        except (OSError, ValueError, IndexError):
            return False
    return True


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


def keep_freed_memory() -> None:
    """Let the C library keep freed memory instead of returning it to the system and faulting it in again in every step.

    Every step frees and allocates the gradient of the embeddings and hundreds of activations; without this, page faults are a good
    part of the processor time of fine-tuning a small BERT. Only glibc has the call; elsewhere nothing happens.

    Source: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in _KEEP_EVERYTHING:
            mallopt(option, value)


def has_agent() -> bool:
    """Return whether torchrun's agent started this process, or that of `--gpus`."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def end_with_agent() -> None:
    """Ask for SIGTERM when torchrun's agent dies: it starts processes in sessions of their own, where nothing else would end them.

    Source: prctl(2), PR_SET_PDEATHSIG; Linux only.
    """
    if sys.platform == "linux" and has_agent():
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
