"""Measure what a dropped block saves, part by part, and how much the time of a step varies.

    python benchmarks/dropping.py --threads 1 --out benchmarks/results/dropping-cpu.md
    python benchmarks/dropping.py --threads 1 --parts calls communication    # some of the questions

Five questions, a table each:
- phases: forward, backward, clipping and optimizer with 0..L blocks dropped, beside the time of a block that runs on its own; one gate
  draw per step, and four in which all groups drop the same blocks or each drops others;
- optimizer: clipping and update when blocks have no gradient, for AdamW and LAMB, on their own;
- calls: operators (on a CPU) or kernels (on CUDA) of a step, counted by torch's profiler;
- communication: all-reduce calls and bytes of a step, counted in place of being sent; their time is not measured;
- spread: step times of `bernoulli` and `fixed-depth` gates, in whole training steps taken in turn.

What is compared lives in one process and takes turns. Forward and backward are told apart by the engine's own phase timer.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import random
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from pldcli import __version__, atomic, presets
from pldcli.config import Config
from pldcli.data.docstrings import docstring_corpus
from pldcli.data.prepare import prepare
from pldcli.data.shards import PreparedData, open_prepared
from pldcli.engine import runtime as runtime_module
from pldcli.engine.checkpoint import Position
from pldcli.engine.environment import hardware_name
from pldcli.engine.optim import build_optimizer, clip_gradients
from pldcli.engine.pretrain import build_trainer
from pldcli.engine.runtime import Runtime, launch
from pldcli.engine.signals import StopRequest
from pldcli.pld import Plan

PARTS = ("phases", "optimizer", "calls", "communication", "spread")
PHASES = ("forward", "backward", "clipping", "optimizer")
DRAWS = (1, 4)
WARM_UP_STEPS = 3
DRAWN_STEPS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a prepared directory; by default one is made of installed documentation")
    parser.add_argument("--preset", default="bert-small-pld")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the preset")
    parser.add_argument("--batch", type=int, default=32, help="sequences in a step")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--dropped", nargs="+", type=int, help="numbers of dropped blocks; default: all")
    parser.add_argument("--rounds", type=int, default=7, help="of phases: measurements of each row, in turn")
    parser.add_argument("--repeats", type=int, default=30, help="of the optimizer: measurements of each row, in turn")
    parser.add_argument("--steps", type=int, default=100, help="of the spread: training steps of each row, in turn")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="a markdown file for the tables")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        document = make_document(options.data or make_data(Path(scratch)), options)
    print(document)
    if options.out:
        atomic.write_text(options.out, document)


def make_data(scratch: Path) -> Path:
    corpus = scratch / "corpus.txt"
    corpus.write_text("\n\n".join(docstring_corpus(3_000_000)), encoding="utf-8")
    prepare([corpus], scratch / "data", vocab_size=8192, quiet=True)
    return scratch / "data"


def make_document(data: Path, options: argparse.Namespace) -> str:
    questions = {
        "phases": ask_phases,
        "optimizer": ask_optimizer,
        "calls": ask_calls,
        "communication": ask_communication,
        "spread": ask_spread,
    }
    prepared = open_prepared(data)
    with launch() as runtime:
        bench = Bench(prepared, runtime, options)
        sections = [questions[part](bench) for part in options.parts]
        trainer, config = bench.trainer(1), bench.config(1)
        model = config.model
        shape = f"{model.num_hidden_layers} blocks of width {model.hidden_size}, V {model.vocab_size:,}"
        compiled = "compiled" if is_compiled(trainer) else "not compiled"
        facts = (
            f"{options.preset}: {shape}, {options.batch} x {config.data.seq_len} tokens a step, {trainer.precision.name}, {compiled}. "
            f"{hardware_name(runtime.device)}, {torch.get_num_threads()} thread(s); "
            f"pldcli {__version__}, torch {torch.__version__}, Python {platform.python_version()}."
        )
    command = shlex.join(["python", *sys.argv])
    return "\n\n".join(["# What a dropped block saves", f"    {command}", facts, *sections]) + "\n"


class Bench:
    """Trainers of one shape, built when they are asked for."""

    def __init__(self, prepared: PreparedData, runtime: Runtime, options: argparse.Namespace) -> None:
        self.prepared, self.runtime, self.options = prepared, runtime, options
        self.num_blocks = self.config(1).model.num_hidden_layers
        self.dropped = sorted({0, *(options.dropped or range(self.num_blocks + 1))})
        self._trainers: dict[int, Any] = {}

    def config(self, draws: int, **changes: str) -> Config:
        words = [
            "pld.schedule=constant",
            f"pld.draws_per_step={draws}",
            f"train.global_batch_size={self.options.batch}",
            f"train.total_steps={self.options.steps + WARM_UP_STEPS}",
            f"runtime.precision={self.options.precision}",
            *self.options.set,
            *(f"{key.replace('__', '.')}={value}" for key, value in changes.items()),
        ]
        return presets.resolve(self.options.preset, words, from_data={"model.vocab_size": self.prepared.vocab_size}).config

    def trainer(self, draws: int) -> Any:
        """Give the trainer with so many gate groups, after a step with every block."""
        if draws not in self._trainers:
            trainer = build_trainer(self.config(draws), self.prepared, self.runtime)
            self._trainers[draws] = trainer
            for _ in range(2):
                timed_step(trainer, self.plans(draws, 0))
        return self._trainers[draws]

    def plans(self, draws: int, dropped: int, *, first: int = 0, apart: bool = False) -> list[Plan]:
        """Drop so many blocks from `first` on, in a ring; `apart` lets each group begin elsewhere."""
        drawn = self.config(draws).pld_schedule.plan(0, 0, seed=0)
        starts = [first + (group * self.num_blocks // draws if apart else 0) for group in range(draws)]
        gone = [{(start + place) % self.num_blocks for place in range(dropped)} for start in starts]
        return [replace(drawn, gates=tuple(block not in blocks for block in range(self.num_blocks))) for blocks in gone]

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def is_compiled(trainer: Any) -> bool:
    return any(getattr(block, "_compiled_call_impl", None) is not None for block in trainer.model.blocks)


# A step, phase by phase


def timed_step(trainer: Any, plans: Sequence[Plan], around: Callable[[str], Any] | None = None) -> dict[str, float]:
    """Take one training step and time its phases.

    Args:
        trainer: Its step 0 is taken, again and again.
        plans: Of each gate group.
        around: Gives a context in which the passes ("passes"), the clipping and the update run.
    """
    seconds = dict.fromkeys(PHASES, 0.0)
    around = around or no_context
    trainer.runtime.synchronize()
    trainer.phases.read()  # forget what came before
    groups = trainer.batches.step(0)
    counts = [trainer.objective.num_targets(batch) for micro_batches in groups for batch in micro_batches]
    num_targets = [float(sum(column)) for column in zip(*counts, strict=True)]
    with around("passes"):
        for plan, micro_batches in zip(plans, groups, strict=True):
            for batch in micro_batches:
                trainer.forward_backward(batch, plan, num_targets)
        trainer.runtime.synchronize()
    found = trainer.phases.read()
    seconds |= {"forward": found["forward"], "backward": found["backward"]}
    with around("clipping"):
        seconds["clipping"] = timed(trainer.runtime, lambda: clip(trainer))
    with around("optimizer"):
        seconds["optimizer"] = timed(trainer.runtime, lambda: trainer.scaler.step(trainer.optimizer))
    trainer.scaler.update()
    trainer.optimizer.zero_grad(set_to_none=True)
    return seconds


def clip(trainer: Any) -> None:
    trainer.scaler.unscale_(trainer.optimizer)
    clip_gradients(trainer.model.parameters(), trainer.max_grad_norm)


def timed(runtime: Runtime, work: Callable[[], object]) -> float:
    runtime.synchronize()
    started = time.perf_counter()
    work()
    runtime.synchronize()
    return time.perf_counter() - started


@contextmanager
def no_context(phase: str) -> Iterator[None]:
    yield


VARIANTS = {
    "1 draw": (1, False),
    "4 draws, the same blocks in all groups": (4, False),
    "4 draws, other blocks in each group": (4, True),
}


def ask_phases(bench: Bench) -> str:
    """Time the phases of a step for every number of dropped blocks."""
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    alone: dict[int, list[tuple[float, float]]] = {draws: [] for draws in DRAWS}
    order = list(itertools.product(VARIANTS, bench.dropped))
    shuffler = random.Random(0)
    for number in range(bench.options.rounds):
        shuffler.shuffle(order)
        for variant, dropped in order:
            draws, apart = VARIANTS[variant]
            trainer = bench.trainer(draws)
            plans = bench.plans(draws, dropped, first=number, apart=apart)
            found.setdefault((variant, dropped), []).append(timed_step(trainer, plans))
        for draws, times in alone.items():
            times.append(time_block(bench, draws, number % bench.num_blocks))
        bench.say(f"phases: round {number + 1} of {bench.options.rounds}")
    return "\n\n".join(
        ["## Time of a step by phase", *(phase_table(bench, variant, found, alone[VARIANTS[variant][0]]) for variant in VARIANTS)]
    )


def time_block(bench: Bench, draws: int, index: int) -> tuple[float, float]:
    """Run one block forward and backward on its own, on as many tokens and as often as a step with so many draws does."""
    trainer = bench.trainer(draws)
    runtime, groups = trainer.runtime, trainer.batches.step(0)
    shape = (*groups[0][0].input_ids.shape, bench.config(draws).model.hidden_size)
    scale = torch.tensor(1.5, device=runtime.device) if trainer.schedule.scales else None
    forward = backward = 0.0
    for run in range(-1, sum(map(len, groups))):
        x = torch.randn(shape, device=runtime.device, requires_grad=True)
        outputs: list[torch.Tensor] = []
        with trainer.precision.autocast():
            first = timed(runtime, lambda x=x, outputs=outputs: outputs.append(trainer.model.blocks[index](x, None, scale)))
        second = timed(runtime, lambda x=x, outputs=outputs: outputs[0].backward(torch.ones_like(x)))
        if run >= 0:  # the first warms up
            forward, backward = forward + first, backward + second
    trainer.model.zero_grad(set_to_none=True)
    return forward, backward


def phase_table(
    bench: Bench, variant: str, found: dict[tuple[str, int], list[dict[str, float]]], alone: Sequence[tuple[float, float]]
) -> str:
    config, blocks = bench.config(VARIANTS[variant][0]), bench.num_blocks
    draws, apart = VARIANTS[variant]
    lines = [
        f"### {variant}",
        "",
        "| blocks dropped | without gradient | forward, ms | backward, ms | clipping, ms | optimizer, ms | step, ms (range) | time saved "
        "| operations saved | time / operations |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    medians = {
        dropped: {phase: statistics.median(one[phase] for one in found[variant, dropped]) for phase in PHASES} for dropped in bench.dropped
    }
    for dropped in bench.dropped:
        wholes = [sum(one.values()) for one in found[variant, dropped]]
        saved = statistics.median(1 - whole / sum(dense.values()) for whole, dense in zip(wholes, found[variant, 0], strict=True))
        predicted = config.flops.total_saved(1 - dropped / blocks)
        gates = [plan.gates for plan in bench.plans(draws, dropped, apart=apart)]
        without = blocks - sum(map(any, zip(*gates, strict=True)))
        times = [f"{1e3 * medians[dropped][phase]:.2f}" for phase in PHASES]
        whole = f"{1e3 * statistics.median(wholes):.1f} ({1e3 * min(wholes):.1f} to {1e3 * max(wholes):.1f})"
        last = [f"{saved:.3f}", f"{predicted:.3f}", f"{saved / predicted:.3f}"] if dropped else ["-", "-", "-"]
        lines.append(f"| {' | '.join([str(dropped), str(without), *times, whole, *last])} |")
        bench.say(f"{variant} {lines[-1]}")
    return "\n".join([*lines, "", per_block(bench, medians, alone)])


def per_block(bench: Bench, medians: dict[int, dict[str, float]], alone: Sequence[tuple[float, float]]) -> str:
    """Say what each dropped block takes off each phase: the slope of a line through the rows."""
    if len(medians) < 2:
        return ""
    drops = {phase: -statistics.linear_regression(list(medians), [row[phase] for row in medians.values()]).slope * 1e3 for phase in PHASES}
    single = [1e3 * statistics.median(times) for times in zip(*alone, strict=True)]
    both, one = drops["forward"] + drops["backward"], sum(single)
    slopes = f"{drops['forward']:.2f} ms off forward, {drops['backward']:.2f} off backward, {drops['clipping']:.3f} off clipping"
    return (
        f"Each dropped block takes {slopes} and {drops['optimizer']:.3f} off the optimizer. A block run on its own over the step's tokens "
        f"takes {single[0]:.2f} ms forward and {single[1]:.2f} backward (median of {len(alone)}): dropping saves {both / one:.2f} of that."
    )


# The optimizer on its own


def ask_optimizer(bench: Bench) -> str:
    """Time clipping and update with the gradients of some blocks None, without forward and backward."""
    trainer = bench.trainer(1)
    model, runtime = trainer.model, bench.runtime
    gradients = [torch.randn_like(parameter) * 1e-3 for parameter in model.parameters()]
    settings = bench.config(1).optim
    optimizers = {name: build_optimizer(model, replace(settings, name=name, learning_rate=1e-9)) for name in ("adamw", "lamb")}
    rows = {dropped: {name: [] for name in ("clipping", *optimizers)} for dropped in bench.dropped}
    updated: dict[int, int] = {}
    for number in range(-2, bench.options.repeats):  # two rounds to warm up
        for dropped, times in rows.items():
            missing = {(number + place) % bench.num_blocks for place in range(dropped)}
            updated[dropped] = give_gradients(model, gradients, missing)
            works: dict[str, Callable[[], object]] = {"clipping": lambda: clip_gradients(model.parameters(), 1.0)}
            works |= {name: optimizer.step for name, optimizer in optimizers.items()}
            seconds = {name: timed(runtime, work) for name, work in works.items()}
            for name in times if number >= 0 else ():
                times[name].append(seconds[name])
    trainer.optimizer.zero_grad(set_to_none=True)
    return optimizer_table(bench, rows, updated)


def give_gradients(model: Any, gradients: Sequence[torch.Tensor], missing: set[int]) -> int:
    """Set every gradient but those of the missing blocks; count the numbers that an update then moves."""
    absent = {id(parameter) for block in missing for parameter in model.blocks[block].parameters()}
    moved = 0
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = None if id(parameter) in absent else gradient
        moved += 0 if id(parameter) in absent else parameter.numel()
    return moved


def optimizer_table(bench: Bench, rows: dict[int, dict[str, list[float]]], updated: dict[int, int]) -> str:
    lines = [
        "## The optimizer when blocks ran in no group",
        "",
        "| blocks without gradient | parameters updated, M | clipping, ms (range) | AdamW, ms (range) | LAMB, ms (range) "
        "| parameters, all = 1 | clipping, all = 1 | AdamW, all = 1 | LAMB, all = 1 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for dropped, times in rows.items():
        cells = [str(dropped), f"{updated[dropped] / 1e6:.2f}"]
        cells += [f"{1e3 * statistics.median(t):.3f} ({1e3 * min(t):.3f} to {1e3 * max(t):.3f})" for t in times.values()]
        cells += [f"{updated[dropped] / updated[0]:.3f}"]
        cells += [f"{statistics.median(a / b for a, b in zip(t, rows[0][name], strict=True)):.3f}" for name, t in times.items()]
        lines.append(f"| {' | '.join(cells)} |")
        bench.say(lines[-1])
    return "\n".join([*lines, "", f"Medians of {bench.options.repeats} updates of each row, taken in turn; ratios of neighbours."])


# Calls


def ask_calls(bench: Bench) -> str:
    """Count what the profiler sees in each phase of a step."""
    on_cuda = bench.runtime.device.type == "cuda"
    what = "kernels, copies and fills on the device" if on_cuda else "aten operators, those that operators call included"
    lines = [
        "## Calls",
        "",
        f"Counted: {what}.",
        "",
        "| draws | blocks dropped | forward and backward | clipping | optimizer | a step | fewer than with all blocks, per dropped block |",
        "|---|---|---|---|---|---|---|",
    ]
    for draws in DRAWS:
        dense = 0
        for dropped in bench.dropped:
            counts = count_calls(bench, draws, dropped)
            whole = sum(counts.values())
            dense = dense or whole
            fewer = f"{(dense - whole) / dropped:.1f}" if dropped else "-"
            lines.append(f"| {draws} | {dropped} | {' | '.join(map(str, counts.values()))} | {whole} | {fewer} |")
            bench.say(lines[-1])
    return "\n".join([*lines, "", "All groups of a step drop the same blocks here."])


def count_calls(bench: Bench, draws: int, dropped: int) -> dict[str, int]:
    counts = dict.fromkeys(("passes", "clipping", "optimizer"), 0)
    on_cuda = bench.runtime.device.type == "cuda"

    @contextmanager
    def counting(phase: str) -> Iterator[None]:
        with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]) as profiler:
            yield
            bench.runtime.synchronize()
        events = profiler.events() or []
        if on_cuda:
            counts[phase] = sum(event.device_type == torch.autograd.DeviceType.CUDA for event in events)
        else:
            counts[phase] = sum(event.name.startswith("aten::") for event in events)

    trainer, plans = bench.trainer(draws), bench.plans(draws, dropped)
    timed_step(trainer, plans)  # what is done once, such as compiling, is out of the way
    timed_step(trainer, plans, counting)
    return counts


# Communication


def ask_communication(bench: Bench) -> str:
    """Count what `Runtime.finish` would send with two processes, and weigh it by drawn gates."""
    sent = {dropped: count_sent(bench, dropped) for dropped in range(bench.num_blocks + 1)}
    lines = [
        "## Communication",
        "",
        "Calls and bytes that a step's gradients hand to all-reduce with two processes; nothing is sent, and the time is not measured.",
        "",
        "| blocks without gradient | all-reduce calls | MB |",
        "|---|---|---|",
        *(f"| {dropped} | {calls} | {size / 1e6:.2f} |" for dropped, (calls, size) in sent.items() if dropped in bench.dropped),
        "",
        f"Over {DRAWN_STEPS:,} steps of gates drawn at theta {bench.config(1).pld.theta_bar:g}:",
        "",
        "| gates | blocks dropped per draw, mean | blocks without gradient, mean | all-reduce calls, mean | bytes, all blocks = 1 |",
        "|---|---|---|---|---|",
    ]
    for draws, draw in itertools.product(DRAWS, ("bernoulli", "fixed-depth")):
        schedule = bench.config(draws, pld__draw=draw, train__total_steps=str(DRAWN_STEPS)).pld_schedule
        steps = [[schedule.plan(step, group, seed=0).gates for group in range(draws)] for step in range(DRAWN_STEPS)]
        dropped = statistics.fmean(bench.num_blocks - sum(gates) for groups in steps for gates in groups)
        without = [bench.num_blocks - sum(map(any, zip(*groups, strict=True))) for groups in steps]
        calls, size = (statistics.fmean(sent[count][place] for count in without) for place in range(2))
        share = size / sent[0][1]
        lines.append(f"| {draws} draw(s), {draw} | {dropped:.3f} | {statistics.fmean(without):.3f} | {calls:.2f} | {share:.3f} |")
    bench.say("\n".join(lines))
    return "\n".join(lines)


def count_sent(bench: Bench, dropped: int) -> tuple[int, int]:
    """Count all-reduce calls and bytes of a step; gradients are zeros, for only their presence and size matter."""
    model = bench.trainer(1).model
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for block in model.blocks[:dropped]:
        block.zero_grad(set_to_none=True)
    sizes: list[int] = []

    def all_reduce(tensor: torch.Tensor, *given: Any, **named: Any) -> None:
        sizes.append(tensor.numel() * tensor.element_size())

    replica = Runtime(bench.runtime.device, rank=0, world_size=2)
    replica.replicate(model.units)
    with mock.patch.object(runtime_module.dist, "all_reduce", all_reduce):
        replica.finish()
    model.zero_grad(set_to_none=True)
    return len(sizes), sum(sizes)


# Spread


def ask_spread(bench: Bench) -> str:
    """Train with each kind of gates in turn and look at the distribution of step times."""
    names = {(1, ""): "dense"} | {
        (draws, draw): f"{draws} draw(s), {draw}" for draws, draw in itertools.product(DRAWS, ("bernoulli", "fixed-depth"))
    }
    configs = {
        name: bench.config(draws, **({"pld__draw": draw} if draw else {"pld__theta_bar": "1.0"})) for (draws, draw), name in names.items()
    }
    trainers = {name: build_trainer(config, bench.prepared, bench.runtime) for name, config in configs.items()}
    if any(map(is_compiled, trainers.values())):
        for trainer in trainers.values():
            trainer.warm_up()
    runs = {name: trainer.steps(Position(), observe=lambda step: True, stop=StopRequest()) for name, trainer in trainers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    kept: dict[str, list[float]] = {name: [] for name in runs}
    before = dict.fromkeys(runs, 0.0)
    for step in range(bench.options.steps + WARM_UP_STEPS):
        for name, run in runs.items():
            seen = next(run)
            if step >= WARM_UP_STEPS:
                seconds[name].append(seen.position.train_seconds - before[name])
                kept[name].append(seen.kept_blocks)
            before[name] = seen.position.train_seconds
        if step % 10 == 9:
            bench.say(f"spread: {step + 1} steps of {bench.options.steps + WARM_UP_STEPS}")
    return spread_table(bench, seconds, kept)


def spread_table(bench: Bench, seconds: dict[str, list[float]], kept: dict[str, list[float]]) -> str:
    lines = [
        "## Spread of step time",
        "",
        "| gates | blocks kept, mean ± SD | step, ms: mean | SD | 5th percentile | 95th percentile | SD / mean | mean, dense = 1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, times in seconds.items():
        mean, deviation = statistics.fmean(times), statistics.stdev(times)
        cells = [
            name,
            f"{statistics.fmean(kept[name]):.2f} ± {statistics.stdev(kept[name]):.2f}",
            f"{1e3 * mean:.1f}",
            f"{1e3 * deviation:.1f}",
            f"{1e3 * percentile(times, 0.05):.1f}",
            f"{1e3 * percentile(times, 0.95):.1f}",
            f"{deviation / mean:.3f}",
            f"{mean / statistics.fmean(seconds['dense']):.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
        bench.say(lines[-1])
    note = f"{bench.options.steps} whole training steps of each, taken in turn; `dense` shows what the machine alone varies."
    return "\n".join([*lines, "", note])


def percentile(values: Sequence[float], part: float) -> float:
    """Interpolate between the two values nearest."""
    ordered = sorted(values)
    place = part * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


if __name__ == "__main__":
    main()
