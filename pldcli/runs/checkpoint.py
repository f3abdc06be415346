"""Checkpoints: complete or not there at all, with a checksum of every file.

checkpoints/step-00001000/ holds model.safetensors, optimizer.safetensors, state.json, config.yaml and SHA256SUMS; of a sharded run the
tensors are in several files, as `checkpoint_parts` says. It is written to a temporary sibling, flushed, renamed, and only then are older
ones removed. Nothing in it can run code.
"""

from __future__ import annotations

import errno
import gc
import json
import math
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from pldcli import presets
from pldcli.config import RUN_CONTROL, Config, flatten
from pldcli.errors import CheckpointError, PldError
from pldcli.runs.checkpoint_parts import Part, collect, load_whole, needed_files, place_of, remove_parts
from pldcli.sharding import cut, is_sharded, own_part
from pldcli.system import atomic
from pldcli.system.json_text import from_json
from pldcli.system.seal import check_sealed_directory, seal_directory

__all__ = [
    "Held",
    "Position",
    "Snapshot",
    "check_same_run",
    "hold",
    "list_checkpoints",
    "newest_valid",
    "optimizer_tensors",
    "position",
    "prune",
    "read",
    "remove_later",
    "restore_optimizer",
    "verify",
    "write",
    "write_sealed",
]

_VERSION = 1
_TENSORS = ("model", "optimizer")
_NAME = re.compile(r"step-\d{8,}")
_TEXTS = frozenset({"state.json", "config.yaml"})


