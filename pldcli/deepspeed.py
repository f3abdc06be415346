"""A DeepSpeed JSON configuration, read as a preset: layer dropping, optimizer, batch, precision and learning-rate schedule.

What the file leaves out has DeepSpeed's defaults, not ours, where both have one. DeepSpeed was told theta and gamma only; which block
is dropped how often was decided by the model's code.

Source: DeepSpeed, runtime/progressive_layer_drop.py, runtime/constants.py and runtime/lr_schedules.py.
"""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, NoReturn

import yaml

from pldcli import presets
from pldcli.config import Config
from pldcli.errors import UsageError
from pldcli.settings import convert, fields

__all__ = ["Imported", "import_deepspeed"]

_WIDTH = 100
_OPTIMIZERS = {"adam": "adamw", "adamw": "adamw", "lamb": "lamb"}
_SCHEDULES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
_READ = (
    "progressive_layer_drop",
    "optimizer",
    "scheduler",
    "gradient_clipping",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "fp16",
    "bf16",
    "bfloat16",
)
"""Keys of the file that mean something here."""


@dataclass(frozen=True)
class Imported:
    """What became of a DeepSpeed configuration."""

    text: str
    """A preset, as YAML."""
    config: Config
    """What the preset resolves to."""
    notes: tuple[str, ...]
    """Where DeepSpeed would have done something else."""
    unused: tuple[str, ...]
    """Keys of the file that mean nothing here, dotted."""


@dataclass(frozen=True)
class _Setting:
    value: Any
    origin: str
    """The key of the file that gave it, dotted, or empty for a default of DeepSpeed."""


