"""`pld evaluate`: score a model."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["Device", "PrecisionChoice", "evaluate"]


class PrecisionChoice(StrEnum):
    """Number formats."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    AUTO = "auto"


class Device(StrEnum):
    """Where to run."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def evaluate(
    model: Annotated[
        Path | None,
        typer.Argument(
            metavar="[RUN or MODEL DIR]", help="A run, a checkpoint or a Hugging Face directory.", show_default="the latest run"
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="The prepared directory whose validation split is read.", show_default="the run's own, else data")
    ] = None,
    precision: Annotated[
        PrecisionChoice, typer.Option(help="Number format; fp32 gives the same number everywhere.")
    ] = PrecisionChoice.FP32,
    device: Annotated[Device, typer.Option(help="Where to run.")] = Device.AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure masked-LM loss, perplexity and accuracy on the validation split, all blocks running, on fixed masks."""
    from pldcli.engine import evaluate as engine
    from pldcli.engine.model_source import latest_run

    target = model or latest_run()
    if model is None:
        typer.echo(f"evaluating {target}", err=True)
    result = engine.evaluate(target, data=data, precision=precision.value, device=device.value)
    score = result.score
    values = {
        "mlm_loss": score.mlm_loss,
        "perplexity": score.perplexity,
        "mlm_accuracy": score.mlm_accuracy,
        "num_targets": score.num_targets,
        "tokens_per_second": score.tokens_per_second,
    }
    if as_json:
        typer.echo(json.dumps(values))
        return
    typer.echo(f"{result.source} on {result.data}, validation split, {result.seq_len} tokens per row, {result.precision}")
    for name, text in (
        ("masked-LM loss", f"{score.mlm_loss:.4f}"),
        ("perplexity", f"{score.perplexity:.2f}"),
        ("accuracy", f"{score.mlm_accuracy:.4f}"),
        ("targets", f"{score.num_targets:,}"),
        ("tokens/s", f"{score.tokens_per_second:,.0f}"),
    ):
        typer.echo(f"{name:<16}{text}")
