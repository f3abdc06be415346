"""Check what a machine offers for training, and what is wrong with it: one function per check; none raises for what it finds."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import pldcli
from pldcli.system.machine import processor_flags
from pldcli.system.workers import available_cores, container_cores

__all__ = ["Check", "Status", "checks", "compiling", "cores", "disk_space", "disk_speed", "renaming"]

Status = Literal["ok", "warn", "fail"]

GIGABYTE = 1_000_000_000
_PROBE_BYTES = 64_000_000
_SLOW_WRITE_BYTES_PER_SECOND = 50_000_000
"""Below this a checkpoint of BERT-base (1.3 GB) takes longer than 26 seconds, close to what a preempted run is given."""


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    status: Status
    detail: str
    hint: str = ""
    """What to do where the status is not `ok`."""


def checks(path: Path) -> dict[str, Callable[[], Check]]:
    """Return the checks by name, cheap ones first.

    Args:
        path: The directory for data and runs.
    """
    found: dict[str, Callable[[], Check]] = {
        "python": python,
        "pldcli": package,
        "torch": pytorch,
        "devices": devices,
        "precision": precision,
        "cores": cores,
        "disk space": partial(disk_space, path),
        "atomic rename": partial(renaming, path),
        "disk speed": partial(disk_speed, path),
        "transformers": transformers,
        "torch.compile": compiling,
    }
    return {name: partial(_guarded, check) for name, check in found.items()}


def _guarded(check: Callable[[], Check]) -> Check:
    """Run a check; what it cannot do for want of something, such as torch, is a failure like others."""
    try:
        return check()
    except Exception as error:  # noqa: BLE001 - a diagnosis has no use for an end of its own
        return Check("fail", f"cannot be checked: {_first_line(error)}", "mend what fails above first")


def python() -> Check:
    """Report the version of Python."""
    return Check("ok", f"{platform.python_version()} ({sys.executable})")


def package() -> Check:
    """Report the version of this package, and check that the shipped presets are found."""
    from pldcli import presets
    from pldcli.errors import UsageError

    place = Path(pldcli.__file__).parent
    try:
        count = len(presets.names())
    except UsageError as error:
        return Check("fail", str(error), "install pldcli again")
    return Check("ok", f"{pldcli.__version__} ({place}), {count} presets")


def pytorch() -> Check:
    """Report the version of PyTorch and what it was built for."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("fail", f"cannot be imported: {error}", "pip install torch (see https://pytorch.org/get-started)")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}" if torch.version.hip else "CPU only"
    detail = f"{torch.__version__}, built for {build}"
    major, minor = (int(part) for part in torch.__version__.split(".")[:2])
    if (major, minor) < (2, 11):
        return Check("warn", detail, "pldcli is tested with torch 2.11 and newer: pip install --upgrade torch")
    return Check("ok", detail)


def devices() -> Check:
    """List the GPUs that training can use."""
    import torch

    if torch.cuda.is_available():
        found = []
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = f"{properties.total_memory / 2**30:.0f} GiB"
            found.append(f"cuda:{index} {properties.name}, {memory}, compute capability {properties.major}.{properties.minor}")
        return Check("ok", "; ".join(found))
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        if torch.version.cuda is None:
            return Check("warn", "an NVIDIA GPU that this torch cannot use", "install a CUDA build of torch")
        return Check("warn", "an NVIDIA GPU that torch does not see", "look at nvidia-smi; the driver may be too old for this torch")
    return Check("ok", "no GPU: training runs on the CPU")


def precision() -> Check:
    """Report the number formats of the hardware, and what `runtime.precision=auto` is here."""
    import torch

    from pldcli.engine.precision import resolve_precision

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    auto = resolve_precision("auto", device).name
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability()
        fast = [name for name, first in (("bf16", 8), ("fp16", 7)) if major >= first]
        detail = f"compute capability {major}.{minor}: {' and '.join(fast) or 'no 16-bit format'} in hardware; auto is {auto}"
        return Check("ok", detail) if fast else Check("warn", detail, "use runtime.precision=fp32")
    flags = processor_flags()
    found = [name for name in ("amx_bf16", "avx512_bf16") if name in flags]
    return Check("ok", f"{', '.join(found) or 'no bf16'} in this {platform.machine()} CPU; auto is {auto}")


def cores() -> Check:
    """Compare the threads that torch uses with the cores that this process may use."""
    import torch

    usable = available_cores()
    quota = container_cores()
    threads = torch.get_num_threads()
    limit = min(usable, quota) if quota else usable
    detail = f"{limit:g} usable of {os.cpu_count()}, torch uses {threads} threads"
    if threads > max(1, round(limit)):
        return Check("warn", detail, f"more threads than cores wait for one another: export OMP_NUM_THREADS={max(1, int(limit))}")
    if threads * 2 < limit and not torch.cuda.is_available():
        return Check("warn", detail, f"cores lie idle: export OMP_NUM_THREADS={int(limit)}")
    return Check("ok", detail)


def disk_space(path: Path) -> Check:
    """Check the free space."""
    free = shutil.disk_usage(path).free
    detail = f"{free / GIGABYTE:,.1f} GB free in {path}"
    if free < GIGABYTE:
        return Check("fail", detail, "free some, or work elsewhere: --out and --data take any path")
    if free < 10 * GIGABYTE:
        return Check("warn", detail, "two checkpoints of BERT-base need 3 GB, and three while one is written 4 GB")
    return Check("ok", detail)


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
        return Check("fail", f"cannot write in {path} ({_reason(error)})", "choose a directory that is writable, with --out")
    write, read = _PROBE_BYTES / write_seconds, _PROBE_BYTES / read_seconds
    detail = f"writes {write / 1e6:,.0f} MB/s through to the disk, reads {read / 1e6:,.0f} MB/s back (cached)"
    if write < _SLOW_WRITE_BYTES_PER_SECOND:
        return Check("warn", detail, "checkpoints will take long: save less often (checkpoint.every_steps) or to a local disk")
    return Check("ok", detail)


def renaming(path: Path) -> Check:
    """Try what checkpoints rely on: renaming a complete directory to its final name in one step."""
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
        return Check("fail", f"does not work in {path} ({_reason(error)})", hint)
    if not whole:
        return Check("fail", f"left something else in {path}", "use a local or POSIX file system for runs")
    return Check("ok", f"directories can be renamed whole in {path}")


def transformers() -> Check:
    """Look for the optional package with which exported models are checked."""
    try:
        version = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        hint = "optional: with `pip install transformers` every exported model is reloaded and compared on the spot"
        return Check("warn", "not installed", hint)
    return Check("ok", version)


def compiling() -> Check:
    """Compile and run a small function on the device that training would use."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"

    def small(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x * 2.0) + 1.0

    x = torch.linspace(-1.0, 1.0, 64, device=device)
    began = time.perf_counter()
    try:
        same = torch.allclose(torch.compile(small, fullgraph=True)(x), small(x), atol=1e-5)
    except Exception as error:  # noqa: BLE001 - a compiler can fail in any way; this check reports which
        return Check("fail" if device == "cuda" else "warn", f"fails: {_first_line(error)}", _mend_compile(device))
    seconds = time.perf_counter() - began
    if not same:
        return Check("fail", "gives wrong numbers", "upgrade torch, and train with runtime.compile=off")
    return Check("ok", f"works on {device} ({seconds:.1f} s for a small function)")


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
