"""`pld pretrain`: train an encoder."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pldcli.commands.config import Overrides, complete_preset

if TYPE_CHECKING:
    from pldcli.config import Config
    from pldcli.pretraining.pretrain import DryRun, PretrainResult

__all__ = ["pretrain"]


def pretrain(
    overrides: Overrides = None,
    preset: Annotated[str, typer.Option(help="A shipped preset or a YAML file.", autocompletion=complete_preset)] = "bert-base-pld",
    data: Annotated[Path, typer.Option(help="The prepared directory.")] = Path("data"),
    out: Annotated[Path | None, typer.Option(help="The run directory.", show_default="runs/PRESET")] = None,
    init_from: Annotated[
        str | None,
        typer.Option(
            help="Begin with the weights of a run, a checkpoint or a Hugging Face directory; short for train.init_from=...",
            show_default=False,
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Train for so long (24h, 90m): steps are timed once, and train.total_steps is set.", show_default=False),
    ] = None,
    resume: Annotated[str, typer.Option(help="auto, never, or the path of a checkpoint.")] = "auto",
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda; short for runtime.device=...", show_default=False)] = None,
    allow_bin: Annotated[
        bool, typer.Option("--allow-bin", help="Let --init-from read pytorch_model.bin, through torch's weights-only loader.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what the run would take and stop.")] = False,
) -> None:
    """Pre-train an encoder with layer dropping; a run that was stopped goes on.

    Several GPUs: torchrun --nproc-per-node 8 -m pldcli pretrain ...
    """
    from pldcli.presets import resolve

    wanted = [
        *(overrides or []),
        *([f"runtime.device={device}"] if device else []),
        *([f"train.init_from={init_from}"] if init_from else []),
    ]
    first = resolve(preset, wanted).config  # what is wrong without the data shows before it is read
    from pldcli.data.shards import read_vocab_size

    if budget is not None:
        from pldcli.bench.step_time import parse_seconds

        seconds = parse_seconds(budget, "--budget")
    place = out or Path("runs") / Path(preset).stem
    goes_on = None if dry_run or resume == "never" else place if resume == "auto" else Path(resume)
    vocabulary = {"model.vocab_size": read_vocab_size(data)}
    config = resolve(preset, wanted, from_data=vocabulary, from_model=_shape_of(first.train.init_from, goes_on, allow_bin)).config
    if budget is not None:
        config = _within(config, seconds, data, goes_on)
    from pldcli.pretraining import pretrain as engine

    if dry_run:
        dry = engine.dry_run(config, data=data, allow_bin=allow_bin)
        if dry.is_main:
            _show_dry_run(dry)
        return
    result = engine.pretrain(config, data=data, out=place, resume=resume, command=_command_line(), allow_bin=allow_bin)
    if result.is_main:
        _show(result, data)


def _within(config: Config, seconds: float, data: Path, goes_on: Path | None) -> Config:
    """Set the number of steps that fit into a budget; a run that goes on keeps its own."""
    from pldcli.bench.budget import calibrate
    from pldcli.console.units import duration
    from pldcli.presets import load

    stored = goes_on / "config.yaml" if goes_on else None
    if stored is not None and stored.is_file():
        total_steps = load(stored).train.total_steps
        typer.echo(f"{total_steps:,} steps, as the run that is there", err=True)
    else:
        found = calibrate(config, data=data, seconds=seconds)
        total_steps = found.total_steps
        typer.echo(f"a step takes {found.step_seconds * 1e3:,.1f} ms here: {total_steps:,} steps in {duration(seconds)}", err=True)
    return config.replace(train={"total_steps": total_steps})


def _shape_of(init_from: str | None, goes_on: Path | None, allow_bin: bool) -> dict[str, Any]:
    """Read the shape of the model that a run begins with; dropout stays the run's own.

    Args:
        init_from: That model.
        goes_on: A run or checkpoint to go on with, which needs that model no more; None to begin.
        allow_bin: Read a pickle of weights.
    """
    if init_from is None:
        return {}
    from pldcli.engine.checkpoint import list_checkpoints
    from pldcli.engine.model_source import open_model
    from pldcli.engine.run_directory import RunDirectory
    from pldcli.presets import load

    run = RunDirectory(goes_on) if goes_on and (goes_on / "config.yaml").is_file() else None
    if run and ((run.path / "state.json").is_file() or list_checkpoints(run.checkpoints) or run.has_model):
        settings = load(run.config).model
    else:
        loaded = open_model(Path(init_from), allow_bin=allow_bin)
        if loaded.without_masked_lm:
            typer.echo(f"note: {init_from} {loaded.without_masked_lm}: that head begins at random", err=True)
        settings = loaded.settings
    return {f"model.{name}": value for name, value in settings if name != "dropout"}


def _command_line() -> str:
    """Write down what was typed."""
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
    program = ["pld"] if processes == "1" else ["torchrun", "--nproc-per-node", processes, "-m", "pldcli"]
    return shlex.join([*program, *sys.argv[1:]])


def _show(result: PretrainResult, data: Path) -> None:
    from pldcli.console.units import duration, quantity
    from pldcli.huggingface.read_back import describe

    run, position = result.run, result.position
    following = f"next: {shlex.join(['pld', 'evaluate', str(run.path), '--data', str(data)])}"
    if result.was_finished:
        typer.echo(f"{run.path} is finished: {position.step:,} steps, model in {run.model}; {following}")
        return
    typer.echo(f"finished {position.step:,} steps, {quantity(position.tokens)} tokens in {duration(position.train_seconds)} of training")
    if (score := result.score) is not None:
        typer.echo(f"validation loss {score.mlm_loss:.4f}, perplexity {score.perplexity:.2f}, accuracy {score.mlm_accuracy:.3f}")
    if result.has_read_context is False:
        typer.echo(
            f"note: token frequencies alone reach {result.frequency_loss:.4f}: this model has hardly learned from context yet; train "
            "longer (a small model gets there sooner with model.attention_init=local, objective.mask_probability=0.3 and a smaller batch)"
        )
    typer.echo(f"model {run.model} ({describe(result.reload_difference, result.reload_failure)})")
    if result.reload_failure is not None:
        typer.echo(f"warning: {run.model}: {result.reload_failure}", err=True)
    typer.echo(f"card {run.card}\n{following}")


def _show_dry_run(dry: DryRun) -> None:
    from pldcli.console.units import duration, quantity
    from pldcli.presets import dump

    estimated, groups = dry.estimate, dry.config.pld.draws_per_step
    saved = 1.0 - estimated.flops_per_token_scheduled / estimated.flops_per_token_dense
    rows = {
        "parameters": f"{estimated.num_parameters:,}",
        "FLOP per token, dense": quantity(estimated.flops_per_token_dense),
        "FLOP per token, scheduled": f"{quantity(estimated.flops_per_token_scheduled)} (mean over the run, {saved:.1%} saved)",
        "tokens": f"{estimated.num_tokens:,} in {estimated.num_sequences:,} sequences ({estimated.packing_efficiency:.1%} of the rows)",
        "passes over the text": f"{estimated.passes:.2f}",
        "device": f"{dry.device}, {dry.precision}, {dry.world_size} process(es)",
        "one step": f"{groups} gate group(s) x {dry.micro_steps} forward(s) x {dry.micro_batch_size} sequences per process",
        "memory": f"about {estimated.memory_bytes / 1e9:.1f} GB per process",
        "disk": f"about {estimated.disk_bytes / 1e9:.2f} GB, a checkpoint {estimated.checkpoint_bytes / 1e9:.2f} GB",
        "time": f"about {duration(estimated.seconds or 0.0)} on this machine, from measured steps",
    }
    typer.echo(dump(dry.config))
    for name, value in rows.items():
        typer.echo(f"{name:<26}{value}")
    for warning in dry.warnings:
        typer.echo(f"warning: {warning}")
