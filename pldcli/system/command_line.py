"""The command line as it was typed, and the job, also in processes that this program or torchrun started."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from pldcli.system.machine import has_agent

__all__ = ["COMMAND_LINE", "JOB", "command_line"]

COMMAND_LINE = "PLD_COMMAND_LINE"
"""Variable in which a process that starts others hands down what was typed."""
JOB = "PLD_JOB"
"""Variable in which it hands down a name of its own, that of one call however often it starts them."""
PROCESSES = Path("/proc")
_MODULE = "torch.distributed.run"


def command_line() -> str:
    """Return what was typed, for a shell; under torchrun as far as can be seen."""
    if typed := os.environ.get(COMMAND_LINE):
        return typed
    own = sys.argv[1:]
    here, machines = (os.environ.get(name, "1") for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
    if here == machines == "1" and not has_agent():
        return shlex.join(["pld", *own])
    several = ["--nnodes", machines] if machines != "1" else []
    return shlex.join(_torchrun(own) or ["torchrun", *several, "--nproc-per-node", here, "-m", "pldcli", *own])


def _torchrun(own: list[str]) -> list[str]:
    """Read the words with which torchrun was started, whose child this process is; none where they cannot be seen.

    Args:
        own: The arguments of this process, with which those words end.

    Source: proc(5), `cmdline`.
    """
    try:
        words = (PROCESSES / str(os.getppid()) / "cmdline").read_text(encoding="utf-8").removesuffix("\0").split("\0")
    except (OSError, ValueError):
        return []
    if words[len(words) - len(own) :] != own:
        return []
    for place, word in enumerate(words):
        if Path(word).name == "torchrun":
            return ["torchrun", *words[place + 1 :]]
        if word == _MODULE:
            return ["python", "-m", *words[place:]]
    return []
