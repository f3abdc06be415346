"""What a machine offers for training, and what is wrong with it: one function per question.

Every check answers with a `Check`; none raises for what it finds.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import pldcli
from pldcli.system.machine import processor_flags

__all__ = ["Check", "Status", "checks", "compiling", "cores", "disk_space", "disk_speed", "renaming"]

Status = Literal["ok", "warn", "fail"]

GIGABYTE = 1_000_000_000
_PROBE_BYTES = 64_000_000
_SLOW_WRITE_BYTES_PER_SECOND = 50_000_000
"""Below this a checkpoint of BERT-base (1.3 GB) takes longer than 26 seconds, close to what a preempted run is given."""


@dataclass(frozen=True)
class Check:
    """The answer to one question about the machine."""

    name: str
    status: Status
    detail: str
    hint: str = ""
    """What to do, when the status is not `ok`."""


def checks(path: Path) -> Iterator[tuple[str, Callable[[], Check]]]:
    """List the checks, cheap ones first.

    Args:
        path: The directory in which data and runs are to lie.

    Returns:
        Pairs of a name and the function that answers.
    """
    yield "python", python
    yield "pldcli", package
    yield "torch", pytorch
    yield "devices", devices
    yield "precision", precision
    yield "cores", cores
    yield "disk space", partial(disk_space, path)
    yield "atomic rename", partial(renaming, path)
    yield "disk speed", partial(disk_speed, path)
    yield "transformers", transformers
    yield "torch.compile", compiling


def python() -> Check:
    """Say which Python runs."""
    return Check("python", "ok", f"{platform.python_version()} ({sys.executable})")


def package() -> Check:
    """Say which version of this package runs, and whether the shipped presets are found."""
    from pldcli import presets
    from pldcli.errors import UsageError

    place = Path(pldcli.__file__).parent
    try:
        count = len(presets.names())
    except UsageError as error:
        return Check("pldcli", "fail", str(error), "install pldcli again")
    return Check("pldcli", "ok", f"{pldcli.__version__} ({place}), {count} presets")


def pytorch() -> Check:
    """Say which PyTorch is there and for what it was built."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", "fail", f"cannot be imported: {error}", "pip install torch (see https://pytorch.org/get-started)")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "CPU only"
    detail = f"{torch.__version__}, built for {build}"
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < (2, 11):
        return Check("torch", "warn", detail, "pldcli is tested with torch 2.11 and newer: pip install --upgrade torch")
    return Check("torch", "ok", detail)


def devices() -> Check:
    """List the GPUs that training can use."""
    import torch

    if torch.cuda.is_available():
        found = []
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = f"{properties.total_memory / 2**30:.0f} GiB"
            found.append(f"cuda:{index} {properties.name}, {memory}, compute capability {properties.major}.{properties.minor}")
        return Check("devices", "ok", "; ".join(found))
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        if torch.version.cuda is None:
            return Check("devices", "warn", "an NVIDIA GPU that this torch cannot use", "install a CUDA build of torch")
        return Check(
            "devices", "warn", "an NVIDIA GPU that torch does not see", "look at nvidia-smi; the driver may be too old for this torch"
        )
    return Check("devices", "ok", "no GPU: training runs on the CPU")


def precision() -> Check:
    """Say which number formats the hardware has, and so what `runtime.precision=auto` means here."""
    import torch

    from pldcli.engine.precision import resolve_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    auto = resolve_precision("auto", device).name
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability()
        fast = [name for name, first in (("bf16", 8), ("fp16", 7)) if major >= first]
        detail = f"compute capability {major}.{minor}: {' and '.join(fast) or 'no 16-bit format'} in hardware; auto is {auto}"
        return Check("precision", "ok", detail) if fast else Check("precision", "warn", detail, "use runtime.precision=fp32")
    flags = processor_flags()
    found = [name for name in ("amx_bf16", "avx512_bf16") if name in flags]
    return Check("precision", "ok", f"{', '.join(found) or 'no bf16'} in this {platform.machine()} CPU; auto is {auto}")


def cores() -> Check:
    """Compare the threads that torch uses with the cores that this process may use."""
    import torch

    from pldcli.system.workers import available_cores

    usable = available_cores()
    quota = _container_cores()
    threads = torch.get_num_threads()
    limit = min(usable, quota) if quota else usable
    detail = f"{limit:g} usable of {os.cpu_count()}, torch uses {threads} threads"
    if threads > max(1, round(limit)):
        return Check("cores", "warn", detail, f"more threads than cores wait for one another: export OMP_NUM_THREADS={max(1, int(limit))}")
    if threads * 2 < limit and not torch.cuda.is_available():
        return Check("cores", "warn", detail, f"cores lie idle: export OMP_NUM_THREADS={int(limit)}")
    return Check("cores", "ok", detail)


