"""A long run with a fault again and again: it ends where it would have ended anyway, and needs no more memory at its end.

python -m tests.faults.soak --minutes 60 --out benchmarks/results/soak.md
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np

from pldcli.runs.checkpoint import list_checkpoints
from tests.conftest import Process
from tests.faults.damage import flip
from tests.faults.ground import Ground, digest, software
from tests.system.test_launcher import alive

WARM_UP_SHARE, EXPORT_SHARE = 0.3, 0.05
"""Of a run's time, at its begin and at its end, when what reads the exported model is loaded."""
_MOST_TIMES = 6
"""As long as a run without faults takes, both may take beside each other."""
FAULTS = ("SIGKILL", "SIGTERM", "SIGUSR1", "SIGKILL and a flipped bit")


class Sampler:
    """Memory and open files of a process over time."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.megabytes: list[float] = []
        self.files: list[int] = []

    def look(self, number: int, seconds: float) -> None:
        """Note both, unless the process has ended."""
        try:
            resident = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{number}/status").read_text())
            files = len(os.listdir(f"/proc/{number}/fd"))  # noqa: PTH208 - a listing that is not sorted, and fails at once
        except OSError:
            return
        if resident:
            self.seconds.append(seconds)
            self.megabytes.append(int(resident[1]) / 1024)
            self.files.append(files)

    def describe(self) -> tuple[float, str]:
        """Return the growth of memory after warm-up in MB per hour, and a line on it."""
        begin, end = int(WARM_UP_SHARE * len(self.seconds)), int((1 - EXPORT_SHARE) * len(self.seconds)) - 1
        slope = self._slope(begin, end)
        thirds = [f"{self._slope(first, last):+.2f}" for first, last in pairwise(np.linspace(begin, end, 4).astype(int).tolist())]
        minutes = (self.seconds[end] - self.seconds[begin]) / 60
        return slope, (
            f"resident memory {self.megabytes[begin]:.1f} MB after warm-up, {self.megabytes[end]:.1f} MB before the export: "
            f"{slope:+.2f} MB/h over {minutes:.1f} min ({', '.join(thirds)} in its thirds); "
            f"open files {self.files[begin]} and {self.files[end]}"
        )

    def _slope(self, begin: int, end: int) -> float:
        return float(np.polyfit(self.seconds[begin:end], self.megabytes[begin:end], 1)[0]) * 3600


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0, help="of a run without faults")
    parser.add_argument("--every", type=float, default=60.0, help="seconds between faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a Markdown file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        ground = Ground(Path(scratch) / "ground", options.seed)
        lines, failures = soak(ground, options.minutes, options.every)
        ground.processes.close()
    lines += [f"FAILED: {failure}" for failure in failures]
    print("\n".join(lines))
    if options.out:
        head = f"# Soak\n\nCommand: `python -m tests.faults.soak {' '.join(sys.argv[1:])}`. {software()}.\n"
        options.out.write_text("\n".join([head, *(f"- {line}" for line in lines), ""]), encoding="utf-8")
    sys.exit(bool(failures))


def soak(ground: Ground, minutes: float, every: float) -> tuple[list[str], list[str]]:
    """Train without faults, and at the same time with one every so many seconds; return what was seen, and what was wrong."""
    more, failures = steps_for(ground, minutes), []
    whole, out, sampler, done = ground.directory / "soak-whole", ground.directory / "soak", Sampler(), Counter[str]()
    began = time.monotonic()
    steady, faulty = ground.start(whole, *more), ground.start(out, *more)
    ended = dict[str, float]()
    until = began + ground.draw.uniform(0.5, 1.5) * every
    while len(ended) < 2:
        now = time.monotonic()
        if alive(steady.number):
            sampler.look(steady.number, now - began)
        else:
            ended.setdefault("steady", now - began)
        if not alive(faulty.number):
            ended.setdefault("faulty", now - began)
        elif now > until:
            fault = FAULTS[done.total() % len(FAULTS)]
            inject(ground, faulty, fault, out)
            done[fault] += 1
            faulty, until = ground.start(out, *more), now + ground.draw.uniform(0.5, 1.5) * every
        if now - began > _MOST_TIMES * 60 * minutes + every:
            failures.append("does not come to an end")
            break
        time.sleep(0.2)
    for name, process in (("without", steady), ("with", faulty)):
        if not failures and (code := process.wait()):
            failures.append(f"the run {name} faults ended with {code}: {process.err.strip()[-300:]}")
    if failures:
        return [], failures
    slope, memory = sampler.describe()
    lines = [f"without faults: {more[0].partition('=')[2]} steps in {ended['steady'] / 60:.1f} min; {memory}"]
    if slope > 1.0:
        failures.append(f"memory grows by {slope:.2f} MB/h")
    is_same = digest(whole / "model" / "model.safetensors") == digest(out / "model" / "model.safetensors")
    if not is_same:
        failures.append("other weights than without faults")
    left = [path.name for path in (out / "checkpoints").iterdir() if not path.name.startswith("step-")]
    if left:
        failures.append(f"left behind: {', '.join(left)}")
    counts = ", ".join(f"{count} x {name}" for name, count in done.items()) or "none"
    lines.append(f"with faults ({counts}): {ended['faulty'] / 60:.1f} min; {'the same' if is_same else 'other'} weights at the end")
    return lines, failures


def inject(ground: Ground, process: Process, fault: str, out: Path) -> None:
    """Stop a run by a signal; flip a bit of its newest checkpoint too, where the fault says so and there is an older one."""
    process.kill(getattr(signal, fault.split()[0]))
    process.wait()
    checkpoints = list_checkpoints(out / "checkpoints")
    if "bit" in fault and len(checkpoints) > 1:
        weights = checkpoints[-1] / "model.safetensors"
        flip(ground, weights, weights.read_bytes())


def steps_for(ground: Ground, minutes: float) -> tuple[str, ...]:
    """Choose as many steps as take so long."""
    times = []
    for steps in (100, 600):
        began = time.monotonic()
        with ground.fresh() as out:
            ground.start(out, *settings(steps)).wait()
        times.append(time.monotonic() - began)
    step_seconds = max(1e-4, (times[1] - times[0]) / 500)
    return settings(max(600, round(60 * minutes / step_seconds)))


def settings(steps: int) -> tuple[str, ...]:
    """Say how long a run is, and how often it saves."""
    return f"train.total_steps={steps}", "checkpoint.every_steps=50", "train.log_every_steps=50", f"eval.every_steps={max(50, steps // 20)}"


if __name__ == "__main__":
    main()
