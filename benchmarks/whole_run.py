"""Time whole `pld pretrain` runs, dense and with layers dropped in turn, against what the schedule promises.

    python benchmarks/whole_run.py --data data --steps 300 --rounds 3 --threads 1 --out benchmarks/results/whole-run-cpu.md

Each run is the command that a user types, in a process of its own, from start to exit: validation, checkpoints, the model and its card
included. Training seconds are the run's own clock, which stands still in validation and saving; wall seconds are the whole process.
The order turns with every round. The saving is read round by round, of two runs that follow each other.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from measuring import output_of_process, prepared_documentation, rotated, say
from pldcli import presets
from pldcli.data.prepared import open_prepared
from pldcli.runs.metrics import read_metrics
from reporting import command, hardware, head, publish, row, software, spread

SYSTEMS = ("preln", "pld")


@dataclass(frozen=True)
class Spent:
    """What a whole run took."""

    train_seconds: float
    wall_seconds: float
    executed_flops: float
    loss: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a prepared directory; by default one is made of installed documentation")
    parser.add_argument("--size", default="tiny", choices=["tiny", "small", "base", "large"])
    parser.add_argument("--steps", type=int, default=300, help="steps of every run; the preset's schedules end with them")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each system")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of every run")
    parser.add_argument("--out", type=Path, help="a markdown file for the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        table = measure(options.data or prepared_documentation(Path(scratch)), Path(scratch), options)
    publish(table, options.out)


def measure(data: Path, scratch: Path, options: argparse.Namespace) -> str:
    spent: dict[str, list[Spent]] = {system: [] for system in SYSTEMS}
    for turn in range(options.rounds):
        for system in rotated(SYSTEMS, turn):
            spent[system].append(whole_run(system, data, scratch / f"{system}-{turn}", options))
            last = spent[system][-1]
            say(f"round {turn + 1}, {system}: {last.train_seconds:.1f} s of training, {last.wall_seconds:.1f} s in all")
    return report(spent, data, options)


def whole_run(system: str, data: Path, out: Path, options: argparse.Namespace) -> Spent:
    """Type the command, and read what it took."""
    words = ["-m", "pldcli", "pretrain", "--preset", f"bert-{options.size}-{system}", "--data", str(data), "--out", str(out)]
    started = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    output_of_process([*words, f"train.total_steps={options.steps}", *options.set], what=f"{system}: ", environment=environment)
    seconds = time.perf_counter() - started
    last = [line for line in read_metrics(out / "metrics.jsonl") if "eval/mlm_loss" in line][-1]
    return Spent(last["progress/train_seconds"], seconds, last["progress/executed_flops"], last["eval/mlm_loss"])


def report(spent: dict[str, list[Spent]], data: Path, options: argparse.Namespace) -> str:
    dense, dropped = (spent[system] for system in SYSTEMS)
    vocabulary = {"model.vocab_size": open_prepared(data, verify=False).vocab_size}
    changes = [f"train.total_steps={options.steps}", *options.set]
    config = presets.resolve(f"bert-{options.size}-pld", changes, from_data=vocabulary).config
    num_blocks = config.model.num_hidden_layers
    promised = 1.0 - config.flops.executed(config.pld_schedule.mean_kept_fraction * num_blocks) / config.flops.executed(num_blocks)
    counted = [1.0 - two.executed_flops / one.executed_flops for one, two in zip(dense, dropped, strict=True)]
    lines = []
    for clock, name in (("train_seconds", "training"), ("wall_seconds", "whole command")):
        ones, twos = ([getattr(run, clock) for run in runs] for runs in (dense, dropped))
        saved = [1.0 - two / one for one, two in zip(ones, twos, strict=True)]
        shares = [share / operations for share, operations in zip(saved, counted, strict=True)]
        lines.append(row(name, spread(ones, 1), spread(twos, 1), spread([100 * share for share in saved], 1), spread(shares)))
    return "\n".join(
        [
            "# Whole runs with layers dropped against dense\n",
            f"    {command()}\n",
            f"bert-{options.size}, {options.steps} steps of {config.train.global_batch_size} x {config.data.seq_len} tokens, "
            f"V {config.model.vocab_size:,}, {options.rounds} runs of each in turn, {options.threads} thread(s);",
            "median (lowest to highest).",
            f"Over the run the schedule promises {promised:.1%} of the operations; {statistics.median(counted):.1%} were saved.\n",
            head("seconds", "dense", "dropped", "saved, %", "of the operations saved"),
            *lines,
            "",
            f"Validation loss after equal tokens: {dense[0].loss:.4f} dense, {dropped[0].loss:.4f} dropped.\n",
            f"{hardware()}; {software()}.\n",
        ]
    )


if __name__ == "__main__":
    main()
