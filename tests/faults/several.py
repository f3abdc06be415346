"""Faults of several processes, and of the numbers themselves."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.numpy import load_file

from tests.faults.ground import STEPS, Ground, Tally, digest
from tests.system.test_launcher import alive, ranks

__all__ = [
    "all_signalled",
    "another_number",
    "not_a_number",
    "one_killed",
    "one_of_four_killed",
    "one_of_four_raising",
    "one_of_four_stopped",
    "one_raising",
    "one_stopped",
    "one_with_shards_killed",
    "spike",
]

_SPOIL = """
import math
from pldcli.engine.trainer import Trainer
forward_backward, calls = Trainer.forward_backward, iter(range(10**9))
step = Trainer._step
inside = []
def noted(self, *arguments, **named):
    inside.append(None)
    try:
        return step(self, *arguments, **named)
    finally:
        inside.pop()
def spoil(self, *arguments):
    sums = forward_backward(self, *arguments)
    if inside and next(calls) == {at}:  # not where steps are only timed
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                parameter.grad.copy_(parameter.grad {change})
        sums = sums {change}
    return sums
Trainer.forward_backward, Trainer._step = spoil, noted
from pldcli import cli
raise SystemExit(cli.run({line!r}))
"""


_RAISE = """
import os
if os.environ.get("RANK") == {rank!r}:
    from pldcli.engine.trainer import Trainer
    step, calls = Trainer._step, iter(range(10**9))
    def raising(self, *arguments, **named):
        if next(calls) == {at}:
            raise {error}
        return step(self, *arguments, **named)
    Trainer._step = raising
