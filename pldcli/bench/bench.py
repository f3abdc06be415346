"""Measure training steps on this machine: dense and with layers dropped, in turn, phase by phase."""

from __future__ import annotations

import gc
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from pldcli.bench.result import Bench, MicroBatch, Mode
from pldcli.bench.step_time import always_dropped
from pldcli.config import Config
from pldcli.data.loader import Samples
from pldcli.data.masking import Masking
from pldcli.data.next_token import NextTokenSteps
from pldcli.data.prepared import PreparedData, open_prepared
from pldcli.data.step_batches import StepBatches
from pldcli.data.stream import TokenStream
from pldcli.engine.phases import PHASES
from pldcli.engine.precision import resolve_precision
from pldcli.engine.runtime import Runtime, launch, out_of_memory
from pldcli.engine.trainer import Observation, Trainer
from pldcli.errors import DeviceError, UsageError
from pldcli.optimizers.build import build_optimizer
from pldcli.pretraining.assembly import (
    assemble,
    check_vocabulary,
    choose_masking,
    cut_rows,
    next_token_steps,
    place,
    random_model,
)
from pldcli.pretraining.estimate import expected_memory_bytes, fitting_micro_batch
from pldcli.runs.checkpoint import Position
from pldcli.system.hardware import device_memory_bytes, hardware_name, peak_flops_per_second
from pldcli.system.machine import memory_counters
from pldcli.system.signals import StopRequest
from pldcli.tokenization.tokenizer import SpecialTokens

__all__ = ["Source", "bench", "find_micro_batch"]

Report = Callable[[str], None]

_PARTS = 5
"""A measurement is cut into so many parts, and the modes take turns part by part."""
_RANDOM_TOKENS = 1 << 20
_SPECIAL = SpecialTokens(pad_id=0, unk_id=1, cls_id=2, sep_id=3, mask_id=4)
_MEMORY_SHARE = 0.6
_ENOUGH_GAIN = 1.02
"""A larger micro-batch must be so many times as fast to go on looking."""
_TRIAL_STEPS = 3
_NO_WARMUP = {"warmup_steps": None, "warmup_tokens": None}
"""A warm-up in steps or tokens need not fit into the steps that are measured, and changes nothing that is measured."""
_PRODUCT_SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
_PRODUCTS = 8


def random_stream(vocab_size: int) -> TokenStream:
    """Return random ordinary tokens, for where there is no text: the FLOPs of a step do not depend on what it reads."""
    tokens = np.random.default_rng(0).integers(len(_SPECIAL.ids), vocab_size, _RANDOM_TOKENS, dtype=np.int64)
    return TokenStream([(tokens, np.empty(0, np.int64))], end_id=_SPECIAL.sep_id)


def bench(
    config: Config, *, data: Path | PreparedData | None, steps: int, search: bool = False, report: Report = lambda line: None
) -> Bench:
    """Time steps of a configuration with all blocks and, where it drops any, with as many dropped as in the step that drops most.

    A step is what one step of the run is on this process, but with one forward pass per gate group: forward, backward, clipping and
    optimizer. Both modes train the same model with the same optimizer.

    Args:
        config: The resolved configuration.
        data: Prepared data, opened or not; None for random tokens.
        steps: Steps of each mode that count.
        search: Find the best micro-batch first.
        report: Told what is going on.

    Raises:
        UsageError: Fewer steps than parts, or pairs without data.
        DeviceError: Memory ran out.
    """
    if steps < _PARTS:
        raise UsageError(f"must be at least {_PARTS}, not {steps}", where="--steps")
    if data is None and (config.data.layout == "nsp-pairs" or config.data.packing == "documents"):
        key = "data.layout" if config.data.layout == "nsp-pairs" else "data.packing"
        raise UsageError("random tokens have no documents", where=key, hint="name prepared text with --data")
    with launch(config.runtime.device) as runtime:
        prepared = open_prepared(data, verify=False) if isinstance(data, Path) else data
        if prepared is not None:
            check_vocabulary(config, prepared)
        source = Source(config, prepared)
        tried: tuple[MicroBatch, ...] = ()
        if search:
            tried = tuple(find_micro_batch(config, source, runtime, report))
            speeds = {trial.sequences: trial.tokens_per_second for trial in tried if trial.tokens_per_second}
            if not speeds:
                raise DeviceError("out of memory with a single sequence", where=str(runtime.device), hint="choose a smaller model")
            config = _with_micro_batch(config, max(speeds, key=lambda size: speeds[size]), runtime.world_size)
        _forget_everything(runtime.device)
        return _measure(config, source, runtime, steps, tried, report)


