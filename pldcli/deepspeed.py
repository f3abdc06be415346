"""A DeepSpeed JSON configuration, read as a preset: layer dropping, optimizer, schedule, precision and batch.

What the file leaves out has DeepSpeed's defaults, not ours, where both have one. DeepSpeed was told theta and gamma only; which block
is dropped how often was decided by the model's code, and is the base preset's depth rule here.

Source: DeepSpeed, runtime/progressive_layer_drop.py, runtime/constants.py and runtime/lr_schedules.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from pldcli import presets
from pldcli.config import Config
from pldcli.errors import UsageError
from pldcli.settings import convert, nearest
from pldcli.system.json_text import from_json

__all__ = ["import_deepspeed"]

_KEYS = {
    "progressive_layer_drop.theta": ("pld.theta_bar", 1.0),
    "progressive_layer_drop.gamma": ("pld.gamma", 0.001),
    "optimizer.params.lr": ("optim.learning_rate", 1e-3),
    "optimizer.params.eps": ("optim.eps", 1e-8),
    "optimizer.params.weight_decay": ("optim.weight_decay", 0.0),
    "optimizer.params.bias_correction": ("optim.bias_correction", True),
    "scheduler.params.warmup_max_lr": ("optim.learning_rate", 1e-3),
    "scheduler.params.total_num_steps": ("train.total_steps", None),
    "train_batch_size": ("train.global_batch_size", None),
    "train_micro_batch_size_per_gpu": ("train.micro_batch_size", None),
}
"""Keys that only have another name here, and DeepSpeed's defaults."""
_OPTIMIZERS = {"adam": "adamw", "adamw": "adamw", "lamb": "lamb"}
_SCHEDULES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
_PRECISIONS = {"fp16": "fp16", "bf16": "bf16", "bfloat16": "bf16"}
_BLOCKS = ("progressive_layer_drop", "optimizer", "optimizer.params", "scheduler", "scheduler.params", *_PRECISIONS)
_WARMUP = "scheduler.params.warmup_num_steps"


class _File:
    """The file's values by dotted key, those that nothing has read so far, and the settings found in them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = from_json(path.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot be read as JSON ({getattr(error, 'strerror', error)})", where=str(path)) from error
        if not isinstance(content, dict) or not content.keys() & {*_BLOCKS, *_KEYS, "gradient_clipping", "gradient_accumulation_steps"}:
            hint = "it has keys such as progressive_layer_drop, optimizer and train_batch_size"
            raise UsageError("is no DeepSpeed configuration", where=str(path), hint=hint)
        self.blocks: list[str] = []
        self.values = dict(self._flatten(content))
        self.unread = list(self.values)
        self.settings: dict[str, tuple[Any, str]] = {}

    def _flatten(self, content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
        for key, value in ((prefix + key, value) for key, value in content.items() if value is not None):
            if key not in _BLOCKS:
                yield key, value
            elif isinstance(value, dict):
                self.blocks.append(key)
                yield from self._flatten(value, f"{key}.")
            else:
                raise self.error(key, f"must be an object, not {value!r}")

    def error(self, key: str, what: str, hint: str = "") -> UsageError:
        return UsageError(what, where=f"{self.path}: {key}", hint=hint)

    def take(self, key: str, default: Any = None, kind: Any = Any) -> Any:
        """Read a value; None for the `auto` that transformers fills in, so that the base's stays."""
        self.unread = [one for one in self.unread if one != key]
        value = self.values.get(key, default)
        return None if value in (None, "auto") else convert(kind, value, f"{self.path}: {key}")

    def put(self, ours: str, value: Any, key: str) -> None:
        """Set one of our keys and remember which key of the file says so; without a value the base's stays."""
        if value is not None:
            self.settings[ours] = value, key if key in self.values else "DeepSpeed's default"

    def rename(self, *prefixes: str) -> None:
        """Set what only has another name here."""
        for key, (ours, default) in _KEYS.items():
            if key.startswith(prefixes):
                self.put(ours, self.take(key, default), key)


def import_deepspeed(path: Path, *, base: str = "bert-base-pld") -> tuple[str, list[str]]:
    """Translate a DeepSpeed configuration.

    Returns:
        A preset that extends `base`, as YAML; and what was not imported: dotted keys of the file, or what is different here.

    Raises:
        UsageError: The file is missing, broken, no DeepSpeed configuration, or asks for what is not there; or `base` is unknown.
    """
    file = _File(path)
    base = str(Path(base).resolve()) if base.endswith((".yaml", ".yml")) else base
    start = presets.resolve(base).config
    _read_dropping(file)
    _read_optimizer(file)
    _read_schedule(file, start)
    _read_batch(file, start)
    _read_precision(file)
    try:
        presets.resolve(base, [f"{key}={_scalar(value)}" for key, (value, _) in file.settings.items()])
    except UsageError as error:  # it names our key
        raise file.error(file.settings.get(error.where, (None, error.where))[1], error.what, error.hint) from error
    return _as_yaml(file, base), file.unread


