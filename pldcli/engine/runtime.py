"""Devices and processes: what talks to torch.distributed (`launcher` starts processes, `sharding` knows split tensors).

One process is the plain case. Under torchrun each process holds a replica, or a shard as `sharding` says. Of replicas, gradients are
summed by one flat all-reduce per unit of the model that ran, which begins while the last backward pass of a step goes on, as soon as the
unit's gradients are there. What only earlier passes of the step ran is sent behind it. Of shards, FSDP2 does the same. A block that no
gate group ran communicates nothing and keeps its gradients None.

No DistributedDataParallel: with `find_unused_parameters` it communicates every parameter all the same, and with a static graph
it leaves gradients silently unreduced where the last micro-step drops a block that an earlier one ran.
"""

from __future__ import annotations

import gc
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous
from torch.utils.hooks import RemovableHandle

from pldcli.choices import Device, Sharding
from pldcli.errors import DeviceError, UsageError
from pldcli.settings import Switch
from pldcli.sharding import Processes, is_sharded, reduces, shard
from pldcli.system.agreement import check_equal, hash_of
from pldcli.system.command_line import JOB
from pldcli.system.machine import end_with_agent, has_agent, keep_freed_memory
from pldcli.system.roll_call import Loss, Reason, RollCall

__all__ = ["Runtime", "launch", "out_of_memory", "repeatable"]

_UNNAMED_JOB = "none"
"""What torchrun calls every job that was given no --rdzv-id."""
_REPEATABLE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "TORCHINDUCTOR_DETERMINISTIC": "1"}
"""Read once, by cuBLAS at its first use, and by torch's compiler when it loads: it chooses kernels by no measurement then."""


class _Reduction(NamedTuple):
    """A sum over processes that is under way."""

    work: dist.Work
    flat: Tensor
    gradients: list[Tensor]
    """Whose sums `flat` will hold, one behind another."""

    def finish(self) -> None:
        """Wait for the sums and put them in the place of the gradients."""
        self.work.wait()
        parts = torch.split(self.flat, [gradient.numel() for gradient in self.gradients])
        torch._foreach_copy_(self.gradients, [part.view_as(gradient) for part, gradient in zip(parts, self.gradients, strict=True)])