def disk_space(path: Path) -> Check:
    """Measure the free space."""
    free = shutil.disk_usage(path).free
    detail = f"{free / GIGABYTE:,.1f} GB free in {path}"
    if free < GIGABYTE:
        return Check("disk space", "fail", detail, "free some, or work elsewhere: --out and --data take any path")
    if free < 10 * GIGABYTE:
        return Check("disk space", "warn", detail, "two checkpoints of BERT-base need 3 GB, and three while one is written 4 GB")
    return Check("disk space", "ok", detail)


def disk_speed(path: Path) -> Check:
    """Write a file of 64 MB through to the disk, and read it back."""
    content = os.urandom(1_000_000)
    try:
        with tempfile.TemporaryFile(dir=path, prefix=".pld-doctor-") as file:
            began = time.perf_counter()
            for _ in range(_PROBE_BYTES // len(content)):
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
            write_seconds = time.perf_counter() - began
            file.seek(0)
            began = time.perf_counter()
            while file.read(len(content)):
                pass
            read_seconds = time.perf_counter() - began
    except OSError as error:
        return Check("disk speed", "fail", f"cannot write in {path} ({_reason(error)})", "choose a directory that is writable, with --out")
    write, read = _PROBE_BYTES / write_seconds, _PROBE_BYTES / read_seconds
    detail = f"writes {write / 1e6:,.0f} MB/s through to the disk, reads {read / 1e6:,.0f} MB/s back (cached)"
    if write < _SLOW_WRITE_BYTES_PER_SECOND:
        return Check(
            "disk speed", "warn", detail, "checkpoints will take long: save less often (checkpoint.every_steps) or to a local disk"
        )
    return Check("disk speed", "ok", detail)


def renaming(path: Path) -> Check:
    """Try what checkpoints rely on: a directory that takes its final name in one step, whole."""
    try:
        with tempfile.TemporaryDirectory(dir=path, prefix=".pld-doctor-") as folder:
            temporary, final = Path(folder, "step.tmp"), Path(folder, "step")
            temporary.mkdir()
            (temporary / "state").write_bytes(b"whole")
            descriptor = os.open(temporary, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            temporary.rename(final)
            whole = (final / "state").read_bytes() == b"whole" and not temporary.exists()
    except OSError as error:
        hint = "choose a directory that is writable, on a local or POSIX file system, with --out"
        return Check("atomic rename", "fail", f"does not work in {path} ({_reason(error)})", hint)
    if not whole:
        return Check("atomic rename", "fail", f"left something else in {path}", "use a local or POSIX file system for runs")
    return Check("atomic rename", "ok", f"directories can be renamed whole in {path}")


def transformers() -> Check:
    """Look for the optional package that checks exported models."""
    try:
        version = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        hint = "optional: with `pip install transformers` every exported model is reloaded and compared on the spot"
        return Check("transformers", "warn", "not installed", hint)
    return Check("transformers", "ok", version)


def compiling() -> Check:
    """Compile and run a small function on the device that training would take."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def small(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x * 2.0) + 1.0

    x = torch.linspace(-1.0, 1.0, 64, device=device)
    began = time.perf_counter()
    try:
        same = torch.allclose(torch.compile(small, fullgraph=True)(x), small(x), atol=1e-5)
    except Exception as error:  # noqa: BLE001 - a compiler can fail in any way; this check reports which
        return Check("torch.compile", "fail" if device == "cuda" else "warn", f"fails: {_first_line(error)}", _mend_compile(device))
    seconds = time.perf_counter() - began
    if not same:
        return Check("torch.compile", "fail", "gives wrong numbers", "upgrade torch, and train with runtime.compile=off")
    return Check("torch.compile", "ok", f"works on {device} ({seconds:.1f} s for a small function)")


def _mend_compile(device: str) -> str:
    if not any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++", "c++")):
        return "install a C++ compiler (Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++), or train with runtime.compile=off"
    if device == "cuda":
        return "train with runtime.compile=off, or install a triton that fits this torch"
    return "training on CPU does not compile unless runtime.compile=on; the same line with TORCHDYNAMO_VERBOSE=1 tells more"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}"[:160] if lines else type(error).__name__


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _container_cores() -> float | None:
    """Read how many cores' worth of time the control group allows."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)
