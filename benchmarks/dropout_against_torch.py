"""Dropout on a CPU, ours against torch's: alone, and as a share of training steps. A section of benchmarks/loader.py."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from measuring import documentation, packaged_model, rotated, say, steps_in_turn, timed
from pldcli import attention as attention_module
from pldcli import dropout as dropout_module
from pldcli import presets
from pldcli.data.prepared import PreparedData
from pldcli.engine.runtime import Runtime, launch
from pldcli.finetuning import assembly
from pldcli.finetuning.config import FinetuneConfig
from pldcli.finetuning.experiment import Experiment
from pldcli.finetuning.inputs import RunInputs
from pldcli.pretraining.assembly import build_trainer
from reporting import head, row, spread

__all__ = ["ask_dropout"]

PROBABILITY = 0.1
SHAPES = ((32, 128, 256), (32, 128, 768))
"""Of what is dropped from: sequences, tokens, width."""
FORMATS = {"bf16": torch.bfloat16, "fp32": torch.float32}
REPEATS = 5
WAYS: Mapping[str, Callable[[Tensor, float], Tensor]] = {"ours": dropout_module.dropout, "torch": functional.dropout}
TRAINED = {"torch": PROBABILITY, "ours": PROBABILITY, "none": 0.0}
"""How steps are trained, and with which probability."""
SEQUENCES, TOKENS = 32, 128
LEAST_CHARACTERS = 8 * TOKENS
"""Of a text: more than fill a row."""
WARM_UP_STEPS = 2


def ask_dropout(prepared: PreparedData, scratch: Path, options: argparse.Namespace) -> str:
    """Time dropout of both kinds."""
    with launch("cpu") as runtime:
        lines = ["## Dropout on a CPU", "", *alone(runtime, options.rounds), "", SHARES_NOTE, "", head(*SHARE_COLUMNS)]
        for name, trainers in (
            finetuning(scratch, runtime, options),
            pretraining(prepared, runtime, options),
        ):
            lines.append(share_of_step(name, trainers, options.steps))
            say(lines[-1])
    return "\n".join(lines)


# Alone


def alone(runtime: Runtime, rounds: int) -> list[str]:
    """Time both on the same values, forward and with the backward pass."""
    lines = [head("values", "format", "ours, ms", "torch's, ms", "torch / ours, forward", "forward and backward")]
    for shape in SHAPES:
        for name, dtype in FORMATS.items():
            x = torch.randn(shape).to(dtype).requires_grad_()
            forward, both = (in_turn(runtime, x, rounds, backward=backward) for backward in (False, True))
            milliseconds = [spread([1e3 * seconds for seconds in forward[way]], 3) for way in WAYS]
            ratios = [spread([b / a for a, b in zip(found["ours"], found["torch"], strict=True)]) for found in (forward, both)]
            lines.append(row(" x ".join(map(str, shape)), name, *milliseconds, *ratios))
            say(lines[-1])
    return lines


def in_turn(runtime: Runtime, x: Tensor, rounds: int, *, backward: bool) -> dict[str, list[float]]:
    """Time both ways in turn; the first turn warms up."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    upstream = torch.ones_like(x)

    def work(drop: Callable[[Tensor, float], Tensor]) -> None:
        for _ in range(REPEATS):
            dropped = drop(x, PROBABILITY)
            if backward:
                torch.autograd.grad(dropped, x, upstream)

    for turn in range(rounds + 1):
        for way in rotated(list(WAYS), turn):
            taken = timed(runtime, partial(work, WAYS[way])) / REPEATS
            if turn:
                seconds[way].append(taken)
    return seconds


# As a share of a step

SHARE_COLUMNS = ("step", "torch's, ms", "ours, ms", "no dropout, ms", "torch / ours", "share of a step, torch's", "ours")
SHARES_NOTE = (
    f"Whole training steps of {SEQUENCES} rows of {TOKENS} tokens, dropout {PROBABILITY:g} everywhere. A share is what a step without "
    f"dropout lacks; in fp32 attention without dropout takes another kernel, which counts in it too."
)


def finetuning(scratch: Path, runtime: Runtime, options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Put together the fine-tuning of a checkpoint, once for each way, on texts that fill their rows."""
    texts = documentation(scratch).read_text(encoding="utf-8").split("\n\n")
    long = [text for text in texts if len(text) >= LEAST_CHARACTERS] or texts
    rows = islice(cycle(long), SEQUENCES * (options.steps + WARM_UP_STEPS))
    task = scratch / "texts.jsonl"
    task.write_text("".join(json.dumps({"text": text, "label": "ab"[i % 2]}) + "\n" for i, text in enumerate(rows)), encoding="utf-8")
    start = options.model or packaged_model()
    experiment = Experiment(str(task), str(start), files={"validation": str(task)}, text_columns=("text",), label_column="label")
    inputs = RunInputs(experiment)
    settings = FinetuneConfig(batch_size=SEQUENCES, max_seq_len=TOKENS, epochs=1.0, precision=options.precision)
    trainers = {way: assembly.build_trainer(inputs, settings.replace(dropout=probability), runtime) for way, probability in TRAINED.items()}
    shape, precision = inputs.start.settings, trainers["ours"].precision.name
    blocks = f"{shape.num_hidden_layers} x {shape.hidden_size}, V {shape.vocab_size:,}"
    return f"fine-tuning, {blocks}, {precision}, {mean_tokens(inputs, settings):.0f} tokens a row", trainers


def mean_tokens(inputs: RunInputs, settings: FinetuneConfig) -> float:
    return float(inputs.rows(settings).train.lengths.mean())


def pretraining(prepared: PreparedData, runtime: Runtime, options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Put together the pre-training of a preset, once for each way."""
    trainers = {}
    for way, probability in TRAINED.items():
        changes = [
            *options.set,
            f"model.dropout={probability}",
            f"data.seq_len={TOKENS}",
            f"train.global_batch_size={SEQUENCES}",
            f"train.total_steps={options.steps + WARM_UP_STEPS}",
            f"runtime.precision={options.precision}",
        ]
        config = presets.resolve(options.preset, changes, from_data={"model.vocab_size": prepared.vocab_size}).config
        trainers[way] = build_trainer(config, prepared, runtime)
    blocks = f"{config.model.num_hidden_layers} x {config.model.hidden_size}, V {config.model.vocab_size:,}"
    return f"pre-training, {options.preset}, {blocks}, {trainers['ours'].precision.name}", trainers


def share_of_step(name: str, trainers: Mapping[str, Any], steps: int) -> str:
    """Compare whole steps with torch's dropout, with ours, and with none."""
    seconds, _ = steps_in_turn(trainers, warm_up_steps=WARM_UP_STEPS, steps=steps, around=dropping)
    milliseconds = [spread([1e3 * taken for taken in seconds[way]], 1) for way in TRAINED]
    shares = [[1.0 - none / taken for none, taken in zip(seconds["none"], seconds[way], strict=True)] for way in ("torch", "ours")]
    ratios = [theirs / ours for theirs, ours in zip(seconds["torch"], seconds["ours"], strict=True)]
    return row(name, *milliseconds, spread(ratios), *(spread(share, 3) for share in shares))


@contextmanager
def dropping(way: str) -> Iterator[None]:
    """Let the model drop in one of the ways."""
    chosen = WAYS.get(way, dropout_module.dropout)
    with mock.patch.object(dropout_module, "dropout", chosen), mock.patch.object(attention_module, "dropout", chosen):
        yield
