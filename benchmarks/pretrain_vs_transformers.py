"""Time pre-training steps of pld against transformers, in turn, on this machine.

    pip install -e '.[bench]'
    python benchmarks/pretrain_vs_transformers.py --shapes L4-H256 --vocab 8192 --precision fp32 bf16 --threads 1 --out table.md
    python benchmarks/pretrain_vs_transformers.py --shapes L8-H128-A4 --vocab 8192 --precision fp32 --threads 1 --local-attention \\
        --base modernbert --systems modernbert-sparse modernbert-trainer modern-full-head modern modern-pld --out modern.md

The same masked tensors for all, the same weights where the architecture is the same, weights in float32, dropout equal, clipping at 1,
fused AdamW with equal settings, constant learning rate. Nothing is timed unless the losses of all systems with equal weights agree to
1e-5 in float32 on the first batch. All systems live in this process and take a few steps when it is their turn; the first turn is
another system's in every round. Ratios are of the same round; their median counts, and for PLD the mean, because its steps differ.

Our engine tells the C library to keep freed memory, and in one process that serves the others too. With `--own-processes` each system
has a process of its own and the memory that it would have in use; what that is worth depends on what a page fault costs on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from measuring import rotated, say
from pldcli.system import atomic
from pretrain_cases import Case, save_modern_weights, save_weights
from pretrain_systems import DROPPING, EQUAL_WEIGHTS, FULL_HEAD, MODERN, OUR_MODERN, SYSTEMS, Elsewhere, System, build, gated_width, serve
from reporting import command, hardware, head, row, software

WARM_UP_STEPS = 4
TOLERANCE = 1e-5
COLUMNS = ("shape", "V", "system", "M parameters", "tokens/s", "GFLOP/s")
"""And the rate over that of the system that others are compared with."""
SAVINGS_COLUMNS = (
    "shape",
    "V",
    "blocks kept",
    "PLD / dense Pre-LN, time",
    "time saved",
    "operations saved, predicted",
    "by the blocks that ran",
    "time saved / predicted",
    "/ by the blocks that ran",
)
DENSE_OF = {"pld": "dense-preln", "modern-pld": "modern"}
USUAL = ("bert", "modernbert", "full-head", "dense", "dense-preln", "pld")


def require_equal(losses: dict[str, float], what: str) -> None:
    """Refuse to go on when systems with equal weights differ in their loss."""
    said = ", ".join(f"{name} {loss:.7f}" for name, loss in losses.items())
    say(f"{what}: float32 losses before the first step: {said}")
    if not largest_difference(losses) <= TOLERANCE:
        sys.exit(f"{what}: with equal weights the losses differ by more than {TOLERANCE:g} of them: {said}")


@dataclass
class Found:
    """What was measured of one case."""

    case: Case
    steps_per_round: int
    losses: dict[str, float] = field(default_factory=dict)
    num_parameters: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """Per system, of each round."""
    base: str = "bert"
    """The system that others are compared with."""

    def times(self, name: str, base: str) -> list[float]:
        """Divide the times of two systems, round by round."""
        return [own / other for own, other in zip(self.seconds[name], self.seconds[base], strict=True)]

    def middle(self, name: str, values: Sequence[float]) -> float:
        """Sum rounds up: PLD's differ in what they draw, so that the median is not what a run takes."""
        return statistics.fmean(values) if name in DROPPING else statistics.median(values)

    def rows(self) -> list[str]:
        """Write the lines of the table."""
        lines = []
        for name, seconds in self.seconds.items():
            times = self.times(name, self.base)
            rate = self.case.tokens * self.steps_per_round / self.middle(name, seconds)
            ratio = "1" if name == self.base else f"{1 / self.middle(name, times):.2f} ({1 / max(times):.2f} to {1 / min(times):.2f})"
            place = (self.case.shape, f"{self.case.vocab_size:,}", SYSTEMS[name], f"{self.num_parameters[name] / 1e6:.2f}")
            lines.append(row(*place, f"{rate:,.0f}", f"{rate * self.flops(name) / 1e9:,.1f}", ratio))
        return lines

    def flops(self, name: str) -> float:
        """Count the operations of a token: of the blocks that ran, and of the head at every position or at masked ones."""
        model = self.case.config("modern" if name in MODERN else "pre").model
        share = 1.0 if name in FULL_HEAD else self.case.masked_per_row / self.case.seq_len
        kept = self.kept_blocks(name) if name in DROPPING else model.num_hidden_layers
        return model.flops(self.case.seq_len, share).executed(kept)

    def kept_blocks(self, name: str) -> float:
        """Average over the steps that count the number of blocks that a system with dropping ran."""
        schedule = self.case.config("modern" if name in MODERN else "pre", theta_bar=0.5).pld_schedule
        steps = range(WARM_UP_STEPS, self.case.total_steps)
        return statistics.fmean(schedule.plan(step, 0, seed=self.case.seed).kept_blocks for step in steps)

    def savings(self) -> list[str]:
        """Compare each system that drops layers with its dense twin."""
        return [self.saving(name, dense) for name, dense in DENSE_OF.items() if {name, dense} <= self.seconds.keys()]

    def saving(self, name: str, dense: str) -> str:
        """Write the time saved, and the operations saved as predicted and by the blocks that ran."""
        case, config = self.case, self.case.config("modern" if name in MODERN else "pre", theta_bar=0.5)
        schedule, blocks = config.pld_schedule, config.model.num_hidden_layers
        kept = self.kept_blocks(name)
        predicted, executed = config.flops.total_saved(schedule.mean_kept_fraction), config.flops.total_saved(kept / blocks)
        times = self.times(name, dense)
        saved = 1.0 - statistics.fmean(times)
        cells = [f"{kept:.3f} of {blocks}", f"{1 - saved:.3f} ({min(times):.3f} to {max(times):.3f})", f"{saved:.3f}"]
        cells += [f"{predicted:.3f}", f"{executed:.3f}", f"{saved / predicted:.2f}", f"{saved / executed:.2f}"]
        return row(f"{case.shape}, modern" if name in MODERN else case.shape, f"{case.vocab_size:,}", *cells)


