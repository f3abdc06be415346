from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pldcli import processor


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


def test_waiting_threads_sleep_soon_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    processor.share_cores()
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    processor.share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == "7"


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP is torch's on Linux")
def test_openmp_itself_takes_the_setting_in_every_command() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    shown = subprocess.run([sys.executable, "-m", "pldcli", "doctor"], env=environment, capture_output=True, text=True, check=False)
    assert "GOMP_SPINCOUNT = '1000'" in shown.stderr  # what libgomp read when torch loaded it