@dataclass
class Runtime:
    """Where this process runs, and its collective operations with the others."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    reduce_dtype: torch.dtype | None = None
    """In which gradients travel; None for their own."""
    num_shards: int = 1
    """Processes that together hold the parameters once; each of them holds a part."""
    job: str = ""
    """Name of this call of torchrun, however often its agent starts the processes anew; empty where there is none."""
    restarts: int = 0
    """Of the processes by the agent, as far as is known."""
    roll_call: RollCall | None = None
    """To find out which process ended the job."""
    local_world_size: int = 1
    """Processes on this machine."""
    _sharded: nn.Module | None = None
    _units: list[list[nn.Parameter]] = field(default_factory=list)
    _hooks: list[RemovableHandle] = field(default_factory=list)
    _missing: list[int] = field(default_factory=list)
    """Per unit, parameters that have no gradient yet of the last backward pass of a step; empty before it."""
    _on_the_way: dict[int, _Reduction] = field(default_factory=dict)
    """By the number of a unit."""

    @property
    def is_main(self) -> bool:
        """Return whether this process writes files and prints."""
        return self.rank == 0

    @property
    def processes(self) -> Processes:
        """Return how many there are."""
        return Processes(self.world_size, self.local_world_size, self.num_shards)

    def is_of_this_job(self, job: str) -> bool:
        """Return whether a job is this one, before its processes were started anew."""
        return bool(job) and job == self.job and (job != _UNNAMED_JOB or self.restarts > 0)

    def is_on(self, choice: Switch) -> bool:
        """Return whether something that is worth it on CUDA is on here: `auto` is on for CUDA."""
        return choice == "on" or (choice == "auto" and self.device.type == "cuda")

    def shard(self, model: nn.Module, blocks: Iterable[nn.Module]) -> None:
        """Split a model's parameters over the processes, where they are to hold shards; before its optimizer is built."""
        if self.num_shards > 1:
            shard(model, blocks, self.device, shards=self.num_shards, reduce_dtype=self.reduce_dtype)

    @property
    def loss_factor(self) -> float:
        """Return what a loss is multiplied by so that gradients are summed over processes: shards take their mean."""
        return 1.0 if self._sharded is None else float(self.world_size)

    def attach(self, model: nn.Module, units: Sequence[nn.Module]) -> None:
        """Name the model that is trained from now on, and the parts of it whose gradients are summed together.

        Args:
            model: The model.
            units: Every parameter belongs to one of them. Of a sharded model they are its own matter.
        """
        self._sharded = model if is_sharded(model) else None
        self._replicate(() if self._sharded else units)

    def detach(self) -> None:
        """Release the parameters of the model that was trained last."""
        self._sharded = None
        self._replicate(())

    def _replicate(self, units: Sequence[nn.Module]) -> None:
        for hook in self._hooks:
            hook.remove()
        self._units = [list(unit.parameters()) for unit in units]
        numbered = [(number, parameter) for number, parameters in enumerate(self._units) for parameter in parameters]
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._has_gradient, number))  # type: ignore[no-untyped-call]
            for number, parameter in (numbered if self.world_size > 1 else ())
        ]

    def begin_backward(self, *, is_last: bool) -> None:
        """Prepare for a backward pass; in the last one of a step, each unit's gradients are sent as soon as they are complete."""
        if self._sharded is not None:
            reduces(self._sharded, is_last)
        elif is_last:
            self._missing = [len(parameters) for parameters in self._units]

    def reduce_gradients(self) -> None:
        """Sum the gradients of all processes, after the last backward pass of a step."""
        if self.world_size == 1 or self._sharded is not None:
            return
        for number in range(len(self._units)):
            self._send(number)
        for reduction in self._on_the_way.values():
            reduction.finish()
        self._on_the_way, self._missing = {}, []

    def _has_gradient(self, number: int, parameter: nn.Parameter) -> None:
        """Note a gradient of a unit; with the last one, send all."""
        if self._missing:
            self._missing[number] -= 1
            if not self._missing[number]:
                self._send(number)

    def _send(self, number: int) -> None:
        """Begin to sum the gradients of a unit, if it has any and they are not on the way."""
        gradients = [parameter.grad for parameter in self._units[number] if parameter.grad is not None]
        if gradients and number not in self._on_the_way:  # the same units in the same order on every process, since all drew the same gates
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            flat = flat if self.reduce_dtype is None else flat.to(self.reduce_dtype)
            work = dist.all_reduce(flat, async_op=True)  # a sum, not a mean: losses are divided by the targets of all processes already
            self._on_the_way[number] = _Reduction(work, flat, gradients)

    def seed(self, number: int) -> None:
        """Seed the generators of the host and of the device."""
        # Called before every forward pass: torch.manual_seed would take milliseconds where there is no device to seed.
        torch.default_generator.manual_seed(number)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(number)

    def to_device(self, tensor: Tensor) -> Tensor:
        """Copy a small tensor from the host without waiting for the device."""
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)

    def sum_on_host(self, values: Sequence[float]) -> list[float]:
        """Sum numbers over all processes without touching the accelerator's queue."""
        if self.world_size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)  # on the host, so gloo reduces it and no kernel is waited for
        dist.all_reduce(tensor)
        return tensor.tolist()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather_on_host(self, value: float) -> list[float]:
        """Collect a number of each process, by rank."""
        return self.sum_on_host([value * (rank == self.rank) for rank in range(self.world_size)])

    def wait_for_all(self) -> None:
        """Wait until every process has arrived here."""
        self.sum_on_host([0.0])

    def check_agreement(self, facts: Mapping[str, Any], model: nn.Module | None = None) -> None:
        """Check that something is the same on all processes, which then have all arrived here.

        Args:
            facts: What JSON holds, by the name that a user knows it by.
            model: Its weights are to be the same, too; on the host.

        Raises:
            UsageError: It is not; on all of them.
        """
        if self.world_size == 1:
            return
        text = json.dumps({**facts, **({} if model is None else {"the hash of the initial weights": hash_of(model.state_dict())})}).encode()
        sizes = [int(size) for size in self.gather_on_host(len(text))]
        own = torch.frombuffer(bytearray(text.ljust(max(sizes))), dtype=torch.uint8)
        texts = [torch.empty_like(own) for _ in sizes]
        dist.all_gather(texts, own)
        check_equal([json.loads(bytes(one.numpy())) for one in texts])

    def leave(self, error: BaseException) -> None:
        """Let the other processes know why this one ends, before anything that takes time; once is enough."""
        if self.roll_call is not None:
            self.roll_call.leave(_reason(error))

    def synchronize(self) -> None:
        """Wait until the device has executed everything in its queue."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextmanager
def launch(
    device: Device = "auto",
    *,
    timeout_seconds: float = 1800.0,
    reduce_dtype: torch.dtype | None = None,
    sharding: Sharding = "none",
) -> Iterator[Runtime]:
    """Choose the device and, under torchrun, join the other processes.

    Args:
        device: `auto` takes CUDA when there is any.
        timeout_seconds: After waiting so long for the other processes, this one gives them up.
        reduce_dtype: In which gradients travel between processes; None for their own.
        sharding: Who holds which part of the parameters: all of them (`none`), each a part (`full`), or each a part of what the processes
            of one machine hold together (`hybrid`).

    Raises:
        DeviceError: CUDA was asked for and is not there, or there are more processes than devices.
        UsageError: Environment variables are none that torchrun would set.
    """
    rank, local_rank, world_size = (_environment(name, default) for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))
    if rank >= world_size:
        raise UsageError(
            f"there is no process {rank} of {world_size}", where="environment variable RANK", hint="start with torchrun, or unset it"
        )
    chosen = _device(device, local_rank)
    if chosen.type == "cpu":
        keep_freed_memory()
    end_with_agent()
    restarts, timeout = _environment("TORCHELASTIC_RESTART_COUNT", 0), timedelta(seconds=timeout_seconds)
    if world_size == 1:
        job = _name_of_job(next(rendezvous("env://", timeout=timeout))[0]) if has_agent() else ""
        yield Runtime(chosen, job=job, restarts=restarts)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    processes = Processes.of(world_size, _environment("LOCAL_WORLD_SIZE", world_size) or 1, sharding)
    runtime = Runtime(chosen, rank, world_size, reduce_dtype, processes.shards, restarts=restarts, local_world_size=processes.here)
    try:
        # The store may be the agent's, which outlives processes that begin anew.
        whole, _, _ = next(rendezvous("env://", timeout=timeout))
        runtime.job = _name_of_job(whole)
        store = PrefixStore(f"attempt/{restarts}", whole)
        runtime.roll_call = RollCall(PrefixStore("roll", store), rank, world_size, timeout_seconds)
        runtime.roll_call.arrive()
        dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
        yield runtime
    except BaseException as error:
        runtime.leave(error)
        if _reason(error) == "failed":
            raise
        loss = Loss("lost the other processes", "one of them says why") if runtime.roll_call is None else runtime.roll_call.find_loss()
        if runtime.roll_call is not None:
            runtime.roll_call.report(loss)
        raise DeviceError(loss.what, where=f"process {rank}", hint=loss.hint) from error
    finally:
        # Parameters are released first: gloo may abort the process at its exit otherwise.
        runtime.detach()
        gc.collect()
        if dist.is_initialized():
            dist.destroy_process_group()


def _name_of_job(store: Store) -> str:
    """Name this call of torchrun or of the launcher, alike in all processes and attempts; empty where there is no agent.

    Args:
        store: Of all processes; of the agent, if it shares its own.
    """
    if launcher := os.environ.get(JOB):
        return launcher
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return name  # nothing more is known
    # A user's --rdzv-id may be that of every call. The store is as old as the agent: the first process to come names the call there.
    return bytes(store.compare_set("job", "", f"{name} {uuid.uuid4().hex}")).decode()


def _reason(error: BaseException) -> Reason:
    """Return why a process ends with an error."""
    text = str(error).lower()
    if not isinstance(error, RuntimeError) or not (isinstance(error, dist.DistError) or "gloo" in text):
        return "failed"
    return "timed out" if "timed out" in text or "timeout" in text else "lost"


def _device(device: Device, local_rank: int) -> torch.device:
    available = torch.cuda.is_available()
    if device == "cpu" or (device == "auto" and not available):
        return torch.device("cpu")
    if not available:
        raise DeviceError("no CUDA device here", where="runtime.device", hint="use runtime.device=auto; `pld doctor` says what is wrong")
    if local_rank >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise DeviceError(f"process {local_rank} has no device, there are {count}", hint=f"use torchrun --nproc-per-node {count}")
    return torch.device("cuda", local_rank)


def _environment(name: str, default: int) -> int:
    value = os.environ.get(name, str(default))
    if not value.isdecimal():
        raise UsageError(f"{value!r} is not a number", where=f"environment variable {name}", hint="start with torchrun, or unset it")
    return int(value)


@contextmanager
def out_of_memory(size: int, device: torch.device, *, key: str, otherwise: str) -> Iterator[None]:
    """Name the micro-batch to try when memory runs out.

    Args:
        size: Sequences per forward pass.
        device: The device in use.
        key: The setting that lowers `size`.
        otherwise: What to do where `size` is 1 already.

    Raises:
        DeviceError: Memory ran out.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_memory = not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not is_memory:
            raise
        smaller = next((n for n in range(size // 2, 0, -1) if size % n == 0), 1)
        hint = f"try {key}={smaller}" if size > 1 else otherwise
        raise DeviceError(f"out of memory with {size} sequences per forward pass", where=str(device), hint=hint) from error


@contextmanager
def repeatable(flag: bool) -> Iterator[None]:
    """Let torch use kernels only that give the same bits each time, where a flag says so; before anything is computed.

    Raises:
        DeviceError: An operation has no such kernel on this device.

    Source: torch's notes on reproducibility. Its attention takes the repeatable backward pass only where others raise.
    """
    if not flag:
        yield
        return
    for name, value in _REPEATABLE.items():
        os.environ.setdefault(name, value)
    more: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), more.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    more.fill_uninitialized_memory = False  # a guard against programs that read what they never wrote
    try:
        yield
    except RuntimeError as error:
        if "use_deterministic_algorithms" not in str(error):
            raise
        raise DeviceError(str(error).partition(",")[0], where="runtime.deterministic", hint="leave it off here") from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        more.fill_uninitialized_memory = before[1]
