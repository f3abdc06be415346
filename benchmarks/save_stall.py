"""Measure what saving a checkpoint costs a run: in the background, and while training waits.

    python benchmarks/save_stall.py --preset bert-base-pld --out benchmarks/results/save-stall-cpu.md

Each run is the command that a user types, in a process of its own, with a checkpoint every few steps and its clock read at each step.
What a save costs is the wall time of the steps from one save to the next, less as many of the steps that end such an interval, when all
has long been written: the copy on the host, and what the writing takes from the steps beside it. The two ways take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from measuring import output_of_process, prepared_documentation, rotated, say
from pldcli import presets
from pldcli.data.prepared import open_prepared
from pldcli.runs.metrics import read_metrics
from reporting import command, hardware, head, publish, row, software, spread

WAYS = {"on": "in the background", "off": "training waits"}


@dataclass(frozen=True)
class Run:
    """What one run told."""

    step_seconds: float
    """Median of the quiet steps."""
    costs: list[float]
    """Seconds of each save."""
    megabytes: float
    """Of a checkpoint."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a prepared directory; by default one is made of installed documentation")
    parser.add_argument("--preset", default="bert-base-pld")
    parser.add_argument("--every", type=int, default=12, help="steps from one save to the next; the second half has to be quiet")
    parser.add_argument("--saves", type=int, default=4, help="of each run")
    parser.add_argument("--rounds", type=int, default=2, help="runs of each way")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=["train.global_batch_size=4"], metavar="KEY=VALUE", help="settings of every run")
    parser.add_argument("--out", type=Path, help="a markdown file for the table")
    options = parser.parse_args()
    if options.every < 4:
        parser.error("--every must be at least 4")
    with tempfile.TemporaryDirectory() as scratch:
        table = measure(options.data or prepared_documentation(Path(scratch)), Path(scratch), options)
    publish(table, options.out)


def measure(data: Path, scratch: Path, options: argparse.Namespace) -> str:
    runs: dict[str, list[Run]] = {way: [] for way in WAYS}
    for turn in range(options.rounds):
        for way in rotated(list(WAYS), turn):
            runs[way].append(one_run(way, data, scratch, options))
            last = runs[way][-1]
            say(f"round {turn + 1}, {WAYS[way]}: {last.step_seconds:.2f} s a step, {statistics.median(last.costs):.2f} s a save")
    return report(runs, data, options)


def one_run(way: str, data: Path, scratch: Path, options: argparse.Namespace) -> Run:
    """Type the command, and read its clock."""
    steps = options.every * (options.saves + 1)
    changes = [f"train.total_steps={steps}", "train.log_every_steps=1", f"checkpoint.every_steps={options.every}", "eval.max_sequences=8"]
    changes += [f"eval.every_steps={steps}", f"checkpoint.background={way}", *options.set]
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        words = ["-m", "pldcli", "pretrain", "--preset", options.preset, "--data", str(data), "--out", place, *changes]
        output_of_process(words, what=f"{WAYS[way]}: ", environment=os.environ | {"OMP_NUM_THREADS": str(options.threads)})
        rows = [line for line in read_metrics(Path(place) / "metrics.jsonl") if "train/loss" in line]
        newest = max(Path(place, "checkpoints").glob("step-*"))
        megabytes = sum(file.stat().st_size for file in newest.iterdir()) / 1e6
    clock = {line["step"]: line["progress/wall_seconds"] for line in rows}
    took = {step: clock[step] - clock[before] for before, step in pairwise(sorted(clock))}
    half = options.every // 2
    quiet = statistics.median(seconds for step, seconds in took.items() if step > options.every and (step - 1) % options.every >= half)
    edges = range(options.every, steps, options.every)
    costs = [sum(took[edge + one] - quiet for one in range(1, half + 1)) for edge in edges]
    return Run(quiet, costs, megabytes)


def report(runs: dict[str, list[Run]], data: Path, options: argparse.Namespace) -> str:
    vocabulary = {"model.vocab_size": open_prepared(data, verify=False).vocab_size}
    config = presets.resolve(options.preset, options.set, from_data=vocabulary).config
    lines, every = [], config.checkpoint.every_steps
    for way, name in WAYS.items():
        costs = [cost for run in runs[way] for cost in run.costs]
        step = statistics.median(run.step_seconds for run in runs[way])
        share = 100 * statistics.median(costs) / (every * step)
        lines.append(row(name, f"{step:.2f}", spread(costs), f"{share:.2f}"))
    return "\n".join(
        [
            "# What a checkpoint costs a run\n",
            f"    {command()}\n",
            f"{options.preset}, V {config.model.vocab_size:,}: {runs['on'][0].megabytes:,.0f} MB a checkpoint; steps of "
            f"{config.train.global_batch_size} x {config.data.seq_len} tokens; {options.rounds} runs of {options.saves} saves each, "
            f"in turn; {options.threads} thread(s); median (lowest to highest). The interval is the preset's own, {every:,} steps.\n",
            head("saving", "seconds of a quiet step", "seconds that a save costs", "of the interval, %"),
            *lines,
            "",
            f"{hardware()}; {software()}.\n",
        ]
    )


if __name__ == "__main__":
    main()