@dataclass(frozen=True)
class Position:
    """How far a run has come. Everything random is a function of `step`."""

    step: int = 0
    """Completed optimizer steps."""
    sequences: int = 0
    tokens: int = 0
    """Tokens seen, padding not counted."""
    train_seconds: float = 0.0
    """Without validation, saving and compilation."""
    wall_seconds: float = 0.0
    """With everything, over all resumes."""
    executed_flops: float = 0.0
    """Of blocks that ran; forward and backward."""
    skipped_steps: int = 0
    """Whose update was left out, as a loss or a gradient was not finite, or a spike."""
    shifted_sequences: int = 0
    """Passed over after divergence: a step reads what so many sequences later would have been read."""
    rollbacks: int = 0
    """Times that the run went back to a checkpoint after divergence."""

    @classmethod
    def read(cls, written: dict[str, Any]) -> Position:
        """Make one of what a checkpoint says.

        Raises:
            TypeError, ValueError: It says something else.
        """
        found = cls(**written)
        for name, value in vars(found).items():
            if type(value) not in ((int, float) if isinstance(getattr(cls, name), float) else (int,)) or not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value!r}")
        return found


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A checkpoint in memory."""

    path: Path
    position: Position
    config: Config
    weights: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    """`<entry>/<parameter>` to its tensor, and the state of the guard."""
    scaler: dict[str, Any]
    data_fingerprint: str
    tokenizer_fingerprint: str


@dataclass(frozen=True, kw_only=True)
class Held:
    """The state of a run, to be written."""

    position: Position
    config: Config
    tensors: Mapping[str, Mapping[str, Tensor]]
    """By the name of their file."""
    scaler: dict[str, Any]
    data_fingerprint: str
    tokenizer_fingerprint: str
    part: Part = field(default_factory=Part)


def hold(
    position: Position,
    config: Config,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    scaler: dict[str, Any],
    guard: Mapping[str, Tensor],
    data_fingerprint: str,
    tokenizer_fingerprint: str,
    copy: bool = False,
    part: Part | None = None,
) -> Held:
    """Collect the state of a run, of a sharded one this process's part of it.

    Args:
        position: How far it has come.
        config: The resolved configuration.
        model: Its weights.
        optimizer: Its optimizer.
        scaler: Of the loss scaler.
        guard: Of the guard.
        data_fingerprint: Of the data that it is trained on.
        tokenizer_fingerprint: Of their tokenizer.
        copy: Copy all tensors to the host, so that training may go on before they are written.
        part: Of a sharded model, which part this process holds.
    """
    assert is_sharded(model) == (part is not None)
    part = part or Part()
    tensors = {"model": model.state_dict(), "optimizer": {**optimizer_tensors(model, optimizer), **guard}}
    tensors = {name: own_part(named, is_first=part.number == 1) for name, named in tensors.items()}
    if copy:
        tensors = {name: {key: one.to("cpu", copy=True) for key, one in named.items()} for name, named in tensors.items()}
    return Held(
        position=position,
        config=config,
        tensors=tensors,
        scaler=scaler,
        data_fingerprint=data_fingerprint,
        tokenizer_fingerprint=tokenizer_fingerprint,
        part=part,
    )


def write(
    directory: Path,
    held: Held,
    *,
    keep: int,
    keep_every: int | None = None,
    arrive: Callable[[], None] | None = None,
    cancelled: threading.Event | None = None,
    patience_seconds: float | None = None,
) -> Path:
    """Save the state of a run; keep it, the `keep` - 1 before it, and of all others those at multiples of `keep_every` steps.

    Checkpoints of later steps go too: they are damaged, or the run was set back on purpose and will do those steps again.
    What killed processes left half-written goes as well, whatever its step. Of a sharded run every process that holds a part calls this;
    the main one waits for the others.

    Args:
        directory: Of the run's checkpoints.
        held: What to write.
        keep: Checkpoints, this one among them.
        keep_every: Steps.
        arrive: Called where this process's part of a sharded run is written; returns when all are, or raises where one will not be.
        cancelled: Set, from another thread, where the other processes of a sharded run will not come any more.
        patience_seconds: How long to wait for the part of each other process.

    Raises:
        OutputError: The disk is full or not writable; what was there before is still there.
        CheckpointError: A part of a sharded run did not come.
    """
    with atomic.output_errors(directory):
        directory.mkdir(exist_ok=True)  # but no run directory that was moved away meanwhile
    path, part = directory / f"step-{held.position.step:08d}", held.part
    tensors = {part.stem(name): named for name, named in held.tensors.items()}
    if part.number > 1:
        write_sealed(place_of(path, part), tensors, {})
        if arrive is not None:
            arrive()
        return path
    state = {
        "version": _VERSION,
        "position": asdict(held.position),
        "scaler": held.scaler,
        "data_fingerprint": held.data_fingerprint,
        "tokenizer_fingerprint": held.tokenizer_fingerprint,
    }
    atomic.remove_leftovers_in(directory)
    remove_parts(directory, part.token)
    texts = {"state.json": json.dumps(state, indent=1), "config.yaml": presets.dump(held.config)}

    def others(place: Path) -> Mapping[str, str]:
        if arrive is not None:
            arrive()
        return collect(path, part, place, cancelled=cancelled or threading.Event(), patience_seconds=patience_seconds)

    write_sealed(path, tensors, texts, others=others)
    remove_later(directory, held.position.step)
    _keep_newest(list_checkpoints(directory), keep, keep_every)
    return path


def write_sealed(
    path: Path,
    tensors: Mapping[str, Mapping[str, Tensor]],
    texts: Mapping[str, str],
    *,
    others: Callable[[Path], Mapping[str, str]] = lambda place: {},
) -> None:
    """Write a directory with the checksum of every file in it, whole or not at all.

    Args:
        path: The directory; one that is there is replaced.
        tensors: By the name of their safetensors file.
        texts: By the name of their file.
        others: Brings more files to the place that it is given, and returns their checksums by name.

    Raises:
        OutputError: The disk is full or not writable.
    """
    with atomic.directory(path, overwrite=True) as place:
        for name, named in tensors.items():
            try:
                file = place / f"{name}.safetensors"
                save_file({key: tensor.detach().cpu().contiguous() for key, tensor in named.items()}, file)
            except SafetensorError as error:
                raise OSError(_errno_of(error), str(error), str(file)) from error
        for name, text in texts.items():
            (place / name).write_text(text, encoding="utf-8")
        seal_directory(place, known=others(place))
    # Safetensors leaves a pointer that holds itself for every tensor. Those that are young are cheap to collect; those that get old wait,
    # in a process with a million objects, for hours, while memory grows with every checkpoint.
    gc.collect(1)


def list_checkpoints(directory: Path) -> list[Path]:
    """List the checkpoints of a run, oldest first, verified or not; what a user copied beside them is none."""
    return sorted(path for path in directory.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir())


def remove_later(directory: Path, step: int) -> None:
    """Remove the checkpoints of later steps than this one."""
    for path in list_checkpoints(directory):
        if path.name > f"step-{step:08d}":
            atomic.remove(path)


def prune(directory: Path, *, keep: int, keep_every: int | None = None) -> list[Path]:
    """Remove checkpoints but for the newest `keep` that verify, and those at multiples of `keep_every` steps; return what was removed.

    Raises:
        CheckpointError: None verifies; nothing is removed then.
    """
    there = list_checkpoints(directory)
    damaged = []
    for path in there:
        try:
            verify(path)
        except CheckpointError:
            damaged.append(path)
    sound = [path for path in there if path not in damaged]
    if there and not sound:
        raise CheckpointError("none of the checkpoints verifies, and none is removed", where=str(directory))
    for path in damaged:
        atomic.remove(path)
    return sorted([*damaged, *_keep_newest(sound, keep, keep_every)])


def position(path: Path) -> Position:
    """Read how far a run had come at a checkpoint, which is not verified for that.

    Raises:
        CheckpointError: That cannot be read.
    """
    try:
        return Position.read(from_json((path / "state.json").read_text(encoding="utf-8"))["position"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"cannot be read ({error})", where=str(path)) from error


def verify(path: Path, *, needed: frozenset[str] | None = None) -> None:
    """Compare every file of a checkpoint with its checksum.

    Args:
        path: The checkpoint.
        needed: Files that must be there, by default those of a run.

    Raises:
        CheckpointError: A file is missing or changed.
    """
    if needed is None:
        needed = _TEXTS.union(*(needed_files(path, name) for name in _TENSORS))
    check_sealed_directory(path, needed=needed, error=CheckpointError, hint="use an older one")


def newest_valid(directory: Path) -> tuple[Path | None, list[str]]:
    """Find the newest checkpoint that verifies.

    Returns:
        Its path or None, and a line on each newer one that does not verify.
    """
    complaints = []
    for path in reversed(list_checkpoints(directory)):
        try:
            verify(path)
        except CheckpointError as error:
            complaints.append(f"{error.where}: {error.what}; skipped")
            continue
        return path, complaints
    return None, complaints


def read(path: Path) -> Snapshot:
    """Read a checkpoint after verifying it.

    Raises:
        CheckpointError: It is damaged or of another version.
    """
    verify(path)
    try:
        state = from_json((path / "state.json").read_text(encoding="utf-8"))
        if state["version"] != _VERSION:
            raise CheckpointError(f"has version {state['version']}, this program reads {_VERSION}", where=str(path))
        weights, optimizer = (load_whole(path, name) for name in _TENSORS)
        config = presets.load(path / "config.yaml")
        return Snapshot(
            path=path,
            position=Position.read(state["position"]),
            config=config,
            weights=weights,
            optimizer=optimizer,
            scaler=state["scaler"],
            data_fingerprint=state["data_fingerprint"],
            tokenizer_fingerprint=state["tokenizer_fingerprint"],
        )
    except PldError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"cannot be read ({error})", where=str(path)) from error


def restore_optimizer(saved: Mapping[str, Tensor], model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load the saved state of every parameter; one that was never updated has none."""
    device_state: dict[str, dict[str, Tensor]] = {}
    for key, tensor in saved.items():
        entry, _, name = key.partition("/")
        device_state.setdefault(name, {})[entry] = tensor
    optimizer.state.clear()  # what was learned since, of blocks that had none when it was saved, is as wrong as the rest
    on_device = bool(optimizer.defaults.get("fused"))  # a fused optimizer's step counters lie beside the parameter, others' on the host
    for name, parameter in model.named_parameters():
        if name in device_state:
            optimizer.state[parameter] = {
                entry: cut(tensor.to(parameter.device), parameter) if tensor.ndim or on_device else tensor
                for entry, tensor in device_state[name].items()
            }


