"""Measure training on one GPU in sections, each within ten minutes; every row is printed as it is measured.

    benchmarks/gpu.sh rate
    benchmarks/gpu.sh compare
    benchmarks/gpu.sh compare-modern
    benchmarks/gpu.sh profile
    benchmarks/gpu.sh modern
    benchmarks/gpu.sh small
    benchmarks/gpu.sh trust

- rate: tokens/s of bert-base at 128 and 512 tokens and of bert-large at 512, dense and with layers dropped, compiled, at the fastest
  micro-batch, beside what we must and want to reach on one H200;
- compare: the same steps as transformers' BertForMaskedLM takes them, with SDPA and torch.compile on both sides;
- compare-modern: the same of modern-base's size in rows of 1,024 tokens beside ModernBertForMaskedLM;
- profile: what the time of a step goes to, kernel by kernel, and whether the host ever waits for the device;
- modern: tokens/s of modern-base in rows of 1,024 tokens that are packed documents, beside what ModernBERT's authors publish for one
  H100 and what we want; within four minutes;
- small: steps of 64 x 128 tokens of models too small to fill a GPU, and whether dropping layers saves time there; within four minutes;
- trust: resuming to the same bits, what a save costs at bert-large's size, what one process holds of split weights; within four minutes.

On a machine without a GPU it runs on the CPU, for which `--small` is meant.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from gpu_trust import trust
from measuring import prepared_documentation, this_device
from pldcli import presets
from pldcli.bench.bench import Source, bench
from pldcli.config import Config
from pldcli.data.prepared import open_prepared
from pldcli.engine.runtime import launch
from pldcli.model import StBert
from pldcli.pretraining.assembly import assemble, place
from pldcli.runs.checkpoint import Position
from pldcli.system.signals import StopRequest
from reporting import command, hardware, head, row, software

SECONDS, SHORT_SECONDS = 570.0, 200.0
"""Of a section; of `modern` and `small`."""
SMALL: tuple[str, ...] = ("model.num_hidden_layers=4", "model.hidden_size=32", "model.num_attention_heads=2", "model.intermediate_size=64")
SMALL += ("model.vocab_size=500", "data.seq_len=32", "model.local_attention=32")


@dataclass(frozen=True)
class Goal:
    """What is measured, and the real tokens per second on one H200 that it is held against."""

    model: str
    seq_len: int
    must: float
    target: float
    dropped: float | None
    """With layers dropped; None for 1.27 times our own dense rate."""
    changes: tuple[str, ...] = ()


GOALS = (
    Goal("bert-base", 128, 460e3, 700e3, None),
    Goal("bert-base", 512, 430e3, 650e3, None),
    Goal("bert-large", 512, 160e3, 200e3, 255e3),
)
MODERN_GOALS = (Goal("modern-base", 1024, 304e3, 400e3, None, ("data.packing=documents",)),)
SMALL_MODELS, SMALL_STEP_SECONDS, SMALL_SAVING = ("bert-tiny", "modern-tiny"), 10e-3, 0.9
"""Goals: a dense step of 64 x 128 tokens, and the share of the operations saved that dropping must save in time."""
COMPARED = "--shapes L12-H768 --vocab 30522 --tokens 32768 --seq-len 128 --rounds 10 --steps 5 --systems full-head dense dense-preln pld"
MODERN_COMPARED = (
    "--base modernbert --local-attention --shapes L22-H768 --vocab 50368 --tokens 16384 --seq-len 1024 --rounds 5 --steps 5 "
    "--systems modernbert-sparse modern-full-head modern modern-pld"
)
"""Words of the benchmark against transformers."""
DROPPED_GAIN = 1.27
RATE_COLUMNS = ("model", "tokens", "mode", "micro-batch", "tokens/s", "must", "target", "of target", "MFU", "ms a step", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("section", choices=["rate", "compare", "compare-modern", "profile", "modern", "small", "trust"])
    parser.add_argument("--small", action="store_true", help="tiny sizes, to see that it works")
    parser.add_argument("--compile", default="auto", choices=["auto", "on", "off"])
    parser.add_argument("--steps", type=int, default=30, help="steps of each mode that count")
    options = parser.parse_args()
    device = this_device()
    tell(f"{hardware(device)}; {software()}")
    tell(f"{command()}\n")
    lines = {
        "rate": lambda: rate(options, GOALS, SECONDS),
        "modern": lambda: modern(options),
        "small": lambda: small(options),
        "profile": lambda: profiled(options, device),
        "trust": lambda: trust([one for one in SMALL if "vocab_size" not in one] if options.small else ()),
    }
    if options.section.startswith("compare"):
        compare(options, MODERN_COMPARED if options.section == "compare-modern" else COMPARED)
        return
    for line in lines[options.section]():
        tell(line)


def tell(line: str) -> None:
    print(line, flush=True)


def configure(goal: Goal, options: argparse.Namespace, *more: str) -> Config:
    """Resolve a preset of the size, with as much dropped as it ever drops and fixed depth: 8 or 9 of 12 blocks."""
    small = SMALL if options.small else (f"data.seq_len={goal.seq_len}", f"model.max_position_embeddings={max(512, goal.seq_len)}")
    small += goal.changes
    changes = (f"runtime.compile={options.compile}", "pld.draw=fixed-depth", "pld.draws_per_step=1", "train.global_batch_size=4096")
    return presets.resolve(f"{goal.model}-pld", [*changes, *small, *more]).config


def rate(options: argparse.Namespace, goals: Sequence[Goal], seconds: float, data: Path | None = None) -> Iterator[str]:
    """Measure each goal at the micro-batch that is fastest without compilation, since each size would compile anew."""
    began = time.perf_counter()
    yield from head(*RATE_COLUMNS).splitlines()
    for number, goal in enumerate(goals):
        left = seconds - (time.perf_counter() - began)
        if left < seconds / 6:
            yield f"{goal.model} at {goal.seq_len}: not measured, {left:.0f} s are left"
            continue
        torch.compiler.reset()
        tried = bench(configure(goal, options, "runtime.compile=off", "pld.theta_bar=1"), data=data, steps=5, search=True)
        sizes = f"train.micro_batch_size={tried.micro_batch_size}"
        config = configure(goal, options, sizes, f"train.global_batch_size={tried.micro_batch_size}")
        found = bench(config, data=data, steps=options.steps)
        dense = found.modes[0].tokens_per_second
        for mode in found.modes:
            must, target = (goal.must, goal.target) if mode.name == "dense" else (None, goal.dropped or DROPPED_GAIN * dense)
            yield row(
                goal.model,
                str(config.data.seq_len),
                mode.name,
                str(found.micro_batch_size),
                f"{mode.tokens_per_second:,.0f}",
                "" if must is None else f"{must:,.0f}",
                f"{target:,.0f}",
                f"{mode.tokens_per_second / target:.2f}",
                f"{found.mfu(mode):.1%}",
                f"{mode.seconds * 1e3:.1f}",
                f"{mode.peak_memory_bytes / 1e9:.1f} GB",
            )
        if found.saved is not None:
            operations, of_time = found.saved
            yield f"  {number + 1}: dropping saved {operations:.1%} of the operations and {of_time:.1%} of the time"


def modern(options: argparse.Namespace) -> Iterator[str]:
    """Measure modern-base on packed documents: the documentation of what is installed."""
    with tempfile.TemporaryDirectory() as scratch:
        data = prepared_documentation(Path(scratch))
        vocabulary = (f"model.vocab_size={open_prepared(data, verify=False).vocab_size}",) if options.small else ()
        goals = [replace(goal, changes=(*goal.changes, *vocabulary)) for goal in MODERN_GOALS]
        yield from rate(options, goals, SHORT_SECONDS, data)


def small(options: argparse.Namespace) -> Iterator[str]:
    """Measure steps of models that are bound by launches, dense and with layers dropped."""
    began = time.perf_counter()
    yield head("model", "compiled", "dense, ms a step", "goal", "dropped, ms a step", "time saved / operations saved", "goal")
    for model in SMALL_MODELS:
        if time.perf_counter() - began > SHORT_SECONDS * 2 / 3:
            yield f"{model}: not measured, no time is left"
            continue
        torch.compiler.reset()
        sizes = ("train.micro_batch_size=64", "train.global_batch_size=64", "pld.schedule=constant")
        found = bench(configure(Goal(model, 128, 0.0, 0.0, None), options, *sizes), data=None, steps=options.steps)
        dense, dropped = found.modes
        assert found.saved is not None
        operations, seconds = found.saved
        yield row(
            model,
            "yes" if found.compiled else "no",
            f"{dense.seconds * 1e3:.2f}",
            f"{SMALL_STEP_SECONDS * 1e3:.0f}",
            f"{dropped.seconds * 1e3:.2f}",
            f"{seconds / operations:.2f}",
            f"{SMALL_SAVING:g}",
        )


def compare(options: argparse.Namespace, compared: str) -> None:
    """Hand over to the benchmark against transformers, with compilation on both sides."""
    script = Path(__file__).with_name("pretrain_vs_transformers.py")
    words = [sys.executable, str(script), "--threads", str(torch.get_num_threads()), "--precision", "bf16", *compared.split()]
    if options.small:  # of an option that is given twice the last one counts
        words += ["--shapes", "L4-H256", "--vocab", "500", "--tokens", "128", "--seq-len", "128", "--rounds", "2", "--steps", "1"]
    if options.compile != "off":
        words += ["--compile"]
    subprocess.run(words, check=True)


def profiled(options: argparse.Namespace, device: torch.device) -> Iterator[str]:
    """Profile dense steps of bert-base at 128 tokens."""
    goal = GOALS[0]
    size = 2 if options.small else 256
    batch = f"train.micro_batch_size={size}", f"train.global_batch_size={size}"
    config = configure(goal, options, *batch, "pld.theta_bar=1", "train.total_steps=24")
    with launch() as runtime:
        source = Source(config, None)
        model = place(StBert(**dict(config.model)), config, runtime)
        trainer = assemble(config, model, source.samples(config), source.masking(config), runtime)
        trainer.warm_up()
        steps = trainer.steps(Position(), observe=lambda step: step in (8, 16, 24), stop=StopRequest())
        next(steps)
        waits = 0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("warn")
            plain = next(steps)
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
            waits = sum("synchronizing" in str(one.message) for one in caught)
        on_cuda = [ProfilerActivity.CUDA] if device.type == "cuda" else []
        with profile(activities=[ProfilerActivity.CPU, *on_cuda], acc_events=True) as seen:
            next(steps)
    yield f"{goal.model}, {size} x {config.data.seq_len} tokens, {trainer.precision.name}; means of 8 steps"
    for phase, seconds in plain.phase_seconds.items():
        yield row(phase, f"{seconds / 8 * 1e3:.2f} ms")
    yield f"calls that made the host wait for the device in 8 steps (the reading of the metrics among them): {waits}\n"
    yield head("kernel", "ms a step", "share", "launches a step")
    events = [event for event in seen.key_averages() if own_time(event, device) > 0]
    total = sum(own_time(event, device) for event in events)
    for event in sorted(events, key=lambda event: -own_time(event, device))[:25]:
        mine = own_time(event, device)
        yield row(event.key[:90], f"{mine / 8e3:.3f}", f"{mine / total:.1%}", f"{event.count / 8:.1f}")


def own_time(event: object, device: torch.device) -> float:
    """Read an event's own microseconds."""
    return float(getattr(event, "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"))


if __name__ == "__main__":
    main()