def find_micro_batch(config: Config, source: Source, runtime: Runtime, report: Report) -> Iterator[MicroBatch]:
    """Try 1, 2, 4, ... sequences per forward pass until memory or a sampled softmax ends, or twice as many are hardly faster twice."""
    best, misses, sequences = 0.0, 0, 1
    entries = config.objective.sampled_softmax or math.inf
    while misses < 2 and sequences * config.most_targets < entries:
        one_group = _dense(config).replace(pld={"draws_per_step": 1})
        trial = _try(_with_micro_batch(one_group, sequences, runtime.world_size), source, runtime)
        speed = trial.tokens_per_second
        report(f"micro-batch {sequences}: " + ("does not fit" if speed is None else f"{speed:,.0f} tokens/s"))
        yield trial
        if speed is None:
            return
        misses = 0 if speed > best * _ENOUGH_GAIN else misses + 1
        best, sequences = max(best, speed), sequences * 2


class Source:
    """What the sequences of a measurement are made of."""

    def __init__(self, config: Config, prepared: PreparedData | None) -> None:
        self.special = prepared.special if prepared else _SPECIAL
        self.vocab_size = prepared.vocab_size if prepared else config.model.vocab_size
        self.name = str(prepared.path) if prepared else "random tokens"
        self._data = prepared.path if prepared else None
        self._stream = prepared.stream("train") if prepared else random_stream(self.vocab_size)

    def samples(self, config: Config) -> Mapping[int, Samples]:
        """Return the sequences by their length, cut as the run cuts them."""
        return cut_rows(config, self._stream, self.special)

    def masking(self, config: Config) -> Masking:
        """Return the masking of the run."""
        return choose_masking(config, self.special, self.vocab_size, data=self._data)

    def next_tokens(self, config: Config) -> NextTokenSteps | None:
        """Return the run's steps that predict the next token."""
        return next_token_steps(config, self.special)


