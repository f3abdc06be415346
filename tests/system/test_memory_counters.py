from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pldcli.system.machine import memory_counters

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux counts so")


def counters_after(code: str) -> dict[str, int]:
    """Read a process while it waits behind some code."""
    words = [sys.executable, "-c", f"{code}; print(flush=True); input()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        found = memory_counters(process.pid)
        process.stdin.write(b"\n")
    return found


def test_what_a_process_holds_and_held_is_told_apart() -> None:
    plain = counters_after("pass")
    holds = counters_after("held = b'x' * 50_000_000")
    held = counters_after("held = b'x' * 50_000_000; del held")
    for name in ("VmRSS", "RssAnon", "VmHWM"):
        assert holds[name] - plain[name] == pytest.approx(50e6, abs=4e6), name
    assert held["VmHWM"] - plain["VmHWM"] == pytest.approx(50e6, abs=4e6)
    assert held["RssAnon"] - plain["RssAnon"] < 4e6


def test_the_peak_is_not_that_of_the_parent() -> None:
    assert memory_counters()["VmHWM"] > 100e6, "torch is here"
    assert counters_after("pass")["VmHWM"] < 30e6


def test_a_process_that_is_gone_has_none() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    assert memory_counters(process.pid) == {}
