"""Faults that end processes: kills and signals at any moment, and a kill at every point of the save protocol."""

from __future__ import annotations

import signal
import time

from tests.faults.ground import Ground, Tally, digest

__all__ = ["killed", "killed_while_saving", "signalled"]

_DIE_AT = """
import os, signal
left = {at}
def dying(name):
    original = getattr(os, name)
    def call(*arguments, **named):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)
    setattr(os, name, call)
for name in ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "open"):
    dying(name)
from pldcli import cli
raise SystemExit(cli.run({line!r}))
"""
"""A process that kills itself at the n-th call that changes the disk."""
_SHORT = ("train.total_steps=4", "eval.every_steps=4", "checkpoint.keep=1")


def killed(ground: Ground, trials: int) -> Tally:
    """SIGKILL at a random moment of a run, again and again until it has ended."""
    tally = Tally()
    while tally.trials < trials:
        with ground.fresh() as out:
            while tally.trials < trials:
                process = ground.start(out)
                time.sleep(ground.moment())
                process.kill(signal.SIGKILL)
                code = process.wait()
                if code == 0:
                    break
                tally.count(ground.damaged(out) if code == -signal.SIGKILL else f"ended with {code}: {process.err.strip()[-300:]}")
            if failure := ground.finish(out):
                tally.failures.append(failure)
    return tally


def killed_while_saving(ground: Ground, trials: int) -> Tally:
    """SIGKILL at the n-th call that changes the disk, for every n until the run ends by itself; `trials` bounds n."""
    tally = Tally()
    with ground.fresh() as out:
        process = ground.start(out, *_SHORT)
        process.wait()
        expected = digest(out / "model" / "model.safetensors")
    for at in range(1, trials + 1):
        with ground.fresh() as out:
            process = ground.processes.python(_DIE_AT.format(at=at, line=ground.line(out, *_SHORT)))
            if process.wait() != -signal.SIGKILL:
                tally.note = f"{at - 1} calls in the whole run"
                break
            failure = ground.damaged(out)
            again = ground.start(out, *_SHORT)
            if not failure and (code := again.wait()):
                failure = f"call {at}: the same command ended with {code}: {again.err.strip()[-300:]}"
            elif not failure and digest(out / "model" / "model.safetensors") != expected:
                failure = f"call {at}: other weights"
            tally.count(failure)
    return tally


def signalled(ground: Ground, trials: int) -> Tally:
    """SIGTERM, SIGINT and SIGUSR1 in turn, at random moments of a run, until it has ended."""
    tally = Tally()
    expected = {signal.SIGTERM: 75, signal.SIGINT: 130, signal.SIGUSR1: 75}
    while tally.trials < trials:
        with ground.fresh() as out:
            while tally.trials < trials:
                process = ground.start(out)
                time.sleep(ground.moment())
                number = list(expected)[tally.trials % 3]
                began = time.monotonic()
                process.kill(number)
                code = process.wait()
                if code == 0:
                    break
                took = time.monotonic() - began
                failure = ground.damaged(out)
                if code not in (expected[number], -number):  # the latter before the program listens
                    failure = f"{number.name}: ended with {code}: {process.err.strip()[-300:]}"
                elif took > 30:
                    failure = f"{number.name}: took {took:.0f} s"
                tally.count(failure)
            if failure := ground.finish(out):
                tally.failures.append(failure)
    return tally
