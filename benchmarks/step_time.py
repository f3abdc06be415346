"""Time a training step with layers dropped against its dense twin, interleaved, on this machine.

    python benchmarks/step_time.py --data data --steps 40 --threads 1 --out benchmarks/results/step-time-cpu.md

Both trainers live in one process and take steps in turn: dense, dropped, dense, dropped. A step is everything that training does:
forward, backward, clipping and optimizer. theta is constant at 0.5, depth rule `paper`. With fixed-depth draws a step runs 8 or 9 of
12 blocks; the mean over the steps is compared with the saving in operations that the schedule predicts.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from pldcli import __version__, atomic, presets
from pldcli.config import Config
from pldcli.data.docstrings import docstring_corpus
from pldcli.data.prepare import prepare
from pldcli.data.shards import open_prepared
from pldcli.engine.checkpoint import Position
from pldcli.engine.environment import hardware_name
from pldcli.engine.pretrain import build_trainer
from pldcli.engine.runtime import launch
from pldcli.engine.signals import StopRequest

WARM_UP_STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a prepared directory; by default one is made of installed documentation")
    parser.add_argument("--size", default="small", choices=["tiny", "small", "base", "large"])
    parser.add_argument("--steps", type=int, default=40, help="steps of each trainer that count")
    parser.add_argument("--batch", type=int, default=32, help="sequences of 128 tokens in a step")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--draw", default="fixed-depth", choices=["fixed-depth", "bernoulli"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="a markdown file for the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        data = options.data or make_data(Path(scratch))
        table = measure(data, options)
    print(table)
    if options.out:
        atomic.write_text(options.out, table)


def make_data(scratch: Path) -> Path:
    corpus = scratch / "corpus.txt"
    corpus.write_text("\n\n".join(docstring_corpus(3_000_000)), encoding="utf-8")
    prepare([corpus], scratch / "data", vocab_size=8192, quiet=True)
    return scratch / "data"


def configure(system: str, data: Path, options: argparse.Namespace) -> Config:
    changes = [
        f"train.total_steps={options.steps + WARM_UP_STEPS}",
        f"train.global_batch_size={options.batch}",
        f"runtime.precision={options.precision}",
        "pld.schedule=constant",
        f"pld.draw={options.draw}",
        "pld.draws_per_step=1",
    ]
    vocabulary = {"model.vocab_size": open_prepared(data, verify=False).vocab_size}
    return presets.resolve(f"bert-{options.size}-{system}", changes, from_data=vocabulary).config


def measure(data: Path, options: argparse.Namespace) -> str:
    configs = {system: configure(system, data, options) for system in ("preln", "pld")}
    prepared = open_prepared(data)
    seconds: dict[str, list[float]] = {system: [] for system in configs}
    blocks: list[float] = []
    with launch() as runtime:
        trainers = {system: build_trainer(config, prepared, runtime) for system, config in configs.items()}
        runs = {system: trainer.steps(Position(), observe=lambda step: True, stop=StopRequest()) for system, trainer in trainers.items()}
        before = dict.fromkeys(configs, 0.0)
        for step in range(options.steps + WARM_UP_STEPS):
            for system, run in runs.items():
                seen = next(run)
                if step >= WARM_UP_STEPS:
                    seconds[system].append(seen.position.train_seconds - before[system])
                    if system == "pld":
                        blocks.append(seen.kept_blocks)
                before[system] = seen.position.train_seconds
        precision, device = trainers["pld"].precision.name, runtime.device
    config = configs["pld"]
    kept = statistics.mean(blocks)
    predicted = config.flops.total_saved(config.pld_schedule.mean_kept_fraction)
    executed = config.flops.total_saved(kept / config.model.num_hidden_layers)
    means = {system: statistics.mean(values) for system, values in seconds.items()}
    ratio = means["pld"] / means["preln"]
    tenth = max(1, len(seconds["pld"]) // 5)
    batches = [
        statistics.mean(seconds["pld"][start : start + tenth]) / statistics.mean(seconds["preln"][start : start + tenth])
        for start in range(0, len(seconds["pld"]) - tenth + 1, tenth)
    ]
    rows = [
        (
            "shape",
            f"bert-{options.size}, {options.batch} x {config.data.seq_len} tokens a step, V {config.model.vocab_size:,}, {precision}",
        ),
        ("dense, seconds per step", spread(seconds["preln"])),
        ("dropped, seconds per step", spread(seconds["pld"])),
        ("blocks kept", f"{kept:.3f} of {config.model.num_hidden_layers} (mean of {len(blocks)} {options.draw} draws)"),
        ("dropped / dense, mean", f"{ratio:.3f} (in five parts of the run: {min(batches):.3f} to {max(batches):.3f})"),
        ("operations saved, predicted", f"{predicted:.3f} (by the blocks that ran: {executed:.3f})"),
        ("time saved / operations saved", f"{(1 - ratio) / predicted:.3f}"),
        ("hardware", f"{hardware_name(device)}; {torch.get_num_threads()} thread(s)"),
        ("software", f"pldcli {__version__}, torch {torch.__version__}, Python {platform.python_version()}"),
    ]
    body = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"# Step time with layers dropped against dense\n\n    {command()}\n\n| | |\n|---|---|\n{body}\n"


def command() -> str:
    return shlex.join(["python", *sys.argv])


def spread(values: list[float]) -> str:
    return f"mean {statistics.mean(values):.3f}, median {statistics.median(values):.3f}, {min(values):.3f} to {max(values):.3f}"


if __name__ == "__main__":
    main()
