"""Faults of the places that a run lives in: a disk that turns read-only, a directory that vanishes, a clock that is set back."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time

from pldcli.runs.run_directory import RunDirectory
from tests.faults.ground import Ground, Tally, disk_of_its_own

__all__ = ["clock_set_back", "read_only", "vanished"]

_AT_ANOTHER_TIME = """
import time
real = time.time
time.time = lambda: real() + {seconds}
from pldcli import cli
raise SystemExit(cli.run({line!r}))
"""
_DAY = 86400.0


def read_only(ground: Ground, trials: int) -> Tally:
    """A run is stopped, its disk turns read-only, and the same command is told so; when it can be written again, it goes on."""
    tally = Tally()
    for _ in range(trials):
        with disk_of_its_own(ground) as disk:
            if disk is None:
                tally.note = "no file system of its own could be mounted here"
                break
            process = ground.start(disk / "run")
            time.sleep(ground.moment())
            process.kill(signal.SIGKILL)
            process.wait()
            is_finished = RunDirectory(disk / "run").is_finished
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            process = ground.start(disk / "run")
            code = process.wait()
            failure = ""
            if code != (0 if is_finished else 7) or "Traceback" in process.err:
                failure = f"ended with {code}: {process.err.strip()[-300:]}"
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            tally.count(failure or ground.finish(disk / "run"))
    return tally


def vanished(ground: Ground, trials: int) -> Tally:
    """The run's directory is moved away at a random moment: the run says so; moved back, it goes on."""
    tally = Tally()
    while tally.trials < trials:
        with ground.fresh() as out:
            process = ground.start(out)
            time.sleep(ground.moment())
            elsewhere = out.with_name("elsewhere")
            try:
                out.rename(elsewhere)
            except FileNotFoundError:
                process.wait()
                continue  # it had not begun
            code = process.wait()
            failure = ""
            if code not in (0, 7) or "Traceback" in process.err:
                failure = f"ended with {code}: {process.err.strip()[-300:]}"
            elif any((out / name).exists() for name in ("config.yaml", "checkpoints", "model")):
                failure = f"began a second directory: {', '.join(sorted(path.name for path in out.iterdir()))}"
            shutil.rmtree(out, ignore_errors=True)
            elsewhere.rename(out)
            tally.count(failure or ground.finish(out))
    return tally


def clock_set_back(ground: Ground, trials: int) -> Tally:
    """A run is killed, and the same command is given with the clock a day back, and killed again, and on another day."""
    tally = Tally()
    for _ in range(trials):
        with ground.fresh() as out:
            failure = ""
            for days in (0, -1, 1, -30):
                line = ground.line(out)
                process = ground.processes.python(_AT_ANOTHER_TIME.format(seconds=days * _DAY, line=line))
                time.sleep(ground.moment())
                process.kill(signal.SIGKILL)
                process.wait()
                failure = failure or ground.damaged(out)
            tally.count(failure or ground.finish(out))
    return tally
