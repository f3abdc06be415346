from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pldcli.system import machine
from pldcli.system.machine import memory_counters


@pytest.fixture(autouse=True)
def unread() -> Iterator[None]:
    machine.processor_fields.cache_clear()
    yield
    machine.processor_fields.cache_clear()


def test_fields_and_flags_are_those_of_the_first_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: First: 2 GHz\nflags\t\t: fpu avx2\n\nmodel name\t: Second\nflags\t\t: fpu\n")
    monkeypatch.setattr(machine, "CPUINFO", cpuinfo)
    assert machine.processor_fields() == {"model name": "First: 2 GHz", "flags": "fpu avx2"}
    assert machine.processor_flags() == {"fpu", "avx2"}


def test_without_the_file_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "missing")
    assert machine.processor_fields() == {}
    assert machine.processor_flags() == set()


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")  # so that what the test sets is undone
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)


@pytest.mark.parametrize(
    ("running", "threads", "crowded"), [(1, None, False), (2, None, True), (4, "1", False), (5, "1", True), (3, "2", False), (4, "2", True)]
)
def test_waiting_threads_sleep_soon_where_there_are_more_threads_than_cores(
    unset: None, running: int, threads: str | None, crowded: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loadavg").write_text(f"0.20 0.18 0.12 {running}/80 11206\n")  # this process is one of them
    monkeypatch.setattr(machine, "LOADAVG", tmp_path / "loadavg")
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    machine.share_cores()
    assert os.environ.get("OMP_WAIT_POLICY") == ("PASSIVE" if crowded else None)


def test_what_the_user_has_set_stays(unset: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loadavg").write_text("9.20 9.18 9.12 99/180 11206\n")
    monkeypatch.setattr(machine, "LOADAVG", tmp_path / "loadavg")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    machine.share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    machine.share_cores()
    assert "OMP_WAIT_POLICY" not in os.environ


def test_without_the_number_of_running_threads_nothing_is_set(unset: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LOADAVG", tmp_path / "missing")
    machine.share_cores()
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is torch's on Linux")
def test_openmp_itself_takes_the_setting_in_every_command(tmp_path: Path) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        words = [sys.executable, "-m", "pldcli", "checkpoint", "list", str(tmp_path)]  # it loads torch, and is done
        shown = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown.stderr  # what libgomp read when torch loaded it


linux = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux counts so")


def counters_after(code: str) -> dict[str, int]:
    """Read a process while it waits behind some code."""
    words = [sys.executable, "-c", f"{code}; print(flush=True); input()"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin and process.stdout
        process.stdout.readline()
        found = memory_counters(process.pid)
        process.stdin.write(b"\n")
    return found


@linux
def test_what_a_process_holds_and_held_is_told_apart() -> None:
    plain = counters_after("pass")
    holds = counters_after("held = b'x' * 50_000_000")
    held = counters_after("held = b'x' * 50_000_000; del held")
    for name in ("VmRSS", "RssAnon", "VmHWM"):
        assert holds[name] - plain[name] == pytest.approx(50e6, abs=4e6), name
    assert held["VmHWM"] - plain["VmHWM"] == pytest.approx(50e6, abs=4e6)
    assert held["RssAnon"] - plain["RssAnon"] < 4e6


@linux
def test_the_peak_is_not_that_of_the_parent() -> None:
    assert memory_counters()["VmHWM"] > 100e6, "torch is here"
    assert counters_after("pass")["VmHWM"] < 30e6


@linux
def test_a_process_that_is_gone_has_none() -> None:
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    assert memory_counters(process.pid) == {}
