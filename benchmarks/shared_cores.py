"""Time training and fine-tuning on quiet cores and beside a busy process, by how OpenMP's threads wait for one another.

    python benchmarks/shared_cores.py --rounds 3 --out benchmarks/results/shared-cores-cpu.md

Each measurement is the command that a user types, in a process of its own, on as many threads as there are cores; its seconds per step are
the run's own clock. The ways to wait take turns within a round, and rounds on quiet cores alternate with rounds beside a loop that does
nothing and is bound to the first core. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from measuring import documentation, output_of_process, prepared_documentation, rotated, say
from pldcli.runs.metrics import read_metrics
from pldcli.system.workers import available_cores
from reporting import command, hardware, head, publish, row, software, spread

POLICIES = {
    "pld's choice": {},
    "spinning (OpenMP's default)": {"GOMP_SPINCOUNT": "300000"},
    "a short spin": {"GOMP_SPINCOUNT": "1000"},
    "sleeping (PASSIVE)": {"OMP_WAIT_POLICY": "PASSIVE"},
}
SITUATIONS = ("quiet", "beside a busy process")
LABELS = ("short", "long")


@dataclass(frozen=True)
class Work:
    """What is timed."""

    name: str
    preset: str
    """Empty for fine-tuning."""
    changes: tuple[str, ...]
    steps: int


WORKS = (
    Work("bert-tiny, 16 x 32 tokens", "bert-tiny-preln", ("data.seq_len=32", "train.global_batch_size=16"), 100),
    Work("bert-tiny, 8 x 128 tokens", "bert-tiny-preln", ("train.global_batch_size=8",), 60),
    Work("bert-small, 8 x 128 tokens", "bert-small-preln", ("train.global_batch_size=8",), 15),
    Work("fine-tuning bert-tiny, 32 rows", "", (), 0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each kind")
    parser.add_argument("--works", type=int, nargs="*", default=list(range(len(WORKS))), help="which works, by number from 0")
    parser.add_argument("--part", type=float, default=1.0, help="share of the steps")
    parser.add_argument("--out", type=Path, help="a markdown file for the table")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        publish(measure(Path(scratch), options), options.out)


def measure(scratch: Path, options: argparse.Namespace) -> str:
    data, works = prepared_documentation(scratch), [WORKS[number] for number in options.works]
    texts = documentation(scratch, 3_000_000).read_text(encoding="utf-8").split("\n\n")[: max(100, int(2000 * options.part))]
    rows = [(text.split("\n")[0], LABELS[len(text) > 400]) for text in texts]
    (scratch / "texts.jsonl").write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for turn in range(options.rounds):
        for situation in SITUATIONS:
            for work in works:
                for policy in rotated(list(POLICIES), turn):
                    with busy(situation != "quiet"):
                        took = step_seconds(work, data, scratch, POLICIES[policy], options.part)
                    seconds.setdefault((work.name, situation, policy), []).append(took)
                    say(f"round {turn + 1}, {situation}, {work.name}, {policy}: {1e3 * took:.1f} ms a step")
    return report(seconds, works)


@contextmanager
def busy(wanted: bool) -> Iterator[None]:
    """Keep the first core busy with a loop that does nothing."""
    if not wanted:
        yield
        return
    code = f"import os\nos.sched_setaffinity(0, {{{min(os.sched_getaffinity(0))}}})\nwhile True: pass"
    loop = subprocess.Popen([sys.executable, "-c", code])
    try:
        time.sleep(0.5)  # it runs before the command looks
        yield
    finally:
        loop.kill()
        loop.wait()


def step_seconds(work: Work, data: Path, scratch: Path, policy: dict[str, str], part: float) -> float:
    """Type the command, and read the mean time of its steps."""
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | policy
    environment["OMP_NUM_THREADS"] = str(available_cores())
    model = scratch / "model"
    if not work.preset and not model.is_dir():
        words = ["pretrain", "--preset", "bert-tiny-preln", "train.total_steps=1", "--data", str(data), "--out", str(model)]
        output_of_process(["-m", "pldcli", *words], what="a model to fine-tune: ", environment=environment)
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        if work.preset:
            steps = max(2, round(work.steps * part))
            words = ["pretrain", "--preset", work.preset, *work.changes, f"train.total_steps={steps}", "eval.max_sequences=8"]
            output_of_process(["-m", "pldcli", *words, "--data", str(data), "--out", place], what=f"{work.name}: ", environment=environment)
            last = [line for line in read_metrics(Path(place) / "metrics.jsonl") if "train/loss" in line][-1]
            return float(last["progress/train_seconds"] / last["step"])
        words = ["finetune", str(scratch / "texts.jsonl"), "--model", str(model), "epochs=1", "--jobs", "1", "--out", place]
        output_of_process(["-m", "pldcli", *words], what=f"{work.name}: ", environment=environment)
        [cell] = json.loads((Path(place) / "results.json").read_text(encoding="utf-8"))["cells"].values()
        return float(cell["train_seconds"] / cell["total_steps"])


def report(seconds: dict[tuple[str, str, str], list[float]], works: list[Work]) -> str:
    lines = []
    for situation in SITUATIONS:
        lines += [f"\n## {situation.capitalize()}\n", head("milliseconds per step", *POLICIES)]
        for work in works:
            lines.append(row(work.name, *(spread([1e3 * one for one in seconds[work.name, situation, policy]], 1) for policy in POLICIES)))
    return "\n".join(
        [
            "# How threads wait for one another, on quiet cores and on shared ones\n",
            f"    {command()}\n",
            f"Mean time of a step within a run; of {len(next(iter(seconds.values())))} runs the median (lowest to highest), "
            f"{available_cores()} threads.",
            *lines,
            "",
            f"{hardware('cpu')}; {software()}.\n",
        ]
    )


if __name__ == "__main__":
    main()