def _measure(given: Config, source: Source, runtime: Runtime, steps: int, tried: tuple[MicroBatch, ...], report: Report) -> Bench:
    per_part = -(-steps // _PARTS)
    total = per_part * (_PARTS + 1)  # the first part warms up
    config = given
    model = place(random_model(config), config, runtime)
    optimizer = build_optimizer(model, config.optim, resolve_precision(config.runtime.precision, runtime.device).matrix_dtype)
    fitting = fitting_micro_batch(config, config.num_parameters, runtime.device, sharing=runtime.local_world_size)
    _, size = config.forwards_per_group(runtime.world_size, most_sequences=fitting)
    config = _with_micro_batch(config, size, runtime.world_size)
    config = _of_length(config, total)
    configs = {"dense": _dense(config)}
    if (theta := given.pld_schedule.lowest_theta) < 1.0:
        configs["dropped"] = _most_dropped(config, theta)
    trainers = {
        name: assemble(
            one, model, source.samples(one), source.masking(one), runtime, next_tokens=source.next_tokens(one), optimizer=optimizer
        )
        for name, one in configs.items()
    }
    device = runtime.device
    with out_of_memory(size, device, key="train.micro_batch_size", otherwise="choose a smaller model or shorter sequences"):
        modes = _take_turns(trainers, per_part, report)
    precision = trainers["dense"].precision.name
    peak = peak_flops_per_second(device, precision)
    return Bench(
        modes=modes,
        micro_batch_size=size,
        micro_batches=tried,
        steps=per_part * _PARTS,
        num_blocks=config.model.num_hidden_layers,
        sequences_per_step=trainers["dense"].batches.num_sequences(0),
        seq_len=config.data.seq_len,
        precision=precision,
        compiled=runtime.is_on(config.runtime.compile),
        hardware=hardware_name(device),
        threads=torch.get_num_threads(),
        processes=runtime.world_size,
        peak_flops_per_second=peak or _measured_peak(config, runtime),
        peak_source="the maker's data sheet" if peak else "the fastest matrix product, measured here",
        whole_run_saved=given.run_flops(trainers["dense"].batches.attended_tokens).saved,
        text=source.name,
        is_main=runtime.is_main,
    )


def _most_dropped(config: Config, theta: float) -> Config:
    """Drop in every step as much as the run does in the one that drops most."""
    if config.pld.schedule == "expansion":
        return always_dropped(config, theta=theta)
    # Without the recovery of the end, which of so few steps is a large part.
    return config.replace(pld={"schedule": "constant", "theta_bar": theta, "recovery_fraction": 0.0})


def _take_turns(trainers: dict[str, Trainer[StepBatches]], per_part: int, report: Report) -> tuple[Mode, ...]:
    """Run the trainers in turn, a part of their steps at a time, and observe each at the end of its part."""
    device = next(iter(trainers.values())).runtime.device
    runs = {
        name: trainer.steps(Position(), observe=lambda step: step % per_part == 0, stop=StopRequest()) for name, trainer in trainers.items()
    }
    seen: dict[str, list[Observation]] = {name: [] for name in trainers}
    memory = dict.fromkeys(trainers, 0)
    for part in range(_PARTS + 1):
        for name, run in runs.items():
            _reset_peak_memory(device)
            seen[name].append(next(run))
            memory[name] = max(memory[name], _peak_memory_bytes(device))
            if part:
                before, after = seen[name][-2:]
                seconds = (after.position.train_seconds - before.position.train_seconds) / per_part
                report(f"part {part} of {_PARTS}, {name}: {seconds * 1e3:,.1f} ms a step")
    return tuple(_mode(name, observed, per_part, trainers[name], memory[name]) for name, observed in seen.items())


def _mode(name: str, seen: Sequence[Observation], per_part: int, trainer: Trainer[StepBatches], memory: int) -> Mode:
    positions, measured = [observation.position for observation in seen], seen[1:]
    steps = per_part * len(measured)
    flops = [(b.executed_flops - a.executed_flops) / per_part for a, b in pairwise(positions)]
    tokens = (positions[-1].tokens - positions[0].tokens) / steps
    return Mode(
        name=name,
        step_seconds=tuple((b.train_seconds - a.train_seconds) / per_part for a, b in pairwise(positions)),
        tokens_per_step=tokens,
        flops_per_step=tuple(flops),
        kept_blocks_by_part=tuple(_kept_blocks(trainer, range(a.step, b.step)) for a, b in pairwise(positions)),
        phase_seconds={phase: sum(one.phase_seconds[phase] for one in measured) / steps for phase in PHASES},
        peak_memory_bytes=memory,
    )


def _kept_blocks(trainer: Trainer[StepBatches], steps: Sequence[int]) -> float:
    """Average the blocks that ran, over the gate groups of these steps."""
    groups = range(trainer.batches.num_groups)
    return statistics.fmean(trainer.schedule.plan(step, group, seed=trainer.seed).kept_blocks for step in steps for group in groups)


def _try(config: Config, source: Source, runtime: Runtime) -> MicroBatch:
    """Time a few dense steps with one micro-batch."""
    size, device = config.train.global_batch_size // runtime.world_size, runtime.device
    memory = device_memory_bytes(device, sharing=runtime.local_world_size)
    if device.type == "cpu" and expected_memory_bytes(config, size) > _MEMORY_SHARE * memory:
        return MicroBatch(size, None, 0)  # a CPU that runs out of memory ends the process instead of saying so
    _forget_everything(device)
    _reset_peak_memory(device)
    try:
        with out_of_memory(size, device, key="", otherwise=""):
            model = place(random_model(config), config, runtime)
            config = _of_length(config, 1 + _TRIAL_STEPS)
            samples, masking, next_tokens = source.samples(config), source.masking(config), source.next_tokens(config)
            trainer = assemble(config, model, samples, masking, runtime, next_tokens=next_tokens)
            first, last = trainer.steps(Position(), observe=lambda step: step == 1, stop=StopRequest())
    except DeviceError:
        return MicroBatch(size, None, _peak_memory_bytes(device))
    seconds = last.position.train_seconds - first.position.train_seconds
    return MicroBatch(size, (last.position.tokens - first.position.tokens) / seconds, _peak_memory_bytes(device))


def _of_length(config: Config, total_steps: int) -> Config:
    """Shorten a run to measure its steps."""
    return config.replace(train={"total_steps": total_steps}, optim=_NO_WARMUP)


def _dense(config: Config) -> Config:
    return config.replace(pld={"theta_bar": 1.0, "schedule": "constant"})


def _with_micro_batch(config: Config, sequences: int, world_size: int) -> Config:
    """Make a step one forward pass of so many sequences per gate group and process, each of the run's final length."""
    batch = sequences * config.pld.draws_per_step * world_size
    train = {"micro_batch_size": sequences, "global_batch_size": batch, "batch_ramp": 0.0}
    return config.replace(train=train, data={"length_stages": ()}, optim=_NO_WARMUP)


def _measured_peak(config: Config, runtime: Runtime) -> float:
    """Time large matrix products in the run's number format; return the most FLOPs per second."""
    precision = resolve_precision(config.runtime.precision, runtime.device)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision.name]
    best = 0.0
    for size in _PRODUCT_SIZES[runtime.device.type]:
        left, right = (torch.randn(size, size, device=runtime.device).to(dtype) for _ in range(2))
        for _ in range(_PRODUCTS):
            runtime.synchronize()
            started = time.perf_counter()
            left @ right
            runtime.synchronize()
            best = max(best, 2.0 * size**3 / (time.perf_counter() - started))
    return best


def _forget_everything(device: torch.device) -> None:
    """Free memory, and forget compiled sizes: after the second one torch would compile for any."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # not Linux
        Path("/proc/self/clear_refs").write_text("5")


def _peak_memory_bytes(device: torch.device) -> int:
    """Read the most memory taken since the last reset: on CUDA by tensors, on a CPU by the process.

    Source: proc(5), `clear_refs` and `VmHWM`; elsewhere than on Linux it is the most since the process began.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = memory_counters().get("VmHWM")
    if peak is not None:
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
