from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pldcli.system import machine as processor


@pytest.fixture(autouse=True)
def unread() -> Iterator[None]:
    processor.processor_fields.cache_clear()
    yield
    processor.processor_fields.cache_clear()


def test_fields_and_flags_are_those_of_the_first_core(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: First: 2 GHz\nflags\t\t: fpu avx2\n\nmodel name\t: Second\nflags\t\t: fpu\n")
    monkeypatch.setattr(processor, "_CPUINFO", cpuinfo)
    assert processor.processor_fields() == {"model name": "First: 2 GHz", "flags": "fpu avx2"}
    assert processor.processor_flags() == {"fpu", "avx2"}


def test_without_the_file_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "missing")
    assert processor.processor_fields() == {}
    assert processor.processor_flags() == set()


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
    monkeypatch.setattr(processor, "_LOADAVG", tmp_path / "loadavg")
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    processor.share_cores()
    assert os.environ.get("OMP_WAIT_POLICY") == ("PASSIVE" if crowded else None)


def test_what_the_user_has_set_stays(unset: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_cores_are_crowded", lambda: True)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    processor.share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    processor.share_cores()
    assert "OMP_WAIT_POLICY" not in os.environ


def test_without_the_number_of_running_threads_nothing_is_set(unset: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_LOADAVG", tmp_path / "missing")
    processor.share_cores()
    assert "OMP_WAIT_POLICY" not in os.environ


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is torch's on Linux")
def test_openmp_itself_takes_the_setting_in_every_command() -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        shown = subprocess.run([sys.executable, "-m", "pldcli", "doctor"], env=environment, capture_output=True, text=True, check=False)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown.stderr  # what libgomp read when torch loaded it
