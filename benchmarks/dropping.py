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
import random
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from dropping_counts import ask_calls, ask_communication
from dropping_steps import DRAWS, PHASES, WARM_UP_STEPS, Bench, is_compiled, timed_step
from measuring import prepared_documentation, say, steps_in_turn, timed
from pldcli.data.prepared import open_prepared
from pldcli.engine.runtime import launch
from pldcli.optimizers.build import build_optimizer, clip_gradients
from pldcli.pretraining.assembly import build_trainer
from reporting import command, hardware, head, publish, row, software, spread

PARTS = ("phases", "optimizer", "calls", "communication", "spread")
VARIANTS = {
    "1 draw": (1, False),
    "4 draws, the same blocks in all groups": (4, False),
    "4 draws, other blocks in each group": (4, True),
}
"""Gate groups, and whether each drops other blocks."""
SAVED = ("time saved", "operations saved", "time / operations")


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
        document = make_document(options.data or prepared_documentation(Path(scratch)), options)
    publish(document, options.out)


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
            f"{hardware(runtime.device)}, {torch.get_num_threads()} thread(s); {software()}."
        )
    return "\n\n".join(["# What a dropped block saves", f"    {command()}", facts, *sections]) + "\n"


# A step, phase by phase


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
        say(f"phases: round {number + 1} of {bench.options.rounds}")
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

        def run_block(x: torch.Tensor = x, outputs: list[torch.Tensor] = outputs) -> None:
            outputs.append(trainer.model.blocks[index](x, None, scale))

        def run_back(x: torch.Tensor = x, outputs: list[torch.Tensor] = outputs) -> None:
            outputs[0].backward(torch.ones_like(x))  # type: ignore[no-untyped-call]

        with trainer.precision.autocast():
            first = timed(runtime, run_block)
        second = timed(runtime, run_back)
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
        head("blocks dropped", "without gradient", *(f"{phase}, ms" for phase in PHASES), "step, ms (range)", *SAVED),
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
        whole = spread([1e3 * seconds for seconds in wholes], 1)
        last = [f"{saved:.3f}", f"{predicted:.3f}", f"{saved / predicted:.3f}"] if dropped else ["-", "-", "-"]
        lines.append(row(str(dropped), str(without), *times, whole, *last))
        say(f"{variant} {lines[-1]}")
    return "\n".join([*lines, "", per_block(bench, medians, alone)])


def per_block(bench: Bench, medians: dict[int, dict[str, float]], alone: Sequence[tuple[float, float]]) -> str:
    """Say what each dropped block takes off each phase: the slope of a line through the rows."""
    if len(medians) < 2:
        return ""
    drops = {
        phase: -statistics.linear_regression(list(medians), [taken[phase] for taken in medians.values()]).slope * 1e3 for phase in PHASES
    }
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
    optimizers = {name: build_optimizer(model, settings.replace(name=name, learning_rate=1e-9)) for name in ("adamw", "lamb")}
    rows: dict[int, dict[str, list[float]]] = {dropped: {name: [] for name in ("clipping", *optimizers)} for dropped in bench.dropped}
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
        head(
            "blocks without gradient",
            "parameters updated, M",
            *(f"{what}, ms (range)" for what in ("clipping", "AdamW", "LAMB")),
            *(f"{what}, all = 1" for what in ("parameters", "clipping", "AdamW", "LAMB")),
        ),
    ]
    for dropped, times in rows.items():
        cells = [str(dropped), f"{updated[dropped] / 1e6:.2f}"]
        cells += [spread([1e3 * seconds for seconds in taken], 3) for taken in times.values()]
        cells += [f"{updated[dropped] / updated[0]:.3f}"]
        cells += [f"{statistics.median(a / b for a, b in zip(t, rows[0][name], strict=True)):.3f}" for name, t in times.items()]
        lines.append(row(*cells))
        say(lines[-1])
    return "\n".join([*lines, "", f"Medians of {bench.options.repeats} updates of each row, taken in turn; ratios of neighbours."])


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
    steps = bench.options.steps

    def report(done: int) -> None:
        if done % 10 == 0:
            say(f"spread: {done} steps of {steps + WARM_UP_STEPS}")

    seconds, kept = steps_in_turn(trainers, warm_up_steps=WARM_UP_STEPS, steps=steps, report=report)
    return spread_table(bench, seconds, kept)


def spread_table(bench: Bench, seconds: dict[str, list[float]], kept: dict[str, list[float]]) -> str:
    lines = [
        "## Spread of step time",
        "",
        head(
            "gates",
            "blocks kept, mean ± SD",
            "step, ms: mean",
            "SD",
            "5th percentile",
            "95th percentile",
            "SD / mean",
            "mean, dense = 1",
        ),
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
        lines.append(row(*cells))
        say(lines[-1])
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
