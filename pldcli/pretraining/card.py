"""Model card of a finished run, with its curves."""

from __future__ import annotations

import json
from pathlib import Path
from textwrap import indent
from typing import Any

from pldcli import __version__
from pldcli.config import Config, ModelConfig, describe_dropping
from pldcli.console.section import markdown_text
from pldcli.console.units import duration, quantity
from pldcli.data.prepared import PreparedData, unknown_shares
from pldcli.model_types import model_type_of
from pldcli.plots.curves import Curve, plot_curves
from pldcli.runs.checkpoint import Position
from pldcli.runs.metrics import read_metrics, validation_key
from pldcli.runs.run_directory import RunDirectory, read_starts
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
    steps = [row["step"] for row in training]
    causal = [row for row in training if "train/clm_loss" in row]
    others = [row for row in training if "train/clm_loss" not in row]
    validation = [(row["step"], row[name]) for row in rows if (name := validation_key(row)) and row[name] is not None]
    losses = [
        Curve("training, kept blocks only", [row["step"] for row in others], [row["train/loss"] for row in others]),
        Curve("validation, full depth", [step for step, _ in validation], [loss for _, loss in validation], "points"),
    ]
    if causal:  # beside steps of another kind
        next_tokens = [row["step"] for row in causal], [row["train/clm_loss"] for row in causal]
        losses.append(Curve("training, next tokens", *next_tokens, "points"))
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
    evaluation: dict[str, Any] = next((row for row in reversed(rows) if (key := validation_key(row)) and row[key] is not None), {})
    training: dict[str, Any] = next((row for row in reversed(rows) if row.get("train/loss") is not None), {})
    counts = prepared.manifest["counts"]
    names = [Path(source["name"]).name for source in prepared.manifest["sources"]]
    sources = ", ".join(names[:_MOST_NAMES]) + f" and {len(names) - _MOST_NAMES} more files" * (len(names) > _MOST_NAMES)
    unknown = "".join(f", {share:.2%} of the {split} tokens unknown" for split, share in unknown_shares(counts).items())
    causal = config.objective.is_causal
    task, auto, kind = ("text-generation", "CausalLM", "clm") if causal else ("fill-mask", "MaskedLM", "mlm")
    scored, where = ("next-token loss (full depth)", "next") if causal else ("masked-LM loss (full depth, fixed masks)", "masked")
    lengths = ", ".join(f"{length:,}" for length in config.curriculum.sequences_by_length)
    hardware = f"{start.get('hardware', 'unknown')}, {start.get('precision', '')}"
    place = json.dumps(str(run.model), ensure_ascii=False)
    workers = f"{start.get('processes', 1)} process(es), {start.get('threads', '?')} thread(s)"
    heads = ["next-sentence"] * config.objective.next_sentence + ["span-boundary"] * config.objective.span_boundary
    left_out = "".join(f"\nIt was trained with a {head} head, which is left out of `model/`.\n" for head in heads)
    shape = (
        f"{config.model.norm.capitalize()}-LN (`{model_type_of(dict(config.model), causal=causal)}`) {'decoder' if causal else 'encoder'}"
    )
    return f"""---
library_name: transformers
pipeline_tag: {task}
tags: [pldcli, progressive-layer-dropping, {"causal-lm" if causal else "masked-lm"}]
---

# {markdown_text(run.path.name)}

A {shape} with {config.model.num_hidden_layers} blocks of width {config.model.hidden_size}, pre-trained with pldcli {__version__}.
{_windows(config.model)}Progressive layer dropping: {describe_dropping(config)}. All blocks run when the model is used.
{left_out}
```python
from transformers import AutoModelFor{auto}, AutoTokenizer

model = AutoModelFor{auto}.from_pretrained({place})
tokenizer = AutoTokenizer.from_pretrained({place})
```

## How it was made

{indent(command, "    ")}

| | |
|---|---|
| data | {markdown_text(sources)}: {counts["train"]["documents"]:,} documents, {counts["train"]["tokens"]:,} tokens |
| vocabulary | {prepared.vocab_size:,} entries{unknown} |
| seen | {position.tokens:,} tokens in {position.sequences:,} sequences of {lengths}, {position.step:,} steps |
| one step | {config.curriculum.describe()} tokens |
| objective | {_objective(config)} |
| executed | {quantity(position.executed_flops)}FLOP, forward and backward, dropped blocks not counted |
| training time | {duration(position.train_seconds)} ({duration(position.wall_seconds)} with validation and saving) |
| hardware | {markdown_text(f"{hardware}, {workers}")} |
| seed | {config.train.seed} |

## Results

| | |
|---|---|
| training loss of the last step | {_number(training.get("train/loss"))} |
| validation {scored} | {_number(evaluation.get(f"eval/{kind}_loss"))} |
| the same of the unigram baseline (token frequencies, no context) | {_number(evaluation.get("eval/frequency_loss"))} |
| validation perplexity | {_number(evaluation.get("eval/perplexity"))} |
| validation accuracy on {where} tokens | {_number(evaluation.get(f"eval/{kind}_accuracy"))} |

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


def _objective(config: Config) -> str:
    objective = config.objective
    shares = " to ".join(f"{share:.0%}" for share in dict.fromkeys(objective.mask_probabilities))
    masked = f"masked LM, {shares} of the tokens" + f" by {objective.masking}" * (objective.masking != "token")
    masked += " + next sentence" * objective.next_sentence + " + span boundary" * objective.span_boundary
    exits = f", after {', '.join(map(str, config.exits))} and all of the blocks" if config.exits else ""
    if objective.kind == "masked":
        return masked + (f"; causal LM in {objective.causal_share:.0%} of the steps" if objective.causal_share else "") + exits
    kinds = "causal LM" if objective.is_causal else f"a third of the steps each: {masked}; causal LM; next tokens behind a prefix"
    return kinds + exits


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
