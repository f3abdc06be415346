"""Model card of a finished run, with its curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pldcli import __version__
from pldcli.config import Config, ModelConfig, describe_dropping
from pldcli.console.units import duration, quantity
from pldcli.data.prepared import PreparedData, unknown_shares
from pldcli.engine.checkpoint import Position
from pldcli.engine.metrics import read_metrics
from pldcli.engine.run_directory import RunDirectory, read_starts
from pldcli.model_types import model_type_of
from pldcli.plots.curves import Curve, plot_curves
from pldcli.system import atomic

__all__ = ["write"]

_MOST_NAMES = 3


def write(run: RunDirectory, config: Config, prepared: PreparedData, position: Position, command: str) -> None:
    """Draw the curves and write runs/NAME/README.md."""
    rows = read_metrics(run.metrics)
    _plot(run, rows)
    start = next(iter(read_starts(run.environment)), {})
    command = start.get("command") or command  # that of the first start, which made the run
    atomic.write_text(run.card, _card(run, config, prepared, position=position, command=command, rows=rows, start=start))


def _plot(run: RunDirectory, rows: list[dict[str, Any]]) -> None:
    training = [row for row in rows if row.get("train/loss") is not None]
    validation = [row for row in rows if row.get("eval/mlm_loss") is not None]
    steps = [row["step"] for row in training]
    losses = [
        Curve("training, kept blocks only", steps, [row["train/loss"] for row in training]),
        Curve("validation, full depth", [row["step"] for row in validation], [row["eval/mlm_loss"] for row in validation], "points"),
    ]
    plot_curves(losses, run.plots / "loss.png", title=run.path.name, x_label="step", y_label="loss (nats)")
    for name, file, label in (
        ("pld/kept_blocks", "kept_blocks.png", "blocks that ran"),
        ("speed/tokens_per_second", "tokens_per_second.png", "tokens per second"),
        ("optim/learning_rate", "learning_rate.png", "learning rate"),
    ):
        curve = Curve(label, steps, [row[name] for row in training])
        plot_curves([curve], run.plots / file, title=run.path.name, x_label="step", y_label=label)


def _card(
    run: RunDirectory,
    config: Config,
    prepared: PreparedData,
    *,
    position: Position,
    command: str,
    rows: list[dict[str, Any]],
    start: dict[str, Any],
) -> str:
    evaluation: dict[str, Any] = next((row for row in reversed(rows) if row.get("eval/mlm_loss") is not None), {})
    training: dict[str, Any] = next((row for row in reversed(rows) if row.get("train/loss") is not None), {})
    counts = prepared.manifest["counts"]
    names = [Path(source["name"]).name for source in prepared.manifest["sources"]]
    sources = ", ".join(names[:_MOST_NAMES]) + f" and {len(names) - _MOST_NAMES} more files" * (len(names) > _MOST_NAMES)
    unknown = "".join(f", {share:.2%} of the {split} tokens unknown" for split, share in unknown_shares(counts).items())
    objective = config.objective
    shares = " to ".join(f"{share:.0%}" for share in dict.fromkeys(objective.mask_probabilities))
    targets = f"masked LM, {shares} of the tokens" + f" by {objective.masking}" * (objective.masking != "token")
    targets += " + next sentence" * objective.next_sentence + " + span boundary" * objective.span_boundary
    lengths = ", ".join(f"{length:,}" for length in config.curriculum.sequences_by_length)
    hardware = f"{start.get('hardware', 'unknown')}, {start.get('precision', '')}"
    workers = f"{start.get('processes', 1)} process(es), {start.get('threads', '?')} thread(s)"
    heads = ["next-sentence"] * objective.next_sentence + ["span-boundary"] * objective.span_boundary
    left_out = "".join(f"\nIt was trained with a {head} head, which is left out of `model/`.\n" for head in heads)
    norm = f"{config.model.norm.capitalize()}-LN (`{model_type_of(dict(config.model))}`)"
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
tags: [pldcli, progressive-layer-dropping, masked-lm]
---

# {run.path.name}

A {norm} encoder with {config.model.num_hidden_layers} blocks of width {config.model.hidden_size}, pre-trained with pldcli {__version__}.
{_windows(config.model)}Progressive layer dropping: {describe_dropping(config)}. All blocks run when the model is used.
{left_out}
```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

model = AutoModelForMaskedLM.from_pretrained("{run.model}")
tokenizer = AutoTokenizer.from_pretrained("{run.model}")
```

## How it was made

    {command}

| | |
|---|---|
| data | {sources}: {counts["train"]["documents"]:,} documents, {counts["train"]["tokens"]:,} tokens |
| vocabulary | {prepared.vocab_size:,} entries{unknown} |
| seen | {position.tokens:,} tokens in {position.sequences:,} sequences of {lengths}, {position.step:,} steps |
| one step | {config.curriculum.describe()} tokens |
| objective | {targets} |
| executed | {quantity(position.executed_flops)}FLOP, forward and backward, dropped blocks not counted |
| training time | {duration(position.train_seconds)} ({duration(position.wall_seconds)} with validation and saving) |
| hardware | {hardware}, {workers} |
| seed | {config.train.seed} |

## Results

| | |
|---|---|
| training loss of the last step | {_number(training.get("train/loss"))} |
| validation masked-LM loss (full depth, fixed masks) | {_number(evaluation.get("eval/mlm_loss"))} |
| the same of the unigram baseline (token frequencies, no context) | {_number(evaluation.get("eval/frequency_loss"))} |
| validation perplexity | {_number(evaluation.get("eval/perplexity"))} |
| validation accuracy on masked tokens | {_number(evaluation.get("eval/mlm_accuracy"))} |

![loss](plots/loss.png)
![blocks that ran](plots/kept_blocks.png)
![learning rate](plots/learning_rate.png)
![tokens per second](plots/tokens_per_second.png)

The full configuration is in `config.yaml`, versions and hardware in `environment.json`, every logged step in `metrics.jsonl`.
"""


def _windows(model: ModelConfig) -> str:
    if not model.has_local_layers:
        return ""
    return f"{len(model.global_layer_numbers)} of the blocks attend to all tokens, the others to windows of {model.local_attention}.\n"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
