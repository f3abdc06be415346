"""A checkpoint of a sharded run: every process that holds a part writes it, the main one puts the files together.

NAME-00002-of-00004.safetensors holds the second of four parts: of each tensor that is split, the rows that follow those of the first part;
what is not split lies whole in the first. The others write theirs into a directory beside the checkpoint to come,
`.STEP.part-2-of-4-TOKEN`, with its checksums, and go on. The main process waits for these directories, moves the files into its own, and
only then seals and names it. Nothing is sent between the processes, so that it can be done while they train.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor

from pldcli.errors import CheckpointError
from pldcli.system.seal import read_sums

__all__ = ["Part", "collect", "load_whole", "needed_files", "place_of", "remove_parts"]

_LOOK_EVERY_SECONDS = 0.05
_PATIENCE_SECONDS = 1800.0
_OF_PART = re.compile(r".*-\d{5}-of-(?P<count>\d{5})\.safetensors")


@dataclass(frozen=True)
class Part:
    """Which part of every tensor a process writes."""

    number: int = 1
    """Counted from 1; the first is the main process's."""
    count: int = 1
    token: int = 0
    """The same on all processes of one checkpoint, and on no others."""

    def stem(self, name: str) -> str:
        """Return what its file of tensors is called, without the ending."""
        return name if self.count == 1 else f"{name}-{self.number:05}-of-{self.count:05}"


def place_of(checkpoint: Path, part: Part) -> Path:
    """Return the directory in which a part waits for the main process."""
    return checkpoint.with_name(f".{checkpoint.name}.part-{part.number}-of-{part.count}-{part.token:x}")


def collect(
    checkpoint: Path, own: Part, into: Path, *, cancelled: threading.Event, patience_seconds: float | None = None
) -> dict[str, str]:
    """Move the other parts of a checkpoint into a directory, as soon as they are there.

    Args:
        checkpoint: What it will be called.
        own: The part of the main process.
        into: Where its files are.
        cancelled: Set where the others will not come any more.
        patience_seconds: How long to wait for each part; half an hour by default.

    Returns:
        The checksums of the files, by name.

    Raises:
        CheckpointError: A part did not come.
    """
    sums = {}
    for number in range(2, own.count + 1):
        place = place_of(checkpoint, Part(number, own.count, own.token))
        patience = patience_seconds or _PATIENCE_SECONDS
        deadline = time.monotonic() + patience
        while not place.is_dir():
            if cancelled.wait(_LOOK_EVERY_SECONDS):
                raise CheckpointError(f"part {number} of {own.count} was not written: its process ended", where=str(checkpoint))
            if time.monotonic() > deadline:
                hint = "the run's directory must lie where all machines see it; where writing takes longer, raise runtime.timeout_seconds"
                raise CheckpointError(f"part {number} of {own.count} did not come in {patience:g} s", where=str(checkpoint), hint=hint)
        for name, digest in read_sums(place).items():
            (place / name).rename(into / name)
            sums[name] = digest
        shutil.rmtree(place, ignore_errors=True)
    return sums


def remove_parts(directory: Path, token: int) -> None:
    """Remove what was written for checkpoints that never came to be: all parts but those with this token."""
    for place in directory.glob(".step-*.part-*"):
        if not place.name.endswith(f"-{token:x}"):
            shutil.rmtree(place, ignore_errors=True)


def needed_files(path: Path, name: str) -> set[str]:
    """Name the files that hold the tensors `name` of a checkpoint, as far as those that are there tell."""
    matches = [_OF_PART.fullmatch(file.name) for file in path.glob(f"{name}-*.safetensors")]
    counts = {int(match["count"]) for match in matches if match} or {1}
    return {f"{Part(number, count).stem(name)}.safetensors" for count in counts for number in range(1, count + 1)}


def load_whole(path: Path, name: str) -> dict[str, Tensor]:
    """Read the tensors `name` of a checkpoint, put together where they lie in parts."""
    rows: Mapping[str, list[Tensor]] = defaultdict(list)
    for file in sorted(needed_files(path, name)):
        for key, tensor in load((path / file).read_bytes()).items():
            rows[key].append(tensor)
    return {key: torch.cat(parts) if len(parts) > 1 else parts[0] for key, parts in rows.items()}
