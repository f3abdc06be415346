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
from pathlib import Path

import numpy as np

from pldcli.engine.checkpoint import list_checkpoints
from tests.engine.test_launcher import alive
from tests.faults.damage import flip
from tests.faults.ground import Ground, digest, software

WARM_UP_SHARE, EXPORT_SHARE = 0.3, 0.05
"""Of a run's time, at its begin and at its end, when what reads the exported model is loaded."""
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
        slope = float(np.polyfit(self.seconds[begin:end], self.megabytes[begin:end], 1)[0]) * 3600
        minutes = (self.seconds[end] - self.seconds[begin]) / 60
        return slope, (
            f"resident memory {self.megabytes[begin]:.1f} MB after warm-up, {self.megabytes[end]:.1f} MB before the export: "
            f"{slope:+.2f} MB/h over {minutes:.1f} min; open files {self.files[begin]} and {self.files[end]}"
        )


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
    print("\n".join([*lines, *(f"FAILED: {failure}" for failure in failures)]))
    if options.out:
        head = f"# Soak\n\nCommand: `python -m tests.faults.soak {' '.join(sys.argv[1:])}`. {software()}.\n"
        options.out.write_text("\n".join([head, *(f"- {line}" for line in [*lines, *failures]), ""]), encoding="utf-8")
    sys.exit(bool(failures))


def soak(ground: Ground, minutes: float, every: float) -> tuple[list[str], list[str]]:
    """Train once without faults and once with one every so many seconds; return what was seen, and what was wrong."""
    more, failures = steps_for(ground, minutes), []
    whole, sampler = ground.directory / "soak-whole", Sampler()
    began = time.monotonic()
    process = ground.start(whole, *more)
    while alive(process.number):
        sampler.look(process.number, time.monotonic() - began)
        time.sleep(0.5)
    if code := process.wait():
        return [], [f"the run without faults ended with {code}: {process.err.strip()[-300:]}"]
    slope, memory = sampler.describe()
    lines = [f"without faults: {more[0].partition('=')[2]} steps in {(time.monotonic() - began) / 60:.1f} min; {memory}"]
    if slope > 1.0:
        failures.append(f"memory grows by {slope:.2f} MB/h")

    out, done = ground.directory / "soak", Counter[str]()
    began = time.monotonic()
    while True:
        process = ground.start(out, *more)
        fault = FAULTS[done.total() % len(FAULTS)]
        until = time.monotonic() + ground.draw.uniform(0.5, 1.5) * every
        while alive(process.number) and time.monotonic() < until:
            time.sleep(0.1)
        if not alive(process.number):
            code = process.wait()
            break
        process.kill(getattr(signal, fault.split()[0]))
        process.wait()
        done[fault] += 1
        checkpoints = list_checkpoints(out / "checkpoints")
        if "bit" in fault and len(checkpoints) > 1:
            weights = checkpoints[-1] / "model.safetensors"
            flip(ground, weights, weights.read_bytes())
        if done.total() > 1000:
            return lines, [*failures, "does not come to an end"]
    if code:
        failures.append(f"the run with faults ended with {code}: {process.err.strip()[-300:]}")
    elif digest(whole / "model" / "model.safetensors") != digest(out / "model" / "model.safetensors"):
        failures.append("other weights than without faults")
    left = [path.name for path in (out / "checkpoints").iterdir() if not path.name.startswith("step-")]
    if left:
        failures.append(f"left behind: {', '.join(left)}")
    counts = ", ".join(f"{count} x {name}" for name, count in done.items()) or "none"
    lines.append(f"with faults ({counts}): {(time.monotonic() - began) / 60:.1f} min; {'' if failures else 'the same weights at the end'}")
    return lines, failures


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