def _read_dropping(file: _File) -> None:
    block, names = "progressive_layer_drop", ("enabled", "theta", "gamma")
    for key in file.values:  # a slip here would change the method
        if key.startswith(f"{block}.") and key not in (known := [f"{block}.{name}" for name in names]):
            raise file.error(key, "unknown key", nearest(key, known))
    file.put("pld.schedule", "exponential", f"{block}.enabled")  # an expansion would leave blocks out, whatever theta is
    if file.take(f"{block}.enabled", False, bool):
        file.rename(block)
    else:
        file.put("pld.theta_bar", 1.0, f"{block}.enabled")


def _read_optimizer(file: _File) -> None:
    clipping = "gradient_clipping" if "gradient_clipping" in file.values else "optimizer.params.max_grad_norm"
    file.put("optim.max_grad_norm", file.take(clipping, 0.0), clipping)
    if "optimizer" not in file.blocks:
        return
    name = _OPTIMIZERS.get(str(file.take("optimizer.type")).lower())
    if name is None:
        raise file.error("optimizer.type", "must be Adam, AdamW or Lamb", "without the block the base's optimizer stays")
    file.put("optim.name", name, "optimizer.type")
    file.rename("optimizer.")
    betas = file.take("optimizer.params.betas", [0.9, 0.999])
    if betas is not None and not (isinstance(betas, list) and len(betas) == 2):
        raise file.error("optimizer.params.betas", f"must be two numbers, not {betas!r}")
    for number, beta in enumerate(betas or (), start=1):
        file.put(f"optim.beta{number}", beta, "optimizer.params.betas")
    if name == "lamb":
        file.unread.append("DeepSpeed's bounds of LAMB's trust ratio")


def _read_schedule(file: _File, start: Config) -> None:
    kind = convert(str, file.values.get("scheduler.type", ""), f"{file.path}: scheduler.type")
    if kind not in _SCHEDULES:
        return
    file.put("optim.schedule", _SCHEDULES[file.take("scheduler.type")], "scheduler.type")
    if kind != "WarmupCosineLR":  # the others set the rate themselves, whatever the optimizer's block says
        file.rename("scheduler.params.warmup_max_lr")
    steps, run = file.take(_WARMUP, 1000, int), start.train.total_steps
    if kind != "WarmupLR":
        run = file.take("scheduler.params.total_num_steps", kind=int) or run
        file.rename("scheduler.params.total_num_steps")
    if steps is not None and not 0 <= steps < run:
        raise file.error(_WARMUP, f"{steps} steps of warm-up do not fit a run of {run}", "another --base may be longer")
    file.put("optim.warmup_steps", steps, _WARMUP)
    if file.take("scheduler.params.warmup_type", "log") != "linear" and steps:
        file.unread.append("warm-up with the logarithm of the step (linear here)")


def _read_batch(file: _File, start: Config) -> None:
    """Read the batch; the released model drew gates anew in every micro-batch, which here are the gate groups of a step."""
    file.rename("train_")
    draws, whole = file.take("gradient_accumulation_steps"), file.take("train_batch_size", kind=int)
    if draws is None and whole and ("train.micro_batch_size" not in file.settings or whole % start.pld.draws_per_step):
        draws = 1
    if whole is None and (draws is not None or "train.micro_batch_size" in file.settings):
        file.unread.append("the sequences of a step, which DeepSpeed counts by GPUs without a train_batch_size (the base's here)")
    file.put("pld.draws_per_step", draws, "gradient_accumulation_steps")


def _read_precision(file: _File) -> None:
    enabled = {key: file.take(f"{key}.enabled", False, bool) for key in _PRECISIONS if key in file.blocks}
    chosen = [key for key in enabled if enabled[key]] or list(enabled)[:1]
    if len({_PRECISIONS[key] for key in chosen}) > 1:
        raise file.error(chosen[0], f"is enabled, and {chosen[1]} too", "choose one")
    for key in chosen:
        file.put("runtime.precision", {True: _PRECISIONS[key], False: "fp32", None: None}[enabled[key]], f"{key}.enabled")


def _as_yaml(file: _File, base: str) -> str:
    lines = [f"# Purpose: {' '.join(file.path.name.split())}, a DeepSpeed configuration, as a preset."]
    lines += [f"# Not imported: {', '.join(file.unread)}."] if file.unread else []
    lines.append(f"extends: {yaml.safe_dump([base], default_flow_style=True, width=4096).strip()}")
    for section, keys in groupby(sorted(file.settings), key=lambda key: key.partition(".")[0]):
        lines.append(f"{section}:")
        lines += [f"  {key.partition('.')[2]}: {_scalar(file.settings[key][0])}  # {file.settings[key][1]}" for key in keys]
    return "\n".join(lines) + "\n"


def _scalar(value: Any) -> str:
    return str(yaml.safe_dump(value)).splitlines()[0]
