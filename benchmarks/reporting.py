"""How the benchmarks report: what ran where and by which command, rows of tables, medians with their range.

Nothing here imports torch before it is asked to.
"""

from __future__ import annotations

import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from measuring import this_device
from pldcli import __version__
from pldcli.system import atomic

if TYPE_CHECKING:
    import torch

__all__ = ["command", "hardware", "head", "megabytes", "publish", "row", "software", "spread"]


def command() -> str:
    """Write down what was typed."""
    return shlex.join(["python", *sys.argv])


def hardware(device: torch.device | str | None = None) -> str:
    """Name the processor or the GPU; by default the GPU where there is one."""
    import torch

    from pldcli.system.hardware import hardware_name

    return hardware_name(this_device() if device is None else torch.device(device))


def software(*packages: str) -> str:
    """Name versions: of pldcli, of packages (torch by default) and of Python."""
    named = [f"{package} {version(package)}" for package in packages or ("torch",)]
    return ", ".join([f"pldcli {__version__}", *named, f"Python {platform.python_version()}"])


def head(*columns: str) -> str:
    """Write a table's first two lines."""
    return f"{row(*columns)}\n|{'---|' * len(columns)}"


def row(*cells: str) -> str:
    """Write a line of a table."""
    return f"| {' | '.join(cells)} |"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Write the median and, behind it, lowest and highest; a dash when there is nothing."""
    if not values:
        return "-"
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def megabytes(value: float | None, digits: int = 0) -> str:
    """Write bytes in millions."""
    return "not measured" if value is None else f"{value / 1e6:,.{digits}f}"


def publish(document: str, out: Path | None) -> None:
    """Print a document, and write it to a file where one was named."""
    print(document)
    if out:
        atomic.write_text(out, document)