@dataclass
class _Section:
    """An object of the file whose keys are ticked off as they are read."""

    content: dict[str, Any]
    file: str
    name: str = ""
    unused: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.unused = set(self.content)

    def where(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def fail(self, key: str, what: str, hint: str = "") -> NoReturn:
        raise UsageError(what, where=f"{self.file}: {self.where(key)}", hint=hint)

    def take(self, key: str, annotation: Any, default: Any = None) -> Any:
        """Read a value; null counts as left out, and the `auto` that transformers fills in comes back as it is."""
        self.unused.discard(key)
        value = self.content.get(key)
        if value is None:
            return default
        return value if value == "auto" else convert(annotation, value, f"{self.file}: {self.where(key)}")

    def section(self, key: str) -> _Section:
        """Read an object; one that is not there is empty."""
        self.unused.discard(key)
        content = self.content.get(key, {})
        if not isinstance(content, dict):
            self.fail(key, f"must be an object, not {content!r}")
        return _Section(content, self.file, self.where(key))

    def left(self) -> list[str]:
        """List the keys that nothing asked for, in the file's order."""
        return [self.where(key) for key in self.content if key in self.unused]


class _Translation:
    """The settings found so far, with notes on what differs."""

    def __init__(self) -> None:
        self.settings: dict[str, _Setting] = {}
        self.notes: list[str] = []
        self.unused: list[str] = []

    def put(self, key: str, value: Any, section: _Section, *origins: str) -> None:
        """Set `key` and remember which keys of the file gave it; without a value, or with `auto`, the base's stays."""
        if value is not None and value != "auto":
            self.settings[key] = _Setting(value, " / ".join(section.where(origin) for origin in origins if origin in section.content))


def import_deepspeed(path: Path, *, base: str = "bert-base-pld") -> Imported:
    """Translate a DeepSpeed configuration into a preset that extends `base`.

    Raises:
        UsageError: The file is missing, broken, no DeepSpeed configuration, or asks for what is not there; or `base` is unknown.
    """
    top = _read(path)
    base = str(Path(base).resolve()) if base.endswith((".yaml", ".yml")) else base
    start = presets.resolve(base).config
    found = _Translation()
    dropping = _layer_drop(top, found)
    _optimizer(top, found)
    _scheduler(top, found, start)
    _batch(top, found, start, dropping=dropping)
    _precision(top, found)
    found.unused += top.left()
    config = _checked(base, found, str(path))
    return Imported(_as_yaml(path, base, found, config, dropping=dropping), config, tuple(found.notes), tuple(found.unused))


def _read(path: Path) -> _Section:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if double := next((key for key in keys if keys.count(key) > 1), None):
            raise UsageError(f"{double!r} is there twice", where=str(path), hint="DeepSpeed refuses that too")
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=no_duplicates)
    except FileNotFoundError as error:
        raise UsageError("no such file", where=str(path)) from error
    except json.JSONDecodeError as error:
        raise UsageError(f"is no JSON ({error.msg})", where=f"{path}:{error.lineno}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"cannot be read as JSON ({error})", where=str(path)) from error
    if not isinstance(content, dict) or not set(content) & set(_READ):
        hint = "it has keys such as progressive_layer_drop, optimizer and train_batch_size"
        raise UsageError("is no DeepSpeed configuration", where=str(path), hint=hint)
    return _Section(content, str(path))


def _layer_drop(top: _Section, found: _Translation) -> bool:
    """Translate theta and gamma; say whether layers are dropped. A slip in these keys would change the method, so it is an error."""
    section = top.section("progressive_layer_drop")
    enabled = section.take("enabled", bool, False)
    theta, gamma = section.take("theta", float, 1.0), section.take("gamma", float, 0.001)
    for left in section.left():
        key = left.rpartition(".")[2]
        close = difflib.get_close_matches(key, ("enabled", "theta", "gamma"), n=1)
        section.fail(key, "unknown key", f"did you mean {close[0]}?" if close else "the keys are enabled, theta and gamma")
    for key, value in (("enabled", enabled), ("theta", theta), ("gamma", gamma)):
        if value == "auto":
            section.fail(key, f"must be {'true or false' if key == 'enabled' else 'a number'}, not 'auto'")
    if not enabled:
        found.put("pld.theta_bar", 1.0, section, "enabled")
        found.unused += [section.where(key) for key in ("theta", "gamma") if key in section.content]
        return False
    found.put("pld.schedule", "exponential", section, "enabled")
    found.put("pld.theta_bar", theta, section, "theta")
    found.put("pld.gamma", gamma, section, "gamma")
    return True


def _optimizer(top: _Section, found: _Translation) -> None:
    section = top.section("optimizer")
    params = section.section("params")
    kind = section.take("type", str)
    clipping, own_clipping = top.take("gradient_clipping", float, 0.0), params.take("max_grad_norm", float)
    if "gradient_clipping" not in top.content and own_clipping is not None:
        found.put("optim.max_grad_norm", own_clipping, params, "max_grad_norm")
    else:
        found.put("optim.max_grad_norm", clipping, top, "gradient_clipping")
    if kind is None:
        if section.content:
            section.fail("type", "is missing", "Adam, AdamW and Lamb can be read")
        found.notes.append("the file has no optimizer: what is not set below is the base's")
        return
    if kind.lower() not in _OPTIMIZERS:
        section.fail("type", f"{kind!r} is not there", "Adam, AdamW and Lamb can be read; without the block the base's optimizer stays")
    name = _OPTIMIZERS[kind.lower()]
    found.put("optim.name", name, section, "type")
    found.put("optim.learning_rate", params.take("lr", float, 1e-3), params, "lr")
    for number, beta in enumerate(_betas(params)):
        found.put(f"optim.beta{number + 1}", beta, params, "betas")
    found.put("optim.eps", params.take("eps", float, 1e-8), params, "eps")
    found.put("optim.weight_decay", params.take("weight_decay", float, 0.0), params, "weight_decay")
    found.put("optim.bias_correction", params.take("bias_correction", bool, True), params, "bias_correction")
    if kind.lower() == "adam" and params.take("adam_w_mode", bool, True) is False:
        found.notes.append("adam_w_mode is false: DeepSpeed adds the weight decay to the gradient, here it is decoupled (AdamW)")
    if name == "lamb":
        found.notes.append("DeepSpeed keeps LAMB's trust ratio between min_coeff and max_coeff (0.01 and 10), here it has no bounds")
    found.unused += [*section.left(), *params.left()]


def _betas(params: _Section) -> list[Any]:
    value = params.content.get("betas", [0.9, 0.999])
    params.unused.discard("betas")
    if value == "auto":
        return []
    if not isinstance(value, list) or len(value) != 2:
        params.fail("betas", f"must be two numbers, not {value!r}")
    return [convert(float, beta, f"{params.file}: {params.where('betas')}") for beta in value]


def _scheduler(top: _Section, found: _Translation, start: Config) -> None:
    section = top.section("scheduler")
    params = section.section("params")
    kind = section.take("type", str)
    if kind not in _SCHEDULES:
        if kind is not None:
            found.notes.append(f"scheduler {kind} is not there: the base's {start.optim.schedule} stays")
        found.unused += [*(["scheduler.type"] if kind else []), *section.left(), *params.left()]
        return
    total = params.take("total_num_steps", int)
    if kind == "WarmupLR" and total is not None:
        found.unused.append(params.where("total_num_steps"))
        total = None
    if kind != "WarmupLR" and total is None:
        params.fail("total_num_steps", "is missing", f"{kind} needs it")
    found.put("optim.schedule", _SCHEDULES[kind], section, "type")
    found.put("train.total_steps", total, params, "total_num_steps")
    if kind != "WarmupCosineLR":  # these two set the rate themselves, whatever the optimizer's block says
        found.put("optim.learning_rate", params.take("warmup_max_lr", float, 1e-3), params, "warmup_max_lr")
    steps, run = params.take("warmup_num_steps", int, 1000), start.train.total_steps if total in (None, "auto") else total
    if steps != "auto":
        if not 0 <= steps < run:
            params.fail("warmup_num_steps", f"{steps} steps of warm-up do not fit a run of {run}", "another --base may be longer")
        found.put("optim.warmup_fraction", steps / run, params, "warmup_num_steps", "total_num_steps")
    if params.take("warmup_type", str, "log") != "linear" and steps:
        found.notes.append("DeepSpeed's warm-up rises with the logarithm of the step unless warmup_type is linear, here in a straight line")
    found.unused += [*section.left(), *params.left()]


def _batch(top: _Section, found: _Translation, start: Config, *, dropping: bool) -> None:
    """Translate the batch; the released model drew gates anew in every micro-batch, which here are the gate groups of a step."""
    whole, micro = top.take("train_batch_size", int), top.take("train_micro_batch_size_per_gpu", int)
    steps = top.take("gradient_accumulation_steps", int)
    whole, micro, steps = (None if value == "auto" else value for value in (whole, micro, steps))
    for key, value in (("train_batch_size", whole), ("train_micro_batch_size_per_gpu", micro), ("gradient_accumulation_steps", steps)):
        if value is not None and value < 1:
            top.fail(key, f"must be at least 1, not {value}")
    if whole is not None and whole % ((micro or 1) * (steps or 1)):
        top.fail("train_batch_size", f"{whole} sequences do not divide into {micro or 1} per GPU x {steps or 1} accumulation steps")
    found.put("train.global_batch_size", whole, top, "train_batch_size")
    found.put("train.micro_batch_size", micro, top, "train_micro_batch_size_per_gpu")
    if whole is None and (micro is not None or steps is not None):
        batch = start.train.global_batch_size
        found.notes.append(f"train_batch_size is not set, and the number of GPUs is not known: the base's {batch:,} sequences stay")
    if not dropping:
        found.unused += ["gradient_accumulation_steps"] if steps is not None else []
    elif steps is not None:
        found.put("pld.draws_per_step", steps, top, "gradient_accumulation_steps")
    elif whole is not None and micro is None:
        found.put("pld.draws_per_step", 1, top)
    if whole is not None and "pld.draws_per_step" not in found.settings and whole % start.pld.draws_per_step:
        found.put("pld.draws_per_step", 1, top)


def _precision(top: _Section, found: _Translation) -> None:
    formats = {"fp16": "fp16", "bf16": "bf16", "bfloat16": "bf16"}
    sections = {key: top.section(key) for key in formats if key in top.content}
    enabled = {key: section.take("enabled", bool, False) for key, section in sections.items()}
    chosen = [key for key, on in enabled.items() if on is True]
    if len({formats[key] for key in chosen}) > 1:
        top.fail(chosen[0], f"is enabled, and {chosen[1]} too", "choose one")
    if chosen:
        found.put("runtime.precision", formats[chosen[0]], sections[chosen[0]], "enabled")
    elif sections and "auto" not in enabled.values():
        first = next(iter(sections))
        found.put("runtime.precision", "fp32", sections[first], "enabled")
    for section in sections.values():
        found.unused += section.left()


def _checked(base: str, found: _Translation, file: str) -> Config:
    """Resolve the preset to be; an error names the key of the file, not the one that it became."""
    try:
        return presets.resolve(base, [f"{key}={_scalar(setting.value)}" for key, setting in found.settings.items()]).config
    except UsageError as error:
        setting = found.settings.get(error.where)
        where = f"{file}: {setting.origin}" if setting and setting.origin else f"{file}, {error.where}"
        raise UsageError(error.what, where=where, hint=error.hint) from error


def _as_yaml(path: Path, base: str, found: _Translation, config: Config, *, dropping: bool) -> str:
    name = " ".join(path.name.split())
    lines = [*_comment(f"Purpose: {name}, a DeepSpeed configuration, as a preset."), *_comment(_meaning(config) if dropping else _NOTHING)]
    lines += [line for note in found.notes for line in _comment(f"Differs: {note}.")]
    if found.unused:
        lines += _comment(f"Left out, no meaning here: {', '.join(found.unused)}.")
    lines.append(f"extends: {yaml.safe_dump([base], default_flow_style=True, width=4096).strip()}")
    for section, keys in groupby((key for key in fields(Config) if key in found.settings), key=lambda key: key.partition(".")[0]):
        lines.append(f"{section}:")
        for key in keys:
            setting = found.settings[key]
            lines.append(f"  {key.partition('.')[2]}: {_scalar(setting.value)}  # {setting.origin or _DEFAULT}")
    return "\n".join(lines) + "\n"


_DEFAULT = "DeepSpeed's default"
_NOTHING = "Meaning: progressive_layer_drop is not enabled, so nothing is dropped (theta_bar 1)."


def _meaning(config: Config) -> str:
    """Say what theta and gamma do in a run of this length."""
    schedule = config.pld_schedule
    steps, blocks = schedule.total_steps, schedule.num_blocks
    half = schedule.first_step_dropping(0.5)
    speed = f"half on at step {half:,} of {steps:,}" if half is not None else f"not half on within the {steps:,} steps"
    return (
        "Meaning: theta(t) = (1 - theta) exp(-gamma t) + theta at step t, in DeepSpeed and here; theta is pld.theta_bar, the deepest "
        f"block's lowest keep ratio. gamma is per step, not tied to the run's length: {speed}; `gamma: auto` is the paper's 100 / steps, "
        f"{100 / steps:.3g} here. DeepSpeed was told no more: which block is dropped how often was decided by the model's code. Here it is "
        f"depth_rule {schedule.depth_rule} of the base, with {schedule.mean_kept_fraction * blocks:.2f} of {blocks} blocks running on "
        "average; DeepSpeed's BERT example had algorithm1."
    )


def _comment(text: str) -> Iterable[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="#   ", break_long_words=False, break_on_hyphens=False)


def _scalar(value: Any) -> str:
    return str(yaml.safe_dump(value)).splitlines()[0]