def measure(case: Case, names: Sequence[str], rounds: int, steps: int, *, own_processes: bool, base: str = "bert") -> Found:
    """Let the systems take their steps in turn."""
    found = Found(case, steps, base=base)
    what = f"{case.shape}, V {case.vocab_size:,}, {case.precision}"
    with ExitStack() as stack:
        systems: dict[str, System] = {}
        for name in names:
            systems[name] = Elsewhere(name, case) if own_processes else build(name, case, stack)
            if own_processes:
                stack.callback(systems[name].close)
        found.losses = {name: system.loss() for name, system in systems.items()}
        require_equal(found.losses, what)
        found.num_parameters = {name: system.num_parameters() for name, system in systems.items()}
        found.seconds = {name: [] for name in names}
        for system in systems.values():
            system.take(WARM_UP_STEPS)
        for turn in range(rounds):
            for name in rotated(names, turn):
                found.seconds[name].append(systems[name].take(steps))
    return found


def main() -> None:
    options = parse()
    if options.worker:
        name, case = json.loads(options.worker)
        serve(name, Case(**case))
        return
    torch.set_num_threads(options.threads)
    names = [name for name in SYSTEMS if name == options.base or name in options.systems or (options.trainer and name == "bert-trainer")]
    measured: list[Found] = []
    for precision in options.precision:
        for shape in options.shapes:
            for vocab_size in options.vocab:
                with tempfile.TemporaryDirectory() as scratch:
                    case = make_case(options, shape, vocab_size, precision, scratch)
                    save_weights(case)
                    if any(name in OUR_MODERN for name in names):
                        save_modern_weights(case)
                    found = measure(case, names, options.rounds, options.steps, own_processes=options.own_processes, base=options.base)
                measured.append(found)
                say(*found.rows(), *found.savings())
                if options.out:
                    atomic.write_text(options.out, report(measured, options))
    print(report(measured, options))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=["L4-H256", "L6-H384", "L12-H768"],
        help="layers and width, and heads where they are not 64 wide (L8-H128-A4); F = 4 H",
    )
    parser.add_argument("--vocab", nargs="+", type=int, default=[8192, 30522], help="entries of the vocabulary")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=["fp32", "bf16"])
    parser.add_argument("--systems", nargs="+", default=list(USUAL), choices=list(SYSTEMS), help="that of --base is always there")
    parser.add_argument(
        "--base", default="bert", choices=["bert", "bert-trainer", "modernbert", "modernbert-trainer"], help="what rates are divided by"
    )
    parser.add_argument("--trainer", action="store_true", help="BertForMaskedLM in Trainer with its defaults too, which is slow")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each system that count")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn")
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a step")
    parser.add_argument("--seq-len", type=int, default=128, help="tokens of a row")
    parser.add_argument("--dropout", type=float, default=0.0, help="on both sides, everywhere")
    parser.add_argument(
        "--local-attention",
        action="store_true",
        help="ModernBERT's default layers instead of global attention in all, in its own and in our modern model",
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile: our parts as the engine does, their whole model")
    parser.add_argument(
        "--own-processes", action="store_true", help="each system in a process of its own, with the memory that it asks for"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="a markdown file for the tables, written after each shape")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.tokens % options.seq_len or options.rounds < 1 or options.steps < 1:
        parser.error("--tokens must be a multiple of --seq-len, and --rounds and --steps at least 1")
    return options


def make_case(options: argparse.Namespace, shape: str, vocab_size: int, precision: str, weights: str) -> Case:
    return Case(
        shape=shape,
        vocab_size=vocab_size,
        precision=precision,
        seq_len=options.seq_len,
        tokens=options.tokens,
        dropout=options.dropout,
        threads=options.threads,
        total_steps=WARM_UP_STEPS + options.rounds * options.steps,
        local_attention=options.local_attention,
        compiled=options.compile,
        seed=options.seed,
        weights=weights,
    )


def report(measured: Sequence[Found], options: argparse.Namespace) -> str:
    parts = [f"# Pre-training against transformers\n\n    {command()}\n\n{facts(measured[0].case, options)}\n\n{notes(measured)}\n"]
    for precision in dict.fromkeys(found.case.precision for found in measured):
        of_it = [found for found in measured if found.case.precision == precision]
        rows = [line for found in of_it for line in found.rows()]
        columns = (*COLUMNS, f"rate / {SYSTEMS[options.base]}")
        parts.append("\n".join([f"## {precision}\n\n{head(*columns)}", *rows]) + "\n")
        if savings := [line for found in of_it for line in found.savings()]:
            parts.append("\n".join([head(*SAVINGS_COLUMNS), *savings]) + "\n")
    return "\n".join(parts)


def facts(case: Case, options: argparse.Namespace) -> str:
    where = "each in a process of its own" if options.own_processes else "all in one process, in which freed memory is kept"
    return (
        f"{options.rounds} rounds of {options.steps} steps of each system in turn after {WARM_UP_STEPS} to warm up, {where}, "
        f"{options.threads} thread(s), {case.rows} rows of {case.seq_len} tokens a step, {case.masked_per_row} targets in each, dropout "
        f"{case.dropout:g}, {'compiled' if case.compiled else 'nothing compiled'}. {hardware()}; {software('transformers', 'torch')}."
    )


def notes(measured: Sequence[Found]) -> str:
    attention = "in two of three layers local, its default" if measured[0].case.local_attention else "global in every layer"
    widths = " and ".join(dict.fromkeys(str(gated_width(found.case.sizes[1])) for found in measured))
    pairs = f"BertForMaskedLM and our Post-LN model (`{SYSTEMS['full-head']}`, `{SYSTEMS['dense']}`) have the same weights"
    if any(name in OUR_MODERN for name in measured[0].seconds):
        pairs += f", ModernBertForMaskedLM and our modern model (`{SYSTEMS['modern-full-head']}`, `{SYSTEMS['modern']}`) have too"
    return (
        f"{pairs}; their float32 losses on the first batch agree to {TOLERANCE:g} (largest difference here "
        f"{max(largest_difference(found.losses) for found in measured):.1e} of the loss). ModernBERT is another architecture than BERT "
        f"with as many layers, the same width and about as many parameters (gated feed-forward layer of {widths}), attention {attention}. "
        f"Plain loops have autocast in bf16 tables; Trainer's defaults are float32 in all. PLD: theta_bar 0.5 constant, depth rule "
        f"`paper`, draw `fixed-depth`, Pre-LN; its rate and ratios are means, all others medians of the rounds (lowest to highest). "
        f"GFLOP/s counts what ran: dropped blocks never, the head where it scores."
    )


def largest_difference(losses: dict[str, float]) -> float:
    """Find the largest relative difference of losses among systems with equal weights."""
    differences = [0.0]
    for names in EQUAL_WEIGHTS:
        compared = [losses[name] for name in names if name in losses]
        if len(compared) > 1:
            differences.append((max(compared) - min(compared)) / min(compared))
    return max(differences) if not any(loss != loss for loss in losses.values()) else float("nan")


if __name__ == "__main__":
    main()
