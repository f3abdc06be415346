"""What all faults have in common: a run that nothing happens to, ways to start it, and what is expected of it afterwards."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pldcli.corpus.docstrings import docstring_corpus
from pldcli.preparation.prepare import prepare
from pldcli.runs.checkpoint import list_checkpoints, verify
from pldcli.system.hardware import hardware_name, versions
from tests.conftest import TINY, Process, Processes
from tests.forks import Forks

__all__ = ["STEPS", "Fault", "Ground", "Tally", "digest", "disk_of_its_own", "software"]

STEPS = 20
RUN = (
    *TINY,
    "model.dropout=0.1",
    "pld.schedule=constant",
    "pld.draws_per_step=2",
    f"train.total_steps={STEPS}",
    "train.log_every_steps=1",
    "checkpoint.every_steps=2",
    "eval.every_steps=20",
    "eval.max_sequences=8",
)


@dataclass
class Tally:
    """What came of a fault."""

    trials: int = 0
    failures: list[str] = field(default_factory=list)
    note: str = ""

    def count(self, failure: str = "") -> None:
        """Add a trial."""
        self.trials += 1
        if failure:
            self.failures.append(failure)


class Ground:
    """Text, prepared data, and a run without faults, in a directory of its own.

    Args:
        directory: Empty.
        seed: Of when and where faults happen.
    """

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory, self.draw = directory, random.Random(seed)
        directory.mkdir(parents=True)
        (directory / "processes").mkdir()
        self.processes = Processes(directory / "processes", Forks.start())
        self.corpus = directory / "corpus.txt"
        self.corpus.write_text("\n\n".join(docstring_corpus(150_000)), encoding="utf-8")
        self.data = directory / "data"
        prepare([self.corpus], self.data, vocab_size=512, processes=1, quiet=True)
        self.whole = directory / "whole"
        for out in (self.whole, directory / "again"):  # the first one reads files that are then in memory
            began = time.monotonic()
            process = self.start(out)
            if code := process.wait():
                raise RuntimeError(f"the run without faults ended with {code}: {process.err}")
            self.seconds = time.monotonic() - began
        self.weights = digest(self.whole / "model" / "model.safetensors")

    def line(self, out: Path, *more: str) -> list[str]:
        """Return the command line of the run."""
        return ["pretrain", "--preset", "bert-tiny-pld", *RUN, "--data", str(self.data), "--out", str(out), "--device", "cpu", *more]

    def start(self, out: Path, *more: str, environment: dict[str, str] | None = None) -> Process:
        """Start or resume the run."""
        return self.processes.pld(*self.line(out, *more), environment=environment)

    @contextmanager
    def fresh(self) -> Iterator[Path]:
        """Yield a place for a run, and remove it afterwards."""
        out = self.directory / "run"
        shutil.rmtree(out, ignore_errors=True)
        yield out
        shutil.rmtree(out, ignore_errors=True)

    def moment(self) -> float:
        """Draw a moment of the run, in seconds from its start."""
        return self.draw.uniform(0.0, self.seconds)

    def damaged(self, out: Path) -> str:
        """Say which checkpoint of a run does not verify; empty where all do."""
        for path in list_checkpoints(out / "checkpoints"):
            try:
                verify(path)
            except Exception as error:  # noqa: BLE001 - whatever it is, the checkpoint is not what it has to be
                return str(error)
        return ""

    def finish(self, out: Path, *more: str) -> str:
        """Run to the end by the same command; say what is wrong with the end."""
        process = self.start(out, *more)
        if code := process.wait():
            return f"the same command ended with {code}: {process.err.strip()[-300:]}"
        left = [path.name for path in (out / "checkpoints").iterdir() if not path.name.startswith("step-")]
        if left:
            return f"left behind: {', '.join(left)}"
        return "" if digest(out / "model" / "model.safetensors") == self.weights else "other weights than without the fault"


@contextmanager
def disk_of_its_own(ground: Ground, *options: str) -> Iterator[Path | None]:
    """Mount a file system in memory while the block runs; None where that cannot be done here."""
    disk = ground.directory / "disk"
    disk.mkdir(exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", str(disk)], capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def digest(path: Path) -> str:
    """Hash a file, or the files of a directory with their names."""
    if path.is_file():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    parts = [f"{file.relative_to(path)} {digest(file)}" for file in sorted(path.rglob("*")) if file.is_file()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def software() -> str:
    """Name the processor, and the versions that matter."""
    found = versions()
    programs = {"pldcli": found["pldcli"], "Python": found["python"], **found["packages"]}
    return ", ".join([hardware_name(torch.device("cpu")), *(f"{name} {version}" for name, version in programs.items())])


Fault = Callable[[Ground, int], Tally]
