"""Faults that end processes: kills and signals at any moment, and a kill, or a full disk, at every point of the save protocol."""

from __future__ import annotations

import signal
import time

from tests.faults.ground import Ground, Tally, digest

__all__ = ["full_at_each_call", "killed", "killed_in_background", "killed_while_saving", "signalled"]

_AT_A_CALL = """
import errno, os, signal
left = {at}
def failing(name):
    original = getattr(os, name)
    def call(*arguments, **named):
        global left
        left -= 1
        if not left:
            print("now", flush=True)
            {action}
        return original(*arguments, **named)
    setattr(os, name, call)
for name in {calls}:
    failing(name)
from pldcli import cli
raise SystemExit(cli.run({line!r}))
"""
"""A process to which something happens at the n-th of some calls."""
_DIE = "os.kill(os.getpid(), signal.SIGKILL)", ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "open")
_FULL = 'raise OSError(errno.ENOSPC, "No space left on device")', ("fsync", "rename", "replace", "mkdir")
"""What happens, and at which calls: a full disk is no reason not to remove something."""
_SHORT = ("train.total_steps=4", "eval.every_steps=4", "checkpoint.keep=1")


def killed(ground: Ground, trials: int) -> Tally:
    """SIGKILL at a random moment of a run, again and again until it has ended."""
    return _killed(ground, trials)


def killed_in_background(ground: Ground, trials: int) -> Tally:
    """Likewise of a run that saves while it trains."""
    return _killed(ground, trials, "checkpoint.background=on")


def _killed(ground: Ground, trials: int, *more: str) -> Tally:
    tally = Tally()
    while tally.trials < trials:
        with ground.fresh() as out:
            while tally.trials < trials:
                process = ground.start(out, *more)
                time.sleep(ground.moment())
                process.kill(signal.SIGKILL)
                code = process.wait()
                if code == 0:
                    break
                tally.count(ground.damaged(out) if code == -signal.SIGKILL else f"ended with {code}: {process.err.strip()[-300:]}")
            if failure := ground.finish(out, *more):
                tally.failures.append(failure)
    return tally


def killed_while_saving(ground: Ground, trials: int) -> Tally:
    """SIGKILL at the n-th call that changes the disk, for every n until the run ends by itself; `trials` bounds n."""
    return _at_each_call(ground, trials, *_DIE)


def full_at_each_call(ground: Ground, trials: int) -> Tally:
    """No space left at the n-th call that needs some, likewise."""
    return _at_each_call(ground, trials, *_FULL)


def _at_each_call(ground: Ground, trials: int, action: str, calls: tuple[str, ...]) -> Tally:
    tally = Tally()
    with ground.fresh() as out:
        process = ground.start(out, *_SHORT)
        process.wait()
        expected = digest(out / "model" / "model.safetensors")
    for at in range(1, trials + 1):
        with ground.fresh() as out:
            line = ground.line(out, *_SHORT)
            process = ground.processes.python(_AT_A_CALL.format(at=at, action=action, calls=calls, line=line))
            code = process.wait()
            if "now" not in process.out:
                tally.note = f"{at - 1} calls in the whole run"
                break
            failure = ground.damaged(out)
            if action == _FULL[0] and code not in (0, 7):
                failure = f"call {at}: {process.err.strip()[-300:]}"
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
