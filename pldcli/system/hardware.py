"""Versions and hardware of a run, and the hardware's peak FLOPs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from pldcli import __version__
from pldcli.system.machine import processor_fields

__all__ = ["device_memory_bytes", "hardware_name", "peak_flops_per_second", "versions"]

_PEAK_16_BIT = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
    "T4": 65e12,
}
"""Dense 16-bit FLOPs per second, from the makers' data sheets; the first name that matches counts."""

MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
_PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "sentencepiece", "pyarrow")


def peak_flops_per_second(device: torch.device, precision: str) -> float | None:
    """Look up the peak of a known GPU in a 16-bit format; None elsewhere."""
    if device.type != "cuda" or precision == "fp32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in _PEAK_16_BIT.items() if re.search(rf"\b{part}\b", name)), None)


def hardware_name(device: torch.device) -> str:
    """Name the processor or the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = processor_fields().get("model name") or platform.processor()
    return f"{model or platform.machine()}, {os.cpu_count()} cores"


def versions() -> dict[str, Any]:
    """Return the versions of everything that decides numbers."""
    return {
        "pldcli": __version__,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "platform": platform.platform(),
    }


def device_memory_bytes(device: torch.device, *, sharing: int = 1) -> int:
    """Return the size of the device's memory, used or not; of the host's, a process's part of what its container may use.

    Args:
        device: The device.
        sharing: Processes on this machine that share the host's.
    """
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(OSError, ValueError):  # no control group, or no limit
        memory = min(memory, int(MEMORY_LIMIT.read_text(encoding="ascii")))
    return memory // sharing
