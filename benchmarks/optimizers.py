"""Train with LAMB at a multiple of the batch, with Muon, StableAdamW and AdamW, on equally many tokens, and put the losses side by side.

    python benchmarks/optimizers.py --data data --tokens 6553600 --results optimizers --threads 1 --out benchmarks/results/optimizers-cpu.md
    python benchmarks/optimizers.py --data data --tokens 6553600 --results optimizers --threads 1 --only adamw-1x    # one of the runs
    python benchmarks/optimizers.py --data data --tokens 6553600 --results optimizers --threads 1 --table

Kinds of runs, all with the preset's schedule, warm-up fraction, weight decay and seed: `adamw-1x` with the preset's learning rate,
`adamw-Nx` at N times the batch, and `lamb-Nx` at N times the batch, once for each learning rate given. Where learning rates are given for
them, `stable-adamw-1x`, and `muon-1x`, whose rates are those of the blocks' matrices. Every run sees the same rows in the same order; N
times the batch is one Nth of the steps. A run leaves one JSON file in --results and is not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from measuring import say
from pldcli import presets
from pldcli.config import Config
from pldcli.data.prepared import PreparedData, open_prepared
from pldcli.engine.runtime import launch
from pldcli.engine.validation import fixed_batches, score_lm
from pldcli.pretraining.assembly import build_trainer
from pldcli.runs.checkpoint import Position
from pldcli.system import atomic
from pldcli.system.signals import StopRequest
from reporting import command, hardware, head, publish, row, software

CURVE_POINTS = 40
NAMES = {"adamw": "AdamW", "lamb": "LAMB", "muon": "Muon", "stable-adamw": "StableAdamW"}
COLUMNS = (
    "optimizer",
    "batch, sequences",
    "learning rate",
    "steps",
    "tokens",
    "training loss, last tenth",
    "validation loss",
    "beside AdamW",
    "seconds",
)


@dataclass(frozen=True)
class Run:
    """One training run: which optimizer, how many times the batch, and at what rate."""

    optimizer: str
    times: int
    learning_rate: float

    @property
    def name(self) -> str:
        return f"{self.optimizer}-{self.times}x"


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    prepared = open_prepared(options.data, verify=False)
    options.results.mkdir(parents=True, exist_ok=True)
    if not options.table:
        for run in runs_of(options):
            if not place_of(run, options).exists():
                train(run, prepared, options)
    publish(make_table(prepared, options), options.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a prepared directory")
    parser.add_argument("--results", type=Path, required=True, help="a directory for one JSON file per run")
    parser.add_argument("--preset", default="bert-small-preln")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="changes of the preset")
    parser.add_argument("--tokens", type=int, required=True, help="budget of each run")
    parser.add_argument("--batch", type=int, help="sequences in a step of adamw-1x; default: the preset's")
    parser.add_argument("--times", type=int, default=8, help="the large batch, in multiples of the small one")
    parser.add_argument("--lamb-learning-rates", type=float, nargs="+", default=[2e-3, 6e-3, 2e-2])
    parser.add_argument("--adamw-learning-rates", type=float, nargs="+", help="at the large batch; default: the preset's")
    parser.add_argument("--muon-learning-rates", type=float, nargs="+", default=[], help="of the blocks' matrices, at the small batch")
    parser.add_argument("--stable-adamw-learning-rates", type=float, nargs="+", default=[], help="at the small batch")
    parser.add_argument("--only", nargs="+", help="kinds of runs, such as adamw-1x lamb-8x; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--table", action="store_true", help="only write the table of what is there")
    parser.add_argument("--out", type=Path, help="a markdown file for the table")
    return parser.parse_args()


def runs_of(options: argparse.Namespace) -> Iterator[Run]:
    rate = presets.resolve(options.preset, options.set).config.optim.learning_rate
    every = [Run("adamw", 1, rate)]
    every += [Run("adamw", options.times, each) for each in options.adamw_learning_rates or [rate]]
    every += [Run("lamb", options.times, each) for each in options.lamb_learning_rates]
    every += [Run("muon", 1, each) for each in options.muon_learning_rates]
    every += [Run("stable-adamw", 1, each) for each in options.stable_adamw_learning_rates]
    for run in every:
        if not options.only or run.name in options.only:
            yield run


def configure(run: Run, prepared: PreparedData, options: argparse.Namespace) -> Config:
    start = presets.resolve(options.preset, options.set).config
    batch = run.times * (options.batch or start.train.global_batch_size)
    changes = [
        *options.set,
        f"optim.name={run.optimizer}",
        f"optim.{'muon_' if run.optimizer == 'muon' else ''}learning_rate={run.learning_rate!r}",
        f"train.global_batch_size={batch}",
        f"train.total_steps={max(1, options.tokens // (batch * start.data.seq_len))}",
        f"train.seed={options.seed}",
        f"runtime.precision={options.precision}",
    ]
    return presets.resolve(options.preset, changes, from_data={"model.vocab_size": prepared.vocab_size}).config


def place_of(run: Run, options: argparse.Namespace) -> Path:
    words = [Path(options.preset).stem, run.name, f"lr{run.learning_rate:g}", f"tokens{options.tokens}", f"seed{options.seed}"]
    words += [f"batch{options.batch}"] if options.batch else []
    place: Path = options.results / f"{'-'.join(words)}.json"
    return place


def train(run: Run, prepared: PreparedData, options: argparse.Namespace) -> None:
    """Do one run and write its result."""
    config = configure(run, prepared, options)
    total = config.train.total_steps
    with launch(config.runtime.device) as runtime:
        trainer = build_trainer(config, prepared, runtime)
        losses, started = [], time.perf_counter()
        for seen in trainer.steps(Position(), observe=lambda step: True, stop=StopRequest()):
            losses.append(seen.losses["loss"])
            position = seen.position
            if position.step % max(1, total // 10) == 0:
                done = f"{run.name} at {run.learning_rate:g}: step {position.step:,} of {total:,}, loss {losses[-1]:.4f}"
                say(f"{done}, {time.perf_counter() - started:.0f} s")
        batches = fixed_batches(prepared, config.data.seq_len, max_sequences=config.eval.max_sequences)
        score = score_lm(trainer.model, batches, trainer.precision, runtime)
        result = {
            "run": vars(run),
            "preset": options.preset,
            "changes": options.set,
            "batch": config.train.global_batch_size,
            "seq_len": config.data.seq_len,
            "steps": position.step,
            "tokens": position.tokens,
            "train_loss": statistics.fmean(losses[-max(1, total // 10) :]),
            "validation_loss": score.loss,
            "validation_targets": score.num_targets,
            "curve": curve(losses, config.train.global_batch_size * config.data.seq_len),
            "train_seconds": position.train_seconds,
            "data_fingerprint": prepared.data_fingerprint,
            "precision": trainer.precision.name,
            "threads": torch.get_num_threads(),
            "hardware": hardware(runtime.device),
            "software": software(),
            "command": command(),
        }
    atomic.write_text(place_of(run, options), json.dumps(result, indent=1) + "\n")
    found = f"training loss {result['train_loss']:.4f}, validation loss {result['validation_loss']:.4f}"
    say(f"{run.name} at {run.learning_rate:g}: {found}")


def curve(losses: Sequence[float], tokens_per_step: int) -> list[tuple[int, float]]:
    """Average the losses of stretches of the run: tokens at the end of each, and the mean."""
    width = -(-len(losses) // CURVE_POINTS)
    stretches = [(start, losses[start : start + width]) for start in range(0, len(losses), width)]
    return [((start + len(stretch)) * tokens_per_step, statistics.fmean(stretch)) for start, stretch in stretches]


def make_table(prepared: PreparedData, options: argparse.Namespace) -> str:
    found = [json.loads(place.read_text(encoding="utf-8")) for run in runs_of(options) if (place := place_of(run, options)).exists()]
    if not found:
        sys.exit(f"no such runs in {options.results}")
    for result in found:
        if (result["data_fingerprint"], result["changes"]) != (prepared.data_fingerprint, options.set):
            sys.exit(f"{options.results} holds runs on other data, or with other --set")
    first = found[0]
    anchor = first["validation_loss"] if first["run"]["optimizer"] == "adamw" and first["run"]["times"] == 1 else None
    lines = [head(*COLUMNS)]
    for result in found:
        run = Run(**result["run"])
        cells = [
            NAMES[run.optimizer],
            f"{result['batch']:,}",
            f"{run.learning_rate:g}",
            f"{result['steps']:,}",
            f"{result['tokens']:,}",
            f"{result['train_loss']:.4f}",
            f"{result['validation_loss']:.4f}",
            "-" if anchor is None else f"{result['validation_loss'] - anchor:+.4f}",
            f"{result['train_seconds']:,.0f}",
        ]
        lines.append(row(*cells))
    commands = sorted({result["command"] for result in found})
    machines = sorted(
        {f"{result['precision']}, {result['threads']} thread(s), {result['hardware']}; {result['software']}" for result in found}
    )
    changed = f" with {' '.join(options.set)}" if options.set else ""
    facts = (
        f"{options.preset}{changed}, rows of {first['seq_len']} tokens, seed {options.seed}; one run of each. Validation at the end on "
        f"{first['validation_targets']:,} targets under fixed masks. {'; '.join(machines)}."
    )
    return "\n".join(["# Loss at equal tokens", "", *(f"    {command}" for command in commands), "", facts, "", *lines, ""])


if __name__ == "__main__":
    main()