"""
"""Of one process, put in the place of `sitecustomize`."""


def one_killed(ground: Ground, trials: int) -> Tally:
    """SIGKILL to one of two processes; all end, and the same command ends where nothing had happened."""
    return _one_of(2, ground, trials, signal.SIGKILL)


def one_with_shards_killed(ground: Ground, trials: int) -> Tally:
    """SIGKILL to one of two that hold shards."""
    return _one_of(2, ground, trials, signal.SIGKILL, "runtime.sharding=full")


def all_signalled(ground: Ground, trials: int) -> Tally:
    """SIGTERM, SIGINT and SIGUSR1 in turn to the command that started two processes, at a random moment."""
    tally = Tally()
    expected = _ended(2, ground)
    codes = {signal.SIGTERM: 75, signal.SIGINT: 130, signal.SIGUSR1: 75}
    for trial in range(trials):
        with ground.fresh() as out:
            process, number = ground.start(out, "--gpus", "2"), list(codes)[trial % 3]
            below: dict[int, int] = {}
            until = time.monotonic() + 60
            while len(below) < 2 and time.monotonic() < until:
                time.sleep(0.05)
                below = ranks(process.number)
            time.sleep(ground.draw.uniform(2.0, 2.0 + ground.seconds))
            process.kill(number)
            began = time.monotonic()
            code = process.wait()
            took = time.monotonic() - began
            failure = ground.damaged(out)
            if code not in (0, codes[number]):
                failure = f"{number.name}: ended with {code}: {process.err.strip()[-300:]}"
            elif took > 30 or any(alive(one) for one in below.values()):
                failure = f"{number.name}: took {took:.0f} s, or left a process behind"
            tally.count(failure or _goes_on(2, ground, out, expected))
    return tally


def one_of_four_killed(ground: Ground, trials: int) -> Tally:
    """SIGKILL to one of four."""
    return _one_of(4, ground, trials, signal.SIGKILL)


def one_stopped(ground: Ground, trials: int) -> Tally:
    """SIGSTOP to one of two processes: the other gives it up after the timeout, and the job ends."""
    return _one_of(2, ground, trials, signal.SIGSTOP, "runtime.timeout_seconds=5")


def one_of_four_stopped(ground: Ground, trials: int) -> Tally:
    """SIGSTOP to one of four: the others wait longer for each other where four share a machine with little room."""
    return _one_of(4, ground, trials, signal.SIGSTOP, "runtime.timeout_seconds=10")


def one_raising(ground: Ground, trials: int) -> Tally:
    """One of two processes fails by itself: all end with its cause, and the same command ends where nothing had happened."""
    return _one_raising(2, ground, trials)


def one_of_four_raising(ground: Ground, trials: int) -> Tally:
    """One of four fails by itself."""
    return _one_raising(4, ground, trials)


def _one_raising(count: int, ground: Ground, trials: int) -> Tally:
    tally = Tally()
    expected = _ended(count, ground)
    for trial in range(trials):
        error = ("RuntimeError('a kernel failed')", "MemoryError()")[trial % 2]
        code = _RAISE.format(rank=str(trial % count), at=ground.draw.randrange(STEPS), error=error)
        with ground.fresh() as out, TemporaryDirectory() as place:
            Path(place, "sitecustomize.py").write_text(code)
            process = ground.start(out, "--gpus", str(count), environment={"PYTHONPATH": os.pathsep.join([place, *sys.path])})
            code_of_job = process.wait()
            failure = "" if code_of_job in (1, 5) and ("a kernel failed" in process.err or "memory" in process.err) else process.err[-300:]
            tally.count(failure or _goes_on(count, ground, out, expected))
    return tally


def another_number(ground: Ground, trials: int) -> Tally:
    """Stop in one number of processes and go on in another: losses as those of one process, but for rounding."""
    tally = Tally()
    without = "model.dropout=0.0"  # what is dropped depends on who computes it
    with ground.fresh() as out:
        ground.start(out, without).wait()
        whole = load_file(out / "model" / "model.safetensors")
    pairs = [(1, 2), (2, 1), (1, 4), (4, 1), (2, 4), (4, 2)]
    for trial in range(trials):
        first, second = pairs[trial % len(pairs)]
        with ground.fresh() as out:
            process = ground.start(out, without, "--gpus", str(first))
            until = time.monotonic() + 60
            while not (out / "metrics.jsonl").is_file() or '"step": 5' not in (out / "metrics.jsonl").read_text():
                if time.monotonic() > until:
                    break
                time.sleep(0.01)
            process.kill(signal.SIGTERM)
            process.wait()
            process = ground.start(out, without, "--gpus", str(second))
            if code := process.wait():
                tally.count(f"{first} to {second}: ended with {code}: {process.err.strip()[-300:]}")
                continue
            ended = load_file(out / "model" / "model.safetensors")
            apart = max(float(abs(ended[name] - whole[name]).max()) for name in whole)
            tally.count("" if apart < 1e-3 else f"{first} to {second}: weights differ by {apart:.2g}")
    return tally


def spike(ground: Ground, trials: int) -> Tally:
    """A gradient that is a million times too large in one pass: the step is left out where that is asked for, the run ends well."""
    tally = Tally()
    for _ in range(trials):
        with ground.fresh() as out:
            at = 2 * ground.draw.randrange(140, 158)
            line = ground.line(out, "train.total_steps=160", "train.skip_spikes=6", "checkpoint.every_steps=40")
            process = ground.processes.python(_SPOIL.format(at=at, change="* 1e6", line=line))
            is_well = process.wait() == 0 and "1 steps" in process.out
            tally.count("" if is_well else f"pass {at}: {process.out[-300:]} {process.err.strip()[-300:]}")
    return tally


def not_a_number(ground: Ground, trials: int) -> Tally:
    """NaN or infinity in one forward and backward pass: the step is left out, the run ends well."""
    tally = Tally()
    for trial in range(trials):
        with ground.fresh() as out:
            at = ground.draw.randrange(2 * STEPS)
            number = ("nan", "inf")[trial % 2]
            process = ground.processes.python(_SPOIL.format(at=at, change=f"* math.{number}", line=ground.line(out)))
            if process.wait():
                tally.count(f"pass {at}: {process.err.strip()[-300:]}")
            else:
                tally.count("" if "1 steps" in process.out and _is_finite(out) else f"pass {at}: {process.out[-300:]}")
    return tally


def _is_finite(out: Path) -> bool:
    import numpy as np

    return all(bool(np.isfinite(values).all()) for values in load_file(out / "model" / "model.safetensors").values())


def _one_of(count: int, ground: Ground, trials: int, number: signal.Signals, *more: str) -> Tally:
    """Send a signal to one of several processes."""
    tally = Tally()
    expected = _ended(count, ground, *more)
    for trial in range(trials):
        with ground.fresh() as out:
            process = ground.start(out, "--gpus", str(count), *more)
            until = time.monotonic() + 60
            while len(below := ranks(process.number)) < count and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(ground.draw.uniform(2.0, 2.0 + ground.seconds))
            try:
                os.kill(below[trial % count], number)
            except (KeyError, ProcessLookupError):
                process.wait()
                continue  # it had ended
            began = time.monotonic()
            code = process.wait()
            took = time.monotonic() - began
            failure = ground.damaged(out)
            if orphans := [one for one in below.values() if alive(one)]:
                failure = f"{len(orphans)} orphans"
            elif code == 0 and number != signal.SIGKILL:
                failure = "ended well with a stopped process"
            elif took > 60:
                failure = f"took {took:.0f} s to end"
            elif code and f"process {trial % count} " not in process.err:
                failure = f"does not name process {trial % count}: {process.err.strip()[-300:]}"
            tally.count(failure or _goes_on(count, ground, out, expected, *more))
    return tally


def _ended(count: int, ground: Ground, *more: str) -> str:
    """Digest the model of so many processes to which nothing happens."""
    with ground.fresh() as out:
        ground.start(out, "--gpus", str(count), *more).wait()
        return digest(out / "model" / "model.safetensors")


def _goes_on(count: int, ground: Ground, out: Path, expected: str, *more: str) -> str:
    """Run the same command again; say what is wrong with its end."""
    process = ground.start(out, "--gpus", str(count), *more)
    if code := process.wait():
        return f"the same command ended with {code}: {process.err.strip()[-300:]}"
    return "" if digest(out / "model" / "model.safetensors") == expected else "other weights than without the fault"
