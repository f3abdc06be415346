from __future__ import annotations

import errno
import importlib.metadata
import os
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from pldcli import __version__, doctor

Usage = namedtuple("Usage", ["total", "used", "free"])
Properties = namedtuple("Properties", ["name", "total_memory", "major", "minor"])


def test_every_quick_check_answers_here(tmp_path: Path) -> None:
    results = [check() for name, check in doctor.checks(tmp_path).items() if name != "torch.compile"]
    assert all(result.detail for result in results)
    assert all(result.hint for result in results if result.status != "ok")
    assert list(tmp_path.iterdir()) == []


def test_versions_are_told() -> None:
    assert doctor.package().detail.startswith(f"{__version__} (")
    assert torch.__version__ in doctor.pytorch().detail


@pytest.mark.parametrize(("free", "status"), [(10**12, "ok"), (5 * 10**9, "warn"), (10**8, "fail")])
def test_free_space(free: int, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free))
    assert doctor.disk_space(tmp_path).status == status


def test_a_slow_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 8.0, 8.0, 8.5])
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: next(times))
    result = doctor.disk_speed(tmp_path)
    assert (result.status, result.detail) == ("warn", "writes 8 MB/s through to the disk, reads 128 MB/s back (cached)")


def test_a_place_that_is_not_writable_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> NoReturn:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    monkeypatch.setattr(doctor.tempfile, "TemporaryDirectory", refuse)
    for check in (doctor.disk_speed, doctor.renaming):
        result = check(tmp_path)
        assert result.status == "fail"
        assert "(read-only file system)" in result.detail
        assert result.hint


def test_a_file_system_that_cannot_rename_directories_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, target: Path) -> NoReturn:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "rename", refuse)
    assert doctor.renaming(tmp_path).status == "fail"
    assert list(tmp_path.iterdir()) == []


def test_too_many_threads_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(4)), raising=False)
    monkeypatch.setattr(doctor, "container_cores", lambda: 2.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for threads, status, hint in ((8, "warn", "OMP_NUM_THREADS=2"), (2, "ok", "")):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        result = doctor.cores()
        assert (result.status, hint in result.hint) == (status, True)
    monkeypatch.setattr(doctor, "container_cores", lambda: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert doctor.cores().hint == "cores lie idle: export OMP_NUM_THREADS=4"


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: Properties("Test GPU", 80 * 2**30, *capability))


@pytest.mark.parametrize(
    ("capability", "status", "detail"),
    [
        ((9, 0), "ok", "compute capability 9.0: bf16 and fp16 in hardware; auto is bf16"),
        ((7, 5), "ok", "compute capability 7.5: fp16 in hardware; auto is fp16"),
        ((6, 1), "warn", "compute capability 6.1: no 16-bit format in hardware; auto is fp16"),
    ],
)
def test_gpus(capability: tuple[int, int], status: str, detail: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, capability)
    version = f"{capability[0]}.{capability[1]}"
    listed = f"cuda:0 Test GPU, 80 GiB, compute capability {version}; cuda:1 Test GPU, 80 GiB, compute capability {version}"
    assert doctor.devices() == doctor.Check("ok", listed)
    result = doctor.precision()
    assert (result.status, result.detail) == (status, detail)


def test_a_gpu_that_torch_cannot_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert doctor.devices().hint == "install a CUDA build of torch"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "driver" in doctor.devices().hint


def test_missing_transformers_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> NoReturn:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert (doctor.transformers().status, "pip install transformers" in doctor.transformers().hint) == ("warn", True)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Any:
    def pretend(result: Any) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch, "compile", lambda function, fullgraph: lambda x: result(function, x))

    return pretend


def test_compiling_that_works(compiler: Any) -> None:
    compiler(lambda function, x: function(x))
    result = doctor.compiling()
    assert (result.status, result.detail.startswith("works on cpu (")) == ("ok", True)


def test_compiling_to_wrong_numbers_fails(compiler: Any) -> None:
    compiler(lambda function, x: function(x) + 1)
    assert (doctor.compiling().status, doctor.compiling().detail) == ("fail", "gives wrong numbers")


def test_compiling_without_a_compiler_says_how_to_mend_it(compiler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(function: Any, x: Any) -> NoReturn:
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\nmore lines")

    compiler(fail)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    result = doctor.compiling()
    assert (result.status, result.detail) == ("warn", "fails: RuntimeError: InvalidCxxCompiler: No working C++ compiler found")
    assert "apt install g++" in result.hint
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "apt install" not in doctor.compiling().hint


def test_a_check_that_cannot_be_made_is_one_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise ImportError("libcudart.so: cannot open shared object file")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    found = {name: check() for name, check in doctor.checks(tmp_path).items() if name in ("python", "devices")}
    assert found["python"].status == "ok"
    assert (found["devices"].status, found["devices"].detail) == (
        "fail",
        "cannot be checked: ImportError: libcudart.so: cannot open shared object file",
    )
