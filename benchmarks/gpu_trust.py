"""Measure what a long run relies on: section `trust` of benchmarks/gpu.sh.

- Runs that go on from their middle checkpoint end with the weights of the run that was not stopped, in bf16 and with fp16's scaler, by
  kernels that give the same bits each time.
- A save in the background costs a run little at bert-large's size: benchmarks/save_stall.py.
- One process of several holds less where weights are split. A single GPU shows it: the other processes are played by a process group of
  torch that sends nothing, so what is computed means nothing, and what is held is what one of them would hold.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.distributed as dist  # noqa: TID251 - the processes that it plays are not there

from measuring import json_from_process, output_of_process, prepared_documentation, this_device
from pldcli import presets
from pldcli.bench.bench import Source
from pldcli.data.prepared import open_prepared
from pldcli.engine.runtime import Runtime
from pldcli.model import StBert
from pldcli.pretraining.assembly import assemble, place
from pldcli.runs.checkpoint import Position, list_checkpoints, optimizer_tensors
from pldcli.sharding import own_parts
from pldcli.system.signals import StopRequest
from reporting import head, row

__all__ = ["trust"]

STEPS = 8
PLAYED_PROCESSES = 8
STALL = "--preset bert-large-pld --every 8 --saves 2 --rounds 1 --threads 8 --set train.global_batch_size=8"


class Played(Runtime):
    """One process of several, the others of which are always where it is."""

    def sum_on_host(self, values: Sequence[float]) -> list[float]:
        return [self.world_size * value for value in values]


def trust(small: Sequence[str]) -> Iterator[str]:
    """Measure everything.

    Args:
        small: Settings for tiny sizes, or nothing.
    """
    with tempfile.TemporaryDirectory() as scratch:
        data = prepared_documentation(Path(scratch))
        yield head("run, compiled where that is usual", "resumed to the same bits", "another seed to the same bits")
        for precision in ("bf16", "fp16") if torch.cuda.is_available() else ("fp32", "bf16"):
            yield row(precision, *exactness(precision, data, Path(scratch), small))
        yield ""
        words = [str(Path(__file__).with_name("save_stall.py")), "--data", str(data), *STALL.split(), *small]
        yield from output_of_process(words, what="save_stall.py: ").splitlines()
        yield head("bert-large", "weights and optimizer of one process", "most memory in its steps")
        for sharding in ("none", "full"):
            words = [__file__, sharding, str(data), *small]
            held, most = json_from_process(words, what=f"runtime.sharding={sharding}: ")
            yield row(
                f"runtime.sharding={sharding}, one of {PLAYED_PROCESSES}",
                f"{held / 1e9:.3f} GB",
                "not measured" if most is None else f"{most / 1e9:.2f} GB",
            )


def exactness(precision: str, data: Path, scratch: Path, small: Sequence[str]) -> tuple[str, str]:
    """Compare the weights of a run with those of one that goes on from its middle, and of one that has to differ."""
    whole, resumed, other = (scratch / f"{precision}-{name}" for name in ("whole", "resumed", "other"))
    changes = [f"train.total_steps={STEPS}", f"checkpoint.every_steps={STEPS // 2}", "train.global_batch_size=16", "eval.max_sequences=8"]
    changes += [f"runtime.precision={precision}", "runtime.deterministic=true", *small]

    def run(out: Path, *more: str) -> str:
        words = ["-m", "pldcli", "pretrain", "--preset", "bert-base-pld", "--data", str(data), "--out", str(out), *changes, *more]
        output_of_process(words, what=f"{out.name}: ")
        return hashlib.sha256((out / "model" / "model.safetensors").read_bytes()).hexdigest()

    first = run(whole)
    shutil.copytree(whole, resumed)
    shutil.rmtree(resumed / "model")
    shutil.rmtree(list_checkpoints(resumed / "checkpoints")[-1])
    again = run(resumed)
    assert len(json.loads((resumed / "environment.json").read_text(encoding="utf-8"))["starts"]) == 2
    answers = again == first, run(other, "train.seed=1") == first
    for path in (whole, resumed, other):
        shutil.rmtree(path)
    return "yes" if answers[0] else "no", "yes" if answers[1] else "no"


def hold(sharding: str, data: Path, small: Sequence[str]) -> tuple[int, int | None]:
    """Take a few steps as one of several processes; return bytes held between steps, and at most in them, on CUDA."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    device = this_device()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=PLAYED_PROCESSES)
    prepared = open_prepared(data)
    changes = [f"train.global_batch_size={8 * PLAYED_PROCESSES}", "train.micro_batch_size=8", "runtime.compile=off", "train.total_steps=60"]
    config = presets.resolve("bert-large-pld", [*changes, *small], from_data={"model.vocab_size": prepared.vocab_size}).config
    runtime = Played(device, world_size=PLAYED_PROCESSES, num_shards=PLAYED_PROCESSES if sharding == "full" else 1)
    source = Source(config, prepared)
    model = place(StBert(**dict(config.model)), config, runtime)
    trainer = assemble(config, model, source.samples(config), source.masking(config), runtime)
    steps = trainer.steps(Position(), observe=lambda step: step == 3, stop=StopRequest())
    next(steps)
    tensors = [*model.parameters(), *optimizer_tensors(model, trainer.optimizer).values()]
    held = sum(part.nbytes for part in own_parts(tensors))
    return held, torch.cuda.max_memory_allocated() if device.type == "cuda" else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One process's memory; benchmarks/gpu.sh trust asks for it.")
    parser.add_argument("sharding", choices=["none", "full"])
    parser.add_argument("data", type=Path)
    parser.add_argument("small", nargs="*")
    given = parser.parse_args()
    print(json.dumps(hold(given.sharding, given.data, given.small)))