def check_same_run(stored: Config, config: Config, *, stored_data: str | None, data: str, where: Path) -> None:
    """Refuse to resume another run.

    Args:
        stored: Configuration of the run that is there.
        config: Configuration asked for.
        stored_data: Fingerprint of the data that the run was trained on; None where it is not recorded.
        data: Fingerprint of the data asked for.
        where: The place to name in an error.

    Raises:
        CheckpointError: A setting that makes the run, or the data, differs.
    """
    old, new = flatten(stored), flatten(config)
    changed = [f"{key} {old[key]} -> {new[key]}" for key in new if old[key] != new[key] and key not in RUN_CONTROL]
    if changed:
        raise CheckpointError(
            f"belongs to another configuration ({', '.join(changed)})",
            where=str(where),
            hint="undo the change, choose another place with --out, or start over with --resume never",
        )
    if stored_data not in (None, data):
        raise CheckpointError(
            "was trained on other prepared data",
            where=str(where),
            hint="point --data at the same data, or choose another place with --out",
        )


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name the state of each parameter `<entry>/<parameter>`, by parameter and not by its number as torch does."""
    named = model.named_parameters()
    return {f"{entry}/{name}": tensor for name, parameter in named for entry, tensor in optimizer.state.get(parameter, {}).items()}


def _keep_newest(paths: list[Path], keep: int, keep_every: int | None) -> list[Path]:
    """Remove all but the last `keep`, and those at multiples of `keep_every` steps; return what was removed."""
    removed = [path for path in paths[:-keep] if keep_every is None or int(path.name.removeprefix("step-")) % keep_every]
    for path in removed:
        atomic.remove(path)
    return removed


def _errno_of(error: SafetensorError) -> int:
    """Find the system's error number in safetensors' text, for example "No space left on device (os error 28)"."""
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else errno.EIO
