"""Parameters that are split over processes: each holds a part of every tensor, and gathers a block's weights while it runs.

The splitting is torch's FSDP2, one group per block and one for the rest. What is here is what the program does with a part: compute on it,
make it whole, cut it again. A tensor that is not split passes through all of these as it is, and nothing of FSDP2 is loaded: that takes
half a second.

No block is fetched ahead by name: one that a gate leaves out would be fetched for nothing, and after an evaluation with stale weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pldcli.choices import Sharding
from pldcli.errors import UsageError

if TYPE_CHECKING:
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor, Placement

__all__ = [
    "Processes",
    "cut",
    "cut_all",
    "gathered",
    "is_sharded",
    "map_matrices",
    "norms",
    "own_part",
    "own_parts",
    "reduces",
    "reshard",
    "shard",
    "whole",
]


class Processes(NamedTuple):
    """How many processes do a run together."""

    number: int = 1
    here: int = 1
    """On this machine, whose memory they share."""
    shards: int = 1
    """Processes that together hold the parameters once; each of them holds a part."""

    @classmethod
    def of(cls, number: int, here: int, sharding: Sharding) -> Processes:
        """Choose the shards.

        Args:
            number: Of all machines.
            here: On this machine.
            sharding: Who holds which part of the parameters.

        Raises:
            UsageError: The processes of a machine are to hold shards, and machines have unequal numbers of them.
        """
        shards = {"none": 1, "full": number, "hybrid": here}[sharding]
        if number % shards:
            what = f"{number} processes are no multiple of the {shards} of this machine"
            raise UsageError(what, where="runtime.sharding=hybrid", hint="start as many on each machine")
        return cls(number, here, shards)


def shard(model: nn.Module, blocks: Iterable[nn.Module], device: torch.device, *, shards: int, reduce_dtype: torch.dtype | None) -> None:
    """Split the parameters of a model over all processes, in place; an optimizer is built after that.

    Args:
        model: On its device, with the same weights on every process.
        blocks: Parts of it that are gathered by themselves.
        device: Of this process.
        shards: Processes that together hold the parameters once. Where there are more, each such group holds them.
        reduce_dtype: In which gradients travel; None for their own.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    logging.getLogger("torch.distributed.tensor._collective_utils").setLevel(logging.ERROR)  # gloo exchanges parts by a detour, and says so
    replicas = dist.get_world_size() // shards
    shape, names = ((replicas, shards), ("replicate", "shard")) if replicas > 1 else ((shards,), ("shard",))
    mesh = init_device_mesh(device.type, shape, mesh_dim_names=names)
    for part in (*blocks, model):
        fully_shard(part, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=reduce_dtype))
    for part in (*blocks, model):
        # torch before 2.15 fails where a part that never ran is left out of a backward pass that is not the last of its step.
        assert _is_group(part)
        part.unshard()
        part.reshard()


def is_sharded(model: nn.Module) -> bool:
    """Return whether `shard` was called on a model."""
    return _is_group(model)


def _is_group(module: nn.Module) -> TypeGuard[FSDPModule]:
    return hasattr(module, "set_requires_gradient_sync")


def _is_split(tensor: Tensor) -> TypeGuard[DTensor]:
    return hasattr(tensor, "placements")


def reduces(model: nn.Module, flag: bool) -> None:
    """Say whether the next backward passes of a sharded model sum gradients over processes, or add to what each has."""
    assert _is_group(model)
    model.set_requires_gradient_sync(flag)


def reshard(model: nn.Module) -> None:
    """Release the weights outside the blocks, which a forward pass leaves gathered: parameters are parts again."""
    if _is_group(model):
        model.reshard()


def own_parts(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return this process's part of each tensor, in the same memory; some may be empty."""
    return [tensor.to_local() if _is_split(tensor) else tensor for tensor in tensors]


def whole(tensor: Tensor) -> Tensor:
    """Gather a tensor; every process calls this."""
    return tensor.full_tensor() if _is_split(tensor) else tensor


def gathered(tensors: Mapping[str, Tensor], *, keep: bool) -> dict[str, Tensor]:
    """Gather tensors one by one to the host; every process calls this.

    Args:
        tensors: By name.
        keep: False on a process that only takes part, and gets none.
    """
    found = {}
    for name, tensor in tensors.items():
        one = whole(tensor.detach())  # the device holds one whole tensor at a time
        if keep:
            found[name] = one.to("cpu", copy=True)
    return found


def own_part(tensors: Mapping[str, Tensor], *, is_first: bool) -> dict[str, Tensor]:
    """Return this process's rows of the tensors that are split and, on the process that holds the first ones, what is not split."""
    found = {}
    for name, tensor in tensors.items():
        part = tensor.detach()
        if _is_split(part):
            part = part.to_local()
            if not is_first and not len(part):
                continue  # fewer rows than processes
        elif not is_first:
            continue
        found[name] = part
    return found


def cut(tensor: Tensor, like: Tensor) -> Tensor:
    """Keep of a whole tensor, which every process has, the part that this process has of another one; without communication."""
    if not _is_split(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def cut_all(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Cut tensors as those of the same name."""
    return {name: cut(tensor, like[name]) if name in like else tensor for name, tensor in tensors.items()}


def norms(parts: list[Tensor] | tuple[Tensor, ...], like: Sequence[Tensor]) -> list[Tensor]:
    """Compute the norm of each whole tensor from the parts.

    Args:
        parts: Of this process.
        like: The tensors that these are parts of, or others that are split alike.
    """
    of_parts, first = list(torch._foreach_norm(parts)), like[0]
    if not _is_split(first):
        return of_parts
    squares = torch.stack(of_parts).square()
    for dimension, placement in enumerate(first.placements):
        if placement.is_shard():
            dist.all_reduce(squares, group=first.device_mesh.get_group(dimension))
    return list(squares.sqrt().unbind())


def map_matrices(function: Callable[[Tensor], Tensor], parts: Tensor, like: Sequence[Tensor]) -> Tensor:
    """Apply a function to whole matrices of which each process has a part, each process to its share of them.

    Args:
        function: Of matrices, [N, rows, columns], each treated by itself; N may be 0.
        parts: Rows of this process, [N, own rows, columns].
        like: The matrices that these are parts of, or others that are split alike.

    Returns:
        The same rows of the results.
    """
    first = like[0]
    if not _is_split(first):
        return function(parts)
    from torch.distributed.tensor import DTensor, Shard

    def split(dimension: int) -> list[Placement]:
        return [Shard(dimension) if placement.is_shard() else placement for placement in first.placements]

    def spread(own: Tensor, dimension: int) -> DTensor:
        shape = torch.Size((len(parts), *first.shape))
        stride = first.shape.numel(), first.shape[1], 1
        return DTensor.from_local(own, first.device_mesh, split(dimension), run_check=False, shape=shape, stride=stride)

    whole_ones = spread(parts, 1).redistribute(placements=split(0)).to_local()
    return spread(function(whole_ones), 0).redistribute(placements=split(1)).to_local()
