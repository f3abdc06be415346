"""Time a training step with layers dropped against its dense twin, interleaved, on this machine.

    python benchmarks/step_time.py --data data --steps 40 --threads 1 --out benchmarks/results/step-time-cpu.md

Both trainers live in one process and take steps in turn: dense, dropped, dense, dropped. A step is everything that training does:
forward, backward, clipping and optimizer. theta is constant at 0.5, depth rule `paper`. With fixed-depth draws a step runs 8 or 9 of
12 blocks; the mean over the steps is compared with the saving in operations that the schedule predicts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import torch

from measuring import prepared_documentation, steps_in_turn
from pldcli import presets
from pldcli.config import Config
from pldcli.data.prepared import open_prepared
from pldcli.engine.runtime import launch
from pldcli.pretraining.assembly import build_trainer
from reporting import command, hardware, publish, row, software

WARM_UP_STEPS = 3
PARTS = 5


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
        table = measure(options.data or prepared_documentation(Path(scratch)), options)
    publish(table, options.out)


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
    with launch() as runtime:
        trainers = {system: build_trainer(config, prepared, runtime) for system, config in configs.items()}
        seconds, blocks = steps_in_turn(trainers, warm_up_steps=WARM_UP_STEPS, steps=options.steps)
        precision, device = trainers["pld"].precision.name, runtime.device
    shape = f"bert-{options.size}, {options.batch} x {configs['pld'].data.seq_len} tokens a step"
    rows = [
        ("shape", f"{shape}, V {configs['pld'].model.vocab_size:,}, {precision}"),
        *compare(configs["pld"], seconds["preln"], seconds["pld"], blocks["pld"], options.draw),
        ("hardware", f"{hardware(device)}; {torch.get_num_threads()} thread(s)"),
        ("software", software()),
    ]
    body = "\n".join(row(*cells) for cells in rows)
    return f"# Step time with layers dropped against dense\n\n    {command()}\n\n| | |\n|---|---|\n{body}\n"


def compare(config: Config, dense: list[float], dropped: list[float], blocks: list[float], draw: str) -> list[tuple[str, str]]:
    """Put the time saved beside the operations saved."""
    kept = statistics.mean(blocks)
    predicted = config.flops.total_saved(config.pld_schedule.mean_kept_fraction)
    executed = config.flops.total_saved(kept / config.model.num_hidden_layers)
    ratio = statistics.mean(dropped) / statistics.mean(dense)
    length = max(1, len(dropped) // PARTS)
    starts = range(0, len(dropped) - length + 1, length)
    parts = [statistics.mean(dropped[start : start + length]) / statistics.mean(dense[start : start + length]) for start in starts]
    return [
        ("dense, seconds per step", summary(dense)),
        ("dropped, seconds per step", summary(dropped)),
        ("blocks kept", f"{kept:.3f} of {config.model.num_hidden_layers} (mean of {len(blocks)} {draw} draws)"),
        ("dropped / dense, mean", f"{ratio:.3f} (in five parts of the run: {min(parts):.3f} to {max(parts):.3f})"),
        ("operations saved, predicted", f"{predicted:.3f} (by the blocks that ran: {executed:.3f})"),
        ("time saved / operations saved", f"{(1 - ratio) / predicted:.3f}"),
    ]


def summary(values: list[float]) -> str:
    return f"mean {statistics.mean(values):.3f}, median {statistics.median(values):.3f}, {min(values):.3f} to {max(values):.3f}"


if __name__ == "__main__":
    main()
